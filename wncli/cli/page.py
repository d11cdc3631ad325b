"""What a command has to show, line by line and table by table, for any width and encoding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wncli.cli.encoding import shown

#: Text, or text and its style as Rich names it.
Part = str | tuple[str, str]
Line = tuple[Part, ...]

#: Blanks between two columns.
_GAP = 2
#: Columns go before names are shortened to fewer characters than these.
_SHORTEST = 26
#: Characters of a column; what goes beyond is not aligned, as every row would be as long.
_WIDEST = 200


#: What is drawn here beside ASCII takes one place each; Rich need not be imported to know.
_SINGLE = frozenset("×·…─▁▂▃▄▅▆▇█▏▎▍▌▋▊▉→‖Δ°✓✗")


class Column(NamedTuple):
    """A column of a table.

    On a terminal that is too narrow those with the largest `goes` are left out first, together;
    0 always stays. `is_name` is shortened in the middle where nothing else can go.
    """

    header: str
    is_right: bool = False
    goes: int = 0
    is_name: bool = False
    style: str = ""


class Table(NamedTuple):
    """Rows of as many cells as there are columns; `dim` rows stand below, and matter less."""

    columns: tuple[Column, ...]
    rows: Sequence[tuple[str, ...]]
    dim: Sequence[tuple[str, ...]] = ()

    def lines(self, width: int | None, encoding: str) -> Iterator[Line]:
        """Draw it: with a header over a rule between blank lines, if its columns have names."""
        has_header = any(column.header for column in self.columns)
        header = [tuple(column.header for column in self.columns)] if has_header else []
        rows = [
            tuple(shown(cell, encoding) for cell in row) for row in (*header, *self.rows, *self.dim)
        ]
        if not rows:
            return
        widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
        kept = list(range(len(widths)))
        if width is not None:
            kept, widths = self._fitted(widths, width - 1)  # one is left free, as by Rich
        lines = [self._line(row, kept, widths, encoding) for row in rows]
        last = len(header) + len(self.rows)
        if header:
            yield ()
            yield _dimmed(lines[0])
            yield (
                (
                    " "
                    + "─" * (sum(min(_WIDEST, widths[at]) for at in kept) + _GAP * (len(kept) - 1)),
                    "dim",
                ),
            )
        yield from lines[len(header) : last]
        yield from map(_dimmed, lines[last:])
        if header:
            yield ()

    def _fitted(self, widths: list[int], room: int) -> tuple[list[int], list[int]]:
        """Choose the columns that stay, and make those of names as narrow as they have to be."""
        least = [
            min(size, _SHORTEST) if column.is_name else size
            for size, column in zip(widths, self.columns, strict=True)
        ]
        kept = list(range(len(widths)))

        def too_much(sizes: list[int]) -> int:
            return 1 + sum(sizes[at] for at in kept) + _GAP * (len(kept) - 1) - room

        while too_much(least) > 0 and (first := max(map(self._goes, kept))):
            kept = [at for at in kept if self._goes(at) != first]
        widths = list(widths)
        names = [at for at in kept if self.columns[at].is_name]
        while names and too_much(widths) > 0:
            longest = max(names, key=lambda at: widths[at])
            if widths[longest] <= 1:
                break
            widths[longest] -= 1
        return kept, widths

    def _goes(self, at: int) -> int:
        return self.columns[at].goes

    def _line(
        self, row: tuple[str, ...], kept: Sequence[int], widths: list[int], encoding: str
    ) -> Line:
        parts: list[Part] = [" "]
        for at in kept:
            column, size = self.columns[at], min(_WIDEST, widths[at])
            cell = row[at]
            if column.is_name and widths[at] < cells(cell):
                cell = shortened(cell, size, shown("…", encoding))
            blanks = " " * (size - cells(cell))
            cell = blanks + cell if column.is_right else cell + blanks
            parts += [(cell, column.style) if column.style else cell, " " * _GAP]
        while len(parts) > 1 and not _text(parts[-1]).strip():
            parts.pop()
        last = parts[-1]
        parts[-1] = last.rstrip() if isinstance(last, str) else (last[0].rstrip(), last[1])
        if all(isinstance(part, str) for part in parts):
            return ("".join(map(str, parts)),)
        return tuple(parts)


class Page:
    """What is to be shown, from top to bottom."""

    def __init__(self) -> None:
        self.items: list[Table | tuple[Line, int | None]] = []

    def line(self, *parts: Part, hang: int | None = None) -> None:
        """Add a line, whose further lines on a terminal begin `hang` blanks in.

        Without `hang` it is left to the terminal where it is cut, as a command has to be that
        somebody is to copy.
        """
        self.items.append((parts, hang))

    def table(self, table: Table) -> None:
        """Add a table."""
        self.items.append(table)

    def lines(self, width: int | None, encoding: str) -> Iterator[Line]:
        """Give its lines for a terminal as wide, or without bounds."""
        for item in self.items:
            if isinstance(item, Table):
                yield from item.lines(width, encoding)
            elif width is None or item[1] is None:
                yield item[0]
            else:
                yield from _wrapped(item[0], width, item[1], encoding)


def shortened(text: str, size: int, mark: str) -> str:
    """Take out the middle, so that `size` places are enough."""
    room = max(1, size - len(mark))
    front, back = text[: room // 2], text[len(text) - (room - room // 2) :]
    while cells(front) > room // 2:
        front = front[:-1]
    while cells(back) > room - room // 2:
        back = back[1:]
    return f"{front}{mark}{back}"


def cells(text: str) -> int:
    """Count the places that it takes in a line: some characters take two, or none."""
    if text.isascii() or all(char.isascii() or char in _SINGLE for char in text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _wrapped(line: Line, width: int, hang: int, encoding: str) -> Iterator[Line]:
    """Cut a line at blanks; a word that is longer than a line is left whole.

    Where a word has no place behind `hang` blanks, all further lines begin further to the left.
    """
    styled = [(part, "") if isinstance(part, str) else part for part in line]
    parts = [(shown(text, encoding), style) for text, style in styled]
    text = "".join(part for part, _ in parts)
    hang = max(1, min(hang, width - max(map(cells, text.split()), default=0)))
    start = used = 0
    end = 0
    for word in re.finditer(r"\s*\S+|\s+$", text):
        size = cells(word[0])
        if end > start and used + size > width and word[0][0].isspace():
            yield _cut(parts, start, end, hang if start else 0)
            start = word.end() - len(word[0].lstrip())
            used = hang + cells(text[start : word.end()])
        else:
            used += size
        end = word.end()
    yield _cut(parts, start, len(text), hang if start else 0)


def _cut(parts: list[tuple[str, str]], start: int, end: int, indent: int) -> Line:
    """Give what stands from `start` to `end` of parts that are read as one text."""
    found: list[Part] = [" " * indent] if indent else []
    place = 0
    for text, style in parts:
        piece = text[max(0, start - place) : max(0, end - place)]
        if piece:
            found.append((piece, style) if style else piece)
        place += len(text)
    return tuple(found)


def _dimmed(line: Line) -> Line:
    return (("".join(map(_text, line)), "dim"),)


def _text(part: Part) -> str:
    return part if isinstance(part, str) else part[0]
