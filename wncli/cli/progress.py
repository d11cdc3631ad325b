"""The progress bar: on stderr, on a terminal only, and only where something takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from wncli.cli.terminal import console
from wncli.cli.units import size
from wncli.storage.signals import unfinished

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from wncli.parallel import Progress

#: Seconds before a progress bar is worth showing, and from one drawing to the next.
_PATIENCE = 0.5
_REDRAW = 0.1
#: Columns beside the bar, and the most and fewest that it has.
_BESIDE = 54
_LONGEST, _SHORTEST = 36, 8
#: How many of these the rate takes, with the time that is left.
_RATE = 19
#: Bytes from which on a rate tells something: before it, what is read says how long a start takes.
_TELLING = 1 << 20


@contextmanager
def progress_bar(phases: Sequence[str], *, quiet: bool, place: str = "") -> Iterator[Progress]:
    """Give a function that takes bytes done and in all; draw on a terminal if it takes long.

    Args:
        phases: what is done, one after the other, each with as many bytes.
        quiet: draw nothing.
        place: the file, and which of how many, where there are several.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _count, _total: unfinished.end_if_interrupted()
        return
    bar = _Bar(phases, place)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    """A bar for each phase, drawn once it takes long, by whoever makes progress."""

    def __init__(self, phases: Sequence[str], place: str) -> None:
        self.phases, self.place = phases, place
        self.phase = 0
        self.start = self.begun = self.drawn = time.monotonic()
        self.done = 0
        self.progress: RichProgress | None = None
        #: A drawn bar is to be wiped away, and the cursor shown again.
        self.drawing = ExitStack()

    def advance(self, count: int, total: int) -> None:
        unfinished.end_if_interrupted()
        self.done += count
        now = time.monotonic()
        share = max(1, total // len(self.phases))
        phase = min(self.done // share, len(self.phases) - 1)
        has_turned = phase != self.phase
        if has_turned:
            if self.progress:
                self.draw(self.phase, share, share, now)
            self.phase, self.begun = phase, now
        if now - self.start < _PATIENCE or (now - self.drawn < _REDRAW and not has_turned):
            return
        self.drawn = now
        self.draw(phase, self.done - phase * share, share, now)

    def draw(self, phase: int, done: int, total: int, now: float) -> None:
        progress = self.progress or self.begin(total)
        elapsed = now - self.begun
        rate = done / elapsed if elapsed else 0.0
        is_told = done >= _TELLING
        left = f"{(total - done) / rate:.0f} s" if is_told and rate and done < total else ""
        progress.update(
            progress.task_ids[phase],
            completed=done,
            total=total,
            amount=f"{size(done)} of {size(total)}",
            rate=f"{size(int(rate))}/s" if is_told and rate else "",
            left=left,
            refresh=True,
        )

    def begin(self, total: int) -> RichProgress:
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

        screen = console(sys.stderr)
        room = screen.width - _BESIDE - len(self.place)
        length = max(_SHORTEST, min(_LONGEST, room))
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=length),
            TextColumn("{task.percentage:>3.0f} %"),
        ]
        if room + _RATE >= _SHORTEST:  # where there is no place for all, the rate goes first
            columns.append(TextColumn("{task.fields[amount]}"))
        if room >= _SHORTEST:
            columns += [TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[left]}")]
        progress = Progress(
            *columns,
            console=screen,
            transient=True,
            auto_refresh=False,
        )
        for phase in self.phases:
            name = f"{phase}{self.place and ' '}{self.place}"
            progress.add_task(name, total=total, amount="", rate="", left="")
        self.drawing.enter_context(unfinished)
        self.progress = progress  # before it starts: an interruption may come in between
        progress.start()
        return progress

    def stop(self) -> None:
        if self.progress:
            from wncli.storage.temporary import uninterrupted

            with self.drawing, uninterrupted():
                self.progress.stop()
