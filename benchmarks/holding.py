"""Keeps a page of every MB of free memory, as a process of its own, until its input ends.

A virtual machine may hand memory that is freed back to its host, and what asks for it next waits
for the host: on one such machine a program that writes 4 GB took 0.7 s, or 2.6 s after another had
freed gigabytes. Only whole blocks of some MB are handed back: the machine keeps those of which a
page is in use.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK = 1 << 20
#: Bytes that are left to those who need them meanwhile.
_LEFT = 1 << 30


@contextmanager
def held_memory() -> Iterator[None]:
    """Have it kept meanwhile; Linux alone hands it back."""
    if sys.platform != "linux":
        yield
        return
    command = [sys.executable, "-m", "benchmarks.holding"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin  # noqa: S101 - for the type checker
        assert holder.stdout  # noqa: S101 - for the type checker
        holder.stdout.readline()
        yield
        holder.stdin.close()


def hold() -> None:
    """Take all free memory, give back all but a page of each block, say so, and wait."""
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    nbytes = max(_BLOCK, (free - _LEFT) // _BLOCK * _BLOCK)
    held = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.madvise(mmap.MADV_NOHUGEPAGE)
    ones = b"\1" * _BLOCK
    for start in range(0, nbytes, _BLOCK):
        held[start : start + _BLOCK] = ones
    for start in range(0, nbytes, _BLOCK):
        held.madvise(mmap.MADV_DONTNEED, start + mmap.PAGESIZE, _BLOCK - mmap.PAGESIZE)
    print("held", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    hold()
