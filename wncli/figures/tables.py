"""Short HTML tables, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from wncli.figures.bands import shown_name, shown_number

#: As many rows are shown.
_MOST = 20


def short_table(title: str, facts: str, rows: Sequence[dict[str, Any]]) -> str:
    """Make a table of the first rows, without columns that say the same in all of them."""
    shown = rows[:_MOST]
    columns = [
        key
        for key in (rows[0] if rows else ())
        if key == "name" or len({row[key] for row in rows}) > 1
    ]
    head = "".join(f"<th>{escape(key)}</th>" for key in columns)
    body = "".join(f"<tr>{''.join(_cell(row[key]) for key in columns)}</tr>" for row in shown)
    more = f"<p>… {len(rows) - _MOST:,} more rows</p>" if len(rows) > _MOST else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if columns else ""
    title, facts = escape(shown_name(title)), escape(shown_name(facts))
    return f"<div><p><b>{title}</b> {facts}</p>{table}{more}</div>"


def _cell(value: object) -> str:
    return f"<td>{escape(shown_cell(value))}</td>"


def shown_cell(value: object) -> str:
    """Write a value of a row."""
    match value:
        case None:
            return ""
        case float():
            return shown_number(value)
        case tuple():
            return "×".join(map(str, value)) or "scalar"
        case _:
            return shown_name(str(value))
