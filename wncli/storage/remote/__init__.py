"""Files on other machines, read part by part: web servers, the Hugging Face Hub, object stores."""
