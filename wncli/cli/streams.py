"""`-` in place of a path: stdin as CHECKPOINT, stdout as OUTPUT; a file called `-` is `./-`.

A checkpoint is read here and there, and written so too, which streams cannot be: stdin is kept in
a file without a name, that goes with the process, and stdout is written once the output is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from wncli.cli.ranks import refuse_streams
from wncli.errors import FileError, UsageError
from wncli.formats.registry import FOLDERS, FORMATS
from wncli.hints import is_address, setting
from wncli.storage.addresses import parse_address
from wncli.storage.signals import unfinished

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison
    from wncli.cli.options import Writing
    from wncli.report import Report

Result = TypeVar("Result", "Report", "Comparison")

STREAM = "-"
#: Where the system shows open files as paths.
_OPEN_FILES = Path("/dev/fd")
_ONE_FILE = setting(format="safetensors")
#: Bytes that are copied at once.
_BLOCK = 1 << 20
#: The files that stdin and stdout were put into, by their paths: what people see is `-`.
_paths: dict[str, IO[bytes] | None] = {}


def as_typed(text: str) -> str:
    """Return a message with `-` in it for the files that stand for streams."""
    for path in _paths:
        text = re.sub(rf"{re.escape(path)}(?![\w.])", STREAM, text)
    return text


def result_as_typed(result: Result) -> Result:
    """Return a report, or a comparison, with `-` in it for the files that stand for streams."""
    if not _paths:
        return result
    named = {name: getattr(result, name, None) for name in ("checkpoint", "other", "output")}
    typed: Any = {name: as_typed(path) for name, path in named.items() if path}
    return replace(result, **typed)


def from_stdin(path: str) -> str:
    """Return the path of what is read: that of a copy of stdin for `-`, else the one that is given.

    Raises:
        FileError: there is nothing in stdin, or no room to keep it.
        UsageError: there are several ranks.
    """
    if path != STREAM:
        return path
    refuse_streams(path)
    if not sys.stdin or sys.stdin.isatty():
        what = "a terminal" if sys.stdin else "closed"
        raise FileError(STREAM, f"stdin is {what}", expected="a checkpoint", hint="- < FILE")
    if any(_paths.values()):
        raise FileError(STREAM, "stdin is read once", expected="one - among the checkpoints")
    if not _OPEN_FILES.is_dir():
        raise FileError(STREAM, "this system has no paths for streams", expected="a file")
    kept = sys.stdin.buffer
    if not _is_at_the_start_of_a_file(kept):
        kept = _kept(kept)
    path = str(_OPEN_FILES / str(kept.fileno()))
    _paths[path] = kept
    return path


def _is_at_the_start_of_a_file(stream: IO[bytes]) -> bool:
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.tell() == 0


def _kept(stream: IO[bytes]) -> IO[bytes]:
    """Copy a stream into a file without a name."""
    import tempfile

    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with the process
        shutil.copyfileobj(stream, file, _BLOCK)
        file.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        folder = tempfile.gettempdir()
        raise FileError(STREAM, f"stdin cannot be kept in {folder} ({reason})") from None
    return file


@contextmanager
def to_stdout(output: str, typed: Writing) -> Iterator[str]:
    """Give the path to write to: for `-` that of a file which goes to stdout when the block ends.

    From then on, what is printed goes to stderr.

    Raises:
        FileError: stdout is a terminal.
        UsageError: more than one file would be written, or by several ranks.
    """
    if output != STREAM:
        yield output
        return
    refuse_streams(output)
    is_folder = typed.format in FOLDERS
    is_sharded = typed.max_shard_size is not None or _is_sharded(typed.checkpoint)
    if is_folder or typed.max_shard_size is not None or (is_sharded and not typed.format):
        raise UsageError(
            STREAM,
            f"stdout takes one file, and {typed.format} is a folder of several"
            if is_folder
            else "stdout takes one file, and a folder of files becomes several",
            expected="one file",
            hint="leave --max-shard-size out"
            if typed.max_shard_size and not is_folder
            else _ONE_FILE,
        )
    if not typed.dry_run and (not sys.__stdout__ or sys.stdout.isatty()):
        what = "a terminal" if sys.__stdout__ else "closed"
        raise FileError(STREAM, f"stdout is {what}", expected="a file", hint="- > FILE")
    from tempfile import mkdtemp

    from wncli.storage.temporary import uninterrupted

    stdout, sys.stdout = sys.stdout, sys.stderr
    suffix = FORMATS[typed.format].suffixes[0] if typed.format in FORMATS else ""
    with unfinished:
        path = Path(mkdtemp(prefix="wn-")) / f"stdout{suffix}"
        try:
            _paths[str(path)] = None
            yield str(path)
            if not typed.dry_run:
                with path.open("rb") as file:
                    shutil.copyfileobj(file, stdout.buffer, _BLOCK)
                stdout.flush()
        finally:
            with uninterrupted():
                shutil.rmtree(path.parent, ignore_errors=True)


def _is_sharded(path: str) -> bool:
    # Which takes names that no file can have, too; what is read says what is wrong with them.
    if is_address(path):
        return parse_address(path).is_folder
    return os.path.isdir(path) or path.endswith(".index.json")  # noqa: PTH112
