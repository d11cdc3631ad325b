"""Makes the pickle of a torch file from a plan: the input's tree with its tensors exchanged."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

from wncli.checkpoint import StateDict, aliases
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    Call,
    Global,
    Node,
    PersistentId,
    SetItems,
    entries_of,
)
from wncli.formats.pickles.writer import Entries, write_pickle
from wncli.formats.torch_tensor import NewStorage, make_tensor, storage_pid
from wncli.formats.torch_tree import TorchTree
from wncli.layout import Content, Elements, Magnitude, Product, Whole
from wncli.notes import Note
from wncli.plan import Action, Compose, Copy, Decompose, Plan, is_dropped
from wncli.tensors import Storage, TensorSpec, row_major

_DEFAULT_PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class TorchContent:
    """A torch file before it is laid out: the pickle, and what fills the storages it names.

    Storage number i (`data/i`) is filled with `contents[i]`; the `direction` of a `Magnitude`
    is such a number here.
    """

    pickle: bytes
    contents: tuple[Content, ...]
    notes: tuple[Note, ...]


def torch_content(plan: Plan) -> TorchContent:
    """The pickle that carries out `plan`, whatever the input's format.

    Raises:
        FormatError: a tensor's dtype does not exist in PyTorch.
    """
    tree = plan.checkpoint.tree
    if tree is None:
        return _from_tensors(plan)
    return _from_tree(plan, tree)


def _from_tensors(plan: Plan) -> TorchContent:
    """A flat state dict, for an input that has no tree."""
    build = _Build(None)
    entries: Entries = []
    for part in plan.parts:
        for action in part.actions:
            entries += build.tensors(action, {})
    root = Call("REDUCE", Global("collections", "OrderedDict"), (), effects=[SetItems(entries)])
    notes = []
    ties = {name for part in plan.parts for name in aliases(plan.checkpoint, part.state_dict)}
    metadata = plan.checkpoint.metadata or {}
    lost = [k for k, v in metadata.items() if k not in ties and (k, v) != ("format", "pt")]
    if lost:
        notes.append(
            Note(
                "left-out",
                f"torch files hold no safetensors metadata; left out: {', '.join(lost)}",
                str(plan.checkpoint.path),
                is_warning=True,
            )
        )
    return build.finish(root, _DEFAULT_PROTOCOL, {}, notes)


def _from_tree(plan: Plan, tree: TorchTree) -> TorchContent:
    build = _Build(tree)
    build.count_private(plan)
    edits = _without_dropped(plan, tree)
    for part in plan.parts:
        node = tree.mappings[part.state_dict.root]
        entries = edits[node] if node in edits else entries_of(node) or []
        edits[node] = build.state_dict(part.state_dict, part.actions, entries)
    root = tree.root if plan.only is None else tree.mappings[plan.only]
    return build.finish(root, tree.protocol, edits, _optimizer_notes(plan))


def _optimizer_notes(plan: Plan) -> list[Note]:
    """A warning for each optimizer that comes along though its parameters have changed."""
    if plan.only is not None or not plan.changes:
        return []
    return [
        Note(
            "optimizer",
            f"the optimizer state {entry.path!r} is kept, but no longer fits the changed"
            f" parameters; --drop {entry.path} leaves it out",
            entry.path,
            is_warning=True,
        )
        for entry in plan.checkpoint.entries
        if entry.kind == "optimizer" and not is_dropped(entry.path, plan.drop)
    ]


def _without_dropped(plan: Plan, tree: TorchTree) -> dict[Node, Entries]:
    """The items of every mapping that loses one to `--drop`."""
    edits: dict[Node, Entries] = {}
    for path, node in tree.containers.items():
        entries = entries_of(node)
        if entries is None or not plan.drop:
            continue
        paths = [f"{path}.{key}" if path else key for key, _ in entries]
        gone = plan.drop.intersection(p for p in paths if isinstance(p, str))
        if gone:
            edits[node] = [e for e, p in zip(entries, paths, strict=True) if p not in gone]
    return edits


@dataclass(slots=True)
class _Build:
    """Contents and nodes as they come up; ties are made once and shared."""

    tree: TorchTree | None
    contents: list[Content] = field(default_factory=list)
    made: dict[object, tuple[Node, int]] = field(default_factory=dict)
    wholes: dict[tuple[int, str], int] = field(default_factory=dict)
    private: set[tuple[int, str]] = field(default_factory=set)

    def count_private(self, plan: Plan) -> None:
        """Find the storages that no tensor uses but weights that are split in one way.

        Giving an all-zero slice a direction writes into v, which must not reach other tensors.
        """
        assert self.tree is not None  # noqa: S101 - for the type checker
        uses = Counter(storage.identity for _, storage in self.tree.references.values())
        splits: dict[tuple[int, str], set[object]] = {}
        known: Counter[tuple[int, str]] = Counter()
        for _, action in plan.changes:
            if isinstance(action, Decompose):
                spec = action.weight
                known[spec.storage.identity] += 1
                splits.setdefault(spec.storage.identity, set()).add((spec.view, action.dim))
        self.private = {
            key for key, ways in splits.items() if len(ways) == 1 and uses[key] <= known[key]
        }

    def state_dict(
        self, state_dict: StateDict, actions: tuple[Action, ...], entries: Entries
    ) -> Entries:
        """The items of a state dict's mapping after `actions`, everything else kept in place."""
        by_source = {spec.name: action for action in actions for spec in action.sources}
        others = set(state_dict.others)
        nodes = {key: value for key, value in entries if isinstance(key, str)}
        done: set[int] = set()
        kept: Entries = []
        for key, value in entries:
            action = by_source.get(key) if isinstance(key, str) and key not in others else None
            if action is None:
                kept.append((key, value))
            elif id(action) not in done:
                done.add(id(action))
                copied = isinstance(action, Copy)
                kept += [(key, nodes[key])] if copied else self.tensors(action, nodes)
        return kept

    def tensors(self, action: Action, nodes: dict[str, Node]) -> Entries:
        """The named tensors that an action leaves; `nodes` are those of the input."""
        match action:
            case Copy(spec):
                return [(spec.name, self.elements(spec, None)[0])]
            case Decompose(weight, dim, _, g, v):
                node = nodes.get(weight.name)
                direction, place = self.direction(weight, dim, node)
                content = Magnitude(action, *place)
                magnitude, _ = self.new(
                    ("g", weight.view, dim, place), content, weight, action.g_shape, like=node
                )
                return [(g, magnitude), (v, direction)]
            case Compose(pair):
                in_memory_order = pair.v.memory_order is not None
                tie = (pair.g.view, pair.v.view)
                product, _ = self.new(
                    tie,
                    Product(pair, row_major=not in_memory_order),
                    replace(pair.v, dtype=pair.dtype),
                    pair.v.shape,
                    strides=pair.v.strides if in_memory_order else None,
                    like=nodes.get(pair.v.name),
                )
                return [(pair.weight, product)]

    def direction(
        self, weight: TensorSpec, dim: int | None, node: Node
    ) -> tuple[Node, tuple[int, int, tuple[int, ...]]]:
        """The node of v, and where v's elements will be: content, offset, strides."""
        if node is not None and weight.storage.identity in self.private:
            return node, (self.whole(weight.storage), weight.offset, weight.strides)
        direction, index = self.elements(weight, node, ("v", weight.view, dim))
        return direction, (index, 0, row_major(weight.shape))

    def elements(self, spec: TensorSpec, like: Node, tie: object = None) -> tuple[Node, int]:
        """A copy of a tensor over a storage of its own."""
        if spec.dtype.torch is None:
            raise FormatError(
                spec.name,
                f"PyTorch has no {spec.dtype.label}",
                hint="--format safetensors keeps it",
            )
        return self.new(
            tie or ("copy", spec.view if spec.numel else spec.name),
            Elements(spec),
            spec,
            spec.shape,
            like=like,
        )

    def new(  # noqa: PLR0913 - what a tensor is made of
        self,
        tie: object,
        content: Content,
        like_spec: TensorSpec,
        shape: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        like: Node = None,
    ) -> tuple[Node, int]:
        """A tensor over a new storage that `content` fills, made once for each `tie`."""
        if tie not in self.made:
            index = len(self.contents)
            self.contents.append(content)
            location = like_spec.storage.location
            storage = NewStorage(index, like_spec.dtype, math.prod(shape), location)
            self.made[tie] = make_tensor(storage, shape, strides, like), index
        return self.made[tie]

    def whole(self, storage: Storage) -> int:
        """The number of the content that is this storage of the input."""
        if storage.identity not in self.wholes:
            self.wholes[storage.identity] = len(self.contents)
            self.contents.append(Whole(storage))
        return self.wholes[storage.identity]

    def finish(
        self, root: Node, protocol: int, edits: dict[Node, Entries], notes: list[Note]
    ) -> TorchContent:
        """Write the pickle; storages are numbered in the order in which it names them."""
        numbers: dict[int, str] = {}

        def persistent(node: PersistentId) -> Node:
            if isinstance(node.pid, NewStorage):
                key = numbers.setdefault(node.pid.index, str(len(numbers)))
                return storage_pid(node.pid, key)
            assert self.tree is not None  # noqa: S101 - for the type checker
            identity, storage = self.tree.references[node]
            key = numbers.setdefault(self.whole(storage), str(len(numbers)))
            itemsize = identity.dtype.itemsize if identity.dtype else 1
            tag, kind, _, location, *_ = node.pid  # the legacy format has a sixth member
            return (tag, kind, key, location, storage.nbytes // itemsize)

        pickle = write_pickle(root, protocol, edits, persistent)
        contents = [self.contents[index] for index in numbers]
        for place, content in enumerate(contents):
            if isinstance(content, Magnitude):
                contents[place] = replace(content, direction=int(numbers[content.direction]))
        return TorchContent(pickle, tuple(contents), tuple(notes))
