"""A folder of output files: complete or not there, and what else stands in it stays.

A new folder is made beside its place and renamed. Into a folder that is there already the files
are moved once all are written and marked as ready; from then on, whatever ends the process, the
next run goes on. The old files go first, of them the index first; the new index comes last. So
nobody takes old and new files for one checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

from wncli.errors import FileError
from wncli.hints import parameter, phrase, setting
from wncli.storage.permissions import take_over
from wncli.storage.replace_file import check_parent, target_of, unwritable
from wncli.storage.temporary import (
    GOING,
    MOVES_OPEN_FILES,
    PARTIAL_SUFFIX,
    clear_away,
    clear_leftovers,
    create_partial_folder,
    is_partial,
    locked,
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
            raise FileError(  # noqa: TRY301 - which is passed on
                where, phrase("{} is a file", parameter("output")), expected="a folder's name"
            )
        if found and not force and not all(is_partial(entry.name) for entry in output.iterdir()):
            raise FileError(  # noqa: TRY301
                where,
                phrase("{} exists already and is not empty", parameter("output")),
                hint=phrase(
                    "{} replaces the checkpoint in it, or choose another name", setting(force=True)
                ),
            )
        check_parent(where, target_of(output).parent)
    except FileError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise FileError(
            where, phrase("{} cannot be written ({})", parameter("output"), reason)
        ) from None


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
        """Return a new file, for its owner alone where it is to have the permissions of another.

        Raises:
            OSError: the system does not let it be made.
        """
        mode = 0o600 if self.model_of(name) else 0o666
        return FileIO(self.path / name, "x", opener=partial(os.open, mode=mode))

    def open(self, name: str) -> FileIO:
        """Return a file that has been created, with its permissions from now on.

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
        """Return the file whose permissions a new one gets."""
        place = self.target / name
        return place if place.is_file() else self.sources.get(name, self.old)


@contextmanager
def replacing_folder(
    output: Path, names: Sequence[str], find_old: Callable[[], Sequence[str]], *, force: bool
) -> Iterator[NewFiles]:
    """Return the new files `names` of a folder, which take their places when the block ends well.

    `find_old` tells the files of the checkpoint that `output` holds so far, and that go; it is
    asked when what a killed run left half-way has been finished, before the files are written and
    before they are moved.

    Raises:
        FileError: no room, or no permission; nothing is left behind, unless old files are gone
            already: then the new ones are, to be moved in.
    """
    target = Path(os.path.realpath(output))  # also where it is a link, or "."
    is_new = not target.exists()
    parent = target.parent if is_new else target
    clear_leftovers(target.parent, target.name)
    partial: Path | None = None
    try:
        if not is_new:
            with locked(target):
                clear_leftovers(target, target.name)
                _finish_others(target)
            _refuse_clashes(output, target, names)
        with uninterrupted():
            partial, lock = create_partial_folder(parent, target.name, 0o777 if is_new else 0o700)
        try:
            with contextlib.nullcontext() if is_new else locked(target):
                files = NewFiles(partial, target, () if is_new else find_old())
            yield files
            if is_new:
                partial.rename(target)
            else:
                with locked(target), uninterrupted():
                    _finish_others(target)
                    check_folder(output, force=force)
                    _move_in(files, names, find_old())
        finally:
            if lock is not None:
                with contextlib.suppress(OSError):
                    os.close(lock)
    except BaseException as error:
        expected = "room, and permission"
        if partial and (partial / GOING).exists():
            expected = f"permission to move in what is left in {partial}"
        elif partial:
            clear_away(partial)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise unwritable(output, error, expected) from None
        raise


def _refuse_clashes(output: Path, target: Path, names: Sequence[str]) -> None:
    """Return a new file must not have the name of a folder that stays."""
    for name in names:
        place = target / name
        if place.is_dir() and not place.is_symlink():
            raise FileError(
                str(output),
                f"the folder {name} stands where a file of this name is to be written",
                hint=phrase("choose another {}, or move the folder", parameter("output")),
            )


def _is_file(path: Path) -> bool:
    """Whether something stands there that is no folder; a link is what it is, wherever it leads."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_dir())


def _move_in(files: NewFiles, names: Sequence[str], old: Sequence[str]) -> None:
    """Put the new files in the place of the old ones, as far as the system lets them be moved."""
    partial, target = files.path, files.target
    for name in names:
        # Nobody may be let write it any more, and Windows flushes only what can be written.
        with (partial / name).open("rb" if MOVES_OPEN_FILES else "r+b") as file:
            files.permit(name, file.fileno(), is_complete=True)
            os.fsync(file.fileno())
    unmarked, going = partial / ".unmarked", partial / GOING
    unmarked.mkdir()
    for name in {*old, *names}:
        if _is_file(target / name):
            (unmarked / name).touch(0o600)
    unmarked.rename(going)
    marks, waiting = [*going.iterdir()], [partial / name for name in names]
    try:
        _finish(partial, target)
    except OSError:
        if all(map(os.path.lexists, (*marks, *waiting, *(target / mark.name for mark in marks)))):
            going.rename(unmarked)  # nothing has changed
            raise
        _finish(partial, target)  # another program may have had a file open, which is over


def _finish_others(target: Path) -> None:
    """Go on where runs were killed that moved files in."""
    for going in sorted(target.glob(f".*{PARTIAL_SUFFIX}/{GOING}")):
        if going.resolve() == going:  # links lead to what no run has left
            _finish(going.parent, target)


def _finish(partial: Path, target: Path) -> None:
    """Remove the old files and move the new ones in, as far as that is still to be done."""
    coming = [path for path in partial.iterdir() if path.name != GOING]
    for mark in sorted((partial / GOING).iterdir(), key=lambda mark: not _is_index(mark)):
        if coming:  # else they have been moved in by hand
            (target / mark.name).unlink(missing_ok=True)
        mark.unlink()
    # Where there is no index, what is largest tells that the checkpoint is whole.
    for path in sorted(coming, key=lambda path: (_is_index(path), path.lstat().st_size)):
        path.replace(target / path.name)
    with contextlib.suppress(OSError):  # the next run does
        (partial / GOING).rmdir()
        partial.rmdir()


def _is_index(path: Path) -> bool:
    """Whether it lists others: that of shards, or of a distributed checkpoint."""
    return ".index." in path.name or path.name.endswith(".metadata")
