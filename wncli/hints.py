"""Spells what to type next as a shell takes it: names come from strangers, and hold anything."""

from __future__ import annotations

import re
import shlex
from pathlib import Path


def word(text: object) -> str:
    """`text` as one word of a shell; what would not show is escaped (bash, zsh, ksh)."""
    plain = str(text)
    if plain.isprintable():
        return shlex.quote(plain)
    return "$'" + "".join(map(_escaped, plain)) + "'"


def _escaped(char: str) -> str:
    code = ord(char)
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - how Python keeps a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\U{code:08x}"


def option(flag: str, value: str) -> str:
    """An option and its value, which may begin as an option does."""
    if not value.startswith("-"):
        return f"{flag} {word(value)}"
    return word(f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}")


def glob_of(name: str) -> str:
    """The glob that matches this name alone, and is no `GLOB=DIM`."""
    return re.sub(r"[][*?=]", lambda found: f"[{found[0]}]", name)


def free_path(path: Path) -> Path:
    """A path like this one where nothing is so far, so that what is typed overwrites nothing."""
    found, number = path, 1
    while found.exists() or found.is_symlink():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def path_word(path: object) -> str:
    """A path as one word, which no command takes for an option."""
    text = str(path)
    return word(f"./{text}" if text.startswith("-") else text)
