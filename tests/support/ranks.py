"""Runs a function on several ranks, each a process of its own, over gloo."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import spawn

RANKS = 2


def on_ranks(function: Callable[[Path], None], folder: Path, count: int = RANKS) -> None:
    """Call a function of a module with a folder on each rank; what one raises is raised here."""
    spawn(_run, (function, folder, count), nprocs=count)


def _run(rank: int, function: Callable[[Path], None], folder: Path, count: int) -> None:
    """Call it, and end without tearing down what PyTorch has started.

    A thread of gloo that is still running then ends a process that has succeeded in an abort.
    """
    torch.set_num_threads(1)
    store = FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    function(folder)
    store.set(f"done {rank}", "")
    store.wait([f"done {other}" for other in range(count)])
    os._exit(0)
