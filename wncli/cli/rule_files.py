"""Reads rules from files: `@FILE` in place of a rule, one rule a line, `#` before comments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from wncli.errors import FileError


def expand_files(flag: str, rules: Iterable[str]) -> list[str]:
    """Return the rules with those of each `@FILE` in its place.

    Raises:
        FileError: a file cannot be read, or is no text.
    """
    return [rule for text in rules for rule in _expanded(flag, text)]


def _expanded(flag: str, text: str) -> Iterator[str]:
    if not text.startswith("@"):
        yield text
        return
    try:
        lines = Path(text[1:]).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise FileError(f"{flag} {text}", reason, expected="a file with a rule a line") from None
    yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))
