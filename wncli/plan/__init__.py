"""What a command does to each tensor, decided before any data is read."""
