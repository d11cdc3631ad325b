"""Draws one row for each of several checkpoints, as soon as it is known, and a total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wncli.cli.inspections import note_text
from wncli.cli.page import Page, Part, cells, shortened
from wncli.cli.reports import done
from wncli.cli.terminal import show, width_of_screen
from wncli.cli.units import size, sizes
from wncli.errors import printable

if TYPE_CHECKING:
    from wncli.report import Report

#: The names' column on a terminal: at most this share of it.
_SHARE = 0.4
_MARKS: dict[str, Part] = {
    "done": ("✓", "bold green"),
    "nothing": ("-", "dim"),
    "failed": ("✗", "bold red"),
}


class Rows:
    """Rows under one another: how wide the names are is known before the first.

    `widths` are those of what is said of a checkpoint; the first is flush left.
    """

    def __init__(self, checkpoints: Sequence[str], widths: Sequence[int]) -> None:
        self.widths = widths
        names = [printable(name) for name in checkpoints]
        self.room = max(map(cells, names), default=0)
        screen = width_of_screen()
        #: On a terminal that is too narrow the last numbers go, the first and what is open stay.
        self.kept = list(range(len(widths)))
        if screen is not None:
            self.room = min(self.room, int(screen * _SHARE))
            numbers = [at for at, width in enumerate(widths) if at and width]
            while numbers and self.room + 3 + sum(2 + widths[at] for at in self.kept) > screen:
                self.kept.remove(numbers.pop())

    def show(self, kind: str, checkpoint: str, text: tuple[str, ...]) -> None:
        """Print a row: a mark, the name, and what there is to say."""
        name = printable(checkpoint)
        if cells(name) > self.room:
            name = shortened(name, self.room, "…")
        name += " " * (self.room - cells(name))
        line = "  ".join(
            f"{printable(part):{'>' * (at > 0)}{width}}"
            for at, (part, width) in enumerate(zip(text, self.widths, strict=False))
            if at in self.kept or len(text) == 1
        )
        page = Page()
        page.line(" ", _MARKS[kind], f" {name}  {line}".rstrip(), hang=self.room + 5)
        show(page)


#: How wide what `written_row` and `inspected_row` say is.
WRITTEN = (28, 18)
INSPECTED = (22, 8, 11, 0)


def written_row(report: Report) -> tuple[str, ...]:
    """Say what became of a checkpoint: of its layers, and of its size."""
    return done(report), sizes(report.checkpoint_bytes, report.output_bytes or 0)


def inspected_row(report: Report) -> tuple[str, ...]:
    """Say how much of a checkpoint has weight norm, how large it is, and what it needs."""
    share = f"{len(report.layers):,} of {report.normalizable:,}" if report.layers else ""
    namings = "/".join(sorted({layer.naming for layer in report.layers}))
    normalized = f"{share} {namings}" if share else "no weight norm"
    numbers = (size(report.checkpoint_bytes), f"{report.parameters.before:,}")
    needs = ", ".join(_needs(report))
    return normalized, *numbers, needs


def _needs(report: Report) -> list[str]:
    """Name what stands in the way of a plain `wn remove`, or of loading it."""
    found = ["runs code"] if report.would_run else []
    found += ["pickled objects"] if report.unsafe and not found else []
    found += [f"{len(report.roots):,} state dicts"] if len(report.roots) > 1 else []
    return found + sorted({note.code for note in report.notes if note.is_warning})


def warnings_of(report: Report) -> list[tuple[str, str]]:
    """Return what may need action of one checkpoint among several."""
    if report.command == "inspect":
        return []
    return [
        ("warning", f"{report.checkpoint}: {note_text(report, note)}")
        for note in report.notes
        if note.is_warning
    ]


def show_total(counts: Counter[str], what: str, reports: Sequence[Report] = ()) -> None:
    """Print how many came to what."""
    words = [f"{counts['done']:,} {what}"]
    words += [f"{counts['nothing']:,} without weight norm"] if counts["nothing"] else []
    words += [f"{counts['failed']:,} failed"] if counts["failed"] else []
    page = Page()
    page.line((" " + "─" * ((width_of_screen() or 80) - 2), "dim"))
    total = f" {', '.join(words)}"
    if reports:
        parameters = sum(report.parameters.before for report in reports)
        nbytes = sum(report.checkpoint_bytes for report in reports)
        total += f" · {size(nbytes)} · {parameters:,} parameters"
    page.line(total, hang=3)
    show(page)
