"""Consoles, messages and tables: what all that is printed has in common."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wncli.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

#: On a terminal with fewer columns, tables keep to what tells the rows apart.
NARROW = 80
#: Columns for output that no terminal bounds: nothing is cut off.
_UNBOUNDED = 10_000
#: Characters of a column; what goes beyond is not aligned, as every row would be as long.
_WIDEST = 200

_LOOKS = {
    "error": "bold red",
    "warning": "bold yellow",
    "nothing to do": "bold",
}


class StreamError(OSError):
    """What is to be printed cannot be: the disk that stdout goes to is full, or the like."""


@contextmanager
def printing() -> Iterator[None]:
    """Tell failures to print from all others.

    Raises:
        StreamError: stdout does not take it.
        BrokenPipeError: whoever reads it has read enough.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StreamError(error.errno, error.strerror) from None


def console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or without bounds where there is none."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def write(target: Console, *parts: str | tuple[str, str]) -> None:
    """Print parts, each text or `(text, style)`, in one line that the terminal may wrap."""
    from rich.text import Text

    target.print(Text.assemble(*parts), soft_wrap=True)


def print_captured(draw: Callable[[Console], None]) -> None:
    """Print what `draw` draws on stdout, without blanks at the ends of lines."""
    target = console()
    with printing():
        with target.capture() as captured:
            draw(target)
        for line in captured.get().splitlines():
            print(line.rstrip())


def show_refusal(kind: str, message: str) -> None:
    """Print an error, a warning or the like on stderr, its further lines indented."""
    target = console(stderr=True)
    first, *rest = message.split("\n")
    write(target, (f"{kind}: ", _LOOKS[kind]), (printable(first), ""))
    for line in rest:
        label, colon, text = line.partition(":")
        write(target, (label + colon, "dim"), (printable(text), ""))


def draw_table(
    target: Console,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: frozenset[str] = frozenset(),
    narrow: int,
) -> None:
    """Draw a table.

    Args:
        target: where to.
        header: the columns' names.
        rows: as many cells each.
        right: the columns that are set flush right.
        narrow: the columns that are left on a narrow terminal, from the left.
    """
    kept = narrow if target.width < NARROW else len(header)
    header, rows = header[:kept], [row[:kept] for row in rows]
    lines = _aligned(header, rows, right)
    if _fits(lines, rows, target.width):
        from rich.segment import Segment, Segments
        from rich.style import Style

        above, names, *below = lines
        parts = [Segment(f"{above}\n"), Segment(names, Style(dim=True)), Segment("\n")]
        target.print(Segments([*parts, Segment("\n".join((*below, "")))]), crop=False)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold", justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    target.print(table)


def _fits(lines: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> bool:
    """Whether the lines of a table can be printed as they are: Rich would measure every cell."""
    if width == _UNBOUNDED:
        return True
    is_plain = all(cell.isascii() for row in rows for cell in row)  # others may be wider
    return is_plain and max(map(len, lines)) <= width


def _aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]
) -> list[str]:
    """The lines of a table, whatever their length."""
    widths = [min(_WIDEST, max(map(len, column))) for column in zip(header, *rows, strict=True)]
    lines = [
        " " + "   ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        )
        for row in (header, *rows)
    ]  # fmt: skip
    rule = " " + "─" * (sum(widths) + 3 * (len(widths) - 1))
    return ["", lines[0], rule, *lines[1:], ""]


def many(count: int, what: str) -> str:
    """A count with its noun, as `3 layers`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"
