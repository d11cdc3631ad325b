"""Makes the new file, or the files of a new folder, which take their places when all is written.

Rank 0 makes them; the others, which may be on other machines, find them by their names.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wncli.errors import FileError, WnError
from wncli.formats.huggingface.names import WHOLE_FILES, index_format
from wncli.storage.replace_file import allocate, replacing, target_of, unwritable
from wncli.storage.replace_folder import replacing_folder
from wncli.storage.source import LocalSink, unreadable
from wncli.storage.temporary import is_partial
from wncli.team import AlarmError, Team

if TYPE_CHECKING:
    from wncli.layout.files import Outputs, RemoteCompanion
    from wncli.plan.destination import Target
    from wncli.storage.replace_folder import NewFiles

#: Seconds in which a new file has to be seen by other machines, and between two looks.
_PATIENCE = 20.0
_PAUSE = 0.05


class New(NamedTuple):
    """The new files: where they stand so far, what opens one by its name, and what is left then."""

    path: Path
    open: Callable[[str], AbstractContextManager[LocalSink]]
    finish: Callable[[], None] = lambda: None


@contextmanager
def new_files(outputs: Outputs, team: Team, *, force: bool) -> Iterator[New]:
    """Give the new files, which rank 0 makes, and puts in their place when the block ends well."""
    target = outputs.target
    if team.rank:
        (place, *_) = team.gather("")
        with _joining(target.path, place, team) as path:
            yield New(path, lambda name: _opened(path / name if target.is_folder else path))
    elif not target.is_folder:
        ((_, layout),) = outputs.files
        with replacing(target.path, layout.nbytes, force=force) as (path, sink):
            team.gather(path.name)
            yield New(path, lambda _: nullcontext(sink))
    else:
        with _new_folder(outputs, force=force, is_shared=team.size > 1) as new:
            team.gather(os.path.relpath(new.path, _folder_of(target.path)))
            yield new


@contextmanager
def _new_folder(outputs: Outputs, *, force: bool, is_shared: bool) -> Iterator[New]:
    """Make a folder with all files of the output, as large as they are going to be.

    Where it `is_shared`, each has its permissions before another rank opens it.
    """
    target = outputs.target
    index = (outputs.index,) if outputs.index else ()
    companions = [path for path in outputs.companions if not _is_in(path, target.path)]
    names = [path.name for path in companions]
    names += [name for name, _ in (*outputs.files, *index)]

    with replacing_folder(
        target.path, names, partial(_checkpoint_in, target), force=force
    ) as new_files:

        def finish() -> None:
            for path in companions:
                _copy_companion(path, new_files)
            for name, content in index:
                new_files.write(name, content)

        for name, layout in outputs.files:
            with new_files.create(name) as new:
                allocate(new.fileno(), layout.nbytes)
            if is_shared:
                new_files.open(name).close()
        yield New(new_files.path, lambda name: _sink(new_files.open(name)), finish)


def _folder_of(output: Path) -> Path:
    """Return the folder that a new file or folder is seen from; no link is on the way."""
    return Path(os.path.realpath(target_of(output).parent))


@contextmanager
def _joining(output: Path, place: str, team: Team) -> Iterator[Path]:
    """Give the new file or folder that rank 0 has made at `place`, beside what it is to replace.

    Raises:
        FileError: it is not there, or the system does not let it be written.
        AlarmError: it is not there any more.
    """
    path = _folder_of(output) / place
    if ".." in path.parts or not is_partial(path.name):
        raise FileError(str(output), "rank 0 has named no new file", found=path.name)
    patience = time.monotonic() + _PATIENCE
    while not path.exists():  # other machines may see it only after a while
        team.look()
        if time.monotonic() > patience:
            raise FileError(
                str(output),
                f"{path.name}, which rank 0 has made beside it, is not there",
                expected="a folder on a file system that all ranks share",
            )
        time.sleep(_PAUSE)
    try:
        yield path
    except FileError:
        raise
    except FileNotFoundError:  # rank 0 is refused, and has cleared it away
        raise AlarmError(f"{path} is gone") from None
    except OSError as error:
        raise unwritable(output, error) from None


@contextmanager
def _sink(file: FileIO) -> Iterator[LocalSink]:
    with file:
        yield LocalSink(file)


def _opened(path: Path) -> AbstractContextManager[LocalSink]:
    return _sink(path.open("r+b", buffering=0))


def _is_in(path: Path | RemoteCompanion, folder: Path) -> bool:
    return isinstance(path, Path) and folder.is_dir() and path.parent.samefile(folder)


def _copy_companion(path: Path | RemoteCompanion, new_files: NewFiles) -> None:
    try:
        content = path.read_bytes()
    except WnError:
        raise
    except OSError as error:
        raise unreadable(str(path), error) from None
    new_files.write(path.name, content, path if isinstance(path, Path) else None)


def _checkpoint_in(target: Target) -> tuple[str, ...]:
    """Return the files of the checkpoint in a folder that is to be replaced.

    That is the one which the folder stands for, and whatever would be read before the new one:
    safetensors files come before torch files, and distributed checkpoints before both.
    """
    from wncli.formats.distributed import files_of_distributed
    from wncli.formats.huggingface.folder import find_in_folder
    from wncli.formats.huggingface.index import read_index
    from wncli.storage.source import LocalSource

    if not target.path.is_dir():
        return ()
    present = sorted(entry.name for entry in target.path.iterdir())
    formats = {"safetensors", target.format}
    found = [name for name in present if WHOLE_FILES.get(name) in formats]
    found += [name for name in present if index_format(name) in formats]
    found += files_of_distributed(present)
    with contextlib.suppress(WnError):
        found.append(find_in_folder(target.path)[0].name)
    for name in [name for name in found if index_format(name)]:
        path = target.path / name
        with contextlib.suppress(WnError, OSError), path.open("rb", buffering=0) as file:
            found += read_index(LocalSource(str(path), file)).file_names
    return tuple(name for name in dict.fromkeys(found) if name in present)
