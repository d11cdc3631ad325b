"""What others made and others read, held against them."""
