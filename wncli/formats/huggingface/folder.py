"""Finds the checkpoint in a folder: an index, or the one file that can be meant.

Where several stand there under the names that Hugging Face's libraries give them, the first in
their own order is taken: safetensors before torch, and of each the whole file before the index
(transformers `modeling_utils.py`, `_get_resolved_checkpoint_files`).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from wncli.checkpoint.naming import natural
from wncli.errors import FileError, few
from wncli.formats.distributed import is_distributed, refuse_distributed_folder
from wncli.formats.huggingface.names import WHOLE_FILES, index_format
from wncli.formats.registry import FORMATS, LONGEST_START, SUFFIXES, kinds_of
from wncli.hints import either, inspecting, is_address, path_text, path_word, phrase
from wncli.notes import Note
from wncli.storage.source import unreadable
from wncli.storage.temporary import GOING, PARTIAL_SUFFIX

#: Whole files before indexes, in the order of the formats.
_ORDER = {name: 2 * place for place, name in enumerate(FORMATS)}
_INDEX_RANKS = {name: rank + 1 for name, rank in _ORDER.items()}
_OTHER = 2 * len(FORMATS)
_SHARD = re.compile(r".*-\d{5}-of-(\d{5})\.\w+")
#: What the Trainer of transformers, and accelerate, write beside a model.
_TRAINER = re.compile(
    r"(training_args"
    r"|(optimizer|scheduler|scaler|sampler|rng_state|random_states|custom_checkpoint)(_\d+)?)"
    r"\.(bin|pt|pth|pkl)"
)
#: Where accelerate and transformers put the model that FSDP has in parts.
_FSDP = "pytorch_model_fsdp"
#: Entries of a folder that are looked at to say where a checkpoint is.
_MOST_ENTRIES = 1000


_EXPECTED = (
    "a checkpoint file, or the index of a sharded one,"
    f" by the names {' '.join(sorted(SUFFIXES))} .index.json"
)


class NotOneCheckpoint(FileError):  # noqa: N818 - the folder may hold several
    """A folder is no checkpoint by itself, but may hold some."""


def find_in_folder(folder: Path) -> tuple[Path, tuple[Note, ...]]:
    """Find the checkpoint's file or index in this folder, and note what was passed over for it.

    A distributed checkpoint is the folder itself.

    Raises:
        FileError: nothing there is one, or several files can be meant.
    """
    try:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: _is_folder(entry) for entry in entries}
    except OSError as error:
        raise unreadable(str(folder), error) from None
    names = sorted(name for name, whether in is_folder.items() if not whether)
    if is_distributed(names):
        return folder, _beside_parts([name for name in _rank(names) if not _SHARD.fullmatch(name)])
    refuse_distributed_folder(folder, names, is_folder)
    if all(map(_is_spare, _rank(names))):
        _refuse_parent(folder, is_folder)
    found = choose(str(folder), names)
    if found is None:
        raise _nothing(folder, names)
    chosen, notes = found
    return folder / chosen, notes


def choose(folder: str, names: Sequence[str]) -> tuple[str, tuple[Note, ...]] | None:
    """Choose the checkpoint's file or index among those of a folder; None where there is none.

    Raises:
        FileError: several can be meant.
    """
    ranks = _rank(sorted(names))
    if not ranks:
        return None
    best = min(ranks.values())
    chosen = [name for name, rank in ranks.items() if rank == best]
    if best not in _INDEX_RANKS.values():
        # An index says which files are its own; beside a whole file, any other can be meant.
        chosen += [name for name, rank in ranks.items() if rank == _OTHER != best]
    if len(chosen) > 1:
        what = "indexes" if best in _INDEX_RANKS.values() else "checkpoints"
        raise NotOneCheckpoint(
            folder,
            f"several {what} are in this directory",
            expected="one checkpoint",
            found=few(chosen, 8),
            hint=phrase(
                "give one of them: {}", either(path_text(_in(folder, one)) for one in chosen[:3])
            ),
        )
    passed_over = [name for name, rank in ranks.items() if best < rank < _OTHER]
    notes: tuple[Note, ...] = ()
    if passed_over:
        message = f"{chosen[0]} is read, and not {' or '.join(passed_over)}, as transformers does"
        notes = (Note("passed-over", message, chosen[0]),)
    return chosen[0], notes


def _in(folder: str, name: str) -> str:
    """Return what a file in a folder is called, wherever that is."""
    return f"{folder.rstrip('/')}/{name}" if is_address(folder) else str(Path(folder) / name)


def no_checkpoint_at(address: str, names: Sequence[str], near: Sequence[str]) -> FileError:
    """Make the refusal of a folder at a distance in which these files are, and no checkpoint."""
    return NotOneCheckpoint(
        address,
        "no checkpoint in this directory",
        expected=_EXPECTED,
        found=few(sorted(names), 8) or "no files",
        hint=either(map(inspecting, near)) or "give the file itself",
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, which is refused once it is to be opened
        return False


def _rank(names: Sequence[str]) -> dict[str, int]:
    """Return the files that can be meant, each with its place in the order of preference."""
    ranks: dict[str, int] = {}
    spare: dict[str, int] = {}
    indexes = {name: _INDEX_RANKS[kind] for name in names if (kind := index_format(name))}
    for name in names:
        if name.startswith("."):
            continue
        shard = _SHARD.fullmatch(name)
        whole = not shard or (not indexes and int(shard[1]) == 1)
        if not whole or PurePosixPath(name).suffix not in SUFFIXES:
            continue
        group = spare if _is_spare(name) else ranks
        group[name] = _ORDER[WHOLE_FILES[name]] if name in WHOLE_FILES else _OTHER
    return ranks | indexes or spare


def _beside_parts(names: Sequence[str]) -> tuple[Note, ...]:
    """Note the other checkpoints in the folder of a distributed one, as Lightning's `meta.pt`."""
    if not names:
        return ()
    message = f"the distributed checkpoint is read, and not {few(names)} beside it"
    return (Note("passed-over", message, names[0]),)


def _is_spare(name: str) -> bool:
    """Whether a file is none that is meant, where there is another."""
    # What NumPy saves beside a model are mostly statistics of its data.
    return bool(_TRAINER.fullmatch(name)) or SUFFIXES.get(PurePosixPath(name).suffix) == "npz"


def _refuse_parent(folder: Path, entries: Mapping[str, bool]) -> None:
    """Name the folder inside that the model's distributed checkpoint is, as accelerate puts it."""
    for name in sorted(name for name, is_folder in entries.items() if is_folder):
        if not name.startswith(_FSDP):
            continue
        try:
            inside = [entry.name for entry in islice((folder / name).iterdir(), _MOST_ENTRIES)]
        except OSError as error:
            raise unreadable(str(folder / name), error) from None
        if is_distributed(inside):
            raise FileError(
                str(folder),
                "the distributed checkpoint of the model is in a directory of this one",
                expected="the directory that has its metadata",
                found=f"it in {name}/",
                hint=inspecting(folder / name),
            )


def _nothing(folder: Path, names: list[str]) -> FileError:
    shards = [name for name in names if _SHARD.fullmatch(name)]
    interrupted = [going.parent for going in folder.glob(f".*{PARTIAL_SUFFIX}/{GOING}")]
    if interrupted:
        return FileError(
            str(folder),
            "a run that put new files in this directory was killed meanwhile",
            expected="the new files",
            found=f"them, or the rest of them, in {interrupted[0]}",
            hint=f"mv {path_word(interrupted[0])}/* {path_word(folder)}/",
        )
    if shards:
        return FileError(
            str(folder),
            "the files in this directory are shards, and their index is missing",
            expected="an index beside them, such as model.safetensors.index.json",
            found=few(shards),
            hint=phrase("{} is one of them; all need their index", path_text(folder / shards[0])),
        )
    near = places_of_checkpoints(folder)
    return NotOneCheckpoint(
        str(folder),
        "no checkpoint in this directory",
        expected=_EXPECTED,
        found=few(names, 8) or "no files",
        hint=inspect_commands(near) or "give the file itself",
    )


def inspect_commands(places: Sequence[Path]) -> str:
    """Return what to type for one of these places."""
    return either(map(inspecting, places[:3]))


def checkpoints_at(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that is none itself; none where it is, or has a fault."""
    try:
        find_in_folder(folder)
    except NotOneCheckpoint:
        return places_of_checkpoints(folder)
    except FileError:  # which whoever opens it will say
        pass
    return []


def places_of_checkpoints(folder: Path) -> list[Path]:
    """Return the files in a folder, and the folders in it, that a checkpoint can be read from."""
    try:
        return sorted(_places(folder), key=lambda path: natural(path.name))
    except OSError:
        return []


def _places(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_ENTRIES):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                with os.scandir(entry) as inner:
                    names = [one.name for one in islice(inner, _MOST_ENTRIES)]
                if is_distributed(names) or _rank(names):
                    with contextlib.suppress(FileError):  # several that can be meant
                        find_in_folder(Path(entry))
                        yield Path(entry)
            elif entry.is_file() and _is_checkpoint(Path(entry)):
                yield Path(entry)


def _is_checkpoint(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(kinds_of(file.read(LONGEST_START), os.fstat(file.fileno()).st_size))
