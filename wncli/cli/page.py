"""What a command has to show, line by line and table by table, and how it looks as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

#: Text, or text and its style as Rich names it.
Part = str | tuple[str, str]

#: Characters of a column; what goes beyond is not aligned, as every row would be as long.
_WIDEST = 200


class Table(NamedTuple):
    """Rows of as many cells under the names of their columns.

    `right` are the columns that are set flush right; the first `narrow` are left on a narrow
    terminal.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str]
    narrow: int

    def lines(self) -> list[str]:
        """The table as text: a blank line, the header, a rule, the rows, a blank line."""
        columns = zip(self.header, *self.rows, strict=True)
        aligned = (_aligned(column, is_right=column[0] in self.right) for column in columns)
        cells, widths = zip(*aligned, strict=True)
        lines = [" " + "   ".join(row) for row in zip(*cells, strict=True)]
        rule = " " + "─" * (sum(widths) + 3 * (len(widths) - 1))
        return ["", lines[0], rule, *lines[1:], ""]


class Pairs(NamedTuple):
    """Names, and what there is to say of each; some rows may be less important."""

    rows: tuple[tuple[str, str, bool], ...]

    def lines(self) -> list[str]:
        """The rows as text, aligned."""
        names, _ = _aligned([name for name, _, _ in self.rows])
        return [f"{name}   {row[1]}" for name, row in zip(names, self.rows, strict=True)]


class Page:
    """What is to be shown, from top to bottom."""

    def __init__(self) -> None:
        self.items: list[Table | Pairs | tuple[Part, ...]] = []

    def line(self, *parts: Part) -> None:
        """Add a line, which a terminal may wrap."""
        self.items.append(parts)

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: frozenset[str],
        narrow: int,
    ) -> None:
        """Add a table; what the arguments are, `Table` says."""
        self.items.append(Table(tuple(header), tuple(map(tuple, rows)), right, narrow))

    def pairs(self, rows: Sequence[tuple[str, str, bool]]) -> None:
        """Add rows of a name, what there is to say of it, and whether both are dim."""
        self.items.append(Pairs(tuple(rows)))

    def lines(self) -> Iterator[str]:
        """All of it as plain text of any width."""
        for item in self.items:
            if isinstance(item, Table | Pairs):
                yield from item.lines()
            else:
                text = "".join(part if isinstance(part, str) else part[0] for part in item)
                yield from text.split("\n")


def _aligned(column: Sequence[str], *, is_right: bool = False) -> tuple[list[str], int]:
    """The cells filled up to one width, and that width."""
    sizes = list(map(_cells, column))
    width = min(_WIDEST, max(sizes, default=0))
    filled = [(cell, " " * (width - size)) for cell, size in zip(column, sizes, strict=True)]
    return [blanks + cell if is_right else cell + blanks for cell, blanks in filled], width


def _cells(text: str) -> int:
    """How many places it takes in a line: some characters take two, or none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
