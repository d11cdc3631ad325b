"""Small checkpoints for trying `wn`, and what makes them: see README.md."""
