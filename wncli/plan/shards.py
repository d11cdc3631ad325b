"""Decides which file of a sharded output each tensor goes to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.naming import read_half
from wncli.checkpoint.output import Output, OutputStateDict, Result, stored_nbytes
from wncli.checkpoint.tensors import TensorSpec
from wncli.formats.huggingface.names import numbered, renamed
from wncli.formats.registry import FormatName, written_format


class ShardOutput(NamedTuple):
    """One file of the output: what is in it, or the number of the input's file that it copies."""

    name: str
    output: Output
    copy_of: int | None = None


def keep_shards(output: Output, output_format: FormatName) -> tuple[ShardOutput, ...]:
    """Put each tensor in the file that it came from, a pair of two files in that of v.

    What REFERENCE fills in goes to the last file.
    """
    part, *others = output.state_dicts
    filled = [one for one in others if one.is_filled]
    homes: dict[int, list[Result]] = {}
    for result in part.results:
        homes.setdefault(result.home.storage.file, []).append(result)
    tied: dict[int, list[OutputStateDict]] = {}
    for one in others:
        for result in one.results if not one.is_filled else ():
            own_part = one._replace(results=(result,), keys=())
            tied.setdefault(result.home.storage.file, []).append(own_part)
    shards = output.checkpoint.shards
    names = [
        shard.name
        if written_format(shard.checkpoint) == output_format
        else renamed(shard.name, output_format)
        for number, shard in enumerate(shards)
        if number in homes
    ]
    if len(set(names)) < len(shards):
        names = numbered(output_format, len(homes))
    tensors: dict[int, list[TensorSpec]] = {}
    for spec in part.state_dict.tensors:
        tensors.setdefault(spec.storage.file, []).append(spec)
    found = []
    for name, (number, results) in zip(names, sorted(homes.items()), strict=True):
        shard = shards[number].checkpoint
        added = [*tied.get(number, ()), *(filled if number == max(homes) else ())]
        (own,) = shard.state_dicts
        # The index may tie further names to this shard's tensors.
        state_dict = own._replace(tensors=tuple(tensors.get(number, ())))
        metadata = shard.metadata or {} if shard.format == "safetensors" else None
        own_output = output._replace(
            checkpoint=replace(shard, name=output.checkpoint.name, metadata=metadata),
            state_dicts=(
                OutputStateDict(state_dict, tuple(results), (), part.keeps_others),
                *(one._replace(keys=()) for one in added),
            ),
        )
        is_same = written_format(shard) == output_format and not added
        untouched = is_same and _keeps_all(own, results)
        found.append(ShardOutput(name, own_output, number if untouched else None))
    return tuple(found)


def split_by_size(output: Output, output_format: FormatName, limit: int) -> tuple[ShardOutput, ...]:
    """Make files of at most `limit` bytes of tensors, in the order of the tensors.

    A pair stays together, and so do tied tensors; what is larger than `limit` has its own file.
    """
    parts = output.state_dicts
    owners = {id(result): number for number, part in enumerate(parts) for result in part.results}
    groups: list[list[Result]] = [[]]
    size = 0
    for results in _inseparable([result for part in parts for result in part.results]):
        nbytes = stored_nbytes(results)
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1] += results
        size += nbytes
    files_of: dict[tuple[int, str], set[int]] = {}
    for number, group in enumerate(groups):
        for result in group:
            for spec in result.sources:
                files_of.setdefault(spec.storage.identity, set()).add(number)
    elsewhere = frozenset(storage for storage, files in files_of.items() if len(files) > 1)
    names = numbered(output_format, len(groups))
    return tuple(
        ShardOutput(
            name,
            output._replace(
                state_dicts=tuple(
                    part._replace(
                        results=tuple(one for one in group if owners[id(one)] == place),
                        keys=(),
                        keeps_others=part.keeps_others and not number,
                    )
                    for place, part in enumerate(parts)
                ),
                alone=True,
                elsewhere=elsewhere,
            ),
        )
        for number, (name, group) in enumerate(zip(names, groups, strict=True))
    )


def _inseparable(results: Sequence[Result]) -> list[list[Result]]:
    """Group what must not be parted: tied tensors, and g and v of a pair."""
    #: By the number of a result, one before it that it stays with, or itself.
    first: list[int] = []
    known: dict[object, int] = {}

    def group(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]  # so that the way is short the next time
            number = first[number]
        return number

    for number, result in enumerate(results):
        first.append(number)
        keys: list[object] = [result.home.view]
        half = read_half(result.weight) if result.is_kept and not result.naming else None
        if half:
            keys.append((half.weight, half.naming))
        for key in keys:
            one, other = sorted((group(known.setdefault(key, number)), group(number)))
            first[other] = one
    found: dict[int, list[Result]] = {}
    for number, result in enumerate(results):
        found.setdefault(group(number), []).append(result)
    return list(found.values())


def _keeps_all(state_dict: StateDict, results: Sequence[Result]) -> bool:
    """Whether a shard's tensors all stay, under their names, with none added."""
    kept = {
        result.weight
        for result in results
        if result.is_kept and not result.naming and result.weight == result.home.name
    }
    return len(kept) == len(results) and kept == {spec.name for spec in state_dict.tensors}
