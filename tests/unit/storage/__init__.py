"""Files: read, checked, replaced."""
