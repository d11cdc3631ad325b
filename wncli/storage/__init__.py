"""Where bytes are, and how a file takes its place."""
