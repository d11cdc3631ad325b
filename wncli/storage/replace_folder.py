"""A folder of output files: complete or not there, and what else stands in it stays.

A new folder is made beside its place and renamed. Into a folder that is there already the files
are moved once all are written, the index last. Until then the old checkpoint is whole; and while
files are moved there is no index, so that nobody takes old and new ones for one checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

from wncli.errors import FileError
from wncli.formats.huggingface.names import index_format
from wncli.storage.permissions import take_over
from wncli.storage.replace_file import check_parent, target_of, unwritable
from wncli.storage.temporary import (
    REPLACED,
    clear_leftovers,
    create_partial_folder,
    is_partial,
    note_added,
    uninterrupted,
)


def check_folder(output: Path, *, force: bool) -> None:
    """Refuse a folder that cannot be written, before any work is done.

    Raises:
        FileError: it exists with something in it and `force` is not given, or is a file, or stands
            in no directory.
    """
    where = str(output)
    try:
        found = output.exists() or output.is_symlink()
        if found and not output.is_dir():
            raise FileError(where, "OUTPUT is a file", expected="a folder's name")
        if found and not force and not all(is_partial(entry.name) for entry in output.iterdir()):
            raise FileError(
                where,
                "OUTPUT exists already and is not empty",
                hint="--force replaces the checkpoint in it, or choose another name",
            )
        check_parent(where, target_of(output).parent)
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise FileError(where, f"OUTPUT cannot be written ({reason})") from None


class NewFiles:
    """The files that are being written in the folder `path`, for their places in `target`.

    Each has the permissions of the file that it replaces: the one of its name, or else that one of
    the old checkpoint's files which fewest people may read.
    """

    def __init__(self, path: Path, target: Path, old: Sequence[str]) -> None:
        self.path = path
        self.target = target
        there = [target / name for name in old if (target / name).is_file()]
        self.old = min(
            there, key=lambda one: (one.stat().st_mode & 0o077).bit_count(), default=None
        )
        self.sources: dict[str, Path] = {}

    def create(self, name: str) -> FileIO:
        """A new file, for its owner alone where it is to have the permissions of another.

        Raises:
            OSError: the system does not let it be made.
        """
        mode = 0o600 if self.model_of(name) else 0o666
        return FileIO(self.path / name, "x", opener=partial(os.open, mode=mode))

    def open(self, name: str) -> FileIO:
        """A file that has been created, with its permissions from now on.

        Raises:
            OSError: the system does not let it be opened, or given its permissions.
        """
        file = (self.path / name).open("r+b", buffering=0)
        try:
            self.permit(name, file.fileno(), is_complete=False)
        except BaseException:
            file.close()
            raise
        return file

    def write(self, name: str, content: bytes, source: Path | None = None) -> None:
        """Write a whole file; `source` is the one that it is a copy of.

        Raises:
            OSError: the system does not let it.
        """
        if source:
            self.sources[name] = source
        self.create(name).close()
        (self.path / name).write_bytes(content)
        self.open(name).close()

    def permit(self, name: str, descriptor: int, *, is_complete: bool) -> None:
        """Give a file its permissions; it keeps what it has where another run moves its model.

        Raises:
            OSError: the system does not let it.
        """
        if model := self.model_of(name):
            is_copy = model == self.sources.get(name)
            with contextlib.suppress(FileNotFoundError):
                take_over(descriptor, model, is_complete=is_complete, owner=not is_copy)

    def model_of(self, name: str) -> Path | None:
        """The file whose permissions a new one gets."""
        place = self.target / name
        return place if place.is_file() else self.sources.get(name, self.old)


@contextmanager
def replacing_folder(
    output: Path, names: Sequence[str], find_old: Callable[[], Sequence[str]], *, force: bool
) -> Iterator[NewFiles]:
    """The new files `names` of a folder, which take their places when the block ends well.

    `find_old` tells the files of the checkpoint that `output` holds so far, and that go; it is
    asked when what a killed run left half-way has been put back, before the files are written and
    before they are moved. The last of `names` is moved last.

    Raises:
        FileError: no room, or no permission; nothing is left behind.
    """
    target = Path(os.path.realpath(output))  # also where it is a link, or "."
    is_new = not target.exists()
    parent = target.parent if is_new else target
    clear_leftovers(target.parent, target.name)
    if not is_new:
        with _locked(target):
            clear_leftovers(target, target.name)
    partial: Path | None = None
    try:
        if not is_new:
            _refuse_clashes(output, target, names)
        with uninterrupted():
            partial, lock = create_partial_folder(parent, target.name, 0o777 if is_new else 0o700)
        try:
            with contextlib.nullcontext() if is_new else _locked(target):
                files = NewFiles(partial, target, () if is_new else find_old())
            yield files
            if is_new:
                partial.rename(target)
            else:
                with _locked(target), uninterrupted():
                    check_folder(output, force=force)
                    _move_in(files, names, find_old())
                    with contextlib.suppress(OSError):  # the next run clears up the rest
                        shutil.rmtree(partial)
        finally:
            with contextlib.suppress(OSError):
                os.close(lock)
    except BaseException as error:
        if partial:
            with uninterrupted(), contextlib.suppress(OSError):
                _discard(partial)
        if isinstance(error, OSError):
            raise unwritable(output, error) from None
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let no other run move files in this folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _discard(partial: Path) -> None:
    """Remove it, unless it has old files that the system did not let go back to their places."""
    replaced = partial / REPLACED
    if not (replaced.is_dir() and any(replaced.iterdir())):
        shutil.rmtree(partial)


def _refuse_clashes(output: Path, target: Path, names: Sequence[str]) -> None:
    """A new file must not have the name of a folder that stays."""
    for name in names:
        place = target / name
        if place.is_dir() and not place.is_symlink():
            raise FileError(
                str(output),
                f"the folder {name} stands where a file of this name is to be written",
                hint="choose another OUTPUT, or move the folder",
            )


def _is_file(path: Path) -> bool:
    """Whether something stands there that is no folder; a link is what it is, wherever it leads."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _move_in(files: NewFiles, names: Sequence[str], old: Sequence[str]) -> None:
    """Put the new files in the place of the old ones, or everything back where that fails."""
    partial, target = files.path, files.target
    replaced = partial / REPLACED
    replaced.mkdir()
    there = [name for name in dict.fromkeys((*old, *names)) if _is_file(target / name)]
    there.sort(key=lambda name: index_format(name) is None)
    for name in names:
        with (partial / name).open("rb") as file:
            files.permit(name, file.fileno(), is_complete=True)
            os.fsync(file.fileno())
    note_added(partial, [name for name in names if name not in there])
    moves = [(target / name, replaced / name) for name in there]
    moves += [(partial / name, target / name) for name in names]
    done: list[tuple[Path, Path]] = []
    try:
        for source, place in moves:
            source.rename(place)
            done.append((source, place))
    except BaseException:
        for source, place in reversed(done):
            place.rename(source)
        raise
