"""What a command will do to each tensor, as a value: dry run, report, and what is carried out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wncli.checkpoint import Checkpoint, StateDict
from wncli.dims import magnitude_shape
from wncli.naming import Naming
from wncli.notes import Note
from wncli.survey import Pair
from wncli.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Copy:
    """Keep a tensor as it is, under its name."""

    tensor: TensorSpec

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return (self.tensor,)


@dataclass(frozen=True, slots=True)
class Decompose:
    """Split `weight` along `dim` into the tensors named `g` and `v`; v has the weight's bits."""

    weight: TensorSpec
    dim: int | None
    naming: Naming
    g: str
    v: str

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return (self.weight,)

    @property
    def g_shape(self) -> tuple[int, ...]:
        """The magnitude's shape."""
        return magnitude_shape(self.weight.shape, self.dim)


@dataclass(frozen=True, slots=True)
class Compose:
    """Fold a pair into the weight that it stands for; a stale weight in its place is replaced."""

    pair: Pair

    @property
    def sources(self) -> tuple[TensorSpec, ...]:
        """The tensors of the input that this uses up."""
        return tuple(spec for spec in (self.pair.g, self.pair.v, self.pair.stale) if spec)


Action = Copy | Decompose | Compose


@dataclass(frozen=True, slots=True)
class Part:
    """What becomes of one state dict: an action for each of its tensors, in their order."""

    state_dict: StateDict
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a checkpoint.

    `only` is set where one state dict is to be written alone; `drop` are the paths of the entries
    that are left out.
    """

    command: Literal["inspect", "apply", "remove"]
    checkpoint: Checkpoint
    parts: tuple[Part, ...]
    only: str | None
    drop: frozenset[str]
    notes: tuple[Note, ...]

    @property
    def changes(self) -> tuple[tuple[str, Decompose | Compose], ...]:
        """Each action that changes a layer, with the root it stands under."""
        return tuple(
            (part.state_dict.root, action)
            for part in self.parts
            for action in part.actions
            if not isinstance(action, Copy)
        )


def is_dropped(path: str, drop: frozenset[str]) -> bool:
    """Whether the entry at `path` goes with one of the dropped ones: it is one, or inside one."""
    return any(path == entry or path.startswith(f"{entry}.") for entry in drop)
