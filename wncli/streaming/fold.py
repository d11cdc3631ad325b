"""Weight norm of tensors in a file, read block by block; what the data shows goes into notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wncli.arithmetic.norms import (
    PRECISION,
    Array,
    Factors,
    Mask,
    Norms,
    NormSum,
    factors,
    room,
    unwarned,
    widened,
)
from wncli.arithmetic.weight_norm import unit_like
from wncli.checkpoint.tensors import DType
from wncli.errors import WeightNormError
from wncli.hints import phrase, setting
from wncli.notes import Note
from wncli.plan.rules import glob_of
from wncli.storage.source import BLOCK
from wncli.streaming.blocks import Block, TensorBlocks, numpy_dtype

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.storage.source import Source, Sources

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
def split_weight(sources: Sources, weight: TensorSpec, dim: int | None) -> Split:
    """Compute the magnitude of a weight along `dim`.

    Raises:
        WeightNormError: a norm is beyond what the weight's dtype can hold.
    """
    source = sources[weight.storage.file]
    where = f"{source.name}: {weight.name}"
    dtype = numpy_dtype(weight.dtype)
    blocks = TensorBlocks(source, weight, dim)
    norms = norms_of(blocks, wide=weight.dtype is DType.F64)
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
    return Split(g, zero, _units(source, weight, dim, zero), tuple(notes))


def fold_pair(
    sources: Sources, pair: Pair, notes: list[Note], *, row_major_order: bool
) -> Iterator[tuple[int, Array]]:
    """The product of a pair as runs of elements, each with the place of its first.

    A run is good until the next is asked for: it is made in v's buffer, or in one beside it. What
    the data shows is added to `notes` with the last run.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    blocks = TensorBlocks(sources[pair.v.storage.file], pair.v, pair.dim, row_major=row_major_order)
    folding = Folding(sources, pair, blocks)
    for block in blocks:
        yield block.start, folding.product(block)
    notes += folding.notes()


class Folding:
    """A pair that is being composed, v being read in `blocks`."""

    def __init__(self, sources: Sources, pair: Pair, blocks: TensorBlocks) -> None:
        self.where = f"{blocks.source.name}: {pair.weight}"
        self.pair = pair
        self.wide = DType.F64 in (pair.g.dtype, pair.v.dtype)
        self.dtype = numpy_dtype(pair.dtype)
        self.g = _read_all(sources, pair.g)
        self.v_dtype = numpy_dtype(pair.v.dtype)
        self.blocks = blocks
        #: Of all slices; each block has its own where none is spread over several.
        self.factors = None if self.blocks.hold_whole_slices else self._factors_of_all()
        self.stale = _StaleCheck(sources, pair, self.blocks) if pair.stale else None
        self.odd = np.zeros(len(self.g), bool)

    @unwarned
    def _factors_of_all(self) -> Factors:
        return _scaling(self.where, self.pair, self.g, norms_of(self.blocks, wide=self.wide), 0)

    @unwarned
    def product(self, block: Block) -> Array:
        """That of a block, made in v's buffer, or in one beside it.

        Raises:
            WeightNormError: a slice of v is all zero under a g that is not.
        """
        v = self.blocks.read(block, self.v_dtype)
        first, last = block.channel, block.channel + block.shape[1]
        w = v
        if self.dtype != v.dtype:
            w = room("product", v.size, self.dtype).reshape(block.shape)
        if self.factors:
            factor, base, values = self.factors, 0, None
        else:
            values = widened(v)
            total = NormSum(block.shape[1], wide=self.wide)
            total.add_widened(values)
            norms = total.norms(lambda _: [(v, 0)])
            factor, base = _scaling(self.where, self.pair, self.g[first:last], norms, first), first
        span = slice(first - base, last - base)
        if w is not v or not factor.unchanged[span].all():
            if values is None:
                factor.scale(v, w, first - base)
            else:
                factor.scale_widened(values, w)
        if factor.non_finite[span].any():
            self.odd[first:last] |= factor.non_finite[span]
        if self.stale:
            self.stale.compare(block, w)
        return w

    def notes(self) -> list[Note]:
        """What the data of all blocks showed."""
        odd = np.flatnonzero(self.odd)
        found = _non_finite_notes(self.pair.weight, self.where, odd, len(self.g))
        return found + (self.stale.notes(self.where) if self.stale else [])


@unwarned
def norms_of(blocks: TensorBlocks, *, wide: bool) -> Norms:
    """The norms of a tensor's slices; `wide` where float64 is involved."""
    channels, dtype = blocks.slices[1], numpy_dtype(blocks.spec.dtype)

    def read(wanted: Mask) -> Iterator[tuple[Array, int]]:
        for block in blocks:
            if wanted[block.channel : block.channel + block.shape[1]].any():
                yield blocks.read(block, dtype), block.channel

    total = NormSum(channels, wide=wide)
    for part, first in read(np.ones(channels, np.bool_)):
        total.add(part, first)
    return total.norms(read)


def _scaling(where: str, pair: Pair, g: Array, norms: Norms, first: int) -> Factors:
    same_dtype = pair.g.dtype is pair.v.dtype
    found = factors(g, norms, may_match=same_dtype, empty=not pair.v.numel)
    if found.undefined.any():
        undefined = np.flatnonzero(found.undefined)
        raise WeightNormError(
            where,
            f"{slices_named(undefined + first, pair.g.numel)} of {pair.v.name} is all zero and"
            " has no direction, but its g is not 0",
            expected="g = 0 there, or a v that is not all zero",
            found=f"g = {float(g[undefined[0]]):.6g} in {pair.g.name}",
            hint=phrase("{} leaves this layer as it is", setting(exclude=[glob_of(pair.weight)])),
        )
    return found


def _read_all(sources: Sources, spec: TensorSpec) -> Array:
    dtype = numpy_dtype(spec.dtype)
    if spec.is_contiguous and spec.nbytes <= BLOCK:
        place = spec.storage.offset + spec.offset * dtype.itemsize
        source = sources[spec.storage.file]
        return np.frombuffer(source.read_at(place, spec.nbytes, f"tensor {spec.name!r}"), dtype)
    blocks = TensorBlocks(sources[spec.storage.file], spec, row_major=True)
    parts = [blocks.read(block, dtype).flatten() for block in blocks]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _units(source: Source, weight: TensorSpec, dim: int | None, channels: Array) -> Array:
    """The units of slices, from their first elements."""
    dtype = numpy_dtype(weight.dtype)
    step = 0 if dim is None else weight.strides[dim]
    places = weight.storage.offset + (weight.offset + step * channels) * dtype.itemsize
    found: Array = np.empty(len(channels), dtype)
    for part in windows(places, dtype.itemsize):
        first, last = int(places[part.start]), int(places[part.stop - 1])
        run = source.read_at(first, last - first + dtype.itemsize, f"tensor {weight.name!r}")
        found[part] = np.frombuffer(run, dtype)[(places[part] - first) // dtype.itemsize]
    return unit_like(found)


def windows(places: Array, itemsize: int) -> Iterator[slice]:
    """Elements at ascending places of a file in groups, each of which one read or write reaches."""
    begin = 0
    while begin < len(places):
        end = int(np.searchsorted(places, places[begin] + BLOCK - itemsize, side="right"))
        yield slice(begin, end)
        begin = end


class _StaleCheck:
    """Holds the weight that stands beside its g and v against their product."""

    def __init__(self, sources: Sources, pair: Pair, blocks: TensorBlocks) -> None:
        self.pair, self.dtype = pair, numpy_dtype(pair.dtype)
        self.largest = self.worst = 0.0
        self.old: TensorBlocks | None = None
        stale = pair.stale
        if stale and blocks.dense and stale.dtype is pair.dtype:
            same = (stale.shape, stale.strides) == (pair.v.shape, pair.v.strides)
            if same:
                source = sources[stale.storage.file]
                self.old = TensorBlocks(source, stale, pair.dim, use="stale")

    def compare(self, block: Block, w: Array) -> None:
        if self.old is None:
            return
        old = self.old.read(block, self.dtype).astype(np.float64)
        difference = np.abs(old - w.astype(np.float64))
        self.worst = max(self.worst, float(np.nan_to_num(difference, nan=np.inf).max(initial=0)))
        self.largest = max(self.largest, float(np.abs(w.astype(np.float64)).max(initial=0)))

    def notes(self, where: str) -> list[Note]:
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
        return [Note("stale-weight", message, where, is_warning=True)]


def _non_finite_notes(name: str, where: str, odd: Array, count: int) -> list[Note]:
    if not odd.size:
        return []
    message = f"{slices_named(odd, count)} of {name} has NaN or Inf, carried through"
    return [Note("non-finite", message, where, is_warning=True)]


def slices_named(numbers: Array, count: int) -> str:
    """A few slices by their numbers: `slices 0, 3 (of 8)`."""
    named = ", ".join(str(int(number)) for number in numbers[:_NAMED])
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"slice{'s' if len(numbers) > 1 else ''} {named}{more} (of {count})"
