"""Hostile and odd files, as tables."""
