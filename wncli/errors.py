"""The exceptions: everything `wn` refuses, as one tree.

    WnError                 catch this one; its text is the whole message
    ├── UsageError          options that contradict each other, or rules that match nothing
    ├── FileError           a path that cannot be read or written
    ├── FormatError         bytes that are no checkpoint, or break the rules of their format
    ├── WeightNormError     a weight, a pair or a dim that the arithmetic cannot take
    ├── LostError           another rank has ended (`team.py`)
    └── NothingToDo         the request is sound, and nothing answers to it (`report.py`)

A FileError is an OSError too, and the three that refuse what they are given are ValueErrors.

A message says where, what is wrong, what was expected, what was found and what to type next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from wncli.hints import UNTYPABLE, has_cut, in_shell


def printable(text: str) -> str:
    """`text` with all escaped that could move the cursor or hide: names come from strangers."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def shortened(text: str, most: int = 1000) -> str:
    """`text` without its middle where it is long: strangers' names can have any length."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {text[-most // 2 :]}"


def few(names: Collection[str], most: int = 3) -> str:
    """Return the first of these names, and how many more there are."""
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


#: Characters of what to type next, which could not be typed in part.
_LONGEST_HINT = 2000


def is_typable(hint: str) -> bool:
    """Tell whether what to type next is shown: it has an end, and nothing that cannot be given."""
    return len(hint) <= _LONGEST_HINT and UNTYPABLE not in hint and not has_cut(hint)


class WnError(Exception):
    """One refusal: `where` it stands, the `problem`, and what helps.

    Args:
        where: the file, tensor, layer or option that the refusal is about.
        problem: what is wrong, as a short clause.
        expected: what would have been accepted.
        found: what stood there instead.
        hint: what to type or do next.
    """

    def __init__(
        self, where: str, problem: str, *, expected: str = "", found: str = "", hint: str = ""
    ) -> None:
        self.where = where
        self.problem = problem
        self.expected = expected
        self.found = found
        self.hint = hint
        Exception.__init__(self, where, problem)  # an OSError would take it for number and text

    def __reduce__(self) -> tuple[Any, ...]:
        # By what it holds: subclasses have other parameters.
        return type(self).__new__, (type(self),), {**vars(self), "args": self.args}

    def __str__(self) -> str:
        return self._spelled(str)

    @property
    def in_shell(self) -> str:
        """The message with options in it instead of parameters, for a command line."""
        return self._spelled(in_shell)

    def _spelled(self, spell: Callable[[str], str]) -> str:
        problem = shortened(spell(self.problem))
        if self.where:
            problem = f"{shortened(spell(self.where))}: {problem}"
        hint = spell(self.hint)
        details = (
            ("expected: ", shortened(spell(self.expected))),
            ("found:    ", shortened(spell(self.found))),
            ("try:      ", hint if is_typable(hint) else ""),
        )
        lines = (f"  {label}{printable(text)}" for label, text in details if text)
        return "\n".join((printable(problem), *lines))


class UsageError(WnError, ValueError):
    """Options that contradict each other, or a rule that matches nothing."""


class FileError(WnError, OSError):
    """A path that cannot be read or written."""


class FormatError(WnError, ValueError):
    """Bytes that are no checkpoint, or that break the rules of their format."""


class WeightNormError(WnError, ValueError):
    """A weight, a pair or a dim that the arithmetic cannot take."""
