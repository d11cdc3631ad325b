"""What a process and all that it starts have in memory together."""

from __future__ import annotations

import contextlib
from pathlib import Path


class Memory:
    """The most that was seen, in bytes; 0 where the system does not tell.

    Pages that several processes share are counted once (`Pss` of `smaps_rollup`, proc(5)), which
    `ru_maxrss` cannot: it knows one process, and counts what that shares in full.
    """

    def __init__(self) -> None:
        self.peak = 0

    def look(self, process: int) -> None:
        """Look at a process that is running."""
        self.peak = max(self.peak, sum(map(_proportional, _with_children(process))))


def _with_children(process: int) -> list[int]:
    found = [process]
    with contextlib.suppress(OSError):  # it has ended by now
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            found += _with_children(int(child))
    return found


def _proportional(process: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
