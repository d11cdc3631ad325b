"""NumPy's arrays: in pickles, and in .npz files."""
