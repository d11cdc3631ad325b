"""Prints pages and messages: drawn by Rich on a terminal, as plain text elsewhere."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from wncli.cli.encoding import IN_ASCII
from wncli.cli.page import Page, Pairs, Table
from wncli.errors import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console

#: On a terminal with fewer columns, tables keep to what tells the rows apart.
NARROW = 80
#: Columns for colours that no terminal bounds: nothing is cut off.
_UNBOUNDED = 10_000

_LOOKS = {
    "error": "bold red",
    "warning": "bold yellow",
    "nothing to do": "bold",
}


class _Stream(io.RawIOBase):
    """What stdout or stderr leads to, where failing to print is no failure of what is printed.

    `failure` is why the device has not taken all of it: it is full, or the like. That nobody is
    there any more to read it is none.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.is_terminal = raw.isatty()
        self.failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write some of it, and drop it where that fails."""
        nbytes = memoryview(data).nbytes
        try:
            while (written := self.raw.write(data)) is None:  # a pipe that does not wait by itself
                _wait_for_room(self.raw)
        except OSError as error:
            has_reader = not (self.is_terminal or isinstance(error, ConnectionError))
            if has_reader and not self.failure:
                self.failure = error
            return nbytes
        return written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.is_terminal


def _wait_for_room(raw: io.RawIOBase) -> None:
    from select import select

    select([], [raw], [])


@contextmanager
def forgiving_streams() -> Iterator[_Stream]:
    """Have stdout and stderr take everything, also where they are closed; gives what stdout is.

    Typer and Rich print there as well, and would make an exit code of a failure. No character of
    a name fails either.
    """
    usual = sys.stdout, sys.stderr
    sys.stdout, stdout = _forgiving(sys.stdout)
    sys.stderr, _ = _forgiving(sys.stderr)
    try:
        yield stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = usual


def _forgiving(stream: TextIO | None) -> tuple[TextIO, _Stream]:
    if stream is None:
        raw = io.FileIO(os.devnull, "w")  # for good
    else:
        stream.flush()
        buffer: Any = stream.buffer  # under `python -u` it is the raw one itself
        raw = getattr(buffer, "raw", buffer)
    ours = _Stream(raw)
    text = io.TextIOWrapper(
        io.BufferedWriter(ours),
        encoding=stream.encoding if stream else "utf-8",
        errors=IN_ASCII,
        line_buffering=bool(stream and stream.line_buffering),
    )
    return text, ours


def show(page: Page) -> None:
    """Print a page on stdout, without blanks at the ends of lines."""
    for line in _lines(page, sys.stdout):
        print(line.rstrip())
    sys.stdout.flush()


def show_refusal(kind: str, message: str) -> None:
    """Print an error, a warning or the like on stderr, its further lines indented."""
    page = Page()
    first, *rest = message.split("\n")
    page.line((f"{kind}: ", _LOOKS[kind]), printable(first))
    for line in rest:
        label, colon, text = line.partition(":")
        page.line((label + colon, "dim"), printable(text))
    for line in _lines(page, sys.stderr):
        print(line, file=sys.stderr)


def console(stream: TextIO) -> Console:
    """A console as wide as the terminal, or without bounds where there is none."""
    from rich.console import Console

    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def _lines(page: Page, stream: TextIO) -> Iterator[str]:
    if not _shows_colours(stream):
        # Rich would make the same of it, and take a fifth of a short run's time to begin.
        yield from page.lines()
        return
    target = console(stream)
    with target.capture() as captured:
        draw(page, target)
    yield from captured.get().removesuffix("\n").split("\n")


def _shows_colours(stream: TextIO) -> bool:
    """Whether the stream is a terminal, or is to be taken for one, by the rules of Rich."""
    forced = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE") == "1"
    return stream.isatty() or bool(forced)


def draw(page: Page, target: Console) -> None:
    """Draw a page on a terminal."""
    from rich.text import Text

    for item in page.items:
        if isinstance(item, Table):
            _draw_table(item, target)
        elif isinstance(item, Pairs):
            _draw_pairs(item, target)
        else:
            target.print(Text.assemble(*item), soft_wrap=True)


def _draw_table(table: Table, target: Console) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    if target.width < NARROW:
        rows = tuple(row[: table.narrow] for row in table.rows)
        table = table._replace(header=table.header[: table.narrow], rows=rows)
    lines = table.lines()
    if _fits(lines, table, target.width):
        from rich.segment import Segment, Segments
        from rich.style import Style

        above, names, *below = lines
        parts = [Segment(f"{above}\n"), Segment(names, Style(dim=True)), Segment("\n")]
        target.print(Segments([*parts, Segment("\n".join((*below, "")))]), crop=False)
        return
    drawn = RichTable(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for name in table.header:
        drawn.add_column(name, overflow="fold", justify="right" if name in table.right else "left")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    target.print(drawn)


def _fits(lines: list[str], table: Table, width: int) -> bool:
    """Whether the lines of a table can be printed as they are: Rich would measure every cell."""
    if width == _UNBOUNDED:
        return True
    is_plain = all(cell.isascii() for row in table.rows for cell in row)  # others may be wider
    return is_plain and max(map(len, lines)) <= width


def _draw_pairs(pairs: Pairs, target: Console) -> None:
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable.grid(padding=(0, 3))
    for name, summary, is_dim in pairs.rows:
        style = "dim" if is_dim else ""
        drawn.add_row(Text(name, style), Text(summary, style))
    target.print(drawn)


def many(count: int, what: str) -> str:
    """A count with its noun, as `3 layers`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"
