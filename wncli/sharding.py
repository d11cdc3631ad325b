"""Decides which file of a sharded output each tensor goes to. Pure.

The names are those that Hugging Face writes: `model-00001-of-00003.safetensors` beside
`model.safetensors.index.json`, `pytorch_model-00001-of-00003.bin` beside
`pytorch_model.bin.index.json`; a single file has neither number nor index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wncli.checkpoint import Checkpoint, StateDict
from wncli.errors import UsageError
from wncli.plan import (
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
from wncli.tensors import TensorSpec

OutputFormat = Literal["torch", "safetensors"]

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_STEMS: dict[OutputFormat, str] = {"safetensors": "model", "torch": "pytorch_model"}
_SUFFIXES: dict[OutputFormat, str] = {"safetensors": ".safetensors", "torch": ".bin"}


@dataclass(frozen=True, slots=True)
class ShardOutput:
    """One file of the output: its plan, or the number of the input's file that it is a copy of."""

    name: str
    plan: Plan
    copy_of: int | None = None


def parse_size(text: str) -> int:
    """A size as it is typed, `5GB` or `500MiB` or a number of bytes.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
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
    same_format = plan.checkpoint.format.startswith(output_format)
    homes: dict[int, list[Action]] = {}
    for action in part.actions:
        homes.setdefault(_home(action).storage.file, []).append(action)
    shards = plan.checkpoint.shards
    names = [shard.name for number, shard in enumerate(shards) if number in homes]
    if len(homes) < len(shards):
        names = _numbered(output_format, len(homes))
    elif not same_format:
        names = [_renamed(name, output_format) for name in names]
    found = []
    for name, (number, actions) in zip(names, sorted(homes.items()), strict=True):
        shard = shards[number].checkpoint
        (state_dict,) = shard.state_dicts
        untouched = same_format and _keeps_all(state_dict, actions)
        own = replace(
            plan,
            checkpoint=replace(shard, path=plan.checkpoint.path),
            parts=(Part(state_dict, tuple(actions), ""),),
            notes=(),
        )
        found.append(ShardOutput(name, own, number if untouched else None))
    return tuple(found)


def split_by_size(plan: Plan, output_format: OutputFormat, limit: int) -> tuple[ShardOutput, ...]:
    """Files of at most `limit` bytes of tensors, in the order of the tensors.

    A pair stays together, and so do tied tensors; what is larger than `limit` has its own file.
    """
    (part,) = plan.parts
    groups: list[list[Action]] = [[]]
    size = 0
    group_of: dict[object, list[Action]] = {}
    for action in part.actions:
        tie = _home(action).view
        if tie in group_of:
            group_of[tie].append(action)
            continue
        nbytes = sum(nbytes for _, nbytes in results_of(action))
        if groups[-1] and size + nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(action)
        group_of[tie] = groups[-1]
        size += nbytes
    flat = replace(plan.checkpoint, tree=None)  # a shard holds a plain state dict
    return tuple(
        ShardOutput(
            name,
            replace(
                plan,
                checkpoint=flat,
                parts=(Part(part.state_dict, tuple(actions), ""),),
                alone=True,
                notes=(),
            ),
        )
        for name, actions in zip(_numbered(output_format, len(groups)), groups, strict=True)
    )


def index_name(names: Sequence[str], output_format: OutputFormat, checkpoint: Checkpoint) -> str:
    """The name of the index: the input's own where it fits, else the one its files go by."""
    old = checkpoint.index.name if checkpoint.index else ""
    if old.endswith(f"{_SUFFIXES[output_format]}.index.json"):
        return old
    stem = re.sub(r"-\d+-of-\d+$", "", names[0].removesuffix(_SUFFIXES[output_format]))
    return f"{stem}{_SUFFIXES[output_format]}.index.json"


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


def _renamed(name: str, output_format: OutputFormat) -> str:
    """A shard's name in the other format, as Hugging Face would have it."""
    stem = name.rpartition(".")[0]
    old, new = ("pytorch_model", "model") if output_format == "safetensors" else (
        "model", "pytorch_model"
    )  # fmt: skip
    if re.fullmatch(rf"{old}(-\d+-of-\d+)?", stem):
        stem = new + stem.removeprefix(old)
    return stem + _SUFFIXES[output_format]
