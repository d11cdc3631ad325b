"""Weight norm of arrays: arrays in, arrays out."""
