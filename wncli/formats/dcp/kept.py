"""Which tensors and values of an output are items of the input, to be copied as they are stored."""

from __future__ import annotations

from collections.abc import Iterable

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.layout import Layout, Slot, Whole
from wncli.checkpoint.parts import Item, PartedTensor, PartedValue, Parts
from wncli.checkpoint.tensors import Storage, TensorSpec
from wncli.formats.pickles.nodes import Added, Appended, Built, Call, Dict, Node, Set, SetItems
from wncli.formats.pickles.writer import Edits

#: Nodes that are made of others.
_HOLDERS = (list, tuple, Dict, Set, Call, SetItems, Appended, Added, Built)


class Kept:
    """The items of a distributed checkpoint that is read; none of any other."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        parts = checkpoint.parts
        self.parts = None if parts and parts.is_safetensors else parts
        #: The values by the ids of their nodes, which equal ones can share, and by their names.
        self.values: dict[int, dict[str, PartedValue]] = {}
        if self.parts and checkpoint.tree:
            self._find_values(self.parts, checkpoint.tree.root)

    def _find_values(self, parts: Parts, root: Node) -> None:
        """Find the nodes of values at their paths."""
        known: dict[int, dict[str | int, Node]] = {}
        for entry in parts.entries.values():
            if isinstance(entry, PartedValue):
                node = root
                for key in entry.path or (entry.name,):
                    if id(node) not in known:
                        items = enumerate(node) if isinstance(node, list) else node.entries
                        known[id(node)] = dict(items)
                    node = known[id(node)][key]
                self.values.setdefault(id(node), {})[entry.name] = entry

    def tensor(self, spec: TensorSpec) -> PartedTensor | None:
        """Return what the checkpoint says of a tensor; None where it is in no items of its own."""
        if self.parts is None or spec.storage.file:
            return None
        entry = self.parts.entries.get(spec.storage.key)
        return entry if isinstance(entry, PartedTensor) else None

    def value(self, name: str, node: Node, edits: Edits) -> PartedValue | None:
        """Return what the checkpoint says of a value; None where it is none, or changes.

        Of equal ones that is the one of its name, or else the next, which has another name now.
        """
        entries = self.values.get(id(node))
        if entries is None or _is_edited(node, edits):
            return None
        name = name if name in entries else next(iter(entries))
        return entries.pop(name) if len(entries) > 1 else entries[name]

    def copied(self, item: Item) -> Layout:
        """Lay out an item as it is stored."""
        assert self.parts is not None  # noqa: S101 - for the type checker
        key = f"{item.file}, {item.offset}"
        storage = Storage(key, self.parts.place_of(item), item.nbytes)
        slot = Slot(0, item.nbytes, Whole(storage), is_summed=False)
        return Layout(item.nbytes, (), (slot,), ())


def _is_edited(root: Node, edits: Edits) -> bool:
    """Whether something in a value is to have other items."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, _HOLDERS) and id(node) not in seen:
            if id(node) in edits:
                return True
            seen.add(id(node))
            stack += _held(node)
    return False


def _held(node: Node) -> Iterable[Node]:
    """Return what a node is made of."""
    match node:
        case Dict(entries) | SetItems(entries):
            return [part for entry in entries for part in entry]
        case Set(items) | Appended(items) | Added(items):
            return items
        case Built(state):
            return (state,)
        case Call():
            return (node.args, node.keywords, *node.effects)
        case list() | tuple():
            return node
    return ()
