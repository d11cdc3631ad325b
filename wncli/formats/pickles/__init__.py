"""Pickles as inert data: read without importing or calling anything, and written again."""
