"""How the project is built, and that what it says of itself is true."""
