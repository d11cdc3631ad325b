"""Flattens a nested state dict to one level of names, as a distributed checkpoint has it.

Source: PyTorch `torch/distributed/checkpoint/_nested_dict.py` (`flatten_state_dict`) and
`_traverse.py` (`traverse_state_dict`): mappings are entered, and lists in which there are mappings
or tensors, at any depth of lists; what else there is, tuples among it, is a value. So are mappings
of other classes without tensors, which would lose their class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from wncli.checkpoint.keys import Keys, OtherKey, Position
from wncli.checkpoint.parts import Path
from wncli.errors import FormatError, UsageError
from wncli.formats.pickles.nodes import Call, Dict, Node, entries_of, is_called
from wncli.formats.pickles.writer import Edits
from wncli.formats.torch.keys import spelled
from wncli.formats.torch.modules import TENSOR, NameBudget
from wncli.hints import setting

#: Keys that lead to a value. PyTorch flattens by recursion.
_DEEPEST = 64

#: Bits of integers that are a key.
_LONGEST_INT = 64
#: Mappings that have nothing but their items.
_PLAIN = {"collections": ("OrderedDict", "defaultdict", "Counter"), "builtins": ("dict",)}


class Leaf(NamedTuple):
    """A tensor or a value by its flat name, with the keys that this is made of."""

    name: str
    path: Path
    node: Node


class Flat(NamedTuple):
    """What a nested state dict has, in its order, and the names of the empty mappings in it."""

    leaves: tuple[Leaf, ...]
    empty: tuple[str, ...]


def flat_name(keys: Keys) -> str:
    """Return what something at this path is called."""
    return ".".join(key.text if isinstance(key, OtherKey) else str(_number(key)) for key in keys)


def flatten(
    root: Node,
    edits: Edits,
    is_tensor: Callable[[Node], bool],
    values: Collection[int],
    budget: NameBudget,
) -> Flat:
    """Flatten what is below `root`.

    Args:
        root: the top, a mapping.
        edits: by the `id` of a mapping or list, the items that it has instead of its own.
        is_tensor: whether a tensor is at a node.
        values: the ids of nodes that are values whatever is in them.
        budget: of the names.

    Raises:
        FormatError: the top is no mapping, or something is nested too deeply.
        UsageError: two entries would have one name, or a key has no text.
    """
    return _Flattening(edits, is_tensor, values, budget).run(root)


class _Flattening:
    """One look through a nested state dict."""

    def __init__(
        self,
        edits: Edits,
        is_tensor: Callable[[Node], bool],
        values: Collection[int],
        budget: NameBudget,
    ) -> None:
        self.edits = edits
        self.is_tensor = is_tensor
        self.values = values
        self.budget = budget
        self.where = budget.where
        #: By the ids of lists and mappings.
        self.entered: dict[int, bool] = {}

    def run(self, root: Node) -> Flat:
        found: dict[str, Leaf] = {}
        empty: list[str] = []
        stack: list[tuple[Path, Node]] = [((), root)]
        while stack:
            path, node = stack.pop()
            name = ".".join(map(str, path))
            self.budget.spend(len(name) + TENSOR)
            items = self.items(node, name) if not path or self.is_entered(node) else None
            if items is None:
                if name in found:
                    raise _two(self.where, name)
                found[name] = Leaf(name, path, node)
            elif not items and path:
                empty.append(name)
            elif len(path) >= _DEEPEST:
                raise FormatError(
                    self.where,
                    f"{name[:200]!r} is nested too deeply for a distributed checkpoint",
                    expected=f"a value in at most {_DEEPEST} mappings and lists",
                )
            stack.extend(((*path, key), value) for key, value in reversed(items or []))
        return Flat(tuple(found.values()), tuple(empty))

    def is_entered(self, node: Node) -> bool:
        """Whether what is in a node has names of its own; what is shared is looked at once."""
        if id(node) in self.values or not isinstance(node, (list, Dict, Call)):
            return False
        if id(node) not in self.entered:
            self.entered[id(node)] = self.has_names(node)
        return self.entered[id(node)]

    def has_names(self, node: Node) -> bool:
        """Look into a node for what gives names to its items."""
        if isinstance(node, list):
            return self.leads_on(node)
        if entries_of(node) is None:
            return False
        is_plain = isinstance(node, Dict) or any(
            is_called(node, module, *names) for module, names in _PLAIN.items()
        )
        return is_plain or self.has_tensors(node)

    def leads_on(self, node: list[Node]) -> bool:
        """Whether there is a mapping or a tensor in a list, or in lists in it."""
        seen = {id(node)}
        stack = [node]
        while stack:
            for item in self.edited(stack.pop()):
                if isinstance(item, list):
                    if id(item) not in seen:
                        seen.add(id(item))
                        stack.append(item)
                elif self.is_tensor(item) or entries_of(item) is not None:
                    return True
        return False

    def has_tensors(self, node: Node) -> bool:
        """Whether there is a tensor in a mapping, or in mappings and lists in it."""
        seen = {id(node)}
        stack = [node]
        while stack:
            holder = stack.pop()
            items = self.edited(holder)
            for item in items if isinstance(holder, list) else [value for _, value in items]:
                if self.is_tensor(item):
                    return True
                is_holder = isinstance(item, list) or entries_of(item) is not None
                if is_holder and id(item) not in seen:
                    seen.add(id(item))
                    stack.append(item)
        return False

    def edited(self, node: Node) -> Sequence[Node]:
        """Return the items of a list, or the pairs of a mapping."""
        if id(node) in self.edits:
            return self.edits[id(node)]
        return node if isinstance(node, list) else entries_of(node) or []

    def items(self, node: Node, above: str) -> list[tuple[str | int, Node]]:
        """Return what is in a mapping or list by its keys in a path."""
        items = self.edited(node)
        if isinstance(node, list):
            return list(enumerate(items))
        return [(self.text(key, above), value) for key, value in items]

    def text(self, key: Node, above: str) -> str:
        """Return what Python makes of a key as text."""
        if type(key) is str:
            return key
        if isinstance(key, (int, float, type(None))) and not _is_long(key):
            return str(key)
        raise UsageError(
            self.where,
            f"a key is no text, and a distributed checkpoint has only such: {spelled(key)}",
            expected="text, or a number",
            hint=setting(drop=[above]) if above else "",
        )


def _is_long(key: float | None) -> bool:
    return isinstance(key, int) and key.bit_length() > _LONGEST_INT


def _number(key: str | int | Position) -> str | int:
    return key.number if isinstance(key, Position) else key


def _two(where: str, name: str) -> UsageError:
    return UsageError(
        where,
        f"two entries would have the name {name!r}: a distributed checkpoint joins keys by dots",
        hint=setting(drop=[name]),
    )
