"""Reads rules from files: `@FILE` in place of a rule, one rule a line, `#` before comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from wncli.errors import FileError

#: At the beginning of a line, or behind a space; in a rule it is written `[#]`.
_COMMENT = re.compile(r"(^|[ \t])#.*")
#: The `=` between OLD and NEW, and spaces around it; a `[=]` is OLD's own.
_BETWEEN = re.compile(r"[ \t]*(?<!\[)=[ \t]*")


def expand_files(flag: str, rules: Iterable[str]) -> list[str]:
    """Return the rules with those of each `@FILE` in its place.

    Raises:
        FileError: a file cannot be read, is no text, or has no rule.
    """
    return [rule for text in rules for rule in _expanded(flag, text)]


def _expanded(flag: str, text: str) -> Iterator[str]:
    if not text.startswith("@"):
        yield text
        return
    try:
        lines = Path(text[1:]).read_text("utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise FileError(f"{flag} {text}", reason, expected="a file with a rule a line") from None
    rules = [rule for line in lines if (rule := _COMMENT.sub("", line).strip(" \t"))]
    if not rules:
        raise FileError(
            f"{flag} {text}", "there is no rule in it", expected="a file with a rule a line"
        )
    for rule in rules:
        yield _BETWEEN.sub("=", rule, count=1)
