"""Computes what stands in a slot of the output but not, as it is, in the input, run by run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from wncli.checkpoint.layout import Elements, Magnitude, Product
from wncli.checkpoint.tensors import Storage
from wncli.streaming.blocks import TensorBlocks
from wncli.streaming.fold import fold_pair, split_weight

if TYPE_CHECKING:
    from wncli.arithmetic.norms import Array
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.notes import Note
    from wncli.storage.source import Sink, Sources


class Patches(NamedTuple):
    """Elements of v that give all-zero slices a direction, and the bytes of the output they go to.

    The places ascend, as many elements apart.
    """

    places: Array
    elements: Array


#: A place in the slot, and the bytes that begin there; they are good until the next are asked for.
_Run = tuple[int, memoryview]


def computed(
    content: Elements | Magnitude | Product,
    sources: Sources,
    sink: Sink,
    notes: list[Note],
    patches: list[Patches],
) -> Iterator[_Run]:
    """Return the bytes of a slot.

    Args:
        content: what the slot is made of.
        sources: the input's files.
        sink: the output, for a magnitude of what stands there by now.
        notes: gets what the data shows, with the last run.
        patches: gets what gives all-zero slices of v a direction.

    Raises:
        WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
    """
    match content:
        case Elements(tensor):
            return _elements(tensor, sources)
        case Magnitude():
            return _magnitude(content, sources, sink, notes, patches)
        case Product(pair, row_major):
            runs = fold_pair(sources, pair, notes, row_major=row_major)
            return ((start * pair.dtype.itemsize, w) for start, w in runs)


def _elements(tensor: TensorSpec, sources: Sources) -> Iterator[_Run]:
    blocks = TensorBlocks(sources[tensor.storage.file], tensor, row_major=True)
    for block in blocks:
        yield block.start * tensor.dtype.itemsize, blocks.read_bytes(block)


def _magnitude(
    content: Magnitude,
    sources: Sources,
    sink: Sink,
    notes: list[Note],
    patches: list[Patches],
) -> Iterator[_Run]:
    weight, dim = content.weight, content.dim
    if content.of_output:
        sources, weight = _as_written(content, sources, sink)
    found = split_weight(sources, weight, dim)
    if isinstance(found, bytes):
        yield 0, memoryview(found)
        return
    from wncli.arithmetic.norms import raw

    notes += found.notes
    if found.zero.size:
        step = 0 if dim is None else content.strides[dim]
        places = content.direction + step * found.zero * weight.dtype.itemsize
        patches.append(Patches(places, found.units))
    yield 0, raw(found.g)


def _as_written(content: Magnitude, sources: Sources, sink: Sink) -> tuple[Sources, TensorSpec]:
    """Return the weight of a magnitude, as it stands in the output by now."""
    weight = content.weight
    written = _Written(sink, sources[weight.storage.file].name)
    storage = Storage(weight.name, content.direction, written.nbytes - content.direction)
    placed = weight._replace(storage=storage, offset=0, strides=content.strides)
    return (written,), placed


class _Written:
    """What stands in the output by now; refusals call it by the name of the input."""

    number = 0

    def __init__(self, sink: Sink, name: str) -> None:
        self.sink = sink
        self.name = name
        self.nbytes = sink.nbytes

    def read_at(self, offset: int, nbytes: int, _what: str) -> bytes:
        return self.sink.read_at(offset, nbytes)

    def read_into(self, offset: int, buffer: memoryview, _what: str) -> None:
        buffer[:] = self.sink.read_at(offset, len(buffer))

    def close(self) -> None:
        """Leave it open: it is the output."""
