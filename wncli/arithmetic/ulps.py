"""How far two arrays are apart: absolutely, relatively, and in units of the last place.

The unit is that of the coarser of the two dtypes at the larger of the two numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wncli.checkpoint.tensors import DType

Array = npt.NDArray[Any]

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


class Difference:
    """The largest differences between two tensors, gathered run by run.

    Args:
        a: dtype of one tensor.
        b: dtype of the other.
        tolerance: what still counts as equal.
    """

    def __init__(self, a: DType, b: DType, tolerance: Tolerance) -> None:
        self.precision = _coarser(a, b)
        self.tolerance = tolerance
        self.absolute = self.relative = self.ulps = 0.0
        self.within = True

    def be_incomparable(self) -> None:
        """Take two tensors for different whose elements cannot be held against each other."""
        self.absolute = self.relative = self.ulps = math.inf
        self.within = False

    def add(self, a: Array, b: Array) -> None:
        """Take two runs of equally many elements into account."""
        if a.dtype == b.dtype and np.array_equal(a.view(np.uint8), b.view(np.uint8)):
            return
        if "c" in (a.dtype.kind, b.dtype.kind):
            a, b = a.astype(np.complex128), b.astype(np.complex128)
        a, b = _as_real(a), _as_real(b)
        unequal = np.flatnonzero((a != b) & ~((a != a) & (b != b)))  # noqa: PLR0124 - NaN
        if not unequal.size:
            return
        x, y = a[unequal].astype(np.float64), b[unequal].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            finite = np.isfinite(x) & np.isfinite(y)
            # Whole numbers of 64 bits may be apart by less than float64 tells: by 1 at least.
            least = 1.0 if self.precision is None else 0.0
            apart = np.where(finite, np.maximum(np.abs(x - y), least), np.inf)
            larger = np.maximum(np.abs(x), np.abs(y))
            relative = np.where(finite, apart / larger, np.inf)
            ulps = self._in_ulps(apart, np.where(finite, larger, 1.0))
            self.absolute = max(self.absolute, float(apart.max()))
            self.relative = max(self.relative, float(relative.max()))
            self.ulps = max(self.ulps, float(ulps.max()))
            if self.tolerance.is_default:
                allowed = ulps <= (DEFAULT_ULPS if self.precision else 0)
            else:
                atol, rtol = self.tolerance.atol or 0.0, self.tolerance.rtol or 0.0
                allowed = finite & (apart <= atol + rtol * np.abs(y))
        self.within = self.within and bool(allowed.all())

    def _in_ulps(self, apart: Array, larger: Array) -> Array:
        if self.precision is None:
            return apart
        digits, smallest = self.precision
        exponents = np.frexp(larger)[1]
        unit = np.ldexp(1.0, np.maximum(exponents, smallest + 1) - digits)
        return np.where(np.isinf(apart), np.inf, apart / unit)


def _coarser(a: DType, b: DType) -> tuple[int, int] | None:
    """Precision of the coarser dtype; None where both hold whole numbers or bits."""
    found = [dtype.precision for dtype in (a, b) if dtype.precision]
    return min(found, key=lambda precision: (precision[0], -precision[1])) if found else None


def _as_real(array: Array) -> Array:
    """Complex numbers as pairs of real ones; bits as numbers; the rest as it is."""
    if array.dtype.kind == "c":
        return array.view(array.real.dtype)
    if array.dtype.type in {np.void, np.bool_}:
        return array.view(np.uint8)
    return array


def numbers_for_json(value: float) -> float | None:
    """JSON has no infinity: None says that a finite number meets NaN or Inf."""
    return value if math.isfinite(value) else None
