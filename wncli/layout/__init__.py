"""Every file and every byte range of an output, before any data is read."""
