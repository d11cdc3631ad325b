"""Finds what is in a torch file's tree: which mappings are state dicts, what else is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wncli.checkpoint import Entry, StateDict
from wncli.formats.pickles.nodes import (
    Built,
    Call,
    Dict,
    Global,
    Node,
    PersistentId,
    Set,
    entries_of,
)
from wncli.formats.torch_tensor import StorageId, read_storage_id, read_tensor
from wncli.formats.torch_tree import References, TorchTree, walk
from wncli.formats.weights_only import accepts
from wncli.tensors import DType, Storage, TensorSpec

#: Deeper than any checkpoint nests its state dicts; bounds what a hostile file can ask for.
_DEEPEST_ROOT = 16


def read_tree(
    root: Node, protocol: int, locate: Callable[[StorageId], Storage], where: str
) -> tuple[TorchTree, tuple[StateDict, ...], tuple[Entry, ...], tuple[str, ...]]:
    """Find the state dicts, the other entries, and the names that `weights_only` refuses.

    Args:
        root: the pickled content.
        protocol: of the pickle.
        locate: finds a storage's bytes in the file.
        where: the file, for refusals.
    """
    references: dict[PersistentId, tuple[StorageId, Storage]] = {}
    refused: dict[str, None] = {}
    for node in walk(root):
        if isinstance(node, PersistentId):
            identity = read_storage_id(node, where)
            references[node] = (identity, locate(identity))
        elif isinstance(node, Global) and not accepts(str(node)):
            refused[str(node)] = None
    found = _Finder(references, where).run(root)
    tree = TorchTree(root, protocol, references, found.mappings, found.containers)
    return tree, tuple(found.state_dicts), tuple(found.entries), tuple(refused)


class _Finder:
    """One look through the mappings and lists of a tree."""

    def __init__(self, references: References, where: str) -> None:
        self.references = references
        self.where = where
        self.containers: dict[str, Node] = {}
        self.mappings: dict[str, Node] = {}
        self.state_dicts: list[StateDict] = []
        self.entries: list[Entry] = []

    def run(self, root: Node) -> _Finder:
        candidates: dict[str, tuple[Node, StateDict]] = {}
        inner: set[str] = set()
        seen: set[int] = set()
        stack: list[tuple[tuple[str, ...], Node]] = [((), root)]
        while stack:
            parts, node = stack.pop()
            parents = [".".join(parts[:end]) for end in range(len(parts))]
            path = ".".join(parts)
            if id(node) in seen or len(parts) > _DEEPEST_ROOT:
                continue
            seen.add(id(node))
            members = _members(node)
            if members is None or _is_optimizer(members):
                continue
            while path in self.containers:  # keys with dots can spell one path in two ways
                path += "'"
            self.containers[path] = node
            state_dict = None if isinstance(node, (list, tuple)) else self.state_dict(path, members)
            if state_dict:
                candidates[path] = (node, state_dict)
                inner.update(parents)
            stack.extend(
                ((*parts, key), value)
                for key, value in reversed(members.items())
                if not key.endswith("_extra_state")
            )
        for path, (node, state_dict) in candidates.items():
            if path in inner and not any("." in spec.name for spec in state_dict.tensors):
                continue  # loose tensors beside state dicts, as `{"model": {…}, "mean": tensor}`
            self.mappings[path] = node
            self.state_dicts.append(state_dict)
        self.list_entries(root, inner)
        return self

    def state_dict(self, path: str, members: Mapping[str, Node]) -> StateDict | None:
        tensors: list[TensorSpec] = []
        others: list[str] = []
        for name, value in members.items():
            spec = read_tensor(value, self.references, name, self.where)
            if spec:
                tensors.append(spec)
            else:
                others.append(name)
        if not any(_could_be_a_weight(spec) for spec in tensors):
            return None
        return StateDict(path, tuple(tensors), tuple(others))

    def list_entries(self, root: Node, inner: set[str]) -> None:
        """What stands beside the state dicts: the other members of whatever holds one."""
        members = _members(root)
        if members is None or _is_optimizer(members):
            self.entries.append(self.entry("(top)", root))
        for path, node in self.containers.items():
            if path in self.mappings or (path and path not in inner):
                continue
            for key, value in (_members(node) or {}).items():
                full = f"{path}.{key}" if path else key
                if full not in self.mappings and full not in inner:
                    self.entries.append(self.entry(full, value))

    def entry(self, path: str, value: Node) -> Entry:
        spec = read_tensor(value, self.references, path, self.where)
        if spec:
            return Entry(path, "tensor", f"{spec.dtype.label} tensor {list(spec.shape)}")
        optimizers = _optimizers(value)
        if optimizers:
            count = sum(len(entries_of(state) or []) for state in optimizers)
            what = "optimizer" if len(optimizers) == 1 else f"{len(optimizers)} optimizers"
            plural = "s" if count != 1 else ""
            return Entry(path, "optimizer", f"{what}, state of {count} parameter{plural}")
        if isinstance(value, Call):
            name = str(value.function) if isinstance(value.function, Global) else "object"
            built = [e.state for e in value.effects if isinstance(e, Built)]
            items = entries_of(value) or (entries_of(built[0]) if built else None)
            if {"_parameters", "_modules"} <= {k for k, _ in items or [] if isinstance(k, str)}:
                return Entry(path, "module", f"{name}, a whole module, which is not looked into")
            return Entry(path, "object", f"{name}, {_items(items)}" if items else name)
        return Entry(path, "value", _summary(value))


def _optimizers(node: Node, depth: int = 2) -> list[Node]:
    """The states of the optimizers that `node` is, or consists of, as a dict or list of them."""
    members = _members(node)
    if not members or depth == 0:
        return []
    if _is_optimizer(members):
        return [members["state"]]
    found = [_optimizers(member, depth - 1) for member in members.values()]
    return [state for states in found for state in states] if all(found) else []


def _members(node: Node) -> dict[str, Node] | None:
    """The members of a mapping by text, or of a list by number; None for anything else."""
    if isinstance(node, (list, tuple)):
        return {str(place): item for place, item in enumerate(node)}
    entries = entries_of(node)
    if entries is None:
        return None
    return {key: value for key, value in entries if isinstance(key, str)}


def _is_optimizer(members: Mapping[str, Node]) -> bool:
    return "state" in members and "param_groups" in members


def _could_be_a_weight(spec: TensorSpec) -> bool:
    """Not a counter, a score or a random generator's state."""
    rank = len(spec.shape)
    return rank > 1 or (rank == 1 and spec.dtype is not DType.U8)


def _items(items: list[tuple[Node, Node]]) -> str:
    return f"{len(items)} item{'s' if len(items) != 1 else ''}"


def _summary(value: Node) -> str:
    if isinstance(value, Dict):
        return f"dict, {_items(value.entries)}"
    if isinstance(value, (list, tuple, Set)):
        size = len(value.items if isinstance(value, Set) else value)
        return f"{type(value).__name__.lower()}, {size} item{'s' if size != 1 else ''}"
    if isinstance(value, (str, bytes)):
        shown = repr(value[:40])
        return shown if len(value) <= 40 else f"{shown}… ({len(value)} characters)"  # noqa: PLR2004
    if isinstance(value, int) and value.bit_length() > 128:  # noqa: PLR2004
        return f"int of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__
