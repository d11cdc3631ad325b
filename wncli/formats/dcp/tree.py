"""Nests what a distributed checkpoint has by flat names, as `dcp_to_torch_save` does.

Source: PyTorch `torch/distributed/checkpoint/_traverse.py` (`set_element`).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from wncli.checkpoint.parts import Path
from wncli.errors import FormatError
from wncli.formats.dcp.metadata import broken
from wncli.formats.pickles.nodes import Dict, Node

#: Items of lists that nothing is said of: None in PyTorch.
_MOST_HOLES = 1_000_000


class _Mapping(dict[str, Node]):
    """A mapping that is being filled; no value is one."""


class _List(list[Node]):
    """A list that is being filled; no value is one."""


_Container = _Mapping | _List


class _Leaf(NamedTuple):
    """A value, which may be None; where nothing is in a container, None is."""

    value: Node


def nest(values: Iterable[tuple[Path, Node]], where: str) -> Dict:
    """Return the nested state dict of values by their paths.

    Raises:
        FormatError: two paths contradict each other.
    """
    top = _Mapping()
    made: list[_Container] = [top]
    holes = _MOST_HOLES
    for path, value in values:
        holder: _Container = top
        for key, following in pairwise(path):
            holes -= _refuse_key(holder, key, path, holes, where)
            inner = _item(holder, key)
            if inner is None:
                inner = _Mapping() if type(following) is str else _List()
                made.append(inner)
                _set(holder, key, inner)
            if not isinstance(inner, _Container):
                raise _contradiction(path, where)
            holder = inner
        holes -= _refuse_key(holder, path[-1], path, holes, where)
        if _item(holder, path[-1]) is not None:
            raise _contradiction(path, where)
        _set(holder, path[-1], _Leaf(value))
    finished: dict[int, Node] = {
        id(one): Dict() if isinstance(one, _Mapping) else [] for one in made
    }

    def final(node: Node) -> Node:
        return node.value if isinstance(node, _Leaf) else finished.get(id(node))

    for one in made:
        node = finished[id(one)]
        if isinstance(one, _Mapping):
            node.entries = [(key, final(value)) for key, value in one.items()]
        else:
            node.extend(map(final, one))
    root = finished[id(top)]
    assert isinstance(root, Dict)  # noqa: S101 - for the type checker
    return root


def _item(holder: _Container, key: str | int) -> Node:
    if isinstance(holder, _Mapping):
        return holder.get(str(key))
    return holder[int(key)] if int(key) < len(holder) else None


def _set(holder: _Container, key: str | int, value: Node) -> None:
    if isinstance(holder, _Mapping):
        holder[str(key)] = value
        return
    holder.extend([None] * (int(key) + 1 - len(holder)))
    holder[int(key)] = value


def _refuse_key(holder: _Container, key: str | int, path: Path, holes: int, where: str) -> int:
    """Refuse a key of another kind than its container has; how many items it leaves out."""
    if isinstance(holder, _Mapping) is not isinstance(key, str):
        raise _contradiction(path, where)
    if isinstance(key, str):
        return 0
    left_out = max(0, key - len(holder))
    if left_out > holes:
        raise broken(where, "a list in it is nearly empty", "items from 0 on", f"item {key:,}")
    return left_out


def _contradiction(path: Path, where: str) -> FormatError:
    shown = ".".join(map(str, path[:8]))
    return broken(where, f"{shown!r} and another entry have one place in the state dict")
