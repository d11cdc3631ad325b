"""Bytes to checkpoints and back; knows no plan."""
