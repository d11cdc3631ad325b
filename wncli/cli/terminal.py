"""Prints pages and messages, which Rich colours on a terminal."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from wncli.cli.encoding import REPLACING
from wncli.cli.page import Page
from wncli.errors import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console

#: What a file is called that is stdout.
STDOUT = "-"
_LOOKS = {
    "error": "bold red",
    "warning": "bold yellow",
    "nothing to do": "bold",
}


#: Where the further lines of a message begin.
_HANG = 12
#: What somebody is to copy is left to the terminal to cut, which puts nothing into it.
_COMMAND = re.compile(r"(wn|hf|pip|tar|mv|cat|python3?|gunzip|gzip|unzip) ")


class _Stream(io.RawIOBase):
    """What stdout or stderr leads to, where failing to print is no failure of what is printed.

    `failure` is why the device has not taken all of it: it is full, or the like. That nobody is
    there any more to read it is none.
    """

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.is_terminal = raw.isatty()
        self.failure: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write some of it, and drop it where that fails."""
        nbytes = memoryview(data).nbytes
        try:
            while (written := self.raw.write(data)) is None:  # a pipe that does not wait by itself
                _wait_for_room(self.raw)
        except OSError as error:
            has_reader = not (self.is_terminal or isinstance(error, ConnectionError))
            if has_reader and not self.failure:
                self.failure = error
            return nbytes
        return written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.is_terminal


def _wait_for_room(raw: io.RawIOBase) -> None:
    from select import select

    select([], [raw], [])


@contextmanager
def forgiving_streams() -> Iterator[_Stream]:
    """Have stdout and stderr take everything, also where they are closed; gives what stdout is.

    Typer and Rich print there as well, and would make an exit code of a failure. No character of
    a name fails either.
    """
    usual = sys.stdout, sys.stderr
    sys.stdout, stdout = _forgiving(sys.stdout)
    sys.stderr, _ = _forgiving(sys.stderr)
    try:
        yield stdout
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = usual


def _forgiving(stream: TextIO | None) -> tuple[TextIO, _Stream]:
    if stream is None:
        raw = io.FileIO(os.devnull, "w")  # for good
    else:
        stream.flush()
        buffer: Any = stream.buffer  # under `python -u` it is the raw one itself
        raw = getattr(buffer, "raw", buffer)
    ours = _Stream(raw)
    text = io.TextIOWrapper(
        io.BufferedWriter(ours),
        encoding=stream.encoding if stream else "utf-8",
        errors=REPLACING,
        line_buffering=bool(stream and stream.line_buffering),
    )
    return text, ours


def show(page: Page) -> None:
    """Print a page on stdout."""
    _print(page, sys.stdout)


def show_refusal(kind: str, message: str) -> None:
    """Print an error, a warning or the like on stderr, its further lines indented."""
    page = Page()
    first, *rest = message.split("\n")
    page.line((f"{kind}: ", _LOOKS[kind]), printable(first), hang=_HANG)
    for line in rest:
        label, colon, text = line.partition(":")
        is_command = bool(_COMMAND.match(text.lstrip()))
        page.line((label + colon, "dim"), printable(text), hang=None if is_command else _HANG)
    _print(page, sys.stderr)


def _print(page: Page, stream: TextIO) -> None:
    """Print a page; what has no style goes past Rich, which is imported for the others alone."""
    colours = console(stream) if _shows_colours(stream) else None
    width = colours.width if colours and stream.isatty() else None
    for line in page.lines(width, stream.encoding):
        for part in line:
            text, style = (part, "") if isinstance(part, str) else part
            if colours and style:
                colours.print(text, style=style, end="", soft_wrap=True)
            else:
                stream.write(text)
        stream.write("\n")
    stream.flush()


def width_of_screen() -> int | None:
    """Return the columns of the terminal that stdout is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def height_of_screen() -> int | None:
    """Return its lines."""
    return shutil.get_terminal_size().lines if sys.stdout.isatty() else None


def console(stream: TextIO) -> Console:
    """Make a console that shows text as it is."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _shows_colours(stream: TextIO) -> bool:
    """Tell whether the stream is a terminal, or is to be taken for one, by the rules of Rich."""
    forced = os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE") == "1"
    return stream.isatty() or bool(forced)


def many(count: int, what: str) -> str:
    """Give a count its noun, as `3 layers`."""
    return f"{count:,} {what}{'s' if count != 1 else ''}"
