"""Every byte range written; then the output takes its place."""
