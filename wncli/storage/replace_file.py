"""The output file: complete or not there. A temporary sibling that is renamed onto the target."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wncli.errors import FileError
from wncli.hints import parameter, path_text, path_word, phrase, setting
from wncli.storage.permissions import take_over
from wncli.storage.source import LocalSink
from wncli.storage.temporary import (
    MOVES_OPEN_FILES,
    clear_away,
    clear_leftovers,
    create_partial,
    uninterrupted,
)


def check_output(output: Path, *, force: bool, takes_files: bool = True) -> None:
    """Refuse a target that cannot be written, before any work is done.

    Args:
        output: the file.
        force: it may be there.
        takes_files: were it a directory, the file could go into it.

    Raises:
        FileError: it exists and `force` is not given, is not a regular file, or has no directory.
    """
    where = str(output)
    try:
        mode = output.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise FileError(
            where, phrase("{} cannot be written ({})", parameter("output"), reason)
        ) from None
    if mode is not None and stat.S_ISDIR(mode):
        raise FileError(
            where,
            phrase("{} is a directory", parameter("output")),
            expected="a file's name",
            hint=phrase("{} writes into it", path_text(where, "/")) if takes_files else "",
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise FileError(
            where, phrase("{} is not a regular file", parameter("output")), expected="a file's name"
        )
    if mode is not None and not force:
        raise FileError(
            where,
            phrase("{} exists already", parameter("output")),
            hint=phrase("{} replaces it, or choose another name", setting(force=True)),
        )
    check_parent(where, target_of(output).parent)


def check_parent(where: str, folder: Path) -> None:
    """Refuse a target that is to stand in a directory which is not there.

    Raises:
        FileError: it is not, or something else is in its place.
    """
    if folder.is_dir():
        return
    above = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if os.path.lexists(above) and not above.is_dir():
        raise FileError(where, f"{above} is not a directory")
    raise FileError(where, "the directory does not exist", hint=f"mkdir -p {path_word(folder)}")


def target_of(output: Path) -> Path:
    """Give the file to replace: what `output` leads to if it is a link, so that the link stays."""
    return Path(os.path.realpath(output)) if output.is_symlink() else output


@contextmanager
def replacing(output: Path, nbytes: int, *, force: bool) -> Iterator[tuple[Path, LocalSink]]:
    """Return a new file of `nbytes` that takes `output`'s place when the block ends well.

    It is given as its path so far and what writes it. An existing file keeps its permissions and,
    where possible, its owner, and nobody else may read the new one at any moment; it is replaced
    only with `force`, and once the new one is on disk.

    Raises:
        FileError: no room, no permission, or `output` is there by now; nothing is left behind.
    """
    target = target_of(output)
    clear_leftovers(target.parent, target.name)
    partial: Path | None = None
    try:
        with uninterrupted():
            partial, file = create_partial(target)
        descriptor = file.fileno()
        try:
            if target.exists():
                take_over(descriptor, target, is_complete=False)
            allocate(descriptor, nbytes)
            yield partial, LocalSink(file)
            if target.exists():
                take_over(descriptor, target, is_complete=True)
                os.fsync(descriptor)
            os.close(os.dup(descriptor))  # some file systems tell only now; the lock is still held
            if not MOVES_OPEN_FILES:
                file.close()
            if force:
                partial.replace(target)
            else:
                _rename_onto_nothing(partial, target)
        finally:
            with contextlib.suppress(OSError):
                file.close()
    except BaseException as error:
        if partial:
            clear_away(partial)
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise unwritable(output, error, f"room for {nbytes:,} bytes, and permission") from None
        raise


def _rename_onto_nothing(partial: Path, target: Path) -> None:
    """Rename, unless another process has written `target` in the meantime."""
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # not every file system has hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        partial.rename(target)
    else:
        with contextlib.suppress(OSError):  # the next run clears it away
            partial.unlink()


def unwritable(output: Path, error: OSError, expected: str = "room, and permission") -> FileError:
    """Make the refusal of an output that the system does not let be written."""
    reason = os.strerror(error.errno or 0)
    return FileError(str(output), f"cannot be written ({reason})", expected=expected)


def allocate(descriptor: int, nbytes: int) -> None:
    """Take the space at once, so that a full disk shows now and not half-way."""
    os.ftruncate(descriptor, nbytes)
    if nbytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
