"""The readers and writers of the formats."""
