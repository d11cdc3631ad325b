"""What a command will do to each tensor, as a value: dry run, report, and what is carried out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys, is_within
from wncli.checkpoint.naming import join
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

    `keys` are the path at which the result stands in the output; `keeps_others` tells whether what
    is no tensor goes with it.
    """

    state_dict: StateDict
    actions: tuple[Action, ...]
    keys: Keys
    keeps_others: bool = True


class Plan(NamedTuple):
    """What becomes of a checkpoint.

    `alone` is set where the state dicts are written by themselves, without what else is in the
    checkpoint; `drop` are the paths of the entries that are left out; `elsewhere` are the storages
    that other files of the output need as well, where the plan is for one of several.
    """

    command: Command
    checkpoint: Checkpoint
    parts: tuple[Part, ...]
    alone: bool
    drop: frozenset[Keys]
    notes: tuple[Note, ...]
    elsewhere: frozenset[tuple[int, str]] = frozenset()

    @property
    def changes(self) -> tuple[tuple[str, Change], ...]:
        """Each action that changes a layer, with the root it stands under."""
        return tuple(
            (part.state_dict.root, action)
            for part in self.parts
            for action in part.actions
            if not isinstance(action, Copy)
        )


def results_of(action: Action) -> tuple[tuple[str, int], ...]:
    """The tensors that an action leaves: their names, and their sizes in bytes."""
    match action:
        case Copy(tensor, name):
            return ((name, tensor.nbytes),)
        case Compose(pair, name):
            return ((name, pair.v.numel * pair.dtype.itemsize),)
        case Respell(pair, halves):
            return (halves.g, pair.g.nbytes), (halves.v, pair.v.nbytes)
        case Decompose(weight, _, halves):
            itemsize, nbytes = weight.dtype.itemsize, weight.nbytes
        case Renormalize(pair, _, halves):
            itemsize, nbytes = pair.dtype.itemsize, pair.v.numel * pair.dtype.itemsize
    return (halves.g, math.prod(halves.g_shape) * itemsize), (halves.v, nbytes)


def left_out(plan: Plan, keeping_others: Sequence[Part] = ()) -> list[str]:
    """The paths, as they are shown, of all that is in no part of the plan, nor in `plan.drop`.

    What is no tensor among a state dict's items goes with the parts in `keeping_others` alone.
    """
    gone = plan.drop | {part.state_dict.keys for part in keeping_others}
    taken = {part.state_dict.keys for part in plan.parts}
    lost = [entry.path for entry in plan.checkpoint.entries if not is_within(entry.keys, gone)]
    lost += [
        state_dict.root
        for state_dict in plan.checkpoint.state_dicts
        if state_dict.keys not in taken and not is_within(state_dict.keys, gone)
    ]
    lost += [
        join(part.state_dict.root, name)
        for part in plan.parts
        for name in part.state_dict.others
        if not is_within((*part.state_dict.keys, name), gone)
    ]
    return list(dict.fromkeys(lost))
