"""A folder of output files: complete or not there. A temporary sibling that takes its place."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wncli.errors import FileError
from wncli.output import partial_name, unwritable

#: `renameat2` of Linux (`linux/fs.h`), which swaps two names at once.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


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
        if found and not force and any(output.iterdir()):
            raise FileError(
                where,
                "OUTPUT exists already and is not empty",
                hint="--force replaces the checkpoint in it, or choose another name",
            )
        parent = Path(os.path.realpath(output)).parent
        if not parent.is_dir():
            raise FileError(where, "the directory does not exist", hint=f"mkdir -p {parent}")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise FileError(where, f"OUTPUT cannot be written ({reason})") from None


@contextmanager
def replacing_folder(output: Path, gone: Sequence[str]) -> Iterator[Path]:
    """A new folder that takes `output`'s place when the block ends well.

    What stands in an existing folder stays, but for files of the names that are written anew and
    those in `gone`, which belong to the checkpoint that is replaced.

    Raises:
        FileError: no room, or no permission; nothing is left behind.
    """
    target = Path(os.path.realpath(output))  # also where it is a link, or "."
    partial = target.parent / partial_name(target.name)
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            _keep_others(target, partial, frozenset(gone))
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
            _flush(partial)
            _refuse_clashes(output, target, partial)
            _exchange(partial, target)
            _move_folders(partial, target)
            shutil.rmtree(partial)
        else:
            partial.rename(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            if not any(entry.is_dir() for entry in partial.iterdir()):  # none of the user's
                shutil.rmtree(partial)
        if isinstance(error, OSError):
            raise unwritable(output, error) from None
        raise


def _keep_others(old: Path, new: Path, gone: frozenset[str]) -> None:
    """Have what is no part of the checkpoint in the new folder too."""
    for entry in sorted(old.iterdir()):
        place = new / entry.name
        if entry.name in gone or place.exists() or (entry.is_dir() and not entry.is_symlink()):
            continue
        try:
            os.link(entry, place, follow_symlinks=False)
        except OSError:
            shutil.copy2(entry, place, follow_symlinks=False)


def _refuse_clashes(output: Path, old: Path, new: Path) -> None:
    """A new file must not have the name of a folder that is to stay."""
    for entry in old.iterdir():
        if entry.is_dir() and not entry.is_symlink() and (new / entry.name).exists():
            raise FileError(
                str(output),
                f"the folder {entry.name} stands where a file of this name is to be written",
                hint="choose another OUTPUT, or move the folder",
            )


def _move_folders(old: Path, new: Path) -> None:
    for entry in sorted(old.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            entry.rename(new / entry.name)


def _flush(folder: Path) -> None:
    """Have all of it on disk before anything old goes."""
    for entry in (*folder.iterdir(), folder):
        if not entry.is_symlink():
            descriptor = os.open(entry, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders, at once where the system can, else in two steps."""
    import ctypes

    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = os.fsencode(one), os.fsencode(other)
        swapped = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    except (AttributeError, OSError):
        swapped = False
    if swapped:
        return
    aside = one.with_name(f"{one.name}-old")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)
