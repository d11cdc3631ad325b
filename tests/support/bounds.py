"""Bounds what a block may take: seconds by the clock, and memory beyond what the process has."""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SECONDS = 5
NBYTES = 300 << 20
#: Where a signal is not enough, because something hangs outside Python, the process is ended.
_LAST = 6 * SECONDS
_STATM = Path("/proc/self/statm")


class TooLongError(Exception):
    """The seconds are over."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise `TooLongError` after `SECONDS`, and `MemoryError` where `NBYTES` do not suffice.

    Memory is bounded on Linux alone.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if _STATM.exists():
        pages = int(_STATM.read_text().split()[5])
        most = pages * resource.getpagesize() + NBYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    before = signal.signal(signal.SIGALRM, _too_long)
    faulthandler.dump_traceback_later(_LAST, exit=True, file=sys.__stderr__ or sys.stderr)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TooLongError
