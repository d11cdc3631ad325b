"""Opens checkpoints at a distance: a file, the shards of an index, the one that a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import FileError
from wncli.formats.huggingface.folder import choose, no_checkpoint_at
from wncli.formats.huggingface.index import read_index
from wncli.formats.huggingface.shards import open_shards
from wncli.formats.registry import SUFFIXES
from wncli.hints import either, path_text
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks
from wncli.storage.addresses import Address
from wncli.storage.remote.at import place_at
from wncli.storage.remote.places import MissingError, RemotePlace
from wncli.storage.remote.ranges import WINDOW
from wncli.storage.source import FileSource, Source, Sources

#: Files whose first bytes are asked for at the same time.
_AT_ONCE = 8

OpenIndex = Callable[[Source], tuple[Checkpoint, Sources]]


def open_at(
    address: Address,
    stack: ExitStack,
    read_all: Callable[[FileSource, OpenIndex], tuple[Checkpoint, Sources]],
    read: Callable[[Source], Checkpoint],
) -> tuple[Checkpoint, Sources]:
    """Open the checkpoint at an address; `stack` closes it.

    Args:
        address: of a file, an index, or a folder.
        stack: keeps it open.
        read_all: opens a file, which may be an index.
        read: opens one file by its content.

    Raises:
        FileError: it cannot be read, or several files can be meant.
        FormatError: it is no checkpoint, or a damaged one.
    """
    place = place_at(address)
    stack.callback(place.close)
    try:
        source, notes = place.file(), tuple[Note, ...]()
    except MissingError as missing:
        source, notes = _in_folder(place, missing)
    stack.callback(source.close)

    def open_index(index: Source) -> tuple[Checkpoint, Sources]:
        listed = read_index(index, replace(place.address, shown=index.name))
        files = _shards(place, listed.file_names, stack)
        for file in files:
            file.folder = place
        return open_shards(place.address, listed, files, read)

    found, sources = read_all(source, open_index)
    return replace(found, notes=notes + found.notes), sources


def _in_folder(place: RemotePlace, missing: MissingError) -> tuple[FileSource, tuple[Note, ...]]:
    """Open the checkpoint of the folder that may be there in place of a file."""
    shown = place.address.shown
    names = place.names()
    if names is None:
        missing.hint = either(path_text(near) for near in place.near())
        raise missing
    found = choose(shown, names)
    if found is None:
        near = [one for one in place.near() if one.endswith(tuple(SUFFIXES))]
        raise no_checkpoint_at(shown, names, near)
    name, notes = found
    source = place.open(name)
    source.folder = place
    return source, notes


def _shards(place: RemotePlace, names: Sequence[str], stack: ExitStack) -> list[FileSource]:
    """Open files side by side: each waits for an answer of its own."""

    def open_one(item: tuple[int, str], advance: Advance) -> FileSource:
        number, name = item
        try:
            source = place.open(name, number)
        except MissingError as missing:
            raise FileError(
                missing.where,
                f"one of {len(names)} shards is missing",
                expected="every file that the index lists, beside it",
                hint="give another revision, or one that is whole",
            ) from None
        stack.callback(source.close)
        advance(0)
        return source

    return run_tasks(
        open_one,
        list(enumerate(names)),
        nbytes=len(names) * WINDOW << 10,  # as much as lets each have a thread
        jobs=_AT_ONCE,
        progress=lambda _: None,
    )
