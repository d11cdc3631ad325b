"""Writes the rows of a result as CSV, to a file or to stdout."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wncli.errors import FileError, UsageError, WnError, printable
from wncli.formats.open import open_checkpoint
from wncli.formats.registry import SUFFIXES
from wncli.hints import free_path, option
from wncli.storage.replace_file import check_parent, replacing


def check_csv(target: str, *, json: bool) -> None:
    """Refuse what cannot be written, before anything is read.

    A table that is there already is replaced; a checkpoint never is.

    Raises:
        UsageError: stdout is to take JSON as well.
        FileError: FILE is a checkpoint, or cannot be written.
    """
    if target == "-":
        if json:
            raise UsageError("--csv -", "--json prints to stdout as well", hint="leave one out")
        return
    path = Path(target)
    if path.exists() and not path.is_file():
        raise FileError(target, "--csv is no regular file", expected="a file's name")
    if path.suffix.lower() in SUFFIXES or is_checkpoint(path):
        free = free_path(path.with_suffix(".csv"))
        raise FileError(
            target,
            "--csv replaces no checkpoint",
            expected="the name of a table",
            hint=option("--csv", str(free)),
        )
    check_parent(target, path.parent)


def is_checkpoint(path: Path) -> bool:
    """Tell whether a file that is there opens as a checkpoint."""
    if not path.exists():
        return False
    try:
        with open_checkpoint(path):
            return True
    except WnError:
        return False


def write_csv(target: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under their keys, in UTF-8; `-` is stdout.

    Raises:
        FileError: the system does not let it be written.
    """
    text = io.StringIO()
    if rows:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(map(_cell, row.values()) for row in rows)
    if target == "-":
        sys.stdout.write(text.getvalue())
        return
    data = text.getvalue().encode("utf-8", "backslashreplace")
    with replacing(Path(target), len(data), force=True) as (_, sink):
        sink.write_at(0, memoryview(data))


def _cell(value: object) -> object:
    """Write a shape as `32x16x7`, and nothing that a terminal would obey; None is empty."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return printable(value) if isinstance(value, str) else value
