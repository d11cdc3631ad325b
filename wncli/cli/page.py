"""What a command has to show, line by line and table by table, for any width and encoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from wncli.cli.encoding import shown

#: Text, or text and its style as Rich names it.
Part = str | tuple[str, str]
Line = tuple[Part, ...]
#: The style of a row, and its cells.
Row = tuple[str, tuple[str, ...]]

#: On a terminal with fewer columns, tables keep to what tells the rows apart.
_NARROW = 80
#: Characters of a column; what goes beyond is not aligned, as every row would be as long.
_WIDEST = 200


class Table(NamedTuple):
    """Rows of as many cells, under the names of their columns if they have any.

    `right` are the columns that are set flush right; the first `narrow` are left on a narrow
    terminal. The `dim` rows stand below the others, and matter less.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    right: frozenset[str] = frozenset()
    narrow: int | None = None
    dim: Sequence[tuple[str, ...]] = ()

    def lines(self, width: int | None, encoding: str) -> list[Line]:
        """Draw it: with a header between blank lines and over a rule."""
        kept = self.narrow if width is not None and width < _NARROW else None
        head = [("dim", self.header[:kept])] if self.header else []
        rows = [("", row[:kept]) for row in self.rows] + [("dim", row[:kept]) for row in self.dim]
        rows = [(style, tuple(shown(cell, encoding) for cell in row)) for style, row in rows]
        cells = zip(*(row for _, row in head + rows), strict=True)
        widths = [max(map(_cells, column)) for column in cells]
        gaps = 3 * (len(widths) - 1)
        if width is not None and 1 + sum(widths) + gaps >= width:  # one is left free, as by Rich
            widths = _fitted(widths, width - 2 - gaps)
            head, rows = list(_folded(head, widths)), list(_folded(rows, widths))
        names = self.header[: len(widths)] or [""] * len(widths)
        columns = [
            (min(_WIDEST, size), name in self.right)
            for size, name in zip(widths, names, strict=True)
        ]
        lines: list[Line] = [((_aligned(row, columns), style),) for style, row in head + rows]
        if not head:
            return lines
        rule = " " + "─" * (sum(size for size, _ in columns) + gaps)
        return [(), *lines[: len(head)], (rule,), *lines[len(head) :], ()]


class Page:
    """What is to be shown, from top to bottom."""

    def __init__(self) -> None:
        self.items: list[Table | Line] = []

    def line(self, *parts: Part) -> None:
        """Add a line, which a terminal may wrap."""
        self.items.append(parts)

    def table(self, table: Table) -> None:
        """Add a table, whose cells are folded where it is wider than a terminal."""
        self.items.append(table)

    def lines(self, width: int | None, encoding: str) -> Iterator[Line]:
        """Give its lines for a terminal as wide, or without bounds."""
        for item in self.items:
            if isinstance(item, Table):
                yield from item.lines(width, encoding)
            else:
                yield item


def _fitted(widths: list[int], room: int) -> list[int]:
    """Make the widest columns as narrow as each other, until all fit if they can."""
    most = max(widths)
    while most > 1 and sum(min(size, most) for size in widths) > room:
        most -= 1
    return [min(size, most) for size in widths]


def _folded(rows: list[Row], widths: list[int]) -> Iterator[Row]:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for style, row in rows:
        cells = zip(row, widths, strict=True)
        pieces = (map(str, Text(cell).wrap(console, size)) for cell, size in cells)
        yield from ((style, part) for part in zip_longest(*pieces, fillvalue=""))


def _aligned(row: tuple[str, ...], columns: list[tuple[int, bool]]) -> str:
    """Make a line of cells, filled up to the widths of columns that may be flush right."""
    filled = []
    for cell, (size, is_right) in zip(row, columns, strict=True):
        blanks = " " * (size - _cells(cell))
        filled.append(blanks + cell if is_right else cell + blanks)
    return f" {'   '.join(filled)}".rstrip()


def _cells(text: str) -> int:
    """Count the places that it takes in a line: some characters take two, or none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
