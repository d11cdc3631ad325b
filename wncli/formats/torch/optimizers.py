"""Optimizer states in a torch file's tree: how they refer to parameters, and by other names.

Source: PyTorch `torch/optim/optimizer.py` (`state_dict`: numbers, `param_names` beside them) and
`torch/distributed/checkpoint/state_dict.py` (`get_optimizer_state_dict`: names;
`_flatten_optim_state_dict`: keys such as `state.conv.weight_g.exp_avg`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wncli.formats.pickles.nodes import Node, entries_of

_STATE, _GROUPS = "state", "param_groups"
_FLAT = (f"{_STATE}.", f"{_GROUPS}.")
#: As many levels deep is what the state keeps for a parameter.
_DEEPEST = 32
#: What lists parameters in a group.
_LISTS = ("params", "param_names")

Entries = Sequence[tuple[Node, Node]]


class Optimizer(NamedTuple):
    """An optimizer's state: the names of its parameters, and whether it knows them by number.

    Where it does, the names are those that are listed beside the numbers, if any are.
    """

    node: Node
    names: tuple[str, ...]
    by_number: bool


def is_optimizer(members: Mapping[str, Node]) -> bool:
    """Whether a mapping with these items by text is what an optimizer saves."""
    return (_STATE in members and _GROUPS in members) or _is_flat(members)


def count_parameters(members: Mapping[str, Node]) -> int:
    """How many parameters this optimizer keeps something for."""
    if _is_flat(members):
        names = _flat_names(members)
        return len({_name_in(key, names) for key in members if key.startswith(_FLAT[0])})
    return len(entries_of(members[_STATE]) or [])


def read_optimizer(node: Node) -> Optimizer | None:
    """Return the optimizer's state at this node, or None where there is none."""
    members = _named(node)
    if not is_optimizer(members):
        return None
    if _is_flat(members):
        return Optimizer(node, tuple(_flat_names(members)), by_number=False)
    groups = [_named(group) for group in _items(members[_GROUPS])]
    keys = [key for key, _ in entries_of(members[_STATE]) or []]
    keys += [key for group in groups for key in _items(group.get("params"))]
    names = dict.fromkeys(key for key in keys if isinstance(key, str))
    by_number = not names or any(isinstance(key, int) for key in keys)
    listed = [name for group in groups for name in _items(group.get("param_names"))]
    names |= dict.fromkeys(name for name in listed if isinstance(name, str))
    return Optimizer(node, tuple(names), by_number)


def respell(optimizer: Optimizer, names: Mapping[str, str], edits: dict[int, list[Node]]) -> None:
    """Add to `edits` the items that call the parameters by their new `names`."""
    members = _named(optimizer.node)
    if _is_flat(members):
        known = dict.fromkeys(optimizer.names)
        entries = _edited(optimizer.node, edits)
        edits[id(optimizer.node)] = [
            (_flat_key(key, known, names), _relisted(value, names))
            if isinstance(key, str)
            else (key, value)
            for key, value in entries
        ]
        return
    state = members[_STATE]
    if entries_of(state):
        edits[id(state)] = [
            (names.get(key, key) if isinstance(key, str) else key, value)
            for key, value in _edited(state, edits)
        ]
    for group in _items(members[_GROUPS]):
        if entries_of(group):
            edits[id(group)] = [
                (key, _relisted(value, names) if key in _LISTS else value)
                for key, value in _edited(group, edits)
            ]


def _edited(node: Node, edits: Mapping[int, list[Node]]) -> Entries:
    return edits[id(node)] if id(node) in edits else entries_of(node) or []


def _relisted(value: Node, names: Mapping[str, str]) -> Node:
    """Return a list or tuple with the names in it exchanged; anything else as it is."""
    if not isinstance(value, (list, tuple)):
        return value
    items = [names.get(item, item) if isinstance(item, str) else item for item in value]
    return value if items == list(value) else type(value)(items)


def _flat_key(key: str, known: Mapping[str, None], names: Mapping[str, str]) -> str:
    name = _name_in(key, known)
    kind = next(kind for kind in _FLAT if key.startswith(kind))
    return f"{kind}{names.get(name, name)}{key[len(kind) + len(name) :]}"


def _is_flat(members: Mapping[str, Node]) -> bool:
    return any(key.startswith(_FLAT[1]) for key in members) and all(
        key.startswith(_FLAT) for key in members
    )


def _flat_names(members: Mapping[str, Node]) -> dict[str, None]:
    """Return the parameters of the groups, whose items are never nested."""
    keys = (key.removeprefix(_FLAT[1]) for key in members if key.startswith(_FLAT[1]))
    return dict.fromkeys(key.rpartition(".")[0] for key in keys)


def _name_in(key: str, known: Mapping[str, None]) -> str:
    """Give the parameter that a flat key belongs to; what the state keeps for it can be nested."""
    name = key.partition(".")[2]
    for _ in range(_DEEPEST):
        if not name or name in known:
            return name
        name = name.rpartition(".")[0]
    return ""


def _items(node: Node) -> list[Node]:
    return list(node) if isinstance(node, (list, tuple)) else []


def _named(node: Node) -> dict[str, Node]:
    return {key: value for key, value in entries_of(node) or [] if isinstance(key, str)}
