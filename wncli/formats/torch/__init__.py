"""PyTorch files: zip archives, legacy files and TorchScript, read without PyTorch."""
