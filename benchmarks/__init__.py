"""Measures `wn`: `python -m benchmarks.run`, see README.md."""
