"""Spells what to type next as Python and as a shell take it: names hold anything."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

#: How `word` escapes what no command can be given; a hint with it is not shown.
UNTYPABLE = r"\000"
#: What the command line calls a parameter; all others are long options of the same name.
_NAMES = {"layers": "-l", "exclude": "-x", "checkpoint": "CHECKPOINT", "output": "OUTPUT"}


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: Texts that are shown for longer ones, which must not be: nobody could type them.
_cut: set[str] = set()


def is_address(text: str) -> bool:
    """Whether a text is an address, which a path would be made of by dropping a slash."""
    return bool(_ADDRESS.match(text))


def never_type(text: str) -> None:
    """Have no hint offer a text to be typed that is only a part of what was given."""
    _cut.add(text)


def has_cut(hint: str) -> bool:
    """Whether a hint has a text in it that is only a part of what was given."""
    return any(text in hint for text in _cut)


class Text(str):
    """A text with parameters in it as the library says it; `in_shell` has options instead."""

    __slots__ = ("in_shell",)
    in_shell: str

    def __new__(cls, in_python: str, in_shell: str) -> Text:  # noqa: D102, PYI034
        text = super().__new__(cls, in_python)
        text.in_shell = in_shell
        return text

    def __reduce__(self) -> tuple[type[Text], tuple[str, str]]:
        return Text, (str(self), self.in_shell)


REFERENCE = Text("the reference", "REFERENCE")  # which `like` names


def in_shell(text: str) -> str:
    """Spell a text as the command line does."""
    return text.in_shell if isinstance(text, Text) else text


def phrase(template: str, *parts: str) -> Text:
    """Put texts into a template, as `str.format` does."""
    return Text(template.format(*parts), template.format(*map(in_shell, parts)))


def either(ways: Iterable[str]) -> Text:
    """Offer several texts."""
    ways = list(ways)
    return Text(" or ".join(ways), " or ".join(map(in_shell, ways)))


def parameter(name: str) -> Text:
    """Name a parameter without a value."""
    return Text(f"`{name}`", _flag(name))


def setting(**values: object) -> Text:
    """Spell parameters to be set; each text of a list is an option."""
    return _spelled(option, values)


def given(**values: object) -> Text:
    """Spell parameters as they were given: a shell's quotes are gone by then."""
    return _spelled(lambda flag, value: f"{flag} {value or repr(value)}", values)


def inspecting(path: object, **flags: bool) -> Text:
    """Say what lists a checkpoint."""
    found = _spelled(option, flags)
    typed = " ".join(filter(None, ("wn inspect", found.in_shell, path_word(path))))
    return Text(f"wncli.inspect({', '.join(filter(None, (repr(str(path)), found)))})", typed)


def then_inspecting(command: str, path: object) -> Text:
    """Say what lists a checkpoint once a command of the shell has made it."""
    return phrase("{}{}{}", command, Text(", then ", " && "), inspecting(path))


def path_text(path: object, end: str = "") -> Text:
    """Spell a path, with a slash at its end where a directory is meant."""
    return Text(repr(f"{path}{end}"), f"{path_word(path)}{end}")


def _flag(name: str) -> str:
    return _NAMES.get(name) or f"--{name.replace('_', '-')}"


def _spelled(spell: Callable[[str, str], str], values: Mapping[str, object]) -> Text:
    typed: list[str] = []
    for name, value in values.items():
        given = value if isinstance(value, list) else [value]
        typed += [_flag(name) if one is True else spell(_flag(name), str(one)) for one in given]
    return Text(", ".join(f"{name}={value!r}" for name, value in values.items()), " ".join(typed))


def word(text: str) -> str:
    """`text` as one word of a shell; what would not show is escaped (bash, zsh, ksh)."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "\\'!":
        return char
    try:  # as the file system has it: that is how a byte comes back that is no UTF-8
        return "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return UNTYPABLE


def option(flag: str, value: str) -> str:
    """Return an option of a shell and its value, which may begin as an option does."""
    if not value.startswith("-"):
        return f"{flag} {word(value)}"
    return word(f"{flag}={value}" if flag.startswith("--") else f"{flag}{value}")


def free_path(path: Path) -> Path:
    """Return a path like this one where nothing is, so that what is typed overwrites nothing."""
    found, number = path, 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def path_word(path: object) -> str:
    """Quote a path, so that no command takes it for an option, or tar for another machine's."""
    text = str(path)
    if is_address(text):
        return word(text)
    return word(f"./{text}" if text.startswith("-") or ":" in text.partition("/")[0] else text)
