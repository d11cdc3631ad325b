"""Folders and indexes of shards, as `save_pretrained` writes them."""
