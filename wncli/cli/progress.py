"""The progress bar: on stderr, on a terminal only, and only where something takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from wncli.cli.terminal import console
from wncli.storage.signals import unfinished

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from wncli.parallel import Progress

#: Seconds before a progress bar is worth showing, and from one drawing to the next.
_PATIENCE = 0.5
_REDRAW = 0.1


@contextmanager
def progress_bar(what: str, *, quiet: bool) -> Iterator[Progress]:
    """Give a function that takes bytes done and in all; draw on a terminal if it takes long."""
    if quiet or not sys.stderr.isatty():
        yield lambda _count, _total: unfinished.end_if_interrupted()
        return
    bar = _Bar(what)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    """A progress bar that is drawn once it takes long, by whoever makes progress."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.start = time.monotonic()
        self.done = 0
        self.drawn = self.start
        self.progress: RichProgress | None = None
        #: A drawn bar is to be wiped away, and the cursor shown again.
        self.drawing = ExitStack()

    def advance(self, count: int, total: int) -> None:
        unfinished.end_if_interrupted()
        self.done += count
        now = time.monotonic()
        if now - self.start < _PATIENCE or now - self.drawn < _REDRAW:
            return
        self.drawn = now
        progress = self.progress or self.begin(total)
        progress.update(progress.task_ids[0], completed=self.done, refresh=True)

    def begin(self, total: int) -> RichProgress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        progress = Progress(
            *columns, console=console(sys.stderr), transient=True, auto_refresh=False
        )
        progress.add_task(self.what, total=total)
        self.drawing.enter_context(unfinished)
        self.progress = progress  # before it starts: an interruption may come in between
        progress.start()
        return progress

    def stop(self) -> None:
        if self.progress:
            from wncli.storage.temporary import uninterrupted

            with self.drawing, uninterrupted():
                self.progress.stop()
