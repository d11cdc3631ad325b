"""Norms of slices and what v is multiplied by, block by block: the core of weight norm.

A tensor is seen as `(outer, channels, inner)`, one slice per channel. A square of a float32,
float16 or bfloat16 is exact in float64, and a sum of them is good to far more digits than are
stored. For float64 all is carried in pairs (`double_double`), over values scaled by a power of two.
Where a norm is so near to halfway between two stored numbers that this does not tell which it is
rounded to, whole numbers do: the same g comes of any order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wncli.arithmetic.double_double import (
    LONGEST_EXACT,
    PAIRS,
    SMALLEST_EXPONENT,
    Float64,
    Int64,
    exact_sums_of_squares,
    quotient,
    rounded_root,
    square_root,
    sum_of_squares,
    times,
    times_in_range,
    two_sum,
)
from wncli.arithmetic.tiles import STEP, boxes
from wncli.checkpoint.tensors import NORMALIZABLE

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
#: Blocks of a tensor that have all of the channels of a mask, each with the number of its first.
Reading = Callable[[Mask], Iterable[tuple[Array, int]]]

#: More than a norm is off by, relatively, where all is carried in pairs.
_PAIR_SLACK = 2.0**-70

#: Bits of a significand, and the exponent of the smallest normal number.
PRECISION = {dtype.label: dtype.precision for dtype in NORMALIZABLE if dtype.precision}

#: The bits of a float64 that are those of its power of two.
_EXPONENT = np.int64(0x7FF << 52)

#: What all of this is called under, a block at a time: NaN and Inf are carried as the formula
#: carries them, and told where they show. Warnings would only be in the way, and switching them
#: off for each step takes longer than the step.
unwarned = np.errstate(all="ignore")


def raw(array: Array) -> memoryview:
    """Return the bytes of a contiguous array, not copied."""
    found: Any = array.reshape(-1).view(np.uint8)
    return memoryview(found)


class Norms(NamedTuple):
    """Norms not yet rounded to a stored dtype: `(high + low) * 2**exponent`, per channel.

    Those that were gathered wide, and those of another order than 2, have a low part and an
    exponent. They are off by less than `slack`, relatively. `read` reads again what they are the
    norms of; those of another order have none, and are rounded as they are.
    """

    high: Float64
    low: Float64 | None = None
    exponent: Int64 | None = None
    slack: float = 0.0
    read: Reading | None = None

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        """Round the norms to `dtype`, `(channels,)`; infinite where that cannot hold them."""
        found = self.high if self.exponent is None else np.ldexp(self.high, self.exponent)
        g = found.astype(dtype)
        if self.read:
            same, is_close = self._compared(g)
            again = (is_close | ~same) & np.isfinite(self.high)
            if again.any():
                g[again] = _rounded_exactly(self.read, again, dtype)
        return g

    def overflowing(self, g: Array) -> Mask:
        """Where a norm is finite, but not what it was rounded to."""
        beyond: Mask = np.isinf(g) & np.isfinite(self.high)
        return beyond

    def matches(self, g: Array) -> Mask:
        """Where `g` is what these norms are rounded to."""
        same, is_close = self._compared(g)
        if self.read and is_close.any():
            same[is_close] = g[is_close] == _rounded_exactly(self.read, is_close, g.dtype)
        return same

    def _compared(self, g: Array) -> tuple[Mask, Mask]:
        """Where `g` is nearest to these norms, and where they are too close to halfway to tell."""
        digits, lowest = PRECISION[g.dtype.name]
        same, is_close = np.empty(g.shape, np.bool_), np.empty(g.shape, np.bool_)
        for start in range(0, len(g), PAIRS):
            part = slice(start, start + PAIRS)
            high, stored = self.high[part], g[part].astype(np.float64)
            smallest: Float64 | float = 2.0**lowest
            if self.exponent is not None:
                stored = np.ldexp(stored, -self.exponent[part])
                smallest = np.ldexp(1.0, lowest - self.exponent[part])
            apart = high - stored
            if self.low is not None:
                apart += self.low[part]
            power = (stored.view(np.int64) & _EXPONENT).view(np.float64)
            half = np.maximum(power, smallest) * 2.0**-digits
            # Below a power of two, numbers lie half as far apart.
            half[(stored == power) & (power > smallest) & (apart < 0)] /= 2
            beyond = np.abs(apart) - half
            same[part], is_close[part] = beyond <= 0, np.abs(beyond) < high * self.slack
        return same, is_close


def _rounded_exactly(read: Reading, wanted: Mask, dtype: np.dtype[Any]) -> Array:
    """Return the norms of a few slices, each rounded once, by whole numbers."""
    sums = dict.fromkeys(np.flatnonzero(wanted).tolist(), 0)
    for block, first in read(wanted):
        for box in boxes(block.shape, PAIRS):
            start = first + box.channels.start
            here = np.flatnonzero(wanted[start : first + box.channels.stop])
            if here.size:
                part = block[box.outer, box.channels, box.inner][:, here].astype(np.float64)
                rows = np.moveaxis(part, 1, 0).reshape(here.size, -1)
                for column in range(0, rows.shape[1], LONGEST_EXACT):
                    found = exact_sums_of_squares(rows[:, column : column + LONGEST_EXACT])
                    for channel, square in zip((start + here).tolist(), found, strict=True):
                        sums[channel] += square
    roots = [rounded_root(square, *PRECISION[dtype.name]) for square in sums.values()]
    return np.array(roots).astype(dtype)


class NormSum:
    """The sum of squares of each slice, gathered from blocks in any order.

    Args:
        channels: number of slices.
        terms: elements of each.
        wide: gather for norms in float64, rather than in float32 or narrower.
        sums: what has been gathered already, two float64 for each channel.
    """

    def __init__(
        self, channels: int, terms: int, *, wide: bool, sums: memoryview | None = None
    ) -> None:
        self.wide = wide
        self._terms = terms
        pairs = np.zeros((channels, 2)) if sums is None else np.frombuffer(sums).reshape(-1, 2)
        self._high, self._low = pairs.T
        if wide:
            self._exponent = np.full(channels, SMALLEST_EXPONENT, dtype=np.int64)
            self._peak = np.zeros(channels)

    def add(self, block: Array, first: int = 0) -> None:
        """Take in a block of shape `(outer, channels, inner)` whose channels begin at `first`."""
        for box in boxes(block.shape, STEP):
            values = block[box.outer, box.channels, box.inner].astype(np.float64)
            where = slice(first + box.channels.start, first + box.channels.stop)
            if self.wide:
                self._add_wide(values, where)
                continue
            squares = np.einsum("oci,oci->c", values, values)
            self._high[where], error = two_sum(self._high[where], squares)
            self._low[where] += error

    def _add_wide(self, values: Float64, where: slice) -> None:
        rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
        self._peak[where] = np.maximum(self._peak[where], largest)
        needed = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1].astype(np.int64)
        needed[largest == 0] = SMALLEST_EXPONENT
        old = self._exponent[where]
        new = np.maximum(old, needed)
        shrink = 2 * (old - new)
        high, low = sum_of_squares(rows, new)
        total, error = two_sum(np.ldexp(self._high[where], shrink), high)
        low += np.ldexp(self._low[where], shrink) + error
        self._high[where], self._low[where] = two_sum(total, low)
        self._exponent[where] = new

    def norms(self, read: Reading) -> Norms:
        """Return the square roots of what has been gathered.

        Args:
            read: reads it again, for those of which only the exact sum tells how they are rounded.
        """
        if not self.wide:
            total = self._high + self._low
            # The error terms of an infinity are NaN.
            np.copyto(total, self._high, where=np.isnan(total))
            # Twice the bound: the squares of a box are summed in float64, boxes lose nothing.
            slack = (min(self._terms, STEP) + 8) * 2.0**-53
            return Norms(np.sqrt(total, out=total), slack=slack, read=read)
        high, low = square_root(self._high, self._low)
        # The error terms of an infinity are NaN: the norm of a slice with one is inf, or NaN.
        finite = np.isfinite(self._peak)
        high, low = np.where(finite, high, self._peak), np.where(finite, low, 0.0)
        return Norms(high, low, self._exponent, _PAIR_SLACK, read)


class Factors(NamedTuple):
    """What each slice of v is multiplied by, `(high + low) * 2**exponent`, shape `(channels,)`.

    `undefined` marks the slices that have no direction (all zero) under a g that is not 0;
    `unchanged` those whose g is their norm already, so that the factor is exactly 1, `non_finite`
    those with a NaN or Inf in g or v. Only those where float64 is involved have a low part and an
    exponent.
    """

    high: Float64
    undefined: Mask
    unchanged: Mask
    non_finite: Mask
    low: Float64 | None = None
    exponent: Int64 | None = None

    def scale(self, block: Array, out: Array, first: int = 0) -> None:
        """Write `block` times its channels' factors into `out`, both `(outer, channels, inner)`.

        They may be one array; their channels begin at `first`.
        """
        for box in boxes(block.shape, PAIRS):
            place = box.outer, box.channels, box.inner
            values = block[place].astype(np.float64)
            rows = slice(first + box.channels.start, first + box.channels.stop)
            np.copyto(out[place], self._products(values, rows), casting="unsafe")

    def _products(self, values: Float64, rows: slice) -> Float64:
        high = self.high[rows, None]
        if self.low is None or self.exponent is None:
            return values * high
        low, exponent = self.low[rows, None], self.exponent[rows, None]
        product = times_in_range(values, np.ldexp(high, exponent), np.ldexp(low, exponent))
        if product is None:
            mantissa, places = np.frexp(values)
            product = np.ldexp(times(mantissa, high, low), places + exponent)
        return product


def factors(g: Array, norms: Norms, *, may_match: bool = True, empty: bool = False) -> Factors:
    """`g / ||v||` per channel, exactly 1 where g already is the norm of v in g's dtype.

    Args:
        g: shape `(channels,)`, the magnitudes as they are stored.
        norms: of v's slices.
        may_match: g and v have one dtype, so that a g can be the norm of v as it was stored.
        empty: v has no elements, so that no direction can be undefined.
    """
    stored = g.astype(np.float64)
    unchanged = norms.matches(g) if may_match else np.zeros(g.shape, np.bool_)
    zero = norms.high == 0
    undefined = zero
    if zero.any():
        unchanged |= zero & (stored == 0)
        undefined = zero & (stored != 0) & (not empty)
    non_finite = ~(np.isfinite(stored) & np.isfinite(norms.high))
    if norms.low is None or norms.exponent is None:
        high = stored / norms.high
        if unchanged.any():
            high[unchanged] = 1
        return Factors(high, undefined, unchanged, non_finite)
    g_part, g_exponent = np.frexp(stored)
    n_part, n_exponent = np.frexp(norms.high)
    high, low = quotient(g_part, n_part, np.ldexp(norms.low, -n_exponent))
    exponent = g_exponent.astype(np.int64) - n_exponent - norms.exponent
    return Factors(
        np.where(unchanged, 1.0, high),
        undefined,
        unchanged,
        non_finite,
        np.where(unchanged, 0.0, low),
        np.where(unchanged, 0, exponent),
    )
