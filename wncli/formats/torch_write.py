"""Makes the pickle of a torch file from a plan: the input's tree with its tensors exchanged."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

from wncli.checkpoint import StateDict, aliases
from wncli.errors import FormatError, UsageError
from wncli.formats.pickles.nodes import (
    Call,
    Dict,
    Global,
    Node,
    PersistentId,
    SetItems,
    entries_of,
)
from wncli.formats.pickles.writer import Entries, write_pickle
from wncli.formats.torch_tensor import NewStorage, class_of, make_tensor, storage_pid
from wncli.formats.torch_tree import TorchTree, path_key
from wncli.layout import Content, Elements, Magnitude, Product, Whole
from wncli.notes import Note
from wncli.plan import (
    Action,
    Compose,
    Copy,
    Decompose,
    Part,
    Plan,
    Renormalize,
    Respell,
    is_dropped,
    left_out,
    results_of,
)
from wncli.survey import Pair
from wncli.tensors import Storage, TensorSpec, row_major

_DEFAULT_PROTOCOL = 2


@dataclass(frozen=True, slots=True)
class TorchContent:
    """A torch file before it is laid out: the pickle, and what fills the storages it names.

    Storage number i (`data/i`) is filled with `contents[i]`; the `direction` of a `Magnitude`
    is such a number here.
    """

    pickle: bytes
    names: tuple[str, ...]
    contents: tuple[Content, ...]
    notes: tuple[Note, ...]


def torch_content(plan: Plan) -> TorchContent:
    """The pickle that carries out `plan`, whatever the input's format.

    Raises:
        FormatError: a tensor's dtype does not exist in PyTorch.
        UsageError: an object that is no state dict would have to be written back as itself.
    """
    _refuse_objects(plan)
    tree = plan.checkpoint.tree
    build = _Build(tree)
    edits: dict[Node, Entries] = {}
    if tree:
        build.count_private(plan)
        edits = _without_dropped(plan, tree)
    state_dicts: dict[str, Node] = {}
    edited: set[Node] = set()
    for part in plan.parts:
        node = tree.mappings.get(part.state_dict.root) if tree else None
        if node is None:
            if plan.alone or tree is None:
                state_dicts[part.root] = build.flat(part)
            continue
        state_dicts[part.root] = node
        if node in edited:  # one mapping under two keys
            continue
        edited.add(node)
        entries = edits[node] if node in edits else entries_of(node) or []
        edits[node] = build.state_dict(part.state_dict, part.actions, entries)
    if tree and not plan.alone:
        root, protocol = tree.root, tree.protocol
    else:
        root, protocol = _nest(state_dicts), tree.protocol if tree else _DEFAULT_PROTOCOL
    pickle, contents = build.finish(root, protocol, edits)
    names = [name for part in plan.parts for a in part.actions for name, _ in results_of(a)]
    notes = (*_lost_metadata(plan), *_lost_entries(plan), *_optimizer_notes(plan))
    return TorchContent(pickle, tuple(names), contents, notes)


def _refuse_objects(plan: Plan) -> None:
    """A module's tensors can be read without its class, but no module be made of others."""
    held = [part for part in plan.parts if part.state_dict.holder]
    has_others = len(held) < len(plan.parts) or any(
        entry.kind == "tensor" for entry in plan.checkpoint.entries
    )
    for part in held:
        changes = any(not isinstance(action, Copy) for action in part.actions)
        if plan.alone or (has_others and not changes):
            continue
        root = part.state_dict.root
        raise UsageError(
            f"{plan.checkpoint.path}: {root}" if root else str(plan.checkpoint.path),
            f"this is {part.state_dict.holder}, which cannot be written back as itself",
            expected="a state dict, or an OUTPUT that is to hold one",
            hint=f"wn {plan.command} CHECKPOINT OUTPUT --only {root or repr('')} writes its state"
            " dict alone",
        )


def _nest(state_dicts: dict[str, Node]) -> Node:
    """State dicts in plain dicts, each where its root says."""
    top = Dict()
    for root, node in state_dicts.items():
        if not root:
            return node
        *path, last = root.split(".")
        place = top
        for key in path:
            inner = next((value for name, value in place.entries if name == key), None)
            if inner is None:
                inner = Dict()
                place.entries.append((key, inner))
            place = inner
        place.entries.append((last, node))
    return top


def _lost_entries(plan: Plan) -> list[Note]:
    """What stood beside the state dicts that are written by themselves."""
    lost = left_out(plan) if plan.alone or plan.checkpoint.tree is None else []
    if not lost:
        return []
    return [Note("left-out", f"left out: {', '.join(lost)}", str(plan.checkpoint.path))]


def _lost_metadata(plan: Plan) -> list[Note]:
    """What safetensors metadata says, and torch files have no place for."""
    ties = {name for part in plan.parts for name in aliases(plan.checkpoint, part.state_dict)}
    metadata = plan.checkpoint.metadata or {}
    lost = [k for k, v in metadata.items() if k not in ties and (k, v) != ("format", "pt")]
    if not lost:
        return []
    message = f"torch files hold no safetensors metadata; left out: {', '.join(lost)}"
    return [Note("left-out", message, str(plan.checkpoint.path), is_warning=True)]


def _optimizer_notes(plan: Plan) -> list[Note]:
    """A word on each optimizer that comes along though its parameters have changed."""
    if plan.alone or not plan.changes:
        return []
    respelled = all(isinstance(action, Respell) for _, action in plan.changes)
    return [
        Note(
            "optimizer",
            f"the optimizer state {entry.path!r} stays valid: g and v keep their numbers and order",
            entry.path,
        )
        if respelled
        else Note(
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
        entries = edits.get(node, entries)
        keys = [path_key(key) for key, _ in entries]
        paths = [f"{path}.{key}" if path else key for key in keys]
        gone = plan.drop.intersection(path for path in paths if path)
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
        tensors = {spec.name for spec in state_dict.tensors}
        nodes = {key: value for key, value in entries if isinstance(key, str)}
        done: set[int] = set()
        kept: Entries = []
        for key, value in entries:
            if key not in tensors:
                kept.append((key, value))
                continue
            action = by_source.get(key)
            if action and id(action) not in done:
                done.add(id(action))
                kept += self.tensors(action, nodes)
        return kept

    def flat(self, part: Part) -> Node:
        """A state dict of its own, for tensors that no mapping of the input holds."""
        entries: Entries = []
        for action in part.actions:
            entries += self.tensors(action, {})
        return Call("REDUCE", Global("collections", "OrderedDict"), (), effects=[SetItems(entries)])

    def tensors(self, action: Action, nodes: dict[str, Node]) -> Entries:
        """The named tensors that an action leaves; `nodes` are those of the input."""
        match action:
            case Copy(spec, name):
                return [(name, self.kept(spec, nodes))]
            case Respell(pair, halves):
                g = self.kept(pair.g, nodes, halves.g_shape)
                return [(halves.g, g), (halves.v, self.kept(pair.v, nodes))]
            case Decompose(weight, dim, halves):
                node = nodes.get(weight.name)
                direction, place = self.direction(weight, dim, node)
                content = Magnitude(weight, dim, math.prod(halves.g_shape), *place)
                tie: object = ("g", weight.view, dim, place)
                magnitude, _ = self.new(tie, content, weight, halves.g_shape, like=node)
                return [(halves.g, magnitude), (halves.v, direction)]
            case Compose(pair, name):
                return [(name, self.product(pair, nodes)[0])]
            case Renormalize(pair, dim, halves):
                direction, index, written = self.product(pair, nodes)
                content = Magnitude(
                    written, dim, math.prod(halves.g_shape), index, 0, written.strides,
                    of_output=True,
                )  # fmt: skip
                tie = ("g of a product", pair.g.view, pair.v.view, dim)
                like = nodes.get(pair.g.name)
                magnitude, _ = self.new(tie, content, written, halves.g_shape, like=like)
                return [(halves.g, magnitude), (halves.v, direction)]

    def kept(
        self, spec: TensorSpec, nodes: dict[str, Node], shape: tuple[int, ...] | None = None
    ) -> Node:
        """A tensor of the input: its node where there is one, unless `shape` is another."""
        node = nodes.get(spec.name)
        same = shape is None or shape == spec.shape
        return node if node is not None and same else self.elements(spec, node, shape=shape)[0]

    def product(self, pair: Pair, nodes: dict[str, Node]) -> tuple[Node, int, TensorSpec]:
        """The weight that a pair stands for, the number of its content, and what it is there."""
        in_memory_order = pair.v.memory_order is not None
        strides = pair.v.strides if in_memory_order else row_major(pair.v.shape)
        spec = replace(pair.v, name=pair.weight, dtype=pair.dtype, offset=0, strides=strides)
        node, index = self.new(
            (pair.g.view, pair.v.view),
            Product(pair, row_major=not in_memory_order),
            spec,
            spec.shape,
            strides=strides,
            like=nodes.get(pair.v.name),
        )
        return node, index, spec

    def direction(
        self, weight: TensorSpec, dim: int | None, node: Node
    ) -> tuple[Node, tuple[int, int, tuple[int, ...]]]:
        """The node of v, and where v's elements will be: content, offset, strides."""
        if node is not None and weight.storage.identity in self.private:
            return node, (self.whole(weight.storage), weight.offset, weight.strides)
        direction, index = self.elements(weight, node, ("v", weight.view, dim))
        return direction, (index, 0, row_major(weight.shape))

    def elements(
        self,
        spec: TensorSpec,
        like: Node,
        tie: object = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[Node, int]:
        """A copy of a tensor over a storage of its own, seen in another shape if need be."""
        if spec.dtype.torch is None:
            raise FormatError(
                spec.name,
                f"PyTorch has no {spec.dtype.label}",
                hint="--format safetensors keeps it",
            )
        return self.new(
            tie or ("copy", spec.view if spec.numel else spec.name, shape),
            Elements(spec),
            spec,
            spec.shape if shape is None else shape,
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
        self, root: Node, protocol: int, edits: dict[Node, Entries]
    ) -> tuple[bytes, tuple[Content, ...]]:
        """Write the pickle; storages are numbered in the order in which it names them."""
        numbers: dict[int, str] = {}

        def persistent(node: PersistentId) -> Node:
            if isinstance(node.pid, NewStorage):
                key = numbers.setdefault(node.pid.index, str(len(numbers)))
                return storage_pid(node.pid, key)
            if kind := class_of(node):
                return kind
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
        return pickle, tuple(contents)
