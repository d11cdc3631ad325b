"""Tables, in the terminal and as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, of which the first `texts` are words and the others numbers.

    A row whose first cell is not empty starts a section.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int


def print_tables(facts: Sequence[str], tables: Sequence[Table]) -> None:
    """Print facts and tables to stdout. Rich is imported here, after everything is measured."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(width=None if sys.stdout.isatty() else 160)
    for fact in facts:
        console.print(fact, highlight=False)
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left")
        for column, header in enumerate(table.headers):
            shown.add_column(header, justify="left" if column < table.texts else "right")
        for number, row in enumerate(table.rows):
            if number and row[0] and not all(each[0] for each in table.rows):
                shown.add_section()
            shown.add_row(*row)
        console.print(shown)


def as_markdown(facts: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the same as Markdown."""
    lines = [f"- {fact}" for fact in facts]
    for table in tables:
        alignment = [
            "---" if column < table.texts else "---:" for column in range(len(table.headers))
        ]
        rows = [table.headers, tuple(alignment), *table.rows]
        lines += ["", f"### {table.title}", ""]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"
