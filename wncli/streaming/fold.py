"""Composes and splits tensors in a file, block by block: by the compiled loops, else by NumPy.

The loops do all of a block that is usual: of one dtype that they are for, with norms and factors
that are finite numbers, and no norm so near to halfway between two numbers that only an exact sum
tells how it is rounded. Of any other block they leave the elements as they were read, and it is
`reference` that computes it. For usual blocks NumPy need not even be imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wncli.arithmetic.kernels import COMPILED, kernel
from wncli.checkpoint.tensors import DType
from wncli.storage.source import BLOCK
from wncli.streaming.blocks import Block, TensorBlocks

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.notes import Note
    from wncli.storage.source import Sources
    from wncli.streaming.reference import ReferenceFold, Split, StaleCheck

#: Bytes of a sum of squares: a pair of float64.
_SUM = 16


def fold_pair(
    sources: Sources, pair: Pair, notes: list[Note], *, row_major: bool
) -> Iterator[tuple[int, memoryview]]:
    """Return the product of a pair as runs of bytes, each with the number of its first element.

    A run is good until the next is asked for: it is made in v's buffer, or in one beside it. What
    the data shows is added to `notes` with the last run.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    blocks = TensorBlocks(sources[pair.v.storage.file], pair.v, pair.dim, row_major=row_major)
    folding = _Folding(sources, pair, blocks)
    for block in blocks:
        yield block.start, folding.product(block)
    notes += folding.notes()


class _Folding:
    """A pair that is being composed, v being read in `blocks`."""

    def __init__(self, sources: Sources, pair: Pair, blocks: TensorBlocks) -> None:
        self.pair, self.blocks = pair, blocks
        self.g = _all_of(sources, pair.g)
        self.is_fast = (
            kernel is not None
            and pair.dtype in COMPILED
            and (pair.dtype is pair.g.dtype is pair.v.dtype)
        )
        is_wide = DType.F64 in (pair.g.dtype, pair.v.dtype)
        #: Of all slices; None where each block has its own.
        self.sums = None if blocks.hold_whole_slices or is_wide else sums_of_squares(blocks)
        self.reference = None if self.is_fast else self.by_numpy()
        self.stale: StaleCheck | None = None
        if pair.stale:
            from wncli.streaming.reference import StaleCheck

            self.stale = StaleCheck(sources, pair, pair.stale, blocks)

    def product(self, block: Block) -> memoryview:
        """Compose one block.

        Raises:
            WeightNormError: a slice of v is all zero under a g that is not.
        """
        w = self.blocks.read_bytes(block)
        if not (self.is_fast and self.is_composed(w, block)):
            if self.reference is None:
                self.reference = self.by_numpy()
                if self.sums is not None:  # it may have read others in the same memory
                    w = self.blocks.read_bytes(block)
            w = self.reference.product(w, block)
        if self.stale:
            self.stale.compare(block, w)
        return w

    def by_numpy(self) -> ReferenceFold:
        """Return what composes blocks that are unusual."""
        from wncli.streaming.reference import ReferenceFold

        return ReferenceFold(self.pair, self.blocks, self.g, self.sums)

    def is_composed(self, v: memoryview, block: Block) -> bool:
        """Compose a block in v's place, if it is usual."""
        first, last = block.channel, block.channel + block.shape[1]
        name, itemsize, inner = self.pair.dtype.name, self.pair.dtype.itemsize, block.shape[2]
        g = self.g[first * itemsize : last * itemsize]
        sums = self.sums[first * _SUM : last * _SUM] if self.sums else None
        return kernel.fold(name, v, g, sums, inner)

    def notes(self) -> list[Note]:
        """Return what the data of all blocks showed."""
        found = self.reference.notes() if self.reference else []
        return found + (self.stale.notes() if self.stale else [])


def split_weight(sources: Sources, weight: TensorSpec, dim: int | None) -> bytes | Split:
    """Compute the magnitude of a weight along `dim`; the bytes of g alone where all is usual.

    Raises:
        WeightNormError: a norm is beyond what the weight's dtype can hold.
    """
    blocks = TensorBlocks(sources[weight.storage.file], weight, dim)
    sums = sums_of_squares(blocks)
    g = bytearray(blocks.slices[1] * weight.dtype.itemsize)
    if sums and kernel.to_magnitudes(weight.dtype.name, sums, g):
        return bytes(g)
    from wncli.streaming.reference import split

    return split(blocks, sums)


def sums_of_squares(blocks: TensorBlocks) -> memoryview | None:
    """Sum the squares of a tensor's slices; None where there are no loops, or no elements.

    Two float64 for each, whose sum is meant.
    """
    if kernel is None or blocks.spec.dtype not in COMPILED or not blocks.spec.numel:
        return None
    sums = memoryview(bytearray(blocks.slices[1] * _SUM))
    for block in blocks:
        v = blocks.read_bytes(block)
        here = sums[block.channel * _SUM : (block.channel + block.shape[1]) * _SUM]
        kernel.add_squares(blocks.spec.dtype.name, v, here, block.shape[2])
    return sums


def _all_of(sources: Sources, spec: TensorSpec) -> bytes:
    """Return the bytes of a tensor, in row-major order."""
    if spec.is_contiguous and spec.nbytes <= BLOCK:
        place = spec.storage.offset + spec.offset * spec.dtype.itemsize
        return sources[spec.storage.file].read_at(place, spec.nbytes, f"tensor {spec.name!r}")
    blocks = TensorBlocks(sources[spec.storage.file], spec, row_major=True)
    return b"".join(bytes(blocks.read_bytes(block)) for block in blocks)
