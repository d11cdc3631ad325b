"""The modules of the samples, one family a file, as they are without weight norm."""
