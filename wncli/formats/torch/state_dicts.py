"""Finds what is in a torch file's tree: which mappings are state dicts, what else is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Entry, StateDict
from wncli.checkpoint.keys import Key, Keys, Position, shown
from wncli.checkpoint.tensors import DType, Storage, TensorSpec
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    Call,
    Dict,
    Node,
    PersistentId,
    Unread,
    entries_of,
)
from wncli.formats.pickles.reader import Pickle
from wncli.formats.torch.entries import EntryLister, Paths
from wncli.formats.torch.keys import find_ambiguous, items_of, spelled
from wncli.formats.torch.modules import (
    TENSOR,
    ModuleReader,
    NameBudget,
    budget_for,
    holder_of,
    read_module,
)
from wncli.formats.torch.optimizers import is_optimizer
from wncli.formats.torch.tensors import (
    StorageId,
    class_of,
    find_changes,
    is_part,
    read_storage_id,
    read_tensor,
)
from wncli.formats.torch.tree import References, TorchTree
from wncli.formats.torch.weights_only import accepts
from wncli.notes import Note
from wncli.storage.source import FileSource, Source

#: Deeper than any checkpoint nests its state dicts; bounds what a hostile file can ask for.
_DEEPEST_ROOT = 16
#: What `torch.optim` keeps for each parameter, besides `exp_avg` and its kin.
_KEPT = frozenset({"acc_delta", "exp_inf", "momentum_buffer", "square_avg"})
_MOST_KEPT = 16
#: The one protocol that `weights_only` takes without a warning.
_LOADED_WITHOUT_TRUST = 2
#: How tensors of a module without submodules are called.
_USUAL = ("weight", "bias")
#: Values that hold nothing; and as many items are looked at each time, instead of remembered.
_VALUES = frozenset({str, bytes, int, float, bool, type(None), Unread})
_FEW = 8


class _Place(NamedTuple):
    """A mapping or list that is looked into: its path, its items that are still to be visited.

    `number` is the id of its node, None for what holds the root.
    """

    keys: Keys
    number: int | None
    is_numbered: bool
    left: Iterator[tuple[Key, Node]]


class Content(NamedTuple):
    """What a torch file's pickle holds; `refused_names` are those that `weights_only` refuses."""

    tree: TorchTree
    state_dicts: tuple[StateDict, ...]
    entries: tuple[Entry, ...]
    refused_names: tuple[str, ...]
    notes: tuple[Note, ...]
    has_arrays: bool


def read_tree(
    pickled: Pickle,
    nbytes: int,
    locate: Callable[[StorageId], Storage],
    source: Source,
    *,
    is_legacy: bool = False,
) -> Content:
    """Find the state dicts, the other entries, and what else its reader should know.

    Where there are no tensors, NumPy's arrays are taken for tensors.

    Args:
        pickled: the content.
        nbytes: of the pickle.
        locate: finds a storage's bytes in the file.
        source: the file.
        is_legacy: it is of the format before PyTorch 1.6.
    """
    where = source.name
    references: dict[PersistentId, tuple[StorageId, Storage]] = {}
    refused: dict[str, None] = {}
    known: dict[object, object] = {}
    for node in pickled.persistent_ids:
        if not class_of(node):
            identity = read_storage_id(node, where, is_legacy=is_legacy)
            _refuse_two_kinds(known, identity, where)
            references[node] = (identity, locate(identity))
    for name in map(str, pickled.globals):
        if not accepts(name):
            refused[name] = None
    root = pickled.root
    found = _Finder(references, budget_for(where, nbytes)).run(root)
    has_arrays = False
    if not references and isinstance(source, FileSource) and any(map(_is_numpy, refused)):
        from wncli.formats.numpy.pickled import NAMES, take_arrays

        taken = take_arrays(pickled, nbytes, source)
        among = _Finder(taken.references, budget_for(where, nbytes)).run(root)
        has_arrays = bool(among.state_dicts)
        if has_arrays:
            taken.keep(pickled)
            references, found = taken.references, among
            message = "there are NumPy arrays for tensors; they are written as tensors"
            without = f"; left out: {NAMES}" if taken.table else ""
            found.notes.append(Note("arrays", message + without))
        else:
            taken.give_back()
    protocol = _LOADED_WITHOUT_TRUST if has_arrays else pickled.protocol
    tree = TorchTree(
        root, protocol, references, found.mappings, found.containers, found.paths.shown,
        found.closed,
    )  # fmt: skip
    return Content(
        tree,
        tuple(found.state_dicts),
        tuple(found.entries),
        tuple(refused),
        (*found.notes, *find_changes(pickled.calls)),
        has_arrays,
    )


def _is_numpy(name: str) -> bool:
    return name.startswith("numpy.")


def _refuse_two_kinds(known: dict[object, object], found: StorageId, where: str) -> None:
    """Every reference to a storage, or to a view of one, has to say the same about it.

    PyTorch goes by the first for all of one key; untyped ones are bytes.
    """
    facts: list[tuple[str, object]] = [(found.key, found.dtype or DType.U8)]
    if found.view:
        facts.append((found.view[0], (found.key, found.dtype, *found.view)))
    for key, told in facts:
        if known.setdefault(key, told) != told:
            raise FormatError(
                where,
                f"two tensors say different things about storage {key!r}",
                expected="one dtype for a storage, one place for a view",
                hint="copy or download the file again",
            )


def top_state_dict(tree: TorchTree, where: str) -> StateDict | None:
    """Return the tensors at the top of a tree, or None where there are none."""
    members = [(k, v) for k, v in entries_of(tree.root) or [] if isinstance(k, str)]
    specs = {name: read_tensor(node, tree.references, name, where) for name, node in members}
    tensors = tuple(spec for spec in specs.values() if spec)
    others = tuple(name for name, spec in specs.items() if spec is None)
    parts = tuple(name for name, node in members if is_part(node))
    return StateDict("", tensors, others, parts=parts) if tensors or parts else None


@dataclass(slots=True)
class _Held:
    """What was found in one mapping or list: what may hold state dicts, by the path's next key."""

    keys: Keys
    node: Node
    inner: list[tuple[Key, Node]]


class _Finder:
    """One look through the mappings and lists of a tree."""

    def __init__(self, references: References, budget: NameBudget) -> None:
        self.references = references
        self.where = budget.where
        self.budget = budget
        self.modules = ModuleReader(partial(read_module, budget=budget), references, budget)
        #: By the ids of the nodes: what may lead on, and the state dicts, without their roots.
        self.held: dict[int, _Held] = {}
        self.found: dict[int, StateDict] = {}
        #: The nodes that are state dicts or lead to one.
        self.leading: set[int] = set()
        #: The ids of the nodes whose items are no entries: modules and optimizers.
        self.closed: set[int] = set()
        #: Whether something may hold state dicts, by the ids of what has many items.
        self.may: dict[int, bool] = {}
        self.paths = Paths(budget)
        self.containers: dict[Keys, Node] = {}
        self.mappings: dict[Keys, Node] = {}
        self.state_dicts: list[StateDict] = []
        self.entries: list[Entry] = []
        self.notes: list[Note] = []

    def run(self, root: Node) -> _Finder:
        self.look_through(root)
        self.find_leading()
        self.name_all(root)
        lister = EntryLister(self.modules, self.references, self.where, self.paths)
        if id(root) not in self.held and id(root) not in self.found:
            self.entries.append(lister.entry("(top)", root, ()))
        for path, node in self.containers.items():
            self.entries += lister.entries(path, node, is_state_dict=path in self.mappings)
        for held in self.held.values():
            if id(held.node) not in self.leading:
                self.containers.setdefault(held.keys, held.node)
        return self

    def look_through(self, root: Node) -> None:
        """Look once into every mapping and list, wherever it stands first."""
        above: dict[int, int | None] = {}
        stack: list[_Place] = []
        keys: Keys = ()
        node, holder, is_numbered = root, None, False
        while True:
            if id(node) not in above and len(keys) <= _DEEPEST_ROOT:
                above[id(node)] = holder
                inner = self.look_into(node, is_numbered=is_numbered)
                if inner is None:
                    self.closed.add(id(node))
                elif inner or id(node) in self.found or node is root:
                    self.held[id(node)] = _Held(keys, node, inner)
                    stack.append(_Place(keys, id(node), is_numbered, iter(inner)))
            following = next(stack[-1].left, None) if stack else None
            while stack and following is None:
                stack.pop()
                following = next(stack[-1].left, None) if stack else None
            if following is None:
                break
            key, node = following
            keys, holder = (*stack[-1].keys, key), stack[-1].number
            is_numbered = stack[-1].is_numbered or type(key) is int
        self.forget_loose(above)

    def may_hold(self, node: Node) -> bool:
        """Whether there can be a state dict in it: not in a list of numbers, or of empty dicts."""
        if isinstance(node, Call):
            return True
        if isinstance(node, Dict):
            values: Iterable[Node] = (value for _, value in node.entries)
            size = len(node.entries)
        elif isinstance(node, (list, tuple)):
            values, size = node, len(node)
        else:
            return False
        if size <= _FEW:
            return any(not _is_value(value) for value in values)
        if id(node) not in self.may:  # however often it is shared
            self.may[id(node)] = any(not _is_value(value) for value in values)
        return self.may[id(node)]

    def look_into(self, node: Node, *, is_numbered: bool) -> list[tuple[Key, Node]] | None:
        """Return what could hold state dicts, by its key.

        None where nothing can: the node is no container, a module, or an optimizer.
        """
        if self.modules.module(node):
            state_dict = self.modules.state_dict(node, holder_of(node))
            if state_dict.tensors:
                self.found[id(node)] = state_dict
            return None
        if isinstance(node, (list, tuple)):
            return [
                (Position(number, len(node), isinstance(node, tuple)), item)
                for number, item in enumerate(node)
                if self.may_hold(item)
            ]
        entries = entries_of(node)
        if entries is None:
            return None
        named = {key: value for key, value in entries if isinstance(key, str)}
        if is_optimizer(named) or _is_kept_for_a_parameter(named):
            return None
        state_dict = self.state_dict(named)
        if _is_convincing(state_dict, is_numbered=is_numbered):
            self.found[id(node)] = state_dict
        inner: dict[Key, Node] = {
            name: named[name]
            for name in state_dict.others
            if self.may_hold(named[name]) and not name.endswith("_extra_state")
        }
        if len(named) < len(entries):
            inner |= {
                key: value
                for key, value in items_of(node)
                if type(key) is int and self.may_hold(value)
            }
        return list(inner.items())

    def state_dict(self, named: Mapping[str, Node]) -> StateDict:
        tensors: list[TensorSpec] = []
        others: list[str] = []
        parts: list[str] = []
        for name, value in named.items():
            spec = read_tensor(value, self.references, name, self.where)
            if spec:
                tensors.append(spec)
                continue
            others.append(name)
            if is_part(value):
                parts.append(name)
        return StateDict("", tuple(tensors), tuple(others), parts=tuple(parts))

    def forget_loose(self, above: Mapping[int, int | None]) -> None:
        """Forget loose tensors beside state dicts, as in `{"model": {…}, "mean": tensor}`."""
        holders: set[int] = set()
        for found in self.found:
            holder = above.get(found)
            while holder is not None and holder not in holders:
                holders.add(holder)
                holder = above.get(holder)
        for found in holders & self.found.keys():
            if not any("." in spec.name for spec in self.found[found].tensors):
                del self.found[found]

    def find_leading(self) -> None:
        """Find the nodes that lead to a state dict, also where another path was looked at."""
        holders: dict[int, list[int]] = {}
        for holder, held in self.held.items():
            for _, value in held.inner:
                holders.setdefault(id(value), []).append(holder)
        stack = list(self.found)
        while stack:
            found = stack.pop()
            if found not in self.leading:
                self.leading.add(found)
                stack += holders.get(found, [])

    def name_all(self, root: Node) -> None:
        """Give every state dict the paths that lead to it, and every container its path."""
        stack: list[tuple[Keys, Node, tuple[int, ...]]] = [((), root, ())]
        while stack:
            keys, node, above = stack.pop()
            if id(node) in above or len(keys) > _DEEPEST_ROOT:
                continue
            path = self.paths.name(keys, shown(keys))
            state_dict = self.found.get(id(node))
            if state_dict:
                # Every tensor has a full name here, wherever else the mapping stands as well.
                names = len(state_dict.tensors) + len(state_dict.others)
                self.budget.spend((len(path) + TENSOR) * names)
                self.state_dicts.append(state_dict._replace(root=path, keys=keys))
            held = self.held.get(id(node))
            if not held:
                continue
            self.containers[keys] = node
            if made := find_ambiguous(node):
                message = f"a key that a call makes may be one that is there too: {spelled(made)}"
                self.notes.append(Note("ambiguous", message, path, is_warning=True))
            if state_dict:
                self.mappings[keys] = node
            stack.extend(
                ((*keys, key), value, (*above, id(node)))
                for key, value in reversed(held.inner)
                if id(value) in self.leading
            )


def _is_value(node: Node) -> bool:
    """Whether there is nothing in it: a number, a text, an empty list."""
    if type(node) in _VALUES:
        return True
    if isinstance(node, Dict):
        return not node.entries
    return isinstance(node, (list, tuple)) and not node


def _is_kept_for_a_parameter(members: Mapping[str, Node]) -> bool:
    """Whether this is what an optimizer keeps for a parameter, or for each under its name."""
    return len(members) <= _MOST_KEPT and any(
        key in _KEPT or key.startswith("exp_avg") for key in members
    )


def _is_convincing(state_dict: StateDict, *, is_numbered: bool) -> bool:
    """Whether these are a model's tensors.

    Below a number stand mostly the things that optimizers and the like keep for each parameter.
    """
    names = (*(spec.name for spec in state_dict.tensors), *state_dict.parts)
    if is_numbered and not any("." in name or name.startswith(_USUAL) for name in names):
        return False
    return bool(state_dict.parts) or any(map(_could_be_a_weight, state_dict.tensors))


def _could_be_a_weight(spec: TensorSpec) -> bool:
    """Not a counter, a score or a random generator's state."""
    rank = len(spec.shape)
    return rank > 1 or (rank == 1 and spec.dtype is not DType.U8)
