"""What opening a checkpoint gives: its state dicts and what else is in it, no tensor data read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from wncli.checkpoint.keys import Keys
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError
from wncli.notes import Note

if TYPE_CHECKING:
    from wncli.formats.torch.tree import TorchTree

Format = Literal["safetensors", "torch", "torch legacy", "TorchScript"]


Owner = TypeVar("Owner")


class StateDict(NamedTuple):
    """The tensors of one model, in the order they are stored.

    `root` is where it stands in the checkpoint, as it is shown: `generator`, `model.ema`; empty for
    the top. `others` names what stands among the tensors and is none. `holder` is set where the
    tensors were read off an object rather than a mapping, and says which: `models.WaveGlow, a whole
    module`. `keys` are the path that `root` shows.
    `parts` are those of `others` that are one rank's parts of distributed tensors.
    """

    root: str
    tensors: tuple[TensorSpec, ...]
    others: tuple[str, ...] = ()
    holder: str = ""
    keys: Keys = ()
    parts: tuple[str, ...] = ()


class Entry(NamedTuple):
    """Something in the checkpoint that is no state dict, and has no name in one.

    `path` is where it stands, as it is shown, `keys` where that is. `kind` is `"optimizer"`,
    `"tensor"`, `"object"` or `"value"`; `summary` shows it to people.
    """

    path: str
    kind: str
    summary: str
    keys: Keys


class DangerousCall(NamedTuple):
    """Something that loading the file with a plain `torch.load` would run.

    `call` is what, as Python would write it, shortened; `where` the entry that it is part of, empty
    where it is part of none; `node` the place in the pickle. What only gives another one its
    function is not shown by itself.
    """

    call: str
    where: str
    node: object
    is_shown: bool = True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One opened file, or the files of a sharded checkpoint taken together.

    `metadata` is the safetensors header's; `tree` is the torch file's whole pickled content;
    `refused_names` are the classes and functions that `torch.load(weights_only=True)` will not
    take, and that a plain `torch.load` would import; `would_run` is what that would run. `shards`
    are the files of a sharded one, in the order of their numbers (`Storage.file`), and `index` is
    the path of what lists them. `notes` are what opening it found that its reader should know.
    """

    path: Path
    format: Format
    nbytes: int
    state_dicts: tuple[StateDict, ...]
    entries: tuple[Entry, ...] = ()
    metadata: Mapping[str, str] | None = None
    tree: TorchTree | None = None
    refused_names: tuple[str, ...] = ()
    would_run: tuple[DangerousCall, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: Path | None = None
    notes: tuple[Note, ...] = ()


class Shard(NamedTuple):
    """One file of a sharded checkpoint: its name in the folder, and what opening it gave."""

    name: str
    checkpoint: Checkpoint


def aliases(checkpoint: Checkpoint, state_dict: StateDict) -> set[str]:
    """The names that safetensors metadata gives to tensors which are stored under another name."""
    if checkpoint.metadata is None:
        return set()
    return {spec.name for spec in state_dict.tensors if spec.storage.key != spec.name}


#: How far an expanded tensor (stride 0) may grow beyond the file that it comes from, in bytes.
_EXPANSION = 64 << 20
#: As many tensors are named that can be left out.
_MOST_HINTS = 8


def refuse_expansion(checkpoint: Checkpoint, spec: TensorSpec, hint: str) -> None:
    """Hold what a tensor would take when it is written out against the size of its file.

    `hint` leaves it out.

    Raises:
        FormatError: an expanded tensor would grow out of all proportion.
    """
    if spec.nbytes > checkpoint.nbytes + _EXPANSION:
        raise FormatError(
            f"{checkpoint.path}: {spec.name}",
            f"the expanded tensor would take {spec.nbytes:,} bytes",
            expected=f"no more than the file and {_EXPANSION:,} bytes",
            hint=hint,
        )


def refuse_growth(
    checkpoint: Checkpoint, owned: Iterable[tuple[TensorSpec, Owner]], hint: Callable[[Owner], str]
) -> None:
    """Hold what tensors over shared storages would take together against the size of their file.

    Args:
        checkpoint: the file.
        owned: the tensors, each with what it is part of.
        hint: leaves that out.

    Raises:
        FormatError: a few bytes would be written, or read, over and over.
    """
    left = list(owned)
    allowed = checkpoint.nbytes + _EXPANSION
    if sum(spec.nbytes for spec, _ in left) <= allowed:  # whatever they share
        return
    grown = _growth(spec for spec, _ in left)
    if grown <= allowed:
        return
    left.sort(key=lambda item: item[0].nbytes)
    hints: dict[str, None] = {}
    while len(hints) < _MOST_HINTS and _growth(spec for spec, _ in left) > allowed:
        hints[hint(left.pop()[1])] = None
    raise FormatError(
        str(checkpoint.path),
        f"the expanded tensors would take {grown:,} bytes more than they are stored in",
        expected=f"no more than the file and {_EXPANSION:,} bytes",
        hint="" if _growth(spec for spec, _ in left) > allowed else " ".join(hints),
    )


def _growth(specs: Iterable[TensorSpec]) -> int:
    """The bytes that these tensors would take beyond those that they are stored in."""
    taken: dict[tuple[int, str], int] = {}
    held: dict[tuple[int, str], int] = {}
    for spec in {spec.view: spec for spec in specs}.values():
        identity = spec.storage.identity
        taken[identity] = taken.get(identity, 0) + spec.nbytes
        held[identity] = spec.storage.nbytes
    return sum(max(0, taken[identity] - held[identity]) for identity in taken)
