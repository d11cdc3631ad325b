"""What a checkpoint becomes: its tensors, before a format says where their bytes stand."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys, is_within
from wncli.checkpoint.layout import Elements, Magnitude, Product
from wncli.checkpoint.naming import Naming, join
from wncli.checkpoint.tensors import DType, TensorSpec


class OutputTensor(NamedTuple):
    """A tensor of the output.

    Attributes:
        name: its full name in its state dict.
        dtype: of its elements.
        shape: its sizes.
        content: what fills it. The `direction` of a magnitude is a place in the output, and so for
            the format to set.
        tie: equal for tensors that are one.
        source: the tensor of the input that it is, or takes the place of: of its device and flags.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    content: Elements | Magnitude | Product
    tie: Hashable
    source: TensorSpec

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements laid out without gaps."""
        return self.numel * self.dtype.bits // 8


class Result(NamedTuple):
    """What becomes of a tensor, or of a pair, of the input.

    Attributes:
        sources: the tensors of the input that are used up.
        tensors: those of the output: one, or g and v.
        weight: the full name of the weight that they are.
        naming: the spelling of g and v; None for one tensor.
        is_kept: the elements are those of the input, bit for bit.
    """

    sources: tuple[TensorSpec, ...]
    tensors: tuple[OutputTensor, ...]
    weight: str
    naming: Naming | None = None
    is_kept: bool = False

    @property
    def home(self) -> TensorSpec:
        """The tensor whose file the result goes to: of a pair, v."""
        return self.tensors[-1].source


class OutputStateDict(NamedTuple):
    """What becomes of one state dict, in the order of its tensors.

    `keys` are the path of the result in the output; `keeps_others` tells whether what
    is no tensor goes with it, `is_filled` whether it is none of the checkpoint's, but REFERENCE's.
    """

    state_dict: StateDict
    results: tuple[Result, ...]
    keys: Keys
    keeps_others: bool = True
    is_filled: bool = False


class Output(NamedTuple):
    """What becomes of a checkpoint, or what one file of several receives of it.

    `alone` is set where the state dicts are written by themselves, without what else is in the
    checkpoint; `drop` are the paths of the entries that are left out; `elsewhere` are the storages
    that other files of the output need as well.
    """

    checkpoint: Checkpoint
    state_dicts: tuple[OutputStateDict, ...]
    alone: bool
    drop: frozenset[Keys]
    elsewhere: frozenset[tuple[int, str]] = frozenset()

    def left_out(self, keeping_others: Collection[OutputStateDict] = ()) -> list[str]:
        """List the paths, as they are shown, of all that is neither written nor in `drop`.

        What is no tensor among a state dict's items goes with those in `keeping_others` alone.
        """
        gone = self.drop | {part.state_dict.keys for part in keeping_others}
        own = [part for part in self.state_dicts if not part.is_filled]
        taken = {part.state_dict.keys for part in own}
        lost = [f"the version mark {self.checkpoint.mark.decode()}"] if self.checkpoint.mark else []
        lost += [entry.path for entry in self.checkpoint.entries if not is_within(entry.keys, gone)]
        lost += [
            state_dict.root
            for state_dict in self.checkpoint.state_dicts
            if state_dict.keys not in taken and not is_within(state_dict.keys, gone)
        ]
        lost += [
            join(part.state_dict.root, name)
            for part in own
            for name in part.state_dict.others
            if not is_within((*part.state_dict.keys, name), gone)
        ]
        return list(dict.fromkeys(lost))


def stored_nbytes(results: Iterable[Result]) -> int:
    """Count the bytes of all tensors, tied ones once."""
    return sum({tensor.tie: tensor.nbytes for r in results for tensor in r.tensors}.values())
