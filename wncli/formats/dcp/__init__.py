"""Distributed checkpoints of `torch.distributed.checkpoint`: tensors in boxes, a box an item."""
