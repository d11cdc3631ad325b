"""Lays out a distributed checkpoint: items back to back in files, and `.metadata`.

Source: PyTorch `torch/distributed/checkpoint/filesystem.py` (`_write_files_from_queue`): values
come before tensors, and each item is what `torch.save` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from wncli.checkpoint.layout import (
    Content,
    Elements,
    FolderLayout,
    Layout,
    Magnitude,
    Slot,
    Whole,
    Written,
)
from wncli.checkpoint.output import Output
from wncli.checkpoint.tensors import DType, TensorSpec
from wncli.errors import few
from wncli.formats.dcp.flatten import Leaf, flat_name, flatten
from wncli.formats.dcp.records import (
    METADATA,
    Piece,
    Record,
    Stored,
    TensorRecord,
    ValueRecord,
    make_metadata,
)
from wncli.formats.pickles.nodes import Call, Node, PersistentId
from wncli.formats.pickles.writer import write_pickle
from wncli.formats.torch.modules import budget_for
from wncli.formats.torch.tensors import (
    NewStorage,
    make_tensor,
    read_tensor,
    requires_grad,
    storage_pid,
)
from wncli.formats.torch.writer import EditedTree, TorchContent, edited_tree
from wncli.formats.torch.zip_writer import lay_out_torch_zip
from wncli.notes import Note

#: What holds the members of an archive that is not saved to a file of its own.
_FOLDER = "archive"
_PROTOCOL = 2


class _Tensor(NamedTuple):
    """What the metadata says of a tensor."""

    dtype: DType
    shape: tuple[int, ...]
    requires_grad: bool


class _Item(NamedTuple):
    """An item by itself, and what is in it: a whole tensor, or a value.

    `tied` is equal for tensors of the input that are one.
    """

    leaf: Leaf
    tensor: _Tensor | None
    layout: Layout
    tied: object = None


def lay_out_dcp(output: Output, folder: str, limit: int | None) -> FolderLayout:
    """Lay out the output as a distributed checkpoint, in files of at most `limit` bytes.

    Args:
        output: what to write.
        folder: what the directory is called.
        limit: what a file holds at most, unless one item alone is larger; None for one file.

    Raises:
        FormatError: it is no mapping, or unfolds without bound.
        UsageError: two entries would have one name, or a key has no text.
    """
    made = edited_tree(output, "distributed checkpoints")
    items, notes = _Items(output, made).run()
    directions = _directions(output)
    files: list[tuple[str, Layout]] = []
    stored: dict[str, Stored] = {}
    for number, group in enumerate(_grouped(items, directions, limit)):
        name = f"__0_{number}.distcp"
        file = _File(name, directions)
        for item in group:
            stored[item.leaf.name] = file.add(item)
        files.append((name, file.layout()))
    records = [_record(item, stored[item.leaf.name]) for item in items]
    in_order = [stored[item.leaf.name] for item in _values_first(items)]
    index = make_metadata(records, in_order, folder)
    runs = tuple(
        (_run_of(slot, item.leaf.name), item.leaf.name)
        for item in items
        for slot in item.layout.slots
        if isinstance(slot.content, (Elements, Whole))
    )
    return FolderLayout(tuple(files), (METADATA, index), (*made.notes, *notes), runs)


def _record(item: _Item, stored: Stored) -> Record:
    name, path, _ = item.leaf
    if item.tensor is None:
        return ValueRecord(name, path, stored)
    dtype, shape, has_gradient = item.tensor
    piece = Piece((0,) * len(shape), shape, stored)
    return TensorRecord(name, path, dtype, shape, has_gradient, (piece,))


def _run_of(slot: Slot, name: str) -> TensorSpec:
    """Return what a slot holds of the input, a storage as bytes."""
    if isinstance(slot.content, Elements):
        return slot.content.tensor
    assert isinstance(slot.content, Whole)  # noqa: S101 - for the type checker
    storage = slot.content.storage
    return TensorSpec(name, DType.U8, (storage.nbytes,), storage, 0, (1,))


def _directions(output: Output) -> dict[str, str]:
    """Return the flat name of v by that of each g that is computed."""
    found: dict[str, str] = {}
    for part in output.state_dicts:
        above = flat_name((*part.keys, ""))
        for result in part.results:
            if not result.is_kept:
                *magnitudes, weight = result.tensors
                found |= {above + g.name: above + weight.name for g in magnitudes}
    return found


def _values_first(items: Sequence[_Item]) -> list[_Item]:
    return sorted(items, key=lambda item: item.tensor is not None)


def _grouped(
    items: Sequence[_Item], directions: Mapping[str, str], limit: int | None
) -> Iterator[list[_Item]]:
    """Divide items into files; g stays with its v, which is written there as well."""
    together: dict[str, list[_Item]] = {}
    for item in _values_first(items):
        together.setdefault(directions.get(item.leaf.name, item.leaf.name), []).append(item)
    group: list[_Item] = []
    size = 0
    for own in together.values():
        nbytes = sum(item.layout.nbytes for item in own)
        if group and limit is not None and size + nbytes > limit:
            yield group
            group, size = [], 0
        group += own
        size += nbytes
    yield group


class _Items:
    """Makes the items of an output."""

    def __init__(self, output: Output, made: EditedTree) -> None:
        self.checkpoint = output.checkpoint
        self.where = output.checkpoint.name
        self.made = made
        tree = output.checkpoint.tree
        self.references = tree.references if tree else {}
        storages = {storage.identity: storage.nbytes for _, storage in self.references.values()}
        pickled = max(0, self.checkpoint.nbytes - sum(storages.values()))
        self.budget = budget_for(self.where, pickled)

    def run(self) -> tuple[list[_Item], list[Note]]:
        made = self.made
        flat = flatten(made.root, made.edits, self.is_tensor, (), self.budget)
        items = [self.item(leaf) for leaf in flat.leaves]
        return items, [*_empty_notes(flat.empty), *_tie_notes(items)]

    def is_tensor(self, node: Node) -> bool:
        return isinstance(node, Call) and (
            id(node) in self.made.build.new_tensors
            or read_tensor(node, self.references, "", self.where) is not None
        )

    def item(self, leaf: Leaf) -> _Item:
        node = leaf.node
        new = self.made.build.new_tensors.get(id(node))
        if new is not None:
            tensor = _Tensor(new.dtype, new.shape, requires_grad(node))
            return _Item(leaf, tensor, _of_tensor(tensor, new.content), new.tie)
        spec = read_tensor(node, self.references, leaf.name, self.where)
        if spec is not None:
            tensor = _Tensor(spec.dtype, spec.shape, requires_grad(node))
            tie = spec.view if spec.numel else id(node)
            return _Item(leaf, tensor, _of_tensor(tensor, Elements(spec)), tie)
        pickle, contents = self.made.build.finish(node, self.made.protocol, self.made.edits)
        self.budget.spend(len(pickle))
        layout = lay_out_torch_zip(TorchContent(pickle, (), contents, ()), _FOLDER)
        return _Item(leaf, None, layout)


def _of_tensor(tensor: _Tensor, content: Content) -> Layout:
    """Lay out the item of a tensor in row-major order, on the CPU, as PyTorch saves chunks."""
    storage = NewStorage(0, tensor.dtype, _numel(tensor.shape), "cpu")
    node = make_tensor(storage, tensor.shape)

    def persistent(_: PersistentId) -> Node:
        return storage_pid(storage, "0")

    pickle = write_pickle(node, _PROTOCOL, {}, persistent)
    if isinstance(content, Magnitude):
        content = content._replace(direction=0)  # which is known once v has its place
    return lay_out_torch_zip(TorchContent(pickle, (), (content,), ()), _FOLDER)


class _File:
    """A file as items are added to it."""

    def __init__(self, name: str, directions: Mapping[str, str]) -> None:
        self.name = name
        self.directions = directions
        self.place = 0
        self.names: list[str] = []
        self.slots: list[Slot] = []
        self.fixed: list[Written] = []
        #: Where items begin, how many slots they have, and their layouts.
        self.items: list[tuple[int, int, Layout]] = []
        #: Where the numbers of tensors stand, and the numbers of the slots of magnitudes.
        self.data: dict[str, int] = {}
        self.magnitudes: list[tuple[str, int]] = []

    def add(self, item: _Item) -> Stored:
        base, layout, name = self.place, item.layout, item.leaf.name
        for slot in layout.slots:
            content = slot.content
            if isinstance(content, Magnitude):
                if item.tensor:
                    self.magnitudes.append((name, len(self.slots)))
                content = content._replace(direction=base + content.direction)
            if item.tensor:
                self.data[name] = base + slot.offset
            self.slots.append(Slot(base + slot.offset, slot.nbytes, content))
        self.fixed += [(base + place, data) for place, data in layout.fixed]
        self.items.append((base, len(layout.slots), layout))
        self.place += layout.nbytes
        if item.tensor:
            self.names.append(name)
        return Stored(self.name, base, layout.nbytes)

    def layout(self) -> Layout:
        for name, number in self.magnitudes:
            slot = self.slots[number]
            assert isinstance(slot.content, Magnitude)  # noqa: S101 - for the type checker
            direction = self.data[self.directions[name]]
            self.slots[number] = slot._replace(content=slot.content._replace(direction=direction))
        return Layout(
            self.place,
            tuple(self.names),
            tuple(self.slots),
            tuple(self.fixed),
            partial(_seal, tuple(self.items)),
        )


def _seal(items: Sequence[tuple[int, int, Layout]], checksums: Sequence[int]) -> list[Written]:
    """Return the ends of all items, from the checksums of all slots."""
    written: list[Written] = []
    done = 0
    for base, count, layout in items:
        if layout.seal:
            own = layout.seal(checksums[done : done + count])
            written += [(base + place, data) for place, data in own]
        done += count
    return written


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _empty_notes(empty: Sequence[str]) -> list[Note]:
    if not empty:
        return []
    message = f"distributed checkpoints have no empty dicts; left out: {few(empty, 8)}"
    return [Note("left-out", message)]


def _tie_notes(items: Sequence[_Item]) -> list[Note]:
    """Note tensors that were one, and are stored under each of their names."""
    names: dict[object, list[str]] = {}
    for item in items:
        if item.tensor:
            names.setdefault(item.tied, []).append(item.leaf.name)
    tied = [" = ".join(own) for own in names.values() if len(own) > 1]
    if not tied:
        return []
    message = f"distributed checkpoints keep no ties; stored under each name: {few(tied)}"
    return [Note("ties", message)]
