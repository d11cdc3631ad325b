"""What opening a checkpoint gives: its state dicts and what else is in it, no tensor data read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from wncli.checkpoint.keys import Keys
from wncli.checkpoint.parts import Parts
from wncli.checkpoint.tensors import TensorSpec
from wncli.notes import Note

if TYPE_CHECKING:
    from wncli.formats.torch.tree import TorchTree

#: What the header of a safetensors shard says about the place of its tensors in the whole ones.
SHARDING_INFO = "DCP_SHARDING_INFO"
#: A module that is among the first globals of the `.metadata` of a distributed checkpoint.
DISTRIBUTED = b"torch.distributed.checkpoint.metadata"


class StateDict(NamedTuple):
    """The tensors of one model, in the order they are stored.

    `root` is its place in the checkpoint, as it is shown: `generator`, `model.ema`; empty for
    the top. `others` names what stands among the tensors and is none. `holder` is set where the
    tensors were read off an object rather than a mapping, and says which: `models.WaveGlow, a whole
    module`. `keys` are the path that `root` shows.
    `parts` are those of `others` that are one rank's parts of distributed tensors. `stored` is set
    where the names are others than in the file: what the file has, the tensors in the same order.
    """

    root: str
    tensors: tuple[TensorSpec, ...]
    others: tuple[str, ...] = ()
    holder: str = ""
    keys: Keys = ()
    parts: tuple[str, ...] = ()
    stored: StateDict | None = None


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

    `name` says which to people: the path as it was given; `format` what kind of file it is:
    `safetensors`, `torch`, `torch legacy`, `TorchScript`. `metadata` is the safetensors header's;
    `tree` is the torch file's whole pickled content; `refused_names` are the classes and functions
    that `torch.load(weights_only=True)` will not take, and that a plain `torch.load` would import;
    `would_run` is what that would run. `shards` are the files of a sharded one, in the order of
    their numbers (`Storage.file`), and `index` is the name of what lists them. `notes` are what
    opening it found that its reader should know. `mark` is what a torch zip has in place of PK.
    `parts` is how a distributed one is stored.
    """

    name: str
    format: str
    nbytes: int
    state_dicts: tuple[StateDict, ...]
    entries: tuple[Entry, ...] = ()
    metadata: Mapping[str, str] | None = None
    tree: TorchTree | None = None
    refused_names: tuple[str, ...] = ()
    would_run: tuple[DangerousCall, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: str | None = None
    notes: tuple[Note, ...] = ()
    mark: bytes = b""
    parts: Parts | None = None


class Shard(NamedTuple):
    """One file of a sharded checkpoint: its name in the folder, and what opening it gave."""

    name: str
    checkpoint: Checkpoint


def aliases(checkpoint: Checkpoint, state_dict: StateDict) -> set[str]:
    """Return the names that safetensors metadata gives to tensors stored under another."""
    if checkpoint.metadata is None:
        return set()
    return {spec.name for spec in state_dict.tensors if spec.storage.key != spec.name}
