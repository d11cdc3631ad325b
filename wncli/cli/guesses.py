"""What is meant where the first word is no command: help, a file to inspect, or a mistake."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wncli.errors import UsageError
from wncli.formats.registry import SUFFIXES
from wncli.hints import word

COMMANDS = ("inspect", "apply", "remove", "convert", "compare")
#: What other tools, and people, call them.
_ALIASES = {
    **dict.fromkeys(("ls", "list", "show", "info", "print", "view", "check"), "inspect"),
    **dict.fromkeys(("fold", "fuse", "strip", "merge", "bake"), "remove"),
    **dict.fromkeys(("add", "split", "unfold", "normalize"), "apply"),
    **dict.fromkeys(("rename", "respell", "export"), "convert"),
    **dict.fromkeys(("diff", "cmp"), "compare"),
    "version": "--version",
}


def meant(arguments: list[str]) -> list[str]:
    """Return the arguments, the first of which is a command or an option of `wn` itself.

    A file, or what looks like the name of one, is inspected: that only reads it.

    Raises:
        UsageError: it is neither a command nor a file.
    """
    first, *rest = arguments or [""]
    if first == "help":
        return [*_topic(rest), "--help"]
    if first in {"--install-completion", "--show-completion"} and not rest:
        return [first, Path(os.environ.get("SHELL", "")).name]
    is_option = first.startswith("-") and first != "-"
    if not first or is_option or first in COMMANDS:
        return arguments
    looks_like_a_file = os.sep in first or Path(first).suffix.lower() in SUFFIXES
    if looks_like_a_file or first == "-" or os.path.lexists(first):
        return ["inspect", *arguments]
    raise UsageError(
        first,
        "no such command, and no such file",
        expected=f"{', '.join(COMMANDS)}, help, or a file to inspect",
        hint=_typed(_near(first), rest),
    )


def _typed(near: str, rest: Sequence[str]) -> str:
    if rest or near.startswith("-"):
        return " ".join(("wn", near, *map(word, rest))) if near else "wn help"
    return f"wn help {near}" if near in COMMANDS else "wn help"


def _topic(words: Sequence[str]) -> Sequence[str]:
    """Return what is to be explained: a command, or nothing for all.

    Raises:
        UsageError: it is something else.
    """
    if words and words[0] not in (*COMMANDS, "help", "-h", "--help"):
        raise UsageError(
            f"help {words[0]}",
            "no such command",
            expected=", ".join(COMMANDS),
            hint=_typed(_near(words[0]), ()),
        )
    return [word for word in words[:1] if word in COMMANDS]


def _near(first: str) -> str:
    """Return the command that may be meant, if there is one."""
    if first.lower() in _ALIASES:
        return _ALIASES[first.lower()]
    from difflib import get_close_matches

    near = get_close_matches(first.lower(), (*COMMANDS, "help", *_ALIASES), n=1)
    return _ALIASES.get(near[0], near[0]) if near else ""
