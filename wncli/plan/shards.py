"""Decides which file of a sharded output each tensor goes to. Pure.

The names are those that Hugging Face writes: `model-00001-of-00003.safetensors` beside
`model.safetensors.index.json`, `pytorch_model-00001-of-00003.bin` beside
`pytorch_model.bin.index.json`; a single file has neither number nor index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.naming import read_half
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError
from wncli.plan.actions import (
    Action,
    Compose,
    Copy,
    Decompose,
    Part,
    Plan,
    Renormalize,
    Respell,
    results_of,
)

OutputFormat = Literal["torch", "safetensors"]

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_STEMS: dict[OutputFormat, str] = {"safetensors": "model", "torch": "pytorch_model"}
_SUFFIXES: dict[OutputFormat, str] = {"safetensors": ".safetensors", "torch": ".bin"}


#: What single files are called that `from_pretrained` looks for.
HUGGING_FACE_NAMES = {
    f"{stem}{suffix}": output_format
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model")
    for output_format, suffix in _SUFFIXES.items()
}


class ShardOutput(NamedTuple):
    """One file of the output: its plan, or the number of the input's file that it is a copy of."""

    name: str
    plan: Plan
    copy_of: int | None = None


def parse_size(text: str) -> int:
    """A size as it is typed, `5GB` or `500MiB` or a number of bytes.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]{0,3})\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    nbytes = int(float(match[1]) * unit) if match and unit else 0
    if not nbytes:
        raise UsageError(
            f"--max-shard-size {text}", "no size", expected="bytes, as 5GB, 500MB or 2GiB"
        )
    return nbytes


def keep_shards(plan: Plan, output_format: OutputFormat) -> tuple[ShardOutput, ...]:
    """Each tensor in the file that it came from, v's where a pair is spread over two."""
    (part,) = plan.parts
    homes: dict[int, list[Action]] = {}
    for action in part.actions:
        homes.setdefault(_home(action).storage.file, []).append(action)
    shards = plan.checkpoint.shards
    names = [
        shard.name
        if _is_of(shard.checkpoint, output_format)
        else renamed(shard.name, output_format)
        for number, shard in enumerate(shards)
        if number in homes
    ]
    if len(set(names)) < len(shards):
        names = _numbered(output_format, len(homes))
    tensors: dict[int, list[TensorSpec]] = {}
    for spec in part.state_dict.tensors:
        tensors.setdefault(spec.storage.file, []).append(spec)
    found = []
    for name, (number, actions) in zip(names, sorted(homes.items()), strict=True):
        shard = shards[number].checkpoint
        (own,) = shard.state_dicts
        # The index may tie further names to this shard's tensors.
        state_dict = own._replace(tensors=tuple(tensors.get(number, ())))
        metadata = shard.metadata or {} if shard.format == "safetensors" else None
        own_plan = plan._replace(
            checkpoint=replace(shard, path=plan.checkpoint.path, metadata=metadata),
            parts=(Part(state_dict, tuple(actions), ()),),
            notes=(),
        )
        untouched = _is_of(shard, output_format) and _keeps_all(own, actions)
        found.append(ShardOutput(name, own_plan, number if untouched else None))
    return tuple(found)


def split_by_size(plan: Plan, output_format: OutputFormat, limit: int) -> tuple[ShardOutput, ...]:
    """Files of at most `limit` bytes of tensors, in the order of the tensors.

    A pair stays together, and so do tied tensors; what is larger than `limit` has its own file.
    """
    (part,) = plan.parts
    groups: list[list[Action]] = [[]]
    size = 0
    for actions in _together(part.actions):
        nbytes = stored_nbytes(actions)
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1] += actions
        size += nbytes
    files_of: dict[tuple[int, str], set[int]] = {}
    for number, group in enumerate(groups):
        for action in group:
            for spec in action.sources:
                files_of.setdefault(spec.storage.identity, set()).add(number)
    elsewhere = frozenset(storage for storage, files in files_of.items() if len(files) > 1)
    names = _numbered(output_format, len(groups))
    return tuple(
        ShardOutput(
            name,
            plan._replace(
                parts=(Part(part.state_dict, tuple(group), (), keeps_others=not number),),
                alone=True,
                notes=(),
                elsewhere=elsewhere,
            ),
        )
        for number, (name, group) in enumerate(zip(names, groups, strict=True))
    )


def index_name(names: Sequence[str], output_format: OutputFormat, checkpoint: Checkpoint) -> str:
    """The name of the index: the input's own where it fits, else the one its files go by."""
    old = checkpoint.index.name if checkpoint.index else ""
    if old.endswith(f"{_SUFFIXES[output_format]}.index.json"):
        return old
    stem = re.sub(r"-\d+-of-\d+$", "", names[0].removesuffix(_SUFFIXES[output_format]))
    return f"{stem}{_SUFFIXES[output_format]}.index.json"


def _together(actions: Iterable[Action]) -> list[list[Action]]:
    """Actions that must not be parted: those of tied tensors, and of the halves of a pair."""
    #: By the number of an action, one before it that it stays with, or itself.
    first: list[int] = []
    known: dict[object, int] = {}

    def group(number: int) -> int:
        while first[number] != number:
            first[number] = first[first[number]]  # so that the way is short the next time
            number = first[number]
        return number

    every = list(actions)
    for number, action in enumerate(every):
        first.append(number)
        keys: list[object] = [_home(action).view]
        half = read_half(action.name) if isinstance(action, Copy) else None
        if half:
            keys.append((half.weight, half.naming))
        for key in keys:
            one, other = sorted((group(known.setdefault(key, number)), group(number)))
            first[other] = one
    found: dict[int, list[Action]] = {}
    for number, action in enumerate(every):
        found.setdefault(group(number), []).append(action)
    return list(found.values())


def stored_nbytes(actions: Iterable[Action]) -> int:
    """Bytes of the tensors that actions leave, tied ones counted once."""
    sizes: dict[object, int] = {}
    for action in actions:
        views = tuple(spec.view for spec in action.sources)
        for place, (_, nbytes) in enumerate(results_of(action)):
            sizes[type(action), views, place] = nbytes
    return sum(sizes.values())


def _is_of(checkpoint: Checkpoint, output_format: OutputFormat) -> bool:
    """Whether a shard is of the output's format already."""
    return (checkpoint.format == "safetensors") == (output_format == "safetensors")


def _home(action: Action) -> TensorSpec:
    """The tensor whose file the result goes to."""
    match action:
        case Copy(tensor):
            return tensor
        case Decompose(weight):
            return weight
        case Compose(pair) | Respell(pair) | Renormalize(pair):
            return pair.v


def _keeps_all(state_dict: StateDict, actions: Sequence[Action]) -> bool:
    """Whether a shard's tensors all stay, under their names, with none added."""
    kept = {a.tensor.name for a in actions if isinstance(a, Copy) and a.name == a.tensor.name}
    return len(kept) == len(actions) and kept == {spec.name for spec in state_dict.tensors}


def _numbered(output_format: OutputFormat, count: int) -> list[str]:
    stem, suffix = _STEMS[output_format], _SUFFIXES[output_format]
    if count == 1:
        return [stem + suffix]
    return [f"{stem}-{number:05}-of-{count:05}{suffix}" for number in range(1, count + 1)]


def renamed(name: str, output_format: OutputFormat) -> str:
    """The name of a file of the other format, as Hugging Face would have it."""
    stem = name.rpartition(".")[0]
    old, new = ("pytorch_model", "model") if output_format == "safetensors" else (
        "model", "pytorch_model"
    )  # fmt: skip
    if re.fullmatch(rf"{old}(-\d+-of-\d+)?", stem):
        stem = new + stem.removeprefix(old)
    return stem + _SUFFIXES[output_format]
