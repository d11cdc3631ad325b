"""Makes the tensors of a torch file: nodes for its pickle, and what fills their storages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wncli.checkpoint.layout import Content, Elements, Magnitude, Product, Whole
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, row_major
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Call, Global, Node, PersistentId, SetItems
from wncli.formats.pickles.writer import Edits, Entries, write_pickle
from wncli.formats.torch.tensors import NewStorage, class_of, make_tensor, storage_pid
from wncli.formats.torch.tree import TorchTree
from wncli.plan.actions import Action, Compose, Copy, Decompose, Part, Renormalize, Respell


@dataclass(slots=True)
class Build:
    """Contents and nodes as they come up; ties are made once and shared."""

    tree: TorchTree | None
    contents: list[Content] = field(default_factory=list)
    made: dict[object, tuple[Node, int]] = field(default_factory=dict)
    wholes: dict[tuple[int, str], int] = field(default_factory=dict)
    #: Storages that other files of the output hold as well: here only what is needed is stored.
    elsewhere: frozenset[tuple[int, str]] = frozenset()

    def state_dict(self, part: Part, entries: Sequence[tuple[Node, Node]]) -> Entries:
        """The items of a state dict's mapping after its actions, everything else in place."""
        by_source = {spec.name: action for action in part.actions for spec in action.sources}
        tensors = {spec.name for spec in part.state_dict.tensors}
        nodes = {key: value for key, value in entries if isinstance(key, str)}
        done: set[int] = set()
        kept: Entries = []
        for key, value in entries:
            if not isinstance(key, str) or key not in tensors:
                if part.keeps_others:
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
                direction, index, strides = self.direction(weight, dim, node)
                content = Magnitude(weight, dim, math.prod(halves.g_shape), index, 0, strides)
                tie: object = ("g", weight.view, dim)
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
        stays = (shape is None or shape == spec.shape) and (
            spec.storage.identity not in self.elsewhere
        )
        if node is not None and stays:
            return node
        return self.elements(spec, node, shape=spec.shape if shape is None else shape)[0]

    def product(self, pair: Pair, nodes: dict[str, Node]) -> tuple[Node, int, TensorSpec]:
        """The weight that a pair stands for, the number of its content, and what it is there."""
        in_memory_order = pair.v.memory_order is not None
        strides = pair.v.strides if in_memory_order else row_major(pair.v.shape)
        spec = pair.v._replace(name=pair.weight, dtype=pair.dtype, offset=0, strides=strides)
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
    ) -> tuple[Node, int, tuple[int, ...]]:
        """The node of v, the number of its content, and its strides there.

        Its storage is its own: where a slice is all zero, v is given a direction, which must not
        reach other tensors.
        """
        tie = ("v", weight.view, dim)
        if weight.memory_order is None:
            return *self.elements(weight, node, tie), row_major(weight.shape)
        run = weight._replace(shape=(weight.numel,), strides=(1,))
        direction, index = self.new(
            tie, Elements(run), weight, weight.shape, strides=weight.strides, like=node
        )
        return direction, index, weight.strides

    def elements(
        self,
        spec: TensorSpec,
        like: Node,
        tie: object = None,
        shape: tuple[int, ...] | None = None,
    ) -> tuple[Node, int]:
        """A copy of a tensor over a storage of its own, seen in another shape if need be."""
        if spec.dtype is DType.F4 and spec.shape and spec.shape[-1] % 2 == 0:
            shape = (*spec.shape[:-1], spec.shape[-1] // 2)  # torch counts bytes of two elements
            packed = spec._replace(dtype=DType.F4X2, shape=shape, strides=row_major(shape))
            return self.elements(packed, like, tie)
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

    def finish(self, root: Node, protocol: int, edits: Edits) -> tuple[bytes, tuple[Content, ...]]:
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
                contents[place] = content._replace(direction=int(numbers[content.direction]))
        return pickle, tuple(contents)
