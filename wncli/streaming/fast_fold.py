"""Weight norm of what is usual in a file, by the compiled loops and without NumPy.

Usual is one dtype that they are for, elements that lie together in memory, norms and factors that
are finite numbers, and norms that are not so near to halfway between two numbers that only an exact
sum tells how they are rounded. Of anything else nothing is said here, but that it is not usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wncli.arithmetic.kernels import kernel
from wncli.checkpoint.tensors import DType
from wncli.storage.source import BLOCK
from wncli.streaming.blocks import Block, TensorBlocks

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.storage.source import Sources

#: What there are loops for: squares of float64 are not exact in float64.
COMPILED = (DType.F32, DType.F16, DType.BF16)
#: Bytes of a sum: a pair of float64.
_NUMBER = 16


class UsualFolding:
    """A usual pair that is being composed.

    Args:
        pair: of one dtype.
        blocks: those of v.
        g: its elements' bytes.
        sums: of the squares of all slices; None where each block has its own.
    """

    def __init__(self, pair: Pair, blocks: TensorBlocks, g: bytes, sums: memoryview | None) -> None:
        self.dtype = pair.dtype.name
        self.itemsize = pair.dtype.itemsize
        self.blocks = blocks
        self.g = g
        self.sums = sums

    @classmethod
    def of(cls, sources: Sources, pair: Pair, blocks: TensorBlocks) -> UsualFolding | None:
        """That of a pair, v being read in `blocks`; None if it is not usual."""
        if not kernel or pair.stale or pair.dtype not in COMPILED:
            return None
        if not (pair.dtype is pair.g.dtype is pair.v.dtype and blocks.dense and pair.v.numel):
            return None
        g = _all_of(sources, pair.g)
        if not g:
            return None
        return cls(pair, blocks, g, None if blocks.hold_whole_slices else sums_of_squares(blocks))

    def product(self, block: Block) -> memoryview | None:
        """The product of a block, made in v's buffer; None if it is not usual."""
        v = self.blocks.read_bytes(block)
        first, last = block.channel, block.channel + block.shape[1]
        g = self.g[first * self.itemsize : last * self.itemsize]
        if self.sums is None:
            usual = kernel.fold(self.dtype, v, g, block.shape[2])
        else:
            sums = self.sums[first * _NUMBER : last * _NUMBER]
            usual = kernel.fold_by(self.dtype, v, g, sums, block.shape[2])
        return v if usual else None


def usual_magnitude(sources: Sources, weight: TensorSpec, dim: int | None) -> bytes | None:
    """The magnitude of a weight along `dim`, shape `(channels,)`; None if it is not usual."""
    if not kernel or weight.dtype not in COMPILED or not weight.numel:
        return None
    blocks = TensorBlocks(sources[weight.storage.file], weight, dim)
    if not blocks.dense:
        return None
    g = bytearray(blocks.slices[1] * weight.dtype.itemsize)
    usual = kernel.to_magnitudes(weight.dtype.name, sums_of_squares(blocks), g)
    return bytes(g) if usual else None


def sums_of_squares(blocks: TensorBlocks) -> memoryview:
    """Those of a tensor's slices, `(channels,)`."""
    sums = memoryview(bytearray(blocks.slices[1] * _NUMBER))
    for block in blocks:
        v = blocks.read_bytes(block)
        here = sums[block.channel * _NUMBER : (block.channel + block.shape[1]) * _NUMBER]
        kernel.add_squares(blocks.spec.dtype.name, v, here, block.shape[2])
    return sums


def _all_of(sources: Sources, spec: TensorSpec) -> bytes | None:
    """The bytes of a tensor; None if they do not lie together, or are many."""
    if not spec.is_contiguous or spec.nbytes > BLOCK:
        return None
    place = spec.storage.offset + spec.offset * spec.dtype.itemsize
    return sources[spec.storage.file].read_at(place, spec.nbytes, f"tensor {spec.name!r}")
