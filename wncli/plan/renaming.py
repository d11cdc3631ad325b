"""Gives what actions make other names, and their sources those that the file has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import assert_never

from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.plan.actions import Action, Compose, Copy, Decompose, Renormalize, Respell


def from_the_file(
    state_dict: StateDict, actions: Iterable[Action]
) -> tuple[StateDict, tuple[Action, ...]]:
    """Return the state dict and the actions on it with the tensors as the file has them."""
    stored = state_dict.stored
    if stored is None:
        return state_dict, tuple(actions)
    pairs = zip(state_dict.tensors, stored.tensors, strict=True)
    origins = {seen.name: spec for seen, spec in pairs}
    return stored, tuple(_from_file(action, origins) for action in actions)


def _from_file(action: Action, origins: Mapping[str, TensorSpec]) -> Action:
    match action:
        case Copy(tensor):
            return action._replace(tensor=origins[tensor.name])
        case Decompose(weight):
            return action._replace(weight=origins[weight.name])
        case Compose(pair) | Respell(pair) | Renormalize(pair):
            return action._replace(pair=_stored_pair(pair, origins))
        case _:
            assert_never(action)


def _stored_pair(pair: Pair, origins: Mapping[str, TensorSpec]) -> Pair:
    stale = origins[pair.stale.name] if pair.stale else None
    return pair._replace(g=origins[pair.g.name], v=origins[pair.v.name], stale=stale)
