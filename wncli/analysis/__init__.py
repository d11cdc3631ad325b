"""What reads tensors and writes nothing: comparisons and checks."""
