"""PyTorch's formats."""
