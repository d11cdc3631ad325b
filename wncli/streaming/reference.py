"""Weight norm of tensors in a file by NumPy alone; what the data shows goes into notes.

This is the reference that the compiled loops are compared with, and what computes all that is
unusual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wncli.arithmetic.dtypes import numpy_dtype
from wncli.arithmetic.norms import (
    PRECISION,
    Array,
    Factors,
    Mask,
    Norms,
    NormSum,
    factors,
    raw,
    unwarned,
)
from wncli.arithmetic.weight_norm import unit_like
from wncli.checkpoint.tensors import DType
from wncli.errors import WeightNormError
from wncli.hints import phrase, setting
from wncli.notes import Note
from wncli.plan.rules import glob_of
from wncli.storage.source import BLOCK
from wncli.streaming.blocks import Block, TensorBlocks

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.storage.source import Sources

#: How far, in units of the dtype's precision, a stale weight may be off its pair's product.
_STALE_ULPS = 64
#: As many slices are named in a message.
_NAMED = 5


class Split(NamedTuple):
    """What splitting a weight gives: `g`, and the elements of v that differ from the weight's.

    `zero` are the numbers of the all-zero slices, and `units` the one element of each that gives it
    a direction: the first, which becomes 1 (or -1, so that 0 times it is the zero it was).
    """

    g: Array
    zero: Array
    units: Array
    notes: tuple[Note, ...]


@unwarned
def split(blocks: TensorBlocks, sums: memoryview | None) -> Split:
    """Compute the magnitude of a weight that is read in `blocks`.

    Args:
        blocks: of the weight.
        sums: of the squares of its slices, if they are known.

    Raises:
        WeightNormError: a norm is beyond what the weight's dtype can hold.
    """
    weight = blocks.spec
    where = f"{blocks.source.name}: {weight.name}"
    dtype = numpy_dtype(weight.dtype)
    norms = norms_of(blocks, sums, wide=weight.dtype is DType.F64)
    g = norms.rounded(dtype)
    overflow = np.flatnonzero(norms.overflowing(g))
    if overflow.size:
        raise WeightNormError(
            where,
            f"the norm of {slices_named(overflow, len(g))} is beyond what {weight.dtype.label}"
            " can hold",
            found=f"a norm of about {float(norms.high[overflow[0]]):.6g}"
            if norms.exponent is None
            else "",
            hint=phrase("{} leaves this layer alone", setting(exclude=[glob_of(weight.name)])),
        )
    notes = _non_finite_notes(weight.name, where, np.flatnonzero(~np.isfinite(g)), len(g))
    zero = np.flatnonzero(norms.high == 0) if weight.numel else np.empty(0, np.int64)
    if zero.size:
        message = (
            f"{slices_named(zero, len(g))} of {weight.name} {'is' if zero.size == 1 else 'are'} all"
            " zero: written as g = 0 and a unit direction, which give 0 again"
        )
        notes.append(Note("zero-slices", message, where, is_warning=True))
    return Split(g, zero, _units(blocks, zero), tuple(notes))


class ReferenceFold:
    """A pair whose unusual blocks are composed.

    Args:
        pair: g and v.
        blocks: those of v.
        g: its elements' bytes.
        sums: of the squares of all slices, if they are known.
    """

    def __init__(self, pair: Pair, blocks: TensorBlocks, g: bytes, sums: memoryview | None) -> None:
        self.where = f"{blocks.source.name}: {pair.weight}"
        self.pair = pair
        self.wide = DType.F64 in (pair.g.dtype, pair.v.dtype)
        self.dtype, self.v_dtype = numpy_dtype(pair.dtype), numpy_dtype(pair.v.dtype)
        self.g: Array = np.frombuffer(g, numpy_dtype(pair.g.dtype))
        #: Of all slices; each block has its own where none is spread over several.
        self.factors: Factors | None = None
        if not blocks.hold_whole_slices:
            self.factors = self.scaling(norms_of(blocks, sums, wide=self.wide), 0, len(self.g))
        self.odd = np.zeros(len(self.g), bool)

    @unwarned
    def product(self, read: memoryview, block: Block) -> memoryview:
        """Compose a block of v, in its place or beside it.

        Raises:
            WeightNormError: a slice of v is all zero under a g that is not.
        """
        v: Array = np.frombuffer(read, self.v_dtype).reshape(block.shape)
        first, last = block.channel, block.channel + block.shape[1]
        base, factor = 0, self.factors
        if factor is None:
            total = NormSum(block.shape[1], block.shape[0] * block.shape[2], wide=self.wide)
            total.add(v)
            base, factor = first, self.scaling(total.norms(lambda _: [(v, 0)]), first, last)
        w = v if self.dtype == v.dtype else np.empty(v.shape, self.dtype)
        factor.scale(v, w, first - base)
        self.odd[first:last] |= factor.non_finite[first - base : last - base]
        return raw(w)

    @unwarned
    def scaling(self, norms: Norms, first: int, last: int) -> Factors:
        """Return what the slices from `first` to `last` are multiplied by.

        Raises:
            WeightNormError: one is all zero under a g that is not.
        """
        pair, g = self.pair, self.g[first:last]
        may_match = pair.g.dtype is pair.v.dtype
        found = factors(g, norms, may_match=may_match, empty=not pair.v.numel)
        if found.undefined.any():
            undefined = np.flatnonzero(found.undefined)
            raise WeightNormError(
                self.where,
                f"{slices_named(undefined + first, pair.g.numel)} of {pair.v.name} is all zero and"
                " has no direction, but its g is not 0",
                expected="g = 0 there, or a v that is not all zero",
                found=f"g = {float(g[undefined[0]]):.6g} in {pair.g.name}",
                hint=phrase(
                    "{} leaves this layer as it is", setting(exclude=[glob_of(pair.weight)])
                ),
            )
        return found

    def notes(self) -> list[Note]:
        """Return what the data of all blocks showed."""
        odd = np.flatnonzero(self.odd)
        return _non_finite_notes(self.pair.weight, self.where, odd, len(self.g))


@unwarned
def norms_of(blocks: TensorBlocks, sums: memoryview | None, *, wide: bool) -> Norms:
    """Return the norms of a tensor's slices.

    Args:
        blocks: of the tensor.
        sums: of the squares of its slices, two float64 for each; None to read them.
        wide: where float64 is involved.
    """
    outer, channels, inner = blocks.slices
    dtype = numpy_dtype(blocks.spec.dtype)

    def read(wanted: Mask) -> Iterator[tuple[Array, int]]:
        for block in blocks:
            if wanted[block.channel : block.channel + block.shape[1]].any():
                yield blocks.read(block, dtype), block.channel

    total = NormSum(channels, outer * inner, wide=wide, sums=sums)
    if sums is None:
        for part, first in read(np.ones(channels, np.bool_)):
            total.add(part, first)
    return total.norms(read)


def _units(blocks: TensorBlocks, channels: Array) -> Array:
    """Return the units of slices, from their first elements."""
    weight = blocks.spec
    dtype = numpy_dtype(weight.dtype)
    step = 0 if blocks.dim is None else blocks.strides[blocks.dim]
    places = weight.storage.offset + (weight.offset + step * channels) * dtype.itemsize
    found: Array = np.empty(len(channels), dtype)
    for part in windows(places, dtype.itemsize):
        first, last = int(places[part.start]), int(places[part.stop - 1])
        run = blocks.source.read_at(first, last - first + dtype.itemsize, f"tensor {weight.name!r}")
        found[part] = np.frombuffer(run, dtype)[(places[part] - first) // dtype.itemsize]
    return unit_like(found)


def windows(places: Array, itemsize: int) -> Iterator[slice]:
    """Elements at ascending places of a file in groups, each of which one read or write reaches."""
    begin = 0
    while begin < len(places):
        end = int(np.searchsorted(places, places[begin] + BLOCK - itemsize, side="right"))
        yield slice(begin, end)
        begin = end


class StaleCheck:
    """Compares the weight that stands beside its g and v with their product."""

    def __init__(
        self, sources: Sources, pair: Pair, stale: TensorSpec, blocks: TensorBlocks
    ) -> None:
        self.where = f"{blocks.source.name}: {pair.weight}"
        self.pair, self.dtype = pair, numpy_dtype(pair.dtype)
        self.largest = self.worst = 0.0
        self.old: TensorBlocks | None = None
        if blocks.dense and stale.dtype is pair.dtype:
            same = (stale.shape, stale.strides) == (pair.v.shape, pair.v.strides)
            if same:
                source = sources[stale.storage.file]
                self.old = TensorBlocks(source, stale, pair.dim, use="stale")

    @unwarned
    def compare(self, block: Block, product: memoryview) -> None:
        """Take a block of the product into account."""
        if self.old is None:
            return
        old = self.old.read(block, self.dtype).astype(np.float64)
        w = np.frombuffer(product, self.dtype).reshape(block.shape).astype(np.float64)
        difference = np.abs(old - w)
        self.worst = max(self.worst, float(np.nan_to_num(difference, nan=np.inf).max(initial=0)))
        self.largest = max(self.largest, float(np.abs(w).max(initial=0)))

    def notes(self) -> list[Note]:
        """Whether it differed."""
        name = self.pair.weight
        tolerance = _STALE_ULPS * 2.0 ** -PRECISION[self.dtype.name][0] * self.largest
        if self.old is None:
            message = f"{name} stood beside its own g and v, in another shape or layout: replaced"
        elif self.worst > tolerance:
            message = (
                f"{name} stood beside its own g and v and differed from them by up to"
                f" {self.worst:.3g}: replaced by their product"
            )
        else:
            return []
        return [Note("stale-weight", message, self.where, is_warning=True)]


def _non_finite_notes(name: str, where: str, odd: Array, count: int) -> list[Note]:
    if not odd.size:
        return []
    verb = "has" if len(odd) == 1 else "have"
    message = f"{slices_named(odd, count)} of {name} {verb} NaN or Inf, carried through"
    return [Note("non-finite", message, where, is_warning=True)]


def slices_named(numbers: Array, count: int) -> str:
    """Return a few slices by their numbers: `slices 0, 3 (of 8)`."""
    named = ", ".join(str(int(number)) for number in numbers[:_NAMED])
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"slice{'s' if len(numbers) > 1 else ''} {named}{more} (of {count})"
