"""Spells what to type next as a shell takes it: names come from strangers, and hold anything."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

#: How `word` escapes what no command can be given; a hint with it is not shown.
UNTYPABLE = r"\000"


def word(text: object) -> str:
    """`text` as one word of a shell; what would not show is escaped (bash, zsh, ksh)."""
    plain = str(text)
    if plain.isprintable():
        return shlex.quote(plain)
    return "$'" + "".join(map(_escaped, plain)) + "'"


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "\\'!":
        return char
    try:  # as the file system has it: that is how a byte comes back that is no UTF-8
        return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return UNTYPABLE


def option(flag: str, value: str) -> str:
    """An option and its value, which may begin as an option does."""
    if not value.startswith("-"):
        return f"{flag} {word(value)}"
    return word(f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}")


def glob_of(name: str) -> str:
    """The glob that matches this name, and is no `GLOB=DIM`; what nobody can type is a `?`."""
    escaped = re.sub(r"[][*?=]", lambda found: f"[{found[0]}]", name)
    return re.sub("[\\0\ud800-\udfff]", "?", escaped)


def free_path(path: Path) -> Path:
    """A path like this one where nothing is so far, so that what is typed overwrites nothing."""
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def path_word(path: object) -> str:
    """A path as one word, which no command takes for an option, or tar for another machine's."""
    text = str(path)
    return word(f"./{text}" if text.startswith("-") or ":" in text.partition("/")[0] else text)
