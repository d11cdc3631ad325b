"""Computes what stands in a slot of the output but not, as it is, in the input, run by run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from wncli.blocks import Array, TensorBlocks, bytes_of
from wncli.formats.files import Source
from wncli.layout import Elements, Magnitude, Product, Written
from wncli.streams import Split, fold_pair, split_weight
from wncli.tensors import Storage

if TYPE_CHECKING:
    from wncli.formats.files import Sources
    from wncli.notes import Note
    from wncli.tensors import TensorSpec

#: A place in the slot, and the bytes that begin there; they are good until the next are asked for.
_Run = tuple[int, memoryview]


def computed(
    content: Elements | Magnitude | Product,
    sources: Sources,
    descriptor: int,
    notes: list[Note],
    patches: list[Written],
) -> Iterator[_Run]:
    """The bytes of a slot.

    Args:
        content: what the slot is made of.
        sources: the input's files.
        descriptor: the output, for a magnitude of what stands there by now.
        notes: gets what the data shows, with the last run.
        patches: gets the elements of v, and their places in the output, that give all-zero slices
            a direction.

    Raises:
        WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
    """
    match content:
        case Elements(tensor):
            return _elements(tensor, sources)
        case Magnitude():
            return _magnitude(content, sources, descriptor, notes, patches)
        case Product(pair, row_major):
            runs = fold_pair(sources, pair, notes, row_major_order=row_major)
            return ((start * pair.dtype.itemsize, _raw(w)) for start, w in runs)


def _raw(array: Array) -> memoryview:
    return bytes_of(np.ascontiguousarray(array))


def _elements(tensor: TensorSpec, sources: Sources) -> Iterator[_Run]:
    element = np.dtype(f"V{tensor.dtype.itemsize}")
    blocks = TensorBlocks(sources[tensor.storage.file], tensor, element, row_major=True)
    for block in blocks:
        yield block.start * element.itemsize, _raw(blocks.read(block))


def _magnitude(
    content: Magnitude,
    sources: Sources,
    descriptor: int,
    notes: list[Note],
    patches: list[Written],
) -> Iterator[_Run]:
    weight, dim = content.weight, content.dim
    if content.of_output:
        split = _split_written(content, sources, descriptor)
    else:
        split = split_weight(sources, weight, dim)
    notes += split.notes
    for channel, unit in split.units:
        step = 0 if dim is None else content.strides[dim] * channel
        place = content.direction + (content.offset + step) * weight.dtype.itemsize
        patches.append((place, unit))
    yield 0, _raw(split.g)


def _split_written(content: Magnitude, sources: Sources, descriptor: int) -> Split:
    """The magnitude of a weight that stands in the output by now."""
    weight = content.weight
    with os.fdopen(os.dup(descriptor), "rb") as file:
        written = Source(sources[weight.storage.file].path, file)
        storage = Storage(weight.name, content.direction, written.nbytes - content.direction)
        placed = weight._replace(storage=storage, offset=content.offset, strides=content.strides)
        return split_weight((written,), placed, content.dim)
