"""Lays out the files that a plan comes to: one, or a folder of shards and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, NamedTuple

from wncli.checkpoint.checkpoint import aliases
from wncli.checkpoint.layout import Layout, Slot, Whole
from wncli.checkpoint.output import Output, stored_nbytes
from wncli.checkpoint.tensors import Storage
from wncli.errors import WnError
from wncli.formats.huggingface.names import (
    WHOLE_FILES,
    index_format,
    index_name,
    numbered,
    renamed,
)
from wncli.formats.huggingface.shard_files import is_bare_name, resolve
from wncli.formats.registry import FOLDERS, FORMATS, FormatName, written_format
from wncli.hints import setting
from wncli.notes import Note
from wncli.plan.destination import beside
from wncli.plan.guards import refuse_growth
from wncli.plan.shards import ShardOutput, keep_shards, split_by_size
from wncli.storage.addresses import name_path
from wncli.storage.source import Folder

if TYPE_CHECKING:
    from wncli.checkpoint.checkpoint import Checkpoint
    from wncli.plan.destination import Target

#: The suffixes of what goes with a checkpoint, and the beginnings of names without one.
_COMPANIONS = frozenset(
    {".json", ".txt", ".md", ".model", ".py", ".yaml", ".yml", ".toml", ".jinja", ".tiktoken"}
)
_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "README")
#: What Lightning writes beside the tensors of a distributed checkpoint: hyperparameters and loops.
_META = "meta.pt"
#: Bytes; larger files are no config and no tokenizer.
_SMALL = 64 << 20


class RemoteCompanion(NamedTuple):
    """A file in the folder at a distance that the checkpoint is read from."""

    name: str
    folder: Folder

    def read_bytes(self) -> bytes:
        """Return all that is in it."""
        return self.folder.read(self.name)


@dataclass(frozen=True, slots=True)
class Outputs:
    """Every file of the output before anything is written.

    `files` are laid out, `index` is the name and content of what lists them, `companions` are
    copied as they are.
    """

    target: Target
    files: tuple[tuple[str, Layout], ...]
    index: tuple[str, bytes] | None = None
    companions: tuple[Path | RemoteCompanion, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files that are laid out."""
        return sum(layout.nbytes for _, layout in self.files)

    def parts(self) -> Iterator[object]:
        """Give all that is going to be written where, in parts that their `repr` tells apart."""
        for name, layout in self.files:
            yield name, layout.nbytes, layout.names, layout.fixed, layout.seal is None
            yield from layout.slots
        yield self.index
        yield [path.name for path in self.companions]


def lay_out(output: Output, target: Target, folder: Path | Folder | None) -> Outputs:
    """Lay out the files of an output; `folder` is where the input's companions stand, if it is one.

    Raises:
        WnError: the format, or a folder of shards, cannot hold it.
    """
    checkpoint = output.checkpoint
    if target.format in FOLDERS:
        return _lay_out_folder(output, target, folder)
    lay_out_file = FORMATS[target.format].lay_out
    if not target.is_folder:
        # As torch.save has it: the file's name, unless it is no ASCII.
        stem = target.path.stem if target.path.stem.isascii() else ""
        layout, found = lay_out_file(output, stem or "archive")
        return Outputs(target, ((target.path.name, layout),), notes=found)
    companions = _companions(folder) if folder else ()
    along = _companion_notes(companions)
    if target.max_shard is None and not checkpoint.shards:  # one file, in a folder of its own
        source = name_path(checkpoint.name)
        name = source.name
        if checkpoint.parts:
            (name,) = numbered(target.format, 1)
        elif written_format(checkpoint) != target.format:
            known = name in WHOLE_FILES
            name = (
                renamed(name, target.format)
                if known
                else beside(Path(), source, target.format).name
            )
        layout, found = lay_out_file(output, Path(name).stem)
        return Outputs(target, ((name, layout),), companions=companions, notes=found + along)
    shards = (
        keep_shards(output, target.format)
        if target.max_shard is None
        else split_by_size(output, target.format, target.max_shard)
    )
    files: list[tuple[str, Layout]] = []
    notes = _lost_with_files(output, shards)
    for shard in shards:
        if shard.copy_of is not None:
            files.append((shard.name, _whole_file(checkpoint, shard)))
            continue
        layout, found = lay_out_file(shard.output, Path(shard.name).stem)
        files.append((shard.name, layout))
        notes += found
    index = _index(output, target.format, files) if len(files) > 1 else None
    return Outputs(target, tuple(files), index, companions, (*dict.fromkeys(notes), *along))


def _lay_out_folder(output: Output, target: Target, folder: Path | Folder | None) -> Outputs:
    """Lay out a format of folders, which has its own index and division into files."""
    companions = _companions(folder) if folder else ()
    if isinstance(folder, Path) and output.checkpoint.parts and _is_small_file(folder / _META):
        companions += (folder / _META,)
    found = FOLDERS[target.format].lay_out(output, str(target.path), target.max_shard)
    refuse_growth(
        output.checkpoint,
        found.stored,
        lambda paths: setting(drop=list(paths)),
        stores_ties=True,
    )
    notes = found.notes + _companion_notes(companions)
    return Outputs(target, found.files, found.listing, companions, notes)


def _lost_with_files(output: Output, shards: Sequence[ShardOutput]) -> tuple[Note, ...]:
    """Note what is no tensor in files of the input of which no tensor is left."""
    held = {entry.path for shard in shards for entry in shard.output.checkpoint.entries}
    for shard in shards:
        held.update(*(part.state_dict.others for part in shard.output.state_dicts))
    lost = [path for path in output.left_out() if path not in held]
    return (Note("left-out", f"left out: {', '.join(lost)}"),) if lost else ()


def _companion_notes(companions: Sequence[Path | RemoteCompanion]) -> tuple[Note, ...]:
    names = ", ".join(path.name for path in companions)
    return (Note("companions", f"copied beside it: {names}"),) if names else ()


def _whole_file(checkpoint: Checkpoint, shard: ShardOutput) -> Layout:
    """Return a shard that no action changes, as the file it is."""
    number = shard.copy_of or 0
    own = checkpoint.shards[number].checkpoint
    (state_dict,) = own.state_dicts
    recorded = aliases(own, state_dict)
    names = tuple(spec.name for spec in state_dict.tensors if spec.name not in recorded)
    storage = Storage(shard.name, 0, own.nbytes, file=number)
    return Layout(own.nbytes, names, (Slot(0, own.nbytes, Whole(storage)),), ())


def _index(
    output: Output, output_format: FormatName, files: Sequence[tuple[str, Layout]]
) -> tuple[str, bytes]:
    """Return the index of the shards, as `save_pretrained` writes it."""
    weight_map = {name: file for file, layout in files for name in layout.names}
    results = [result for part in output.state_dicts for result in part.results]
    content = {
        "metadata": {"total_size": stored_nbytes(results)},
        "weight_map": weight_map,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    old = output.checkpoint.index or ""
    name = index_name([file for file, _ in files], output_format, old)
    return name, text.encode()


def _companions(folder: Path | Folder) -> tuple[Path | RemoteCompanion, ...]:
    """Return the small files beside a checkpoint that go with it: its config, its tokenizer."""
    if not isinstance(folder, Path):
        names = sorted(filter(_goes_along, folder.companions()))
        return tuple(RemoteCompanion(name, folder) for name in names if is_bare_name(name))
    return tuple(
        entry
        for entry in sorted(folder.iterdir())
        if _goes_along(entry.name) and _is_small_file(entry)
    )


def _goes_along(name: str) -> bool:
    """Whether a file of this name is of those that go with a checkpoint."""
    is_known = PurePath(name).suffix.lower() in _COMPANIONS or name.startswith(_PAPERS)
    return is_known and not name.startswith(".") and not index_format(name)


def _is_small_file(path: Path) -> bool:
    """Whether it is a file of this folder, no link out of it, and no larger than such files are."""
    try:
        place = resolve(path)
    except WnError:
        return False
    return place is not None and place.is_file() and place.stat().st_size <= _SMALL
