"""Temporary siblings of an output: their names, the lock of a living run, clearing away dead ones.

Whoever writes holds a lock (flock(2)) on what it writes. The system gives it up with the process,
however that ends, so that the next run can tell what is left behind from what is in the making.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import stat
import threading
from collections.abc import Iterator
from functools import partial
from io import FileIO
from pathlib import Path

from wncli.storage.permissions import first_mode

#: What the name of a temporary sibling ends with; no checkpoint's name does.
PARTIAL_SUFFIX = ".wn-partial"
#: In a temporary folder that is ready: a folder with an empty file for each that is to go.
GOING = ".going"
#: Bytes of a target's name that its temporary sibling keeps; systems take 255 in all.
_LONGEST_NAME = 200


def create_partial(target: Path) -> tuple[Path, FileIO]:
    """A new temporary sibling of `target`, as a path and the open file that holds its lock.

    Where there is a target, only its owner may read and write the sibling until it is told who.

    Raises:
        OSError: the system does not let it be made.
    """
    while True:
        path = target.parent / _name_beside(target.name)
        file = FileIO(path, "x+", opener=partial(os.open, mode=first_mode(target)))
        if _claim(file.fileno()):
            return path, file
        file.close()


def create_partial_folder(parent: Path, name: str, mode: int) -> tuple[Path, int]:
    """A new temporary folder in `parent` for a target of this name, with its lock.

    Raises:
        OSError: the system does not let it be made.
    """
    while True:
        path = parent / _name_beside(name)
        path.mkdir(mode)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another run took it for a leftover, before it had its lock
            continue
        if _claim(descriptor):
            return path, descriptor
        os.close(descriptor)


def clear_leftovers(parent: Path, name: str) -> None:
    """Remove what earlier runs for a target of this name have left in `parent` when they died.

    A folder that is ready stays: its files are to be moved in.
    """
    ours = re.compile(re.escape(f".{_kept(name)}.") + r"[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX))
    with contextlib.suppress(OSError):
        for entry in [entry for entry in os.scandir(parent) if ours.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), _abandoned(Path(entry.path)) as path:
                if not entry.is_dir(follow_symlinks=False):
                    path.unlink()
                elif not (path / GOING).exists():
                    shutil.rmtree(path)


def is_partial(name: str) -> bool:
    """Whether something of this name is in the making, or left over."""
    return name.startswith(".") and name.endswith(PARTIAL_SUFFIX)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off the signals that end a run until the block is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: handler for number in ending if callable(handler := signal.getsignal(number))}
    for number in kept:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[Path]:
    """What nobody writes any more, locked so that nobody else clears it away as well.

    Raises:
        OSError: somebody writes it, or it cannot be told.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FileNotFoundError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(descriptor)


def _claim(descriptor: int) -> bool:
    """Take the lock; False where another run took it first, to clear it away."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can take it
        return True
    return os.fstat(descriptor).st_nlink > 0


def _kept(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def _name_beside(name: str) -> str:
    return f".{_kept(name)}.{os.urandom(4).hex()}{PARTIAL_SUFFIX}"
