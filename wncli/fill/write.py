"""Writes what is laid out: a file, or the files of a folder, then puts it in its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wncli.errors import WnError
from wncli.formats.huggingface.names import WHOLE_FILES, index_format
from wncli.layout.shares import Share, divide, is_whole
from wncli.notes import Note
from wncli.storage.replace_file import allocate, joining, replacing, target_of, unwritable
from wncli.storage.replace_folder import replacing_folder
from wncli.storage.signals import unfinished
from wncli.storage.source import LocalSink, unreadable
from wncli.team import ALONE, Json, Team, pack_note, unpack_note

if TYPE_CHECKING:
    from wncli.checkpoint.output import Output
    from wncli.fill.fill import Filled
    from wncli.layout.files import Outputs
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
    team: Team = ALONE,
) -> Written:
    """Write everything, close the sources, then put it in its place.

    What is there already is replaced only with `force`.

    On `jobs` threads at most, of each rank of `team`. With `verify_against`, what the files are
    laid out for, all is read back before it is put there.

    Raises:
        WnError: refused; nothing has been written.
    """
    shares = divide([layout for _, layout in outputs.files], team.size)
    nbytes = outputs.nbytes
    if team.size > 1:
        nbytes = sum(piece.nbytes for ps in shares[team.rank].values() for piece in ps)
    total = nbytes * (2 if verify_against else 1)

    def report(count: int) -> None:
        team.look()
        if progress:
            progress(count, total)

    with unfinished, _new_files(outputs, team, force=force) as new:
        notes = _fill(outputs, shares, sources, new, report, jobs, team)
        verified = None
        if verify_against:
            from wncli.analysis.verify import verify

            shown = str(outputs.target.path)
            verified = verify(verify_against, sources, new.path, shown, notes, report, jobs, team)
        for source in sources:  # Windows replaces nothing that is open
            source.close()
        team.wait()
        return Written(notes, verified)


def _fill(  # noqa: PLR0913, PLR0917 - what, from where to where, and who does it
    outputs: Outputs,
    shares: Sequence[Share],
    sources: Sources,
    new: _New,
    report: Callable[[int], None],
    jobs: int | None,
    team: Team,
) -> tuple[Note, ...]:
    """Fill this rank's share of the files, and those that are divided with the others'.

    Returns:
        What the data showed, on all ranks.
    """
    from wncli.fill.fill import cloned, fill, seal

    notes: dict[int, list[Note]] = {}
    parts: dict[int, Filled] = {}
    for number, pieces in shares[team.rank].items():
        name, layout = outputs.files[number]
        with new.open(name) as sink:
            done = is_whole(layout, pieces)
            if not (done and cloned(layout, sources, sink)):
                filled = fill(layout, pieces, sources, sink, report, jobs)
                if done:
                    notes[number] = seal(layout, [filled], sources, sink)
                else:
                    parts[number] = filled
            if team.size > 1:
                sink.flush()
    if team.size > 1:
        gathered = team.gather(parts, _pack_parts, _unpack_parts)
        if team.rank == 0:
            for number, (name, layout) in enumerate(outputs.files):
                if any(is_whole(layout, share.get(number, ())) for share in shares):
                    continue
                filled_parts = [found[number] for found in gathered if number in found]
                with new.open(name) as sink:
                    notes[number] = seal(layout, filled_parts, sources, sink)
                    sink.flush()
        found = team.gather(notes, _pack_notes, _unpack_notes)
        notes = {number: notes for one in found for number, notes in one.items()}
    if team.rank == 0:
        new.finish()
    return tuple(note for number in sorted(notes) for note in notes[number])


class _New(NamedTuple):
    """The new files: where they stand so far, what opens one by its name, and what is left then."""

    path: Path
    open: Callable[[str], AbstractContextManager[LocalSink]]
    finish: Callable[[], None] = lambda: None


@contextmanager
def _new_files(outputs: Outputs, team: Team, *, force: bool) -> Iterator[_New]:
    """Give the new files, which rank 0 makes, and puts in their place when the block ends well."""
    target = outputs.target
    if team.rank:
        (place, *_) = team.gather("")
        with joining(target.path, place) as path:
            yield _New(path, lambda name: _opened(path / name if target.is_folder else path))
    elif not target.is_folder:
        ((_, layout),) = outputs.files
        with replacing(target.path, layout.nbytes, force=force) as (path, sink):
            team.gather(path.name)
            yield _New(path, lambda _: nullcontext(sink))
    else:
        with _new_folder(outputs, force=force, is_shared=team.size > 1) as new:
            team.gather(os.path.relpath(new.path, target_of(target.path).parent))
            yield new


@contextmanager
def _new_folder(outputs: Outputs, *, force: bool, is_shared: bool) -> Iterator[_New]:
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
        yield _New(new_files.path, lambda name: _sink(new_files.open(name)), finish)


@contextmanager
def _sink(file: FileIO) -> Iterator[LocalSink]:
    with file:
        yield LocalSink(file)


def _opened(path: Path) -> AbstractContextManager[LocalSink]:
    return _sink(path.open("r+b", buffering=0))


def _pack_parts(parts: dict[int, Filled]) -> Json:
    return [[number, filled.pack()] for number, filled in parts.items()]


def _unpack_parts(packed: Json) -> dict[int, Filled]:
    from wncli.fill.fill import Filled

    return {number: Filled.unpack(filled) for number, filled in packed}


def _pack_notes(notes: dict[int, list[Note]]) -> Json:
    return [[number, [pack_note(note) for note in found]] for number, found in notes.items()]


def _unpack_notes(packed: Json) -> dict[int, list[Note]]:
    return {number: [unpack_note(note) for note in found] for number, found in packed}


def _is_in(path: Path, folder: Path) -> bool:
    return folder.is_dir() and path.parent.samefile(folder)


def _copy_companion(path: Path, new_files: NewFiles) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from None
    new_files.write(path.name, content, path)


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
