"""Temporary siblings of an output: their names, the lock of a living run, clearing away dead ones.

Whoever writes holds a lock (flock(2)) on what it writes. The system gives it up with the process,
however that ends, so that the next run can tell what is left behind from what is being written.
Where there are no such locks, what has not changed for a day is left behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from functools import partial
from io import FileIO
from pathlib import Path

from wncli.storage.permissions import first_mode
from wncli.storage.signals import ENDING

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

#: Whether an open file can be renamed, replaced and removed: not on Windows.
MOVES_OPEN_FILES = fcntl is not None

#: What the name of a temporary sibling ends with; no checkpoint's name does.
PARTIAL_SUFFIX = ".wn-partial"
#: In a temporary folder that is ready: a folder with an empty file for each that is to go.
GOING = ".going"
#: Seconds after which nobody writes any more what has not changed, where no lock tells.
_DAY = 24 * 60 * 60
#: What is open in a folder that cannot be locked, while files are moved in it.
_LOCK = f".lock{PARTIAL_SUFFIX}"
#: Bytes of a target's name that its temporary sibling keeps; systems take 255 in all.
_LONGEST_NAME = 200


def create_partial(target: Path) -> tuple[Path, FileIO]:
    """Return a new temporary sibling of `target`, as a path and the open file that holds its lock.

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


def create_partial_folder(parent: Path, name: str, mode: int) -> tuple[Path, int | None]:
    """Return a new temporary folder in `parent` for a target of this name, with its lock.

    Raises:
        OSError: the system does not let it be made.
    """
    while True:
        path = parent / _name_beside(name)
        path.mkdir(mode)
        if not fcntl:
            return path, None
        try:
            descriptor = os.open(path, os.O_RDONLY)
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
    kept = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    for number in kept:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def clear_away(path: Path) -> None:
    """Remove a file or folder, whatever comes in between; what is not there is no failure.

    An interruption can come before the signals are put off, as when another rank has ended of it.
    """
    try:
        _remove(path)
    except KeyboardInterrupt:
        _remove(path)
        raise


def _remove(path: Path) -> None:
    with uninterrupted(), contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other run move files in this folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else _open_alone(folder / _LOCK)
    try:
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if not fcntl:
            with contextlib.suppress(OSError):
                (folder / _LOCK).unlink()


def _open_alone(lock: Path) -> int:
    """Open a file that nobody else has open, where nobody can remove an open file."""
    while True:
        with contextlib.suppress(OSError):
            lock.unlink()
        try:
            return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            time.sleep(0.05)


@contextlib.contextmanager
def _abandoned(path: Path) -> Iterator[Path]:
    """Return what nobody writes any more, locked so that nobody else clears it away as well.

    Raises:
        OSError: somebody writes it, or it cannot be told.
    """
    found = path.lstat()
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise FileNotFoundError
    if not fcntl:
        if found.st_mtime > time.time() - _DAY:
            raise BlockingIOError
        yield path
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(descriptor)


def _claim(descriptor: int) -> bool:
    """Take the lock; False where another run took it first, to clear it away."""
    if not fcntl:
        return True
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
