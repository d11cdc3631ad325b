"""Runs that are killed, interrupted, refused by the system."""
