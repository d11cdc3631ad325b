"""Hypothesis strategies, and exact arithmetic on `Fraction`s to hold floating-point results to.

A floating-point number is a rational number, and whether one lies within some distance of a
square root is a question about rational squares. So nothing here rounds, ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import settings
from hypothesis import strategies as st

Array = npt.NDArray[Any]
Dtype = np.dtype[Any]

FLOAT64, FLOAT32, FLOAT16 = np.dtype("float64"), np.dtype("float32"), np.dtype("float16")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (FLOAT64, FLOAT32, FLOAT16, BFLOAT16)
TORCH_DTYPES = {
    FLOAT64: torch.float64,
    FLOAT32: torch.float32,
    FLOAT16: torch.float16,
    BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class Limits:
    """A dtype's range: numbers have `digits` bits, their exponents go from `low` below `high`."""

    digits: int
    low: int
    high: int

    @property
    def max(self) -> float:
        """The largest finite number."""
        return math.ldexp(2**self.digits - 1, self.high - self.digits)

    @property
    def tiny(self) -> float:
        """The smallest number above 0."""
        return math.ldexp(1, self.low - self.digits + 1)


#: Of IEEE 754's binary64, binary32, binary16, and of bfloat16.
LIMITS = {
    FLOAT64: Limits(53, -1022, 1024),
    FLOAT32: Limits(24, -126, 128),
    FLOAT16: Limits(11, -14, 16),
    BFLOAT16: Limits(8, -126, 128),
}


def examples(count: int) -> settings:
    """A property test of so many examples, without a clock and without files."""
    return settings(max_examples=count, deadline=None, database=None)


# -- exact arithmetic ---------------------------------------------------------------------------


def exact(value: Any) -> Fraction:  # noqa: ANN401 - a NumPy scalar of any dtype
    """A finite floating-point number as the rational number that it is."""
    return Fraction(float(value))


def power_of_two(exponent: int) -> Fraction:
    """2**exponent, exactly."""
    return Fraction(2**exponent) if exponent >= 0 else Fraction(1, 2**-exponent)


def square_sum(values: Array) -> Fraction:
    """The exact sum of squares."""
    return sum((exact(value) ** 2 for value in values.reshape(-1)), Fraction(0))


def floor_log2(value: Fraction) -> int:
    """The exponent of the binade that a number above 0 lies in."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    return exponent if value >= power_of_two(exponent) else exponent - 1


def legs(square: int, digits: int) -> list[int]:
    """Whole numbers of so many bits whose squares have this sum."""
    found = []
    while square:
        leg = math.isqrt(square)
        dropped = max(leg.bit_length() - digits, 0)
        found.append(leg >> dropped << dropped)
        square -= found[-1] ** 2
    return found


def ulp_of_root(square: Fraction, dtype: Dtype) -> Fraction:
    """The distance between the numbers of `dtype` where the root of `square` lies."""
    limits = LIMITS[dtype]
    exponent = floor_log2(square) // 2 if square else limits.low
    return power_of_two(max(exponent, limits.low) - limits.digits + 1)


def beyond(dtype: Dtype) -> Fraction:
    """The number that would come after the largest of `dtype`: what its infinity stands for."""
    return power_of_two(LIMITS[dtype].high)


def is_near_root(value: Fraction, square: Fraction, distance: Fraction) -> bool:
    """Whether |value - sqrt(square)| <= distance."""
    low, high = value - distance, value + distance
    return (low <= 0 or low**2 <= square) and high >= 0 and square <= high**2


def is_near_quotient(value: Any, over: Fraction, square: Fraction, dtype: Dtype) -> bool:  # noqa: ANN401
    """Whether `value`, of `dtype`, is within 1 ulp of over / sqrt(square)."""
    if over < 0:
        value, over = -value, -over
    quotient_square = over**2 / square
    if np.isposinf(value):
        if quotient_square >= beyond(dtype) ** 2:
            return True
        found = beyond(dtype)
    elif not np.isfinite(value):
        return False
    else:
        found = exact(value)
    return is_near_root(found, quotient_square, ulp_of_root(quotient_square, dtype))


# -- arrays -------------------------------------------------------------------------------------


def bits(array: Array) -> bytes:
    """An array's bytes: NaN equals itself and -0 is not 0."""
    return np.ascontiguousarray(array).tobytes()


def to_torch(array: Array) -> torch.Tensor:
    """The same bits as a tensor."""
    dtype = TORCH_DTYPES[array.dtype]
    raw = torch.frombuffer(bytearray(array.tobytes()), dtype=dtype) if array.size else None
    return (torch.empty(0, dtype=dtype) if raw is None else raw).reshape(array.shape)


def from_torch(tensor: torch.Tensor) -> Array:
    """The same bits as an array."""
    (dtype,) = (numpy for numpy, found in TORCH_DTYPES.items() if found is tensor.dtype)
    raw: Array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    found: Array = raw.view(dtype)
    return found.reshape(tuple(tensor.shape))


def every_slice(array: Array, dim: int | None) -> list[Array]:
    """The slices that weight norm takes norms of, found by NumPy's own indexing."""
    if dim is None:
        return [array]
    return [np.take(array, index, axis=dim) for index in range(array.shape[dim])]


def normal(shape: tuple[int, ...], dtype: Dtype, seed: int = 0) -> Array:
    """Normally distributed numbers, always the same."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def small_integers(shape: tuple[int, ...], dtype: Dtype, seed: int = 0) -> Array:
    """Whole numbers from 1 to 8 under random signs: squares sum exactly, in any order."""
    generator = np.random.default_rng(seed)
    sizes: Array = generator.integers(1, 9, shape) * generator.choice([-1, 1], shape)
    return sizes.astype(dtype)


def shapes(max_rank: int = 4, max_side: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of rank 1 and more."""
    sides = st.integers(1, max_side)
    return st.lists(sides, min_size=1, max_size=max_rank).map(tuple)


def dims_of(rank: int) -> st.SearchStrategy[int | None]:
    """Every dim of a weight of this rank, and None."""
    return st.sampled_from((*range(rank), None))


def _any_bits(dtype: Dtype, count: int) -> st.SearchStrategy[Array]:
    """Numbers from all over the range, by their bits."""
    width = 8 * dtype.itemsize
    unsigned = np.dtype(f"u{dtype.itemsize}")

    def read(patterns: list[int]) -> Array:
        found: Array = np.array(patterns, unsigned).view(dtype)
        with np.errstate(invalid="ignore"):
            found[~np.isfinite(found.astype(np.float64))] = 0
        return found

    return st.lists(st.integers(0, 2**width - 1), min_size=count, max_size=count).map(read)


@st.composite
def _near_each_other(draw: st.DrawFn, dtype: Dtype, count: int) -> Array:
    """Numbers of nearly one size, wherever in the range that is, so that all of them matter."""
    limits = LIMITS[dtype]
    lowest, highest = limits.low - limits.digits + 1, limits.high - limits.digits
    exponent = draw(st.one_of(st.just(lowest), st.just(highest), st.integers(lowest, highest)))
    mantissas = st.integers(-(2**limits.digits) + 1, 2**limits.digits - 1)
    found = draw(st.lists(mantissas, min_size=count, max_size=count))
    steps = draw(st.lists(st.integers(-3, 0), min_size=count, max_size=count))
    chosen = [
        np.ldexp(float(mantissa), max(exponent + step, lowest))
        for mantissa, step in zip(found, steps, strict=True)
    ]
    return np.array(chosen, np.float64).astype(dtype)


@st.composite
def arrays(draw: st.DrawFn, dtype: Dtype, shape: tuple[int, ...]) -> Array:
    """Finite numbers of the whole range: subnormal, huge, of one size or mixed, and both zeros."""
    count = int(np.prod(shape))
    found: Array = draw(st.one_of(_near_each_other(dtype, count), _any_bits(dtype, count)))
    for place in draw(st.sets(st.integers(0, max(count - 1, 0)), max_size=min(count, 4))):
        found[place] = draw(st.sampled_from((0.0, -0.0)))
    return found.reshape(shape)


@st.composite
def weights(draw: st.DrawFn, dtype: Dtype) -> tuple[Array, int | None]:
    """A weight and one of its dims; now and then with slices of nothing but (signed) zeros."""
    shape = draw(shapes())
    weight = draw(arrays(dtype, shape))
    dim = draw(dims_of(len(shape)))
    if draw(st.booleans()):
        for found in _views(weight, dim)[:2]:
            signs = [(-1) ** index for index in range(found.size)]
            found[...] = np.copysign(0.0, np.array(signs)).reshape(found.shape).astype(dtype)
    return weight, dim


@st.composite
def pairs(draw: st.DrawFn, g_dtype: Dtype, v_dtype: Dtype) -> tuple[Array, Array, int | None]:
    """A g, a v none of whose slices is all zero, and their dim."""
    shape = draw(shapes(max_rank=3))
    dim = draw(dims_of(len(shape)))
    v = draw(arrays(v_dtype, shape))
    for found in _views(v, dim):
        if not found.any():
            found.flat[0] = 1
    g_shape = tuple(size if axis == dim else 1 for axis, size in enumerate(shape))
    g = draw(arrays(g_dtype, () if dim is None else g_shape))
    if draw(st.booleans()):
        # A g of about the norm's size, as training leaves it, and not one that dwarfs its v.
        for index, found in enumerate(_views(v, dim)):
            largest = float(np.abs(found.astype(np.float64)).max())
            scale = draw(st.integers(1, 255)) / 64
            g.reshape(-1)[index] = min(largest, LIMITS[g_dtype].max / 4) * scale
    return g, v, dim


def _views(array: Array, dim: int | None) -> list[Array]:
    if dim is None:
        return [array]
    moved = np.moveaxis(array, dim, 0)
    return [moved[index : index + 1] for index in range(array.shape[dim])]


def product(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every combination, for `parametrize`."""
    return list(itertools.product(*choices))


def named(value: object) -> str | None:
    """A readable id for a dtype in `parametrize`."""
    return value.name if isinstance(value, np.dtype) else None
