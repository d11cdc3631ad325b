"""Opens the shards that an index lists, and takes them together as one checkpoint.

The files are numbered in the order of their names, the tensors stand in the order of the index.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from wncli.checkpoint.checkpoint import Checkpoint, Shard, StateDict, aliases
from wncli.checkpoint.keys import Keys
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError, few
from wncli.formats.huggingface.index import ShardIndex
from wncli.formats.huggingface.shard_files import locate
from wncli.formats.pickles.nodes import Node
from wncli.formats.safetensors.reader import tied
from wncli.notes import Note
from wncli.storage.addresses import Place
from wncli.storage.file_limit import FEW_FILES, raise_file_limit
from wncli.storage.source import LocalSource, Source, unreadable


def open_shards(
    path: Place, index: ShardIndex, sources: Iterable[Source], read: Callable[[Source], Checkpoint]
) -> tuple[Checkpoint, tuple[Source, ...]]:
    """Read every file of a sharded checkpoint.

    Args:
        path: what the user gave, the index or its folder.
        index: lists the files.
        sources: those files, by their numbers.
        read: opens one file by its content.

    Raises:
        FileError: a file is missing or cannot be read.
        FormatError: a file is no shard, or does not hold what the index says.
    """
    shards: list[Shard] = []
    kept: list[Source] = []
    for name, source in zip(index.file_names, sources, strict=True):
        shards.append(Shard(name, _as_shard(read(source))))
        kept.append(source)
    return combine(path, index, tuple(shards)), tuple(kept)


def local_files(index: Path, names: Sequence[str], stack: ExitStack) -> Iterator[Source]:
    """Open the files of these names beside an index; `stack` closes them.

    Raises:
        FileError: a file is missing or cannot be read.
    """
    targets = locate(index, names)
    raise_file_limit(len(names))
    for number, (name, target) in enumerate(zip(names, targets, strict=True)):
        shown = index.with_name(name)
        try:
            file = stack.enter_context(target.open("rb", buffering=0))
        except OSError as error:
            refusal = unreadable(str(shown), error)
            if error.errno == errno.EMFILE:
                refusal.hint = (
                    f"have the hard limit of open files raised to {len(names) + FEW_FILES:,}"
                )
            raise refusal from None
        yield LocalSource(str(shown), file, number)


def combine(path: Place, index: ShardIndex, shards: tuple[Shard, ...]) -> Checkpoint:
    """Return the checkpoint that these shards are together, in the order of their numbers.

    The tensors stand in the order of the index, then those that it does not list. Where a tensor
    stands in several shards, the index decides. Names that the metadata ties to a stored tensor, a
    shard's or the index's, are tensors too: huggingface_hub writes ties into the index.

    Raises:
        FormatError: a shard is no plain state dict, or does not hold what the index says.
    """
    contents = {shard.name: _state_dict(shard.checkpoint) for shard in shards}
    tensors = _listed(index, contents)
    others, duplicated, ties = _unlisted(index, shards, contents)
    notes = _notes(index, list(others), duplicated)
    tensors |= others
    tensors |= {name: spec for name, spec in ties.items() if name not in tensors}
    kind = _format(shards)
    metadata: dict[str, str] | None = None
    if kind == "safetensors":
        headers = [shard.checkpoint.metadata for shard in shards]
        metadata = _merged(headers) if any(header is not None for header in headers) else None
        texts = {name: text for name, text in index.metadata.items() if isinstance(text, str)}
        tensors |= {spec.name: spec for spec in tied(tensors.values(), texts | (metadata or {}))}
    entries = {entry.path: entry for shard in shards for entry in shard.checkpoint.entries}
    refused = dict.fromkeys(name for shard in shards for name in shard.checkpoint.refused_names)
    strangers = dict.fromkeys(name for found in contents.values() for name in found.others)
    parts = tuple(name for found in contents.values() for name in found.parts)
    return Checkpoint(
        str(path),
        kind,
        sum(shard.checkpoint.nbytes for shard in shards),
        (StateDict("", tuple(tensors.values()), tuple(strangers), parts=parts),),
        tuple(entries.values()),
        metadata,
        refused_names=tuple(refused),
        would_run=tuple(call for shard in shards for call in shard.checkpoint.would_run),
        shards=shards,
        index=index.path.name,
        notes=notes + tuple(note for shard in shards for note in shard.checkpoint.notes),
    )


def _as_shard(checkpoint: Checkpoint) -> Checkpoint:
    """Take a torch shard's top as its state dict, as the index says so, whatever is in it.

    An entry is what has no name there, as its key is no text.
    """
    tree = checkpoint.tree
    if tree is None or checkpoint.state_dicts:
        return checkpoint
    from wncli.formats.torch.state_dicts import top_state_dict

    found = top_state_dict(tree, checkpoint.name)
    if found is None:
        return checkpoint
    entries = tuple(
        entry
        for entry in checkpoint.entries
        if len(entry.keys) == 1 and not isinstance(entry.keys[0], str)
    )
    top: dict[Keys, Node] = {(): tree.root}
    tree = tree._replace(mappings=top, containers=top)
    return replace(checkpoint, state_dicts=(found,), entries=entries, tree=tree)


def _state_dict(checkpoint: Checkpoint) -> StateDict:
    """Return a shard's only state dict."""
    found = checkpoint.state_dicts
    if checkpoint.format == "safetensors":
        return found[0] if found else StateDict("", ())
    if len(found) == 1 and not found[0].root and not found[0].holder:
        return found[0]
    roots = [state_dict.holder or state_dict.root or "the top" for state_dict in found]
    raise FormatError(
        checkpoint.name,
        "this shard is not a plain state dict",
        expected="tensors by their names at the top, and nothing else",
        found=f"state dicts at {few(roots)}" if roots else "no state dict",
    )


def _listed(index: ShardIndex, contents: Mapping[str, StateDict]) -> dict[str, TensorSpec]:
    """Return the tensors of the index, from the files that it names."""
    held = {
        file: {spec.name: spec for spec in state_dict.tensors}
        for file, state_dict in contents.items()
    }
    tensors = {}
    for name, file in index.weight_map.items():
        spec = held[file].get(name)
        if spec is None:
            elsewhere = [other for other, specs in held.items() if name in specs]
            raise FormatError(
                f"{index.path}: {name}",
                f"{file} does not hold this tensor",
                expected="what the index says",
                found=f"it in {few(elsewhere)}" if elsewhere else "it in none of the shards",
                hint="download the index and its shards again, all from the same revision",
            )
        tensors[name] = spec
    return tensors


def _unlisted(
    index: ShardIndex, shards: Sequence[Shard], contents: Mapping[str, StateDict]
) -> tuple[dict[str, TensorSpec], list[str], dict[str, TensorSpec]]:
    """List what the files hold beyond the index: tensors, names in a second file, ties."""
    others: dict[str, TensorSpec] = {}
    ties: dict[str, TensorSpec] = {}
    duplicated: dict[str, None] = {}
    for shard in shards:
        tied_names = aliases(shard.checkpoint, contents[shard.name])
        for spec in contents[shard.name].tensors:
            if index.weight_map.get(spec.name) == shard.name:
                continue
            if spec.name in tied_names:
                ties.setdefault(spec.name, spec)
            elif spec.name in index.weight_map:
                duplicated[spec.name] = None
            elif spec.name in others:
                first = shards[others[spec.name].storage.file].name
                raise FormatError(
                    f"{index.path}: {spec.name}",
                    "two shards hold this tensor, and the index does not list it",
                    expected="the index to say which one counts",
                    found=f"it in {first} and {shard.name}",
                    hint="copy the index, and add it to the weight_map of the copy",
                )
            else:
                others[spec.name] = spec
    return others, list(duplicated), ties


def _notes(
    index: ShardIndex, unlisted: Sequence[str], duplicated: Sequence[str]
) -> tuple[Note, ...]:
    notes = []
    if unlisted:
        count = f"{len(unlisted)} tensor{'s' if len(unlisted) > 1 else ''}"
        message = f"{count} of the shards that the index does not list, kept: {few(unlisted)}"
        notes.append(Note("unlisted", message, index.path.name, is_warning=True))
    if duplicated:
        count = f"{len(duplicated)} tensor{'s' if len(duplicated) > 1 else ''}"
        message = f"{count} in several shards, taken from where the index says: {few(duplicated)}"
        notes.append(Note("duplicate", message, index.path.name, is_warning=True))
    return tuple(notes)


def _format(shards: Sequence[Shard]) -> str:
    """Return the format of all shards; of mixed ones the first that is not safetensors."""
    formats = (shard.checkpoint.format for shard in shards)
    return next((found for found in formats if found != "safetensors"), "safetensors")


def _merged(headers: Sequence[Mapping[str, str] | None]) -> dict[str, str]:
    """All entries, each from the first header that has it."""
    merged: dict[str, str] = {}
    for header in headers:
        for name, text in (header or {}).items():
            merged.setdefault(name, text)
    return merged
