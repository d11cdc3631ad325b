"""What the tests share: runs, oracles, layers, strategies, faults."""
