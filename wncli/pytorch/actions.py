"""Carries an action of a plan out on tensors: what it leaves, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import torch
from torch import Tensor

from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.notes import Note
from wncli.plan.actions import Action, Compose, Copy, Decompose, Renormalize, Respell
from wncli.pytorch.arithmetic import Numbers, compose, decompose, refuse_without_direction

#: Gives the tensor that a spec of the input is.
Reading = Callable[[TensorSpec], Tensor]


class Executor:
    """Makes tensors of actions; those that are tied stay so.

    Args:
        where: what refusals call the input.
        read: gives its tensors.
        notes: gets what the data shows.
    """

    def __init__(self, where: str, read: Reading, notes: list[Note]) -> None:
        self.where = where
        self.read = read
        self.notes = notes
        self.known: dict[object, Tensor] = {}

    def tensors(self, action: Action, split_in: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return what an action leaves.

        Args:
            action: of the plan.
            split_in: the dtype that a weight is cast to before it is split.

        Raises:
            WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
        """
        match action:
            case Copy(tensor, name):
                return {name: self.read(tensor)}
            case Respell(pair, halves):
                g = self.read(pair.g)
                shaped = g if g.shape == halves.g_shape else g.reshape(halves.g_shape)
                return {halves.g: shaped, halves.v: self.read(pair.v)}
            case Compose(pair, name):
                return {name: self._product(pair)}
            case Decompose(weight, dim, halves):
                own = (weight.view, dim, split_in)
                g, v = self._split(own, weight.name, lambda: self.read(weight), dim, split_in)
                return {halves.g: g, halves.v: v}
            case Renormalize(pair, dim, halves):
                key = (pair.g.view, pair.v.view, dim, split_in)
                g, v = self._split(key, pair.weight, lambda: self._product(pair), dim, split_in)
                return {halves.g: g, halves.v: v}
            case _:
                assert_never(action)

    def judge(self, pair: Pair) -> None:
        """Refuse what `compose` would refuse.

        Raises:
            WeightNormError: a direction that is undefined.
        """
        refuse_without_direction(self.where, pair, self.read(pair.g), self.read(pair.v))

    def compose(self, pair: Pair, into: Tensor | None = None) -> Tensor:
        """Return the product of a pair, in the memory of `into` where there is such.

        Raises:
            WeightNormError: a direction that is undefined.
        """
        stale = self.read(pair.stale) if pair.stale else None
        numbers = Numbers(self.read(pair.g), self.read(pair.v), stale)
        found, notes = compose(self.where, pair, numbers, into)
        self.notes += notes
        return found

    def _product(self, pair: Pair) -> Tensor:
        key = ("product", pair.g.view, pair.v.view)
        if key not in self.known:
            self.known[key] = self.compose(pair)
        return self.known[key]

    def _split(
        self,
        key: object,
        name: str,
        weight: Callable[[], Tensor],
        dim: int | None,
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        if ("g", key) not in self.known:
            found = decompose(self.where, name, weight().detach().to(dtype), dim)
            self.known["g", key], self.known["v", key] = found.g, found.v
            self.notes += found.notes
        return self.known["g", key], self.known["v", key]
