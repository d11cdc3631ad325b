"""Answers Tab: what a shell has passed on is taken apart, and what is offered spelled for it.

`wn --complete SHELL …` prints a line that says of what kind the values are, then a line for each.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wncli.cli.completion import complete
from wncli.formats.registry import SUFFIXES

#: Seconds after which Tab has no answer.
_PATIENCE = 2
#: What bash takes otherwise than as itself, outside of quotes and within double ones.
_SPECIAL = re.compile(r"[^\w./:=@%+,-]")
_IN_DOUBLE_QUOTES = re.compile(r"[\\\"$`!]")


def answer(typed: list[str]) -> None:
    """Print what Tab offers: nothing where anything is wrong, or takes long.

    Args:
        typed: the shell, and what its script passes on.
    """
    with suppress(Exception), _in_time():
        shell, *words = typed
        print("\n".join(_of_bash(*words) if shell == "bash" else _of_others(shell, *words)))


@contextmanager
def _in_time() -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _of_others(shell: str, word: str, *words: str) -> Iterator[str]:
    word = _unquoted(word)[1] if shell == "fish" else word
    found = complete(words, word)
    yield found.kind
    width = max((len(value) for value, _ in found.values), default=0)
    for value, meaning in found.values:
        shown = f"{value:<{width}}  -- {meaning}" if shell == "zsh" else meaning
        yield f"{value}\t{shown}" if meaning else value


def _of_bash(line: str, replaced: str) -> Iterator[str]:
    """Answer for a line up to the cursor; `replaced` is the end of it that a value replaces."""
    _, *words, raw = _split(line)
    quote, word = _unquoted(raw)
    found = complete([_unquoted(one)[1] for one in words], word)
    kept = raw[: len(raw) - len(replaced)]
    if found.kind == "files":  # which bash quotes
        yield found.kind
        option = "".join(re.findall(r"\A--[a-z-]+=", word))
        start = len(_unquoted(kept)[1])
        yield from (f"{option}{path}"[start:] for path in _files(word.removeprefix(option)))
    elif found.kind == "folders":
        yield found.kind
    else:
        yield found.kind
        for value, _ in found.values:
            yield f"{raw}{_quoted(value[len(word) :], quote)}"[len(kept) :]


def _split(line: str) -> list[str]:
    """Split a line into words as they are typed, the last of which may be empty."""
    words, quote, passed = [""], "", False
    for char in line:
        if char in " \t\n" and not quote and not passed:
            words += [""] * bool(words[-1])
            continue
        words[-1] += char
        quote, passed = _after(char, quote, passed=passed)
    return words


def _after(char: str, quote: str, *, passed: bool) -> tuple[str, bool]:
    """Return the quote that is open behind a character, and whether it escapes the next one."""
    if passed:
        return quote, False
    if char == "\\" and quote != "'":
        return quote, True
    if char in "'\"" and quote in {"", char}:
        return "" if quote else char, False
    return quote, False


def _unquoted(raw: str) -> tuple[str, str]:
    """Return the quote that a word leaves open, and what it says."""
    text, quote, passed = "", "", False
    for char in raw:
        before, escaped = quote, passed
        quote, passed = _after(char, quote, passed=passed)
        if escaped and before and not _IN_DOUBLE_QUOTES.match(char):
            text += "\\"
        if not passed and quote == before:
            text += char
    return quote, text


def _quoted(text: str, quote: str) -> str:
    """Spell text as it goes on behind what is typed, within the quote that is open there."""
    if quote == "'":
        return text.replace("'", "'\\''")
    special = _IN_DOUBLE_QUOTES if quote else _SPECIAL
    return special.sub(lambda found: f"\\{found[0]}", text)


def _files(word: str) -> Iterator[str]:
    """List folders and what may be a checkpoint, of which the word is the beginning."""
    folder, slash, start = word.rpartition("/")
    with os.scandir(Path(folder + slash or ".").expanduser()) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            if not name.startswith(start) or not name.isprintable():
                continue
            if name.startswith(".") and not start:
                continue
            suffix = Path(name).suffix.lower()
            if suffix in {"", *SUFFIXES} or name.endswith(".index.json") or entry.is_dir():
                yield folder + slash + name
