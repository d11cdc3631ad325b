"""The arithmetic of weight norm, arrays in, arrays out: `w = g * v / ||v||`.

The norm is taken over every axis but `dim` (Salimans & Kingma 2016, arXiv:1602.07868; PyTorch:
`norm_except_dim`, `_weight_norm`). Everything works on tensors seen as `(outer, channels, inner)`,
one slice per channel, block by block, so that a file can be folded without holding a tensor.

Exactness. A square of a float32, float16 or bfloat16 is exact in float64, and so is the sum to
far more digits than are stored. For float64 the sum is carried as an unevaluated pair of floats
("double-double": Dekker 1971, Numer. Math. 18:224) over values scaled by a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wncli.dims import fitting_dims, magnitude_shape, resolve_dim, slices
from wncli.errors import WeightNormError

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

#: Elements that one step of the arithmetic works on: as float64 they stay in a core's cache.
_STEP = 32 * 1024

#: How far, relatively, two orders of summation in float64 can part; far below half a float32 ulp.
_SUMMATION_SLACK = 2.0**-40


@dataclass(frozen=True, slots=True)
class Box:
    """A contiguous block of a tensor seen as `(outer, channels, inner)`."""

    outer: slice
    channels: slice
    inner: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the block."""
        o, c, i = self.outer, self.channels, self.inner
        return o.stop - o.start, c.stop - c.start, i.stop - i.start


def boxes(shape: tuple[int, int, int], limit: int) -> Iterator[Box]:
    """Cut `(outer, channels, inner)` into row-major runs of at most `limit` elements."""
    outer, channels, inner = shape
    if not outer * channels * inner:
        return
    inners = min(inner, limit)
    cs = min(channels, max(1, limit // inner)) if inners == inner else 1
    os = min(outer, max(1, limit // (channels * inner))) if cs == channels else 1
    for o in range(0, outer, os):
        for c in range(0, channels, cs):
            for i in range(0, inner, inners):
                yield Box(
                    slice(o, min(o + os, outer)),
                    slice(c, min(c + cs, channels)),
                    slice(i, min(i + inners, inner)),
                )


@dataclass(frozen=True, slots=True)
class Norms:
    """Norms not yet rounded to a stored dtype: `(high + low) * 2**exponent`, per channel."""

    high: Float64
    low: Float64
    exponent: npt.NDArray[np.int64]

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        """The norms in `dtype`, shape `(channels,)`; infinite where `dtype` cannot hold them."""
        with np.errstate(over="ignore", under="ignore"):
            return _as_dtype(np.ldexp(self.high, self.exponent), dtype)

    def matches(self, g: Array) -> Mask:
        """Where `g` is what these norms round to, in whichever order they were summed."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            value = np.ldexp(self.high, self.exponent)
            slack = 0 if g.dtype == np.float64 else _SUMMATION_SLACK
            below = _as_dtype(value * (1 - slack), g.dtype)
            above = _as_dtype(value * (1 + slack), g.dtype)
        same: Mask = (g == below) | (g == above)
        return same & np.isfinite(g)


class NormSum:
    """The sum of squares of each slice, gathered from blocks in any order.

    Args:
        channels: number of slices.
        dtype: float64, float32, float16 or bfloat16, of the blocks to come.
    """

    def __init__(self, channels: int, dtype: np.dtype[Any]) -> None:
        self._wide = dtype == np.float64
        self._high = np.zeros(channels)
        self._low = np.zeros(channels)
        self._exponent = np.full(channels, -1074, dtype=np.int64) if self._wide else None
        self._peak = np.zeros(channels)

    def add(self, block: Array, first: int = 0) -> None:
        """Take in a block of shape `(outer, channels, inner)` whose channels begin at `first`."""
        scratch = np.empty(min(block.size, _STEP))
        for box in boxes(_three(block), _STEP):
            part = block[box.outer, box.channels, box.inner]
            values = scratch[: part.size].reshape(part.shape)
            np.copyto(values, part)
            where = slice(first + box.channels.start, first + box.channels.stop)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                if self._wide:
                    self._add_wide(values, where)
                elif part.shape[2] >= 8:  # noqa: PLR2004 - below, a call per row costs more
                    self._high[where] += np.vecdot(values, values).sum(axis=0)
                else:
                    self._high[where] += np.square(values, out=values).sum(axis=(0, 2))

    def _add_wide(self, values: Float64, where: slice) -> None:
        assert self._exponent is not None  # noqa: S101 - for the type checker
        rows = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        largest = np.abs(rows).max(axis=1)
        self._peak[where] = np.maximum(self._peak[where], largest)
        needed = np.frexp(np.where(np.isfinite(largest), largest, 1.0))[1].astype(np.int64)
        needed[largest == 0] = -1074
        old = self._exponent[where]
        new = np.maximum(old, needed)
        shrink = 2 * np.maximum(old - new, -2000)
        scaled = np.ldexp(rows, -new[:, None])
        product = scaled * scaled
        high, low = _sum_rows(product, _product_error(scaled, scaled, product))
        kept_high, kept_low = (
            np.ldexp(self._high[where], shrink),
            np.ldexp(self._low[where], shrink),
        )
        self._high[where], error = _two_sum(kept_high, high)
        self._low[where] = kept_low + low + error
        self._exponent[where] = new

    def norms(self) -> Norms:
        """The square roots of what has been gathered."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            if self._exponent is None:
                root = np.sqrt(self._high)
                nothing = np.zeros_like(root)
                return Norms(root, nothing, nothing.astype(np.int64))
            total, rest = _two_sum(self._high, self._low)
            root = np.sqrt(total)
            product = root * root
            residue = (total - product) - _product_error(root, root, product) + rest
            low = np.where(root > 0, residue / (2 * root), 0.0)
            high, low = _two_sum(root, low)
            # The error terms of an infinity are NaN: a slice with one has the norm inf, or NaN.
            finite = np.isfinite(self._peak)
            return Norms(
                np.where(finite, high, self._peak), np.where(finite, low, 0.0), self._exponent
            )


@dataclass(frozen=True, slots=True)
class Factors:
    """What each slice of v is multiplied by, `(high + low) * 2**exponent`, shape `(channels,)`.

    `undefined` marks the slices that have no direction (all zero) under a g that is not 0;
    `unchanged` those whose g is their norm already, so that the factor is exactly 1.
    """

    high: Float64
    low: Float64
    exponent: npt.NDArray[np.int64]
    undefined: Mask
    unchanged: Mask

    def scale(self, block: Array, out: Array, first: int = 0) -> None:
        """Write `block` times its channels' factors into `out`, both `(outer, channels, inner)`."""
        scratch = np.empty(min(block.size, _STEP))
        for box in boxes(_three(block), _STEP):
            part = block[box.outer, box.channels, box.inner]
            values = scratch[: part.size].reshape(part.shape)
            where = slice(first + box.channels.start, first + box.channels.stop)
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                if np.float64 in (block.dtype, out.dtype):
                    self._scale_wide(part, values, where)
                else:
                    np.copyto(values, part)
                    np.multiply(values, self.high[where, None], out=values)
                np.copyto(out[box.outer, box.channels, box.inner], values, casting="unsafe")

    def _scale_wide(self, part: Array, out: Float64, where: slice) -> None:
        mantissa, exponent = np.frexp(part.astype(np.float64))
        high = self.high[where, None]
        product = mantissa * high
        error = _product_error(mantissa, high, product) + mantissa * self.low[where, None]
        # Nothing to add keeps a zero's sign, and an infinity, whose error term is NaN.
        exact = np.where(np.isfinite(product) & (error != 0), product + error, product)
        out[...] = np.ldexp(exact, exponent + self.exponent[where, None])


def factors(g: Array, norms: Norms, *, empty_slices: bool = False) -> Factors:
    """`g / ||v||` per channel, exactly 1 where g already is the norm of v in g's dtype.

    Args:
        g: shape `(channels,)`, the magnitudes as they are stored.
        norms: of v's slices.
        empty_slices: v has no elements, so that no direction can be undefined.
    """
    stored = g.astype(np.float64)
    zero = norms.high == 0
    undefined = zero & (stored != 0) & (not empty_slices)
    unchanged = norms.matches(g) | (zero & (stored == 0))
    with np.errstate(all="ignore"):
        if g.dtype != np.float64 and not norms.exponent.any():
            high = np.where(unchanged, 1.0, stored / norms.high)
            nothing = np.zeros_like(high)
            return Factors(high, nothing, nothing.astype(np.int64), undefined, unchanged)
        g_part, g_exponent = np.frexp(stored)
        n_part, n_exponent = np.frexp(norms.high)
        n_rest = np.ldexp(norms.low, -n_exponent)
        high = g_part / n_part
        product = high * n_part
        residue = (g_part - product) - _product_error(high, n_part, product) - high * n_rest
        low = np.where(np.isfinite(high), residue / n_part, 0.0)
        exponent = g_exponent.astype(np.int64) - n_exponent - norms.exponent
    return Factors(
        np.where(unchanged, 1.0, high),
        np.where(unchanged, 0.0, low),
        np.where(unchanged, 0, exponent),
        undefined,
        unchanged,
    )


def magnitude(w: npt.ArrayLike, dim: int | None = 0, p: float = 2) -> Array:
    """The norm of order `p` of `w` over every axis but `dim`.

    Args:
        w: float64, float32, float16 or bfloat16, of any rank from 1.
        dim: the axis that keeps its size; None or -1 for the norm of the whole tensor.
        p: any order above 0, `math.inf` included.

    Returns:
        g in `w`'s dtype, with size 1 on every axis but `dim`, or 0-dimensional for None;
        for `p=2` within 0.75 ulp of the exact norm.

    Raises:
        WeightNormError: no such dim, a dtype that is not floating, an order that is not above 0,
            or a norm that the dtype cannot hold.
    """
    array = _floating(w, "magnitude")
    dim = resolve_dim(dim, array.ndim, "magnitude")
    if not p > 0:
        raise WeightNormError("magnitude", f"order {p} is no norm", expected="an order above 0")
    view = array.reshape(slices(array.shape, dim))
    norms = _norms_of(view) if p == 2 else _power_norms(view, p)  # noqa: PLR2004
    g = norms.rounded(array.dtype)
    overflow = np.isinf(g) & np.isfinite(norms.high)
    if overflow.any():
        raise WeightNormError(
            "magnitude",
            f"the norm of slice {int(np.flatnonzero(overflow)[0])} is beyond what"
            f" {array.dtype.name} can hold",
        )
    return g.reshape(magnitude_shape(array.shape, dim))


def decompose(w: npt.ArrayLike, dim: int | None = 0) -> tuple[Array, Array]:
    """Split `w` into magnitude g and direction v, so that `compose(g, v)` gives `w` bit for bit.

    v is `w` itself, not a copy. Only where a slice of `w` is all zero, v is a copy in which that
    slice is a unit direction: its g is 0, and a zero direction would give 0/0.

    Raises:
        WeightNormError: as `magnitude`.
    """
    array = _floating(w, "decompose")
    g = magnitude(array, dim)
    view = array.reshape(slices(array.shape, resolve_dim(dim, array.ndim)))
    zero = np.flatnonzero(g.reshape(-1) == 0)
    if not (view.size and zero.size):
        return g, array
    v = view.copy()
    v[0, zero, 0] = unit_like(v[0, zero, 0])
    return g, v.reshape(array.shape)


def compose(g: npt.ArrayLike, v: npt.ArrayLike) -> Array:
    """The weight that magnitude `g` and direction `v` stand for: `g * v / ||v||`.

    The dim is read off g's shape: for v `(out, in, k)`, g `(out, 1, 1)` is dim 0, `(1, 1, k)`
    dim 2, and `()` the whole tensor.

    Returns:
        w in the dtype that `g * v` has, within 1 ulp of the exact value; slices whose g is the
        norm of v in g's dtype come back bit for bit.

    Raises:
        WeightNormError: g's shape fits no dim of v, or a slice of v is all zero under a g that
            is not.
    """
    magnitudes, directions = _floating(g, "compose"), _floating(v, "compose")
    dims = fitting_dims(magnitudes.shape, directions.shape)
    if not dims:
        raise WeightNormError(
            "compose",
            "g fits no dim of v",
            expected=f"a g that keeps one axis of v {directions.shape}",
            found=f"g {magnitudes.shape}",
        )
    view = directions.reshape(slices(directions.shape, dims[0]))
    scaling = factors(magnitudes.reshape(-1), _norms_of(view), empty_slices=not view.size)
    if scaling.undefined.any():
        raise WeightNormError(
            "compose",
            f"slice {int(np.flatnonzero(scaling.undefined)[0])} of v is all zero and has no"
            " direction, but its g is not 0",
        )
    w = np.empty(view.shape, np.promote_types(magnitudes.dtype, directions.dtype))
    scaling.scale(view, w)
    return w.reshape(directions.shape)


def unit_like(zeros: Array) -> Array:
    """1 with the sign of each (signed) zero: scaled by 0, it is that very zero again."""
    return np.copysign(1, zeros.astype(np.float64)).astype(zeros.dtype)


def _norms_of(view: Array) -> Norms:
    total = NormSum(view.shape[1], view.dtype)
    total.add(view)
    return total.norms()


def _power_norms(view: Array, p: float) -> Norms:
    """Norms of any order; each slice is scaled by its largest element, so no power overflows."""
    precise = np.longdouble if view.dtype == np.float64 else np.float64
    values = np.abs(view.astype(precise))
    largest = values.max(axis=(0, 2), initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    with np.errstate(all="ignore"):
        powers = np.power(values / scale[:, None], p).sum(axis=(0, 2))
        root = scale * np.power(powers, precise(1) / precise(p))
    norm = np.where(np.isfinite(largest), largest if np.isinf(p) else root, largest)
    high = norm.astype(np.float64)
    return Norms(high, np.zeros_like(high), np.zeros(high.shape, np.int64))


def _floating(value: npt.ArrayLike, where: str) -> Array:
    array = np.asarray(value)
    if array.dtype.name not in {"float64", "float32", "float16", "bfloat16"}:
        raise WeightNormError(
            where,
            f"{array.dtype.name} has no weight norm",
            expected="float64, float32, float16 or bfloat16",
        )
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _as_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    return values.astype(dtype, copy=False, casting="unsafe")


def _three(block: Array) -> tuple[int, int, int]:
    outer, channels, inner = block.shape
    return outer, channels, inner


def _two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """`a + b` rounded, and exactly what the rounding lost (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def _product_error(a: Float64, b: Float64, product: Float64) -> Float64:
    """Exactly what rounding `a * b` to `product` lost (Dekker, with Veltkamp's splitting)."""
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    lost: Float64 = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return lost


def _split(a: Float64) -> tuple[Float64, Float64]:
    big = a * 134217729.0
    high = big - (big - a)
    return high, a - high


def _sum_rows(values: Float64, errors: Float64) -> tuple[Float64, Float64]:
    """Row sums of `values` as `(high, low)`; `low` takes in `errors` and what rounding loses."""
    low = errors.sum(axis=1)
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        summed, error = _two_sum(values[:, :half], values[:, half : 2 * half])
        low = low + error.sum(axis=1)
        values = np.concatenate([summed, values[:, 2 * half :]], axis=1)
    return values[:, 0], low
