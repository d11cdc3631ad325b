"""How far two arrays are apart: absolutely, relatively, and in units of the last place.

The unit is that of the coarser of the two dtypes at the larger of the two numbers. A relative
difference is a share of the second number, as `torch.allclose` and `numpy.allclose` have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wncli.checkpoint.tensors import DType

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

#: Elements that a step works on: some ten arrays of as many float64 fit a cache.
_STEP = 32 * 1024
#: More than the rounding of a quotient and a product come to, relatively.
_ROUNDING = 2.0**-50
#: The bits of a float64 that are those of its power of two.
_EXPONENT = np.int64(0x7FF << 52)

#: Units of the last place that two foldings of one pair, each within one, can be apart.
DEFAULT_ULPS = 2


class Tolerance(NamedTuple):
    """What still counts as equal: `|a - b| <= atol + rtol * |b|`, as in `torch.allclose`.

    Where neither is given, `DEFAULT_ULPS` of the coarser dtype.
    """

    rtol: float | None = None
    atol: float | None = None

    @property
    def is_default(self) -> bool:
        """Whether units of the last place decide."""
        return self.rtol is None and self.atol is None


class Largest(NamedTuple):
    """The largest differences between two tensors, as `Difference` found them."""

    absolute: float
    relative: float
    ulps: float
    within: bool
    needed_rtol: float | None
    needed_atol: float | None


class Difference:
    """The largest differences between two tensors, accumulated run by run.

    `absolute`, `relative` and `ulps` are NaN where a number meets NaN, and infinite where it meets
    an infinity. `needed_rtol` is the smallest rtol, beside the atol given, under which all of it
    is equal, `needed_atol` the smallest atol beside the rtol given; None where there is none.

    Args:
        a: dtype of one tensor.
        b: dtype of the other.
        tolerance: what still counts as equal.
    """

    def __init__(self, a: DType, b: DType, tolerance: Tolerance) -> None:
        self.precision = _coarser(a, b)
        self.tolerance = tolerance
        self.absolute = self.relative = self.ulps = 0.0
        self.needed_rtol: float | None = 0.0
        self.needed_atol: float | None = 0.0
        self.within = True

    def largest(self) -> Largest:
        """Return what all runs came to."""
        return Largest(
            self.absolute, self.relative, self.ulps, self.within, self.needed_rtol,
            self.needed_atol,
        )  # fmt: skip

    def be_incomparable(self) -> None:
        """Take two tensors for different whose elements cannot be compared."""
        self.absolute = self.relative = self.ulps = math.inf
        self.needed_rtol = self.needed_atol = None
        self.within = False

    def add(self, a: Array, b: Array) -> bool:
        """Take two runs of equally many elements into account; return whether any differ."""
        if a.dtype == b.dtype:
            whole = np.uint8 if a.nbytes % 8 else np.uint64  # fewer and larger take less time
            if np.array_equal(a.view(whole), b.view(whole)):
                return False
        a, b = as_real(a, b)
        differ = False
        with np.errstate(all="ignore"):
            for start in range(0, a.size, _STEP):
                differ |= self._add(a[start : start + _STEP], b[start : start + _STEP])
        return differ

    def _add(self, a: Array, b: Array) -> bool:
        x, y = a.astype(np.float64), b.astype(np.float64)
        apart = np.abs(x - y)
        is_odd = not math.isfinite(apart.max())
        if self.precision is None:
            unequal = a != b  # of 64 bits, maybe, of which float64 tells less
        elif is_odd:
            unequal = (x != y) & ~(np.isnan(x) & np.isnan(y))
        else:
            unequal = apart != 0
        count = np.count_nonzero(unequal)
        if not count:
            return False
        if count < a.size:
            x, y, apart = x[unequal], y[unequal], apart[unequal]
        if self.precision is None:
            np.maximum(apart, 1.0, out=apart)
        size = np.abs(y)
        larger = np.maximum(np.abs(x), size)
        relative = apart / size
        finite: Mask | bool = True
        if is_odd and not np.isfinite(larger).all():
            finite = np.isfinite(larger)
            relative[~finite] = apart[~finite]
            larger[~finite] = 1.0
        ulps = self._in_ulps(apart, larger)
        found = [float(part.max()) for part in (apart, relative, ulps)]
        self.absolute = _larger(self.absolute, found[0])
        self.relative = _larger(self.relative, found[1])
        self.ulps = _larger(self.ulps, found[2])
        if self.tolerance.is_default:
            self.within &= found[2] <= (DEFAULT_ULPS if self.precision else 0)
        else:
            atol, rtol = self.tolerance.atol or 0.0, self.tolerance.rtol or 0.0
            self.within &= bool((finite & (apart <= atol + rtol * size)).all())
        if finite is True:
            self._add_needed(apart, size, relative)
        else:
            self.needed_rtol = self.needed_atol = None
        return True

    def _add_needed(self, apart: Array, size: Array, relative: Array) -> None:
        """Raise what is needed, so that `apart <= atol + rtol * size` as floats are rounded."""
        atol, rtol = self.tolerance.atol or 0.0, self.tolerance.rtol or 0.0
        if self.needed_rtol is not None:
            if atol:
                relative = np.where(apart <= atol, 0.0, (apart - atol) / size)
            largest = float(relative.max())
            if atol or largest * (1 + _ROUNDING) >= self.needed_rtol:
                self.needed_rtol = _enough(
                    max(self.needed_rtol, largest),
                    lambda value: bool((apart <= atol + value * size).all()),
                )
        if self.needed_atol is not None:
            over = apart - rtol * size if rtol else apart
            self.needed_atol = _enough(
                max(self.needed_atol, float(over.max())),
                lambda value: not rtol or bool((apart <= value + rtol * size).all()),
            )

    def _in_ulps(self, apart: Array, larger: Array) -> Array:
        if self.precision is None:
            return apart
        digits, smallest = self.precision
        power = (larger.view(np.int64) & _EXPONENT).view(np.float64)
        unit: Array = np.maximum(power, 2.0**smallest) * 2.0 ** (1 - digits)
        return apart / unit


def _larger(one: float, other: float) -> float:
    """Return the larger; NaN where one is NaN."""
    return other if math.isnan(other) or other > one else one


def _enough(value: float, is_enough: Callable[[float], bool]) -> float | None:
    """Return the number, or the next above it that is enough; None where no finite one is."""
    step = math.ulp(value)
    while math.isfinite(value):
        if is_enough(value):
            return value
        value, step = value + step, 2 * step
    return None


def _coarser(a: DType, b: DType) -> tuple[int, int] | None:
    """Precision of the coarser dtype; None where both hold whole numbers or bits."""
    found = [dtype.precision for dtype in (a, b) if dtype.precision]
    return min(found, key=lambda precision: (precision[0], -precision[1])) if found else None


def as_real(*arrays: Array) -> tuple[Array, ...]:
    """See complex numbers as pairs of real ones, where one array has some, and bits as numbers."""
    if any(array.dtype.kind == "c" for array in arrays):
        return tuple(array.astype(np.complex128).view(np.float64) for array in arrays)
    return tuple(
        array.view(np.uint8) if array.dtype.type in {np.void, np.bool_} else array
        for array in arrays
    )


def numbers_for_json(value: float) -> float | None:
    """JSON has no infinity and no NaN: None says that a number meets one."""
    return value if math.isfinite(value) else None
