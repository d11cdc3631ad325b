"""Weight norm of tensors in files, block by block."""
