"""What a checkpoint is: frozen values, neither files nor NumPy."""
