"""Makes the tensors of a torch file: nodes for its pickle, and what fills their storages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wncli.checkpoint.layout import Content, Elements, Magnitude, Product, Whole
from wncli.checkpoint.output import OutputStateDict, OutputTensor, Result
from wncli.checkpoint.tensors import DType, Storage, row_major
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    Call,
    Effect,
    Global,
    Node,
    PersistentId,
    SetItems,
    entries_of,
)
from wncli.formats.pickles.writer import Edits, Entries, write_pickle
from wncli.formats.torch.tensors import NewStorage, class_of, make_tensor, storage_pid
from wncli.formats.torch.tree import TorchTree
from wncli.formats.torch.versions import built_with, merged, renamed_metadata
from wncli.hints import phrase, setting


@dataclass(slots=True)
class Build:
    """Contents and nodes as they come up; ties are made once and shared."""

    tree: TorchTree | None
    contents: list[Content] = field(default_factory=list)
    made: dict[object, tuple[Node, int]] = field(default_factory=dict)
    #: By the ids of their nodes, which `made` holds.
    new_tensors: dict[int, OutputTensor] = field(default_factory=dict)
    wholes: dict[tuple[int, str], int] = field(default_factory=dict)
    #: Storages that other files of the output hold as well: here only what is needed is stored.
    elsewhere: frozenset[tuple[int, str]] = frozenset()

    def state_dict(self, part: OutputStateDict, entries: Sequence[tuple[Node, Node]]) -> Entries:
        """Give the items of a state dict's mapping in the output, what is no tensor in place."""
        by_source = {spec.name: result for result in part.results for spec in result.sources}
        tensors = {spec.name for spec in part.state_dict.tensors}
        nodes = {key: value for key, value in entries if isinstance(key, str)}
        done: set[int] = set()
        kept: Entries = []
        for key, value in entries:
            if not isinstance(key, str) or key not in tensors:
                if part.keeps_others:
                    kept.append((key, value))
                continue
            result = by_source.get(key)
            if result and id(result) not in done:
                done.add(id(result))
                kept += self.tensors(result, nodes)
        return kept

    def joined(
        self, parts: Sequence[OutputStateDict], left: Edits
    ) -> tuple[Entries, Entries | None]:
        """Make the items of one state dict of several parts, and those of its `_metadata`, if any.

        `left` is what mappings still have.
        """
        entries: Entries = []
        metadata: list[Entries | None] = []
        for part in parts:
            own = self.tree.mappings if self.tree and not part.is_filled else {}
            node = own.get(part.state_dict.keys)
            if node is None:
                entries += self.flat_entries(part)
                continue
            held = left[id(node)] if id(node) in left else entries_of(node) or []
            entries += self.state_dict(part, held)
            metadata.append(renamed_metadata(part, node))
        return entries, merged(metadata)

    def flat(self, part: OutputStateDict) -> Node:
        """Make a state dict of its own, for tensors that no mapping of the input holds."""
        return self.mapping(self.flat_entries(part))

    def flat_entries(self, part: OutputStateDict) -> Entries:
        """Make the items of a state dict for tensors that no mapping of the input holds."""
        return [entry for result in part.results for entry in self.tensors(result, {})]

    @staticmethod
    def mapping(entries: Entries, metadata: Entries | None = None) -> Node:
        """Make an OrderedDict of these items."""
        effects: list[Effect] = [SetItems(entries)]
        if metadata is not None:
            effects.append(built_with(metadata))
        return Call("REDUCE", Global("collections", "OrderedDict"), (), effects=effects)

    def tensors(self, result: Result, nodes: dict[str, Node]) -> Entries:
        """Make the tensors of a result; `nodes` are those of the input."""
        if result.is_kept:
            return [(tensor.name, self.kept(tensor, nodes)) for tensor in result.tensors]
        *magnitudes, weight = result.tensors
        node, index, strides = self.weight(weight, nodes)
        entries: Entries = []
        for g in magnitudes:
            assert isinstance(g.content, Magnitude)  # noqa: S101 - for the type checker
            content = g.content._replace(direction=index, strides=strides)
            entries.append((g.name, self.new(g, content, like=nodes.get(g.source.name))[0]))
        return [*entries, (weight.name, node)]

    def kept(self, tensor: OutputTensor, nodes: dict[str, Node]) -> Node:
        """Take the input's node of a tensor, where there is one that may stay as it is."""
        source = tensor.source
        node = nodes.get(source.name)
        if (
            node is not None
            and tensor.shape == source.shape
            and source.storage.identity not in self.elsewhere
        ):
            return node
        return self.elements(tensor, node)[0]

    def weight(
        self, tensor: OutputTensor, nodes: dict[str, Node]
    ) -> tuple[Node, int, tuple[int, ...]]:
        """Make a direction or a product in the order that its source has in memory.

        Its storage is its own: where a slice is all zero, v is given a direction, which must not
        reach other tensors.

        Returns:
            The node, the number of its content, and its strides there.
        """
        source, content = tensor.source, tensor.content
        node = nodes.get(source.name)
        in_memory_order = source.memory_order is not None
        if isinstance(content, Product):
            content = content._replace(row_major=not in_memory_order)
        elif not in_memory_order:
            return *self.elements(tensor, node), row_major(tensor.shape)
        else:
            content = Elements(source._replace(shape=(source.numel,), strides=(1,)))
        strides = source.strides if in_memory_order else row_major(tensor.shape)
        return *self.new(tensor, content, strides=strides, like=node), strides

    def elements(self, tensor: OutputTensor, like: Node) -> tuple[Node, int]:
        """Copy a tensor of the input over a storage of its own."""
        dtype, shape = tensor.dtype, tensor.shape
        if dtype is DType.F4 and shape and shape[-1] % 2 == 0:
            # torch counts bytes of two elements
            dtype, shape = DType.F4X2, (*shape[:-1], shape[-1] // 2)
            packed = tensor.source._replace(dtype=dtype, shape=shape, strides=row_major(shape))
            tensor = tensor._replace(dtype=dtype, shape=shape, content=Elements(packed))
        if dtype.torch is None:
            raise FormatError(
                tensor.source.name,
                f"PyTorch has no {dtype.label}",
                hint=phrase("{} keeps it", setting(format="safetensors")),
            )
        return self.new(tensor, tensor.content, like=like)

    def new(
        self,
        tensor: OutputTensor,
        content: Content,
        *,
        strides: tuple[int, ...] | None = None,
        like: Node = None,
    ) -> tuple[Node, int]:
        """Make a tensor over a new storage that `content` fills, once for each tie."""
        if tensor.tie not in self.made:
            index = len(self.contents)
            self.contents.append(content)
            location = tensor.source.storage.location
            storage = NewStorage(index, tensor.dtype, tensor.numel, location)
            node = make_tensor(storage, tensor.shape, strides, like)
            self.made[tensor.tie] = node, index
            self.new_tensors[id(node)] = tensor
        return self.made[tensor.tie]

    def whole(self, storage: Storage) -> int:
        """Return the number of the content that is this storage of the input."""
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
