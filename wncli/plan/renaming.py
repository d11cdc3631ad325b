"""Gives what actions make other names, and their sources those that the file has. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.prefixes import unwrap
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import few
from wncli.notes import Note
from wncli.plan.actions import Action, Compose, Copy, Decompose, Part, Plan, Renormalize, Respell


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


def renamed(action: Action, rename: Callable[[str], str]) -> Action:
    """Give what an action makes the names that `rename` makes of those that it has."""
    match action:
        case Copy(_, name) | Compose(_, name):
            return action._replace(name=rename(name))
        case Decompose() | Respell() | Renormalize():
            halves = action.halves
            g, v = rename(halves.g), rename(halves.v)
            return action._replace(halves=halves._replace(weight=rename(halves.weight), g=g, v=v))
        case _:
            assert_never(action)


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


def flattened(plan: Plan, *, roots: bool) -> Plan:
    """Put all state dicts into one at the top: `roots` before the names, wrappers taken off."""
    parts = []
    notes = list(plan.notes)
    put_on = []
    for part in plan.parts:
        root = part.state_dict.root if roots else ""
        actions = tuple(
            renamed(action, lambda name, root=root: unwrap(join(root, name)))  # type: ignore[misc]
            for action in part.actions
        )
        parts.append(Part(part.state_dict, actions, (), keeps_others=False))
        prefix = unwrap(f"{root}.x")[:-1] if root else ""  # of `module`, as DeepSpeed's, nothing
        put_on += [repr(prefix)] if prefix else []
    if put_on:
        message = f"put before the names in its state dict: {few(put_on, 12)}"
        notes.append(Note("flattened", message))
    names = [tensor.name for part in plan.parts for tensor in part.state_dict.tensors]
    wrapped = [name for name in names if unwrap(name) != name]
    if wrapped:
        notes.append(Note("renamed", f"wrappers taken off the names: {few(wrapped)}"))
    return plan._replace(parts=tuple(parts), alone=True, notes=tuple(notes))
