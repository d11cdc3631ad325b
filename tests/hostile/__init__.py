"""Files that lie, run something, or cost too much."""
