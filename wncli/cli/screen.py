"""Everything that is printed: reports on stdout; warnings, errors and progress on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wncli.errors import printable
from wncli.naming import join

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from wncli.api import Progress
    from wncli.notes import Note
    from wncli.report import Layer, Report

#: Seconds before a progress bar is worth showing.
_PATIENCE = 0.5
#: On a terminal with fewer columns, tables keep to what tells the layers apart.
_NARROW = 80
#: Columns for output that no terminal bounds: nothing is cut off.
_UNBOUNDED = 10_000

_LOOKS = {
    "error": "bold red",
    "warning": "bold yellow",
    "nothing to do": "bold",
}


def show(report: Report, *, json: bool, quiet: bool) -> None:
    """Print a report: as JSON, as names alone (`inspect` under `quiet`), or for people."""
    if json:
        from json import dumps

        print(dumps(report.to_json(), indent=2))
        return
    if not quiet:
        _show_to_people(report)
    elif report.command == "inspect":
        for name in dict.fromkeys(map(_weight, report.layers)):
            print(printable(name))


def _show_to_people(report: Report) -> None:
    console = _console()
    with console.capture() as captured:
        _show_headline(console, report)
        if report.layers:
            _show_layers(console, report)
        elif report.command == "inspect":
            console.print("\n  no weight norm\n")
        if report.command == "inspect":
            _show_contents(console, report)
        _show_parameters(console, report)
        for note in report.notes:
            if not note.is_warning:
                _print(console, "  ", ("note: ", "dim"), (_note(report, note), ""))
    for line in captured.get().splitlines():
        print(line.rstrip())
    sys.stdout.flush()
    for note in report.notes:
        if note.is_warning:
            show_refusal("warning", _note(report, note))


def _note(report: Report, note: Note) -> str:
    """A note's message, with the place where several state dicts may have the same names."""
    elsewhere = len(report.roots) > 1 and note.where and note.where not in note.message
    return printable(f"{note.where}: {note.message}" if elsewhere else note.message)


def show_refusal(kind: str, message: str) -> None:
    """Print an error, a warning or the like on stderr, its further lines indented."""
    console = _console(stderr=True)
    first, *rest = message.split("\n")
    _print(console, (f"{kind}: ", _LOOKS[kind]), (printable(first), ""))
    for line in rest:
        label, colon, text = line.partition(":")
        _print(console, (label + colon, "dim"), (printable(text), ""))


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Progress]:
    """A function that takes bytes done and bytes in all; draws on a terminal if it takes long."""
    if quiet or not sys.stderr.isatty():
        yield lambda _count, _total: None
        return
    bar = _Bar()
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    """The progress of several threads, drawn by whichever comes first once it takes long."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.done = 0
        self.lock = threading.Lock()
        self.progress: RichProgress | None = None
        self.over = False

    def advance(self, count: int, total: int) -> None:
        with self.lock:
            self.done += count
            if not (self.progress or self.over) and time.monotonic() - self.start > _PATIENCE:
                self.progress = self.begin(total)
            if self.progress and not self.over:
                self.progress.update(self.progress.task_ids[0], completed=self.done)

    @staticmethod
    def begin(total: int) -> RichProgress:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=_console(stderr=True), transient=True)
        progress.add_task("writing", total=total)
        progress.start()
        return progress

    def stop(self) -> None:
        with self.lock:
            self.over = True
            if self.progress:
                self.progress.stop()


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    from rich.text import Text

    console.print(Text.assemble(*parts), soft_wrap=True)


def _show_headline(console: Console, report: Report) -> None:
    name = printable(report.checkpoint)
    if report.output is None:
        _print(console, (name, "bold"), f"  {report.format}")
        return
    verb = {"apply": "normalized", "remove": "folded"}[report.command]
    count = f"{len(report.layers)} layer{'s' if len(report.layers) != 1 else ''}"
    done = f"  would be {verb}: {count} (dry run)" if report.dry_run else f"  {count} {verb}"
    output = f"{printable(report.output)} ({report.output_format})"
    _print(console, name, (" → ", "dim"), (output, "bold"), done)


def _layer_cells(report: Report) -> list[tuple[str, ...]]:
    """The table of layers, its header first; the root only where there are several."""
    several = len({layer.root for layer in report.layers}) > 1
    rows: list[tuple[str, ...]] = [("root", "layer", "dim", "shape", "dtype", "g and v")]
    rows += [
        (
            printable(layer.root),
            printable(_weight(layer)),
            "none" if layer.dim is None else str(layer.dim),
            " x ".join(map(str, layer.shape)),
            layer.dtype,
            printable(_pair(layer)),
        )
        for layer in report.layers
    ]
    return rows if several else [row[1:] for row in rows]


def _show_layers(console: Console, report: Report) -> None:
    header, *rows = _layer_cells(report)
    if console.width == _UNBOUNDED:
        for line in _aligned(header, rows):
            console.out(line, highlight=False)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    kept = len(header) - (2 if console.width < _NARROW else 0)
    table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for name in header[:kept]:
        table.add_column(name, overflow="fold", justify="right" if name == "dim" else "left")
    for row in rows:
        table.add_row(*map(Text, row[:kept]))
    console.print(table)


def _aligned(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table that no width bounds; thousands of rows take no time."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    dim = header.index("dim")
    lines = [
        " " + "   ".join(
            cell.rjust(width) if place == dim else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (header, *rows)
    ]  # fmt: skip
    rule = " " + "─" * (sum(widths) + 3 * (len(widths) - 1))
    return ["", lines[0], rule, *lines[1:], ""]


def _show_contents(console: Console, report: Report) -> None:
    """What `inspect` says of the state dicts and of everything else in the file."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 3))
    for root in report.roots:
        summary = f"state dict, {_many(root.tensors, 'tensor')}, {root.parameters:,} parameters"
        if root.normalized:
            summary += f", {_many(root.normalized, 'layer')} normalized"
        table.add_row(Text(f"  {printable(root.root) or '(top)'}"), Text(summary))
    for entry in report.entries:
        table.add_row(
            Text(f"  {printable(entry.path)}", "dim"), Text(printable(entry.summary), "dim")
        )
    console.print(table)
    if report.unsafe:
        names = ", ".join(map(printable, report.unsafe))
        _print(console, "\n  torch.load(weights_only=True) refuses: ", (names, "yellow"))
    console.print()


def _show_parameters(console: Console, report: Report) -> None:
    counts = report.parameters
    change = f"{counts.before:,} → {counts.after:,} ({counts.change:+,})"
    if report.command == "inspect":
        if not counts.change:
            change = f"{counts.before:,}"
        else:
            change += " if weight norm is removed"
    _print(console, "  parameters ", (change, "bold"), ("  (buffers count too)", "dim"))


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def _pair(layer: Layer) -> str:
    """The names of g and v below their module: `weight_g, weight_v`."""
    g = layer.g.removeprefix(f"{layer.module}.")
    return f"{g}, {layer.v.rpartition('.')[2]}"


def _weight(layer: Layer) -> str:
    return join(layer.module, layer.parameter)
