"""The threads that move and compute tensor bytes, a few tensors at a time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

#: More only wait for the disk, or for Python.
_MOST = 4


def thread_count() -> int:
    """As many threads as there are processors to use, and a few at most."""
    return min(_MOST, os.cpu_count() or 1)


def thread_pool() -> ThreadPoolExecutor:
    """The threads of one run."""
    return ThreadPoolExecutor(thread_count())
