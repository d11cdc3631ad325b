"""The content of a torch file as a tree of pickle nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wncli.formats.pickles.nodes import Node, PersistentId, entries_of
from wncli.formats.torch_tensor import StorageId
from wncli.tensors import Storage

#: Bits of the longest integer that is taken for a key on a path.
LONGEST_KEY = 64

References = Mapping[PersistentId, tuple[StorageId, Storage]]


class TorchTree(NamedTuple):
    """A torch file's pickled content, as nodes.

    `references` leads from each persistent id to its storage, `mappings` from each state dict's
    root to its node, `containers` from each mapping's path to its node.
    """

    root: Node
    protocol: int
    references: References
    mappings: Mapping[str, Node]
    containers: Mapping[str, Node]

    def has_entry(self, path: str) -> bool:
        """Whether `path` leads to an item of one of the mappings."""
        for end in (-1, *(place for place, char in enumerate(path) if char == ".")):
            node = self.containers.get(path[: max(end, 0)])
            keys = [path_key(key) for key, _ in entries_of(node) or []]
            if isinstance(node, list):
                keys = [str(number) for number in range(len(node))]
            if path[end + 1 :] in keys:
                return True
        return False

    def without(self, drop: frozenset[str]) -> dict[int, list[Node]]:
        """By its id, what is left of every mapping and list that loses an item to `drop`."""
        left: dict[int, list[Node]] = {}
        for path, node in self.containers.items() if drop else ():
            is_list = isinstance(node, list)
            items: list[Node] | None = left.get(id(node), node if is_list else entries_of(node))
            if items is None:
                continue
            keys = (
                [str(n) for n in range(len(items))] if is_list else [path_key(k) for k, _ in items]
            )
            paths = [f"{path}.{key}" if path else key for key in keys]
            gone = drop.intersection(path for path in paths if path)
            if gone:
                left[id(node)] = [e for e, p in zip(items, paths, strict=True) if p not in gone]
        return left


def path_key(key: Node) -> str | None:
    """A mapping's key as it is written in paths: text, or a number; None for any other."""
    is_number = isinstance(key, int) and key.bit_length() <= LONGEST_KEY
    return str(key) if is_number or isinstance(key, str) else None
