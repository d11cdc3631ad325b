"""Lays out a distributed checkpoint: its items in files, and the `.metadata` that lists them.

Source: PyTorch `torch/distributed/checkpoint/filesystem.py` (`_write_files_from_queue`): values
come before tensors, and each item is what `torch.save` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wncli.checkpoint.layout import (
    Content,
    Elements,
    FolderLayout,
    Layout,
    Magnitude,
    Slot,
    Whole,
)
from wncli.checkpoint.output import Output
from wncli.checkpoint.parts import PartedTensor
from wncli.checkpoint.tensors import DType, TensorSpec
from wncli.errors import FormatError, few
from wncli.formats.dcp.flatten import Leaf, flat_name, flatten
from wncli.formats.dcp.kept import Kept
from wncli.formats.dcp.packing import File, Packed, Stored, grouped
from wncli.formats.dcp.records import (
    METADATA,
    Piece,
    Record,
    TensorRecord,
    ValueRecord,
    make_metadata,
)
from wncli.formats.pickles.nodes import Call, Node, PersistentId, entries_of
from wncli.formats.pickles.writer import write_pickle
from wncli.formats.torch.modules import budget_for
from wncli.formats.torch.tensors import (
    NewStorage,
    make_tensor,
    read_tensor,
    requires_grad,
    storage_pid,
)
from wncli.formats.torch.versions import has_metadata
from wncli.formats.torch.writer import EditedTree, TorchContent, edited_tree
from wncli.formats.torch.zip_writer import lay_out_torch_zip
from wncli.hints import either, setting
from wncli.notes import Note

#: What holds the members of an archive that is not saved to a file of its own.
_FOLDER = "archive"
_PROTOCOL = 2
#: As many state dicts are offered one by one.
_MOST_ROOTS = 3
#: A chunk: where it begins in its tensor, and how large it is.
_Box = tuple[tuple[int, ...], tuple[int, ...]]


class _Tensor(NamedTuple):
    """What the metadata says of a tensor."""

    dtype: DType
    shape: tuple[int, ...]
    requires_grad: bool
    boxes: tuple[_Box, ...]


class _Made(NamedTuple):
    """A tensor or a value, and its items; `tied` is equal for tensors of the input that are one."""

    leaf: Leaf
    tensor: _Tensor | None
    items: tuple[Packed, ...]
    tied: object = None


def lay_out_dcp(output: Output, folder: str, limit: int | None) -> FolderLayout:
    """Lay out the output as a distributed checkpoint.

    Args:
        output: what to write.
        folder: what the directory is called.
        limit: how many bytes a file has at most, unless one item has more; None for the files of
            the input, or one.

    Raises:
        FormatError: it is no mapping, or unfolds without bound.
        UsageError: two entries would have one name, or a key has no text.
    """
    tree = edited_tree(output, "distributed checkpoints")
    _refuse_top(output, tree.root)
    making = _Making(output, tree)
    flat = flatten(tree.root, tree.edits, making.is_tensor, making.kept.values, making.budget)
    made = [making.made(leaf) for leaf in flat.leaves]
    directions = making.directions
    parts = making.kept.parts
    files: list[tuple[str, Layout]] = []
    stored: dict[tuple[str, int], Stored] = {}
    for number, group in enumerate(grouped((i for m in made for i in m.items), directions, limit)):
        name = f"__0_{number}.distcp"
        if parts and limit is None:
            name = parts.files[group[0].file]
        file = File(name, directions)
        for item in group:
            stored[item.name, item.number] = file.add(item)
        files.append((name, file.layout()))
    metadata = make_metadata([_record(one, stored) for one in made], stored.values(), folder)
    notes = (*tree.notes, *_lost_notes(output, flat.empty), *_tie_notes(made))
    runs = tuple(
        (_run_of(slot, item.name), item.name)
        for one in made
        for item in one.items
        for slot in item.layout.slots
        if isinstance(slot.content, (Elements, Whole))
    )
    return FolderLayout(tuple(files), (METADATA, metadata), notes, runs)


def _refuse_top(output: Output, root: Node) -> None:
    if entries_of(root) is None:
        roots = [part.state_dict.root for part in output.state_dicts[:_MOST_ROOTS]]
        raise FormatError(
            output.checkpoint.name,
            "a distributed checkpoint is a dict at its top, and this is none",
            expected="a dict, or one state dict alone",
            hint=either(setting(only=one) for one in roots),
        )


def _record(made: _Made, stored: Mapping[tuple[str, int], Stored]) -> Record:
    name, path, _ = made.leaf
    items = [stored[name, item.number] for item in made.items]
    if made.tensor is None:
        return ValueRecord(name, path, items[0])
    dtype, shape, has_gradient, boxes = made.tensor
    pieces = tuple(Piece(*box, item) for box, item in zip(boxes, items, strict=True))
    return TensorRecord(name, path, dtype, shape, has_gradient, pieces)


def _run_of(slot: Slot, name: str) -> TensorSpec:
    """Return what a slot holds of the input, a storage as bytes."""
    if isinstance(slot.content, Elements):
        return slot.content.tensor
    assert isinstance(slot.content, Whole)  # noqa: S101 - for the type checker
    storage = slot.content.storage
    return TensorSpec(name, DType.U8, (storage.nbytes,), storage, 0, (1,))


def _directions(output: Output) -> dict[str, str]:
    """Return the name of v by that of each g that is computed."""
    found: dict[str, str] = {}
    for part in output.state_dicts:
        above = flat_name((*part.keys, ""))
        for result in part.results:
            if not result.is_kept:
                *magnitudes, weight = result.tensors
                found |= {above + g.name: above + weight.name for g in magnitudes}
    return found


class _Making:
    """Makes the items of an output."""

    def __init__(self, output: Output, tree: EditedTree) -> None:
        checkpoint = output.checkpoint
        self.tree = tree
        self.where = checkpoint.name
        self.kept = Kept(checkpoint)
        self.directions = _directions(output)
        #: The items of tensors, which are alike but for what fills them.
        self.tensors: dict[tuple[DType, tuple[int, ...]], Layout] = {}
        #: The items of values by the ids of their nodes, which names can share.
        self.values: dict[int, Layout] = {}
        self.references = checkpoint.tree.references if checkpoint.tree else {}
        storages = {storage.identity: storage.nbytes for _, storage in self.references.values()}
        pickled = max(0, checkpoint.nbytes - sum(storages.values()))
        self.budget = budget_for(self.where, pickled)

    def is_tensor(self, node: Node) -> bool:
        """Whether a tensor is at a node, whose numbers can be read."""
        return isinstance(node, Call) and (
            id(node) in self.tree.build.new_tensors
            or read_tensor(node, self.references, "", self.where) is not None
        )

    def made(self, leaf: Leaf) -> _Made:
        """Make the items of a tensor or a value."""
        new = self.tree.build.new_tensors.get(id(leaf.node))
        if new is not None:
            home = self.kept.tensor(new.source)
            return self.whole(leaf, new.dtype, new.shape, new.content, new.tie, home)
        spec = read_tensor(leaf.node, self.references, leaf.name, self.where)
        if spec is None:
            return _Made(leaf, None, (self.value(leaf),))
        entry = self.kept.tensor(spec)
        if entry is None:
            tie = spec.view if spec.numel else id(leaf)
            return self.whole(leaf, spec.dtype, spec.shape, Elements(spec), tie)
        boxes = tuple((chunk.offsets, chunk.sizes) for chunk in entry.chunks)
        items = tuple(
            Packed(
                leaf.name,
                number,
                self.kept.copied(chunk.item),
                is_value=False,
                file=chunk.item.file,
                offset=chunk.item.offset,
            )
            for number, chunk in enumerate(entry.chunks)
        )
        tensor = _Tensor(entry.dtype, entry.shape, requires_grad(leaf.node), boxes)
        return _Made(leaf, tensor, items, spec.view if spec.numel else id(leaf))

    def whole(  # noqa: PLR0913, PLR0917 - what a tensor is
        self,
        leaf: Leaf,
        dtype: DType,
        shape: tuple[int, ...],
        content: Content,
        tied: object,
        home: PartedTensor | None = None,
    ) -> _Made:
        """Make a tensor that is one item, in the file where it was."""
        if (dtype, shape) not in self.tensors:
            self.tensors[dtype, shape] = _of_tensor(dtype, shape, content)
        layout = self.tensors[dtype, shape]
        (slot,) = layout.slots
        layout = layout._replace(slots=(slot._replace(content=content),))
        file = home.chunks[0].item.file if home and home.chunks else 0
        box = (0,) * len(shape), shape
        tensor = _Tensor(dtype, shape, requires_grad(leaf.node), (box,))
        return _Made(leaf, tensor, (Packed(leaf.name, 0, layout, is_value=False, file=file),), tied)

    def value(self, leaf: Leaf) -> Packed:
        """Make the item of what is no tensor."""
        entry = self.kept.value(leaf.name, leaf.node, self.tree.edits)
        if entry is not None:
            item = entry.item
            layout = self.kept.copied(item)
            return Packed(leaf.name, 0, layout, is_value=True, file=item.file, offset=item.offset)
        if id(leaf.node) not in self.values:
            tree = self.tree
            pickle, contents = tree.build.finish(leaf.node, tree.protocol, tree.edits)
            content = TorchContent(pickle, (), contents, ())
            self.values[id(leaf.node)] = lay_out_torch_zip(content, _FOLDER)
        layout = self.values[id(leaf.node)]
        self.budget.spend(sum(len(data) for _, data in layout.fixed))
        return Packed(leaf.name, 0, layout, is_value=True)


def _of_tensor(dtype: DType, shape: tuple[int, ...], content: Content) -> Layout:
    """Lay out the item of a tensor in row-major order, on the CPU, as PyTorch saves chunks."""
    storage = NewStorage(0, dtype, math.prod(shape), "cpu")
    node = make_tensor(storage, shape)

    def persistent(_: PersistentId) -> Node:
        return storage_pid(storage, "0")

    pickle = write_pickle(node, _PROTOCOL, {}, persistent)
    if isinstance(content, Magnitude):
        content = content._replace(direction=0)  # which is known once v has its place
    return lay_out_torch_zip(TorchContent(pickle, (), (content,), ()), _FOLDER)


def _lost_notes(output: Output, empty: Sequence[str]) -> list[Note]:
    """Note what a distributed checkpoint has no place for."""
    tree = output.checkpoint.tree
    own = [part.state_dict.keys for part in output.state_dicts if not part.is_filled]
    mappings = [tree.mappings[keys] for keys in own if tree and keys in tree.mappings]
    lost = [f"empty dicts ({few(empty, 8)})"] if empty else []
    if any(map(has_metadata, mappings)):
        lost.append("the versions of modules (_metadata)")
    if output.checkpoint.mark and not output.alone:
        lost.append(f"the version mark {output.checkpoint.mark.decode()}")
    if not lost:
        return []
    message = f"distributed checkpoints have no place for {' and '.join(lost)}, left out"
    return [Note("left-out", message)]


def _tie_notes(made: Sequence[_Made]) -> list[Note]:
    """Note tensors that were one, and are stored under each of their names."""
    names: dict[object, list[str]] = {}
    for one in made:
        if one.tensor:
            names.setdefault(one.tied, []).append(one.leaf.name)
    tied = [" = ".join(own) for own in names.values() if len(own) > 1]
    if not tied:
        return []
    message = f"distributed checkpoints keep no ties; stored under each name: {few(tied)}"
    return [Note("ties", message)]
