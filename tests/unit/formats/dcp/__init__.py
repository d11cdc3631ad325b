"""Sharded checkpoints and the folders that they are in."""
