"""The content of a torch file as a tree of pickle nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from wncli.checkpoint.keys import Key, Keys, shown_key
from wncli.checkpoint.tensors import Storage
from wncli.formats.pickles.nodes import Node, PersistentId, entries_of
from wncli.formats.torch.keys import items_of
from wncli.formats.torch.tensors import StorageId

References = Mapping[PersistentId, tuple[StorageId, Storage]]


class TorchTree(NamedTuple):
    """A torch file's pickled content, as nodes.

    `references` leads from each persistent id to its storage, `mappings` from each state dict's
    path to its node, `containers` from the path of each mapping and list that may lead to one to
    its node. `shown` is how what is listed is called, no two alike: state dicts, what holds them,
    and the entries. `closed` are the ids of the nodes whose items are nobody's entries.
    """

    root: Node
    protocol: int
    references: References
    mappings: Mapping[Keys, Node]
    containers: Mapping[Keys, Node]
    shown: Mapping[Keys, str]
    closed: Collection[int] = ()

    def container(self, keys: Keys) -> Node | None:
        """Return the mapping or list at a path; that may be one in which there are but values."""
        known = next((n for n in range(len(keys), -1, -1) if keys[:n] in self.containers), None)
        if known is None:
            return None
        node = self.containers[keys[:known]]
        for key in keys[known:]:
            node = dict(items_of(node)).get(key)
            if not self._is_open(node):
                return None
        return node

    def _is_open(self, node: Node) -> bool:
        is_container = isinstance(node, (list, tuple)) or entries_of(node) is not None
        return is_container and id(node) not in self.closed

    def text(self, keys: Keys) -> str:
        """How a path is shown, and typed."""
        for length in range(len(keys), -1, -1):
            known = self.shown.get(keys[:length])
            if known is not None:
                return ".".join([*([known] if known else []), *map(shown_key, keys[length:])])
        return ".".join(map(shown_key, keys))

    def named(self, text: str) -> frozenset[Keys]:
        """Return the items of mappings and lists that `text` names, on all paths that lead to them.

        What is listed goes by the name that it has there; whatever else, by its keys.
        """
        found = {keys for keys, name in self.shown.items() if keys and name == text}
        found = {keys for keys in found or self._spelled(text) if self._can_lose(keys)}
        holders: dict[int, set[Key]] = {}
        for keys in found:
            holders.setdefault(id(self.container(keys[:-1])), set()).add(keys[-1])
        return frozenset(found).union(
            (*path, key)
            for path, node in (self.containers.items() if found else ())
            for key in holders.get(id(node), ())
        )

    def _spelled(self, text: str) -> Iterator[Keys]:
        """Return the items that are not listed by themselves and whose keys read `text`."""
        within = [
            (keys, self.container(keys), text[len(name) + 1 :] if name else text)
            for keys, name in self.shown.items()
            if not name or (text.startswith(name) and text[len(name) : len(name) + 1] == ".")
        ]
        while within:
            path, node, rest = within.pop()
            for key, value in items_of(node):
                name = shown_key(key)
                if not rest.startswith(name):
                    continue
                keys = (*path, key)
                if keys in self.shown:
                    continue
                if rest == name:
                    yield keys
                elif rest[len(name)] == ".":
                    inner = self.containers.get(keys, value)
                    if self._is_open(inner):
                        within.append((keys, inner, rest[len(name) + 1 :]))

    def _can_lose(self, keys: Keys) -> bool:
        """Whether the item at a path can be taken out of what holds it; a tuple's cannot."""
        holder = self.container(keys[:-1])
        return holder is not None and not isinstance(holder, tuple)

    def without(self, drop: Collection[Keys]) -> dict[int, list[Node]]:
        """By its id, what is left of every mapping and list that loses an item to `drop`."""
        lost: dict[int, tuple[Node, set[Key]]] = {}
        for keys in drop:
            holder = self.container(keys[:-1])
            lost.setdefault(id(holder), (holder, set()))[1].add(keys[-1])
        left: dict[int, list[Node]] = {}
        for place, (holder, gone) in lost.items():
            items = holder if isinstance(holder, list) else entries_of(holder) or []
            keyed = zip(items, items_of(holder), strict=True)
            left[place] = [item for item, (key, _) in keyed if key not in gone]
        return left
