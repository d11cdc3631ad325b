"""What a command will do to each tensor, as a value: dry run, report, and what is carried out."""

from __future__ import annotations

from typing import Literal, NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys
from wncli.checkpoint.pairs import Halves, Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.notes import Note


class Copy(NamedTuple):
    """Keep a tensor as it is, under `name`."""

    tensor: TensorSpec
    name: str

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return (self.tensor,)


class Decompose(NamedTuple):
    """Split `weight` along `dim` into `halves`; v has the weight's bits."""

    weight: TensorSpec
    dim: int | None
    halves: Halves

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return (self.weight,)


class Compose(NamedTuple):
    """Fold a pair into a weight called `name`; a stale weight in its place is replaced."""

    pair: Pair
    name: str

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return self.pair.tensors


class Respell(NamedTuple):
    """Keep a pair, its halves under other names; their elements stay bit for bit."""

    pair: Pair
    halves: Halves

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return self.pair.tensors


class Renormalize(NamedTuple):
    """Fold a pair, and split the product along another `dim`."""

    pair: Pair
    dim: int | None
    halves: Halves

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return self.pair.tensors


Change = Decompose | Compose | Respell | Renormalize
Action = Copy | Change
Command = Literal["inspect", "apply", "remove", "convert"]


class Part(NamedTuple):
    """What becomes of one state dict: an action for each tensor that is kept, in their order.

    `keys` are the path of the result in the output; several parts with the same one make one state
    dict there. `keeps_others` tells whether what is no tensor goes with it; `is_filled` that the
    tensors are those of REFERENCE, whose files come behind the checkpoint's.
    """

    state_dict: StateDict
    actions: tuple[Action, ...]
    keys: Keys
    keeps_others: bool = True
    is_filled: bool = False


class Plan(NamedTuple):
    """What becomes of a checkpoint.

    `alone` is set where the state dicts are written by themselves, without what else is in the
    checkpoint; `drop` are the paths of the entries that are left out.
    """

    command: Command
    checkpoint: Checkpoint
    parts: tuple[Part, ...]
    alone: bool
    drop: frozenset[Keys]
    notes: tuple[Note, ...]

    @property
    def changes(self) -> tuple[tuple[str, Change], ...]:
        """Each action that changes a layer, with the root it stands under."""
        return tuple(
            (part.state_dict.root, action)
            for part in self.parts
            for action in part.actions
            if not isinstance(action, Copy)
        )
