"""Fuzzes the readers: `python -m fuzz.differential` and others, see README.md."""
