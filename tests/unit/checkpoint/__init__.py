"""What a checkpoint is: names, dims, keys."""
