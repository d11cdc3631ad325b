"""Writes what is laid out: a file, or the files of a folder, then puts it in its place."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wncli.errors import WnError
from wncli.formats.huggingface.names import WHOLE_FILES, index_format
from wncli.notes import Note
from wncli.storage.replace_file import unwritable
from wncli.storage.signals import unfinished
from wncli.storage.source import unreadable

if TYPE_CHECKING:
    from wncli.checkpoint.output import Output
    from wncli.layout.files import Outputs, RemoteCompanion
    from wncli.parallel import Progress
    from wncli.plan.destination import Target
    from wncli.storage.replace_folder import NewFiles
    from wncli.storage.source import Sources


class Written(NamedTuple):
    """What writing showed: notes of the data, and how many weights were verified, if any."""

    notes: tuple[Note, ...]
    verified: int | None


def make_parent(target: Target) -> None:
    """Make the directory that the output is to stand in.

    Raises:
        FileError: the system does not let it be made.
    """
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(target.path.parent, error) from None


def write(  # noqa: PLR0913 - what, and how
    outputs: Outputs,
    sources: Sources,
    progress: Progress | None,
    *,
    jobs: int | None,
    force: bool,
    verify_against: Output | None = None,
) -> Written:
    """Write everything, close the sources, then put it in its place.

    What is there already is replaced only with `force`.

    On `jobs` threads at most. With `verify_against`, what the files are laid out for, all is read
    back before it is put there.

    Raises:
        WnError: refused; nothing has been written.
    """
    from wncli.fill.fill import fill
    from wncli.storage.replace_file import allocate, replacing
    from wncli.storage.replace_folder import replacing_folder
    from wncli.storage.source import LocalSink

    total = outputs.nbytes * (2 if verify_against else 1)

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    target = outputs.target

    def finish(written: Path, notes: tuple[Note, ...]) -> Written:
        verified = None
        if verify_against:
            from wncli.analysis.verify import verify

            verified = verify(
                verify_against, sources, written, str(target.path), notes, report, jobs
            )
        _close(sources)
        return Written(notes, verified)

    if not target.is_folder:
        ((_, layout),) = outputs.files
        with unfinished, replacing(target.path, layout.nbytes, force=force) as temporary:
            written, sink = temporary
            notes = fill(layout, sources, sink, report, jobs)
            return finish(written, notes)
    notes = ()
    index = (outputs.index,) if outputs.index else ()
    companions = [one for one in outputs.companions if not _is_in(one, target.path)]
    names = [path.name for path in companions]
    names += [name for name, _ in (*outputs.files, *index)]
    with (
        unfinished,
        replacing_folder(
            target.path, names, partial(_checkpoint_in, target), force=force
        ) as new_files,
    ):
        for name, layout in outputs.files:
            with new_files.create(name) as new:
                allocate(new.fileno(), layout.nbytes)
        for name, layout in outputs.files:
            with new_files.open(name) as laid_out:
                notes += fill(layout, sources, LocalSink(laid_out), report, jobs)
        for path in companions:
            _copy_companion(path, new_files)
        for name, content in index:
            new_files.write(name, content)
        return finish(new_files.path, notes)


def _close(sources: Sources) -> None:
    for source in sources:  # Windows replaces nothing that is open
        source.close()


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
    safetensors files come before torch files.
    """
    from wncli.formats.huggingface.folder import find_in_folder
    from wncli.formats.huggingface.index import read_index
    from wncli.storage.source import LocalSource

    if not target.path.is_dir():
        return ()
    present = sorted(entry.name for entry in target.path.iterdir())
    formats = {"safetensors", target.format}
    found = [name for name in present if WHOLE_FILES.get(name) in formats]
    found += [name for name in present if index_format(name) in formats]
    with contextlib.suppress(WnError):
        found.append(find_in_folder(target.path)[0].name)
    for name in [name for name in found if index_format(name)]:
        path = target.path / name
        with contextlib.suppress(WnError, OSError), path.open("rb", buffering=0) as file:
            found += read_index(LocalSource(str(path), file)).file_names
    return tuple(dict.fromkeys(found))
