"""Sums and products of float64 whose rounding errors are kept: a value is an unevaluated pair.

The pair `high + low` carries about 106 bits ("double-double": Dekker 1971, Numer. Math. 18:224;
Knuth, The Art of Computer Programming 2, 4.2.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

#: Values that a step works on here, where it makes several of each: twice as many take longer.
PAIRS = 16 * 1024

#: `(x + _COARSE) - _COARSE` is the multiple of 2**-21 nearest to an x below 1, and with `_FINE`
#: that of 2**-43 nearest to what is left of it.
_COARSE, _FINE = 1.5 * 2.0**31, 1.5 * 2.0**9
#: As many products of such parts add up to at most 2**53 of their units: exactly.
_LONGEST_EXACT = 2048

#: Leave as many bits of a significand; products of 27 and 26 bits are exact.
_FIRST_27_BITS = np.int64(-(1 << 26))
_FIRST_26_BITS = np.int64(-(1 << 27))
#: Between these bounds the errors of products are normal numbers too; and no number that is not
#: normal itself comes above the lower one by a factor that is not too large.
_SMALLEST, _LARGEST = 2.0**-900, 2.0**900
_LARGEST_FACTOR = 2.0**100

#: 2**27 + 1 cuts a 53-bit significand into two halves (Veltkamp).
_SPLITTER = 134217729.0


def two_sum(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """`a + b` rounded, and exactly what the rounding lost."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def product_error(a: Float64, b: Float64, product: Float64) -> Float64:
    """Exactly what rounding `a * b` to `product` lost, where nothing over- or underflows."""
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    lost: Float64 = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return lost


def sum_of_squares(rows: Float64, exponents: Int64) -> tuple[Float64, Float64]:
    """The sum of squares of each row of a `(rows, columns)` array, over the power of two.

    Args:
        rows: finite values.
        exponents: of each row, `2**exponent` being above all magnitudes in it.

    Each value is cut into three, so that the products of the first two parts add up without any
    rounding error, a few at a time; those that have one are at most 2**-43 of the power of two
    squared (Ozaki et al. 2012, Numer. Algorithms 59:95).
    """
    count, columns = rows.shape
    run = min(columns, _LONGEST_EXACT)
    together = max(1, PAIRS // run)
    half = exponents // 2
    scales = np.ldexp(1.0, -half)[:, None], np.ldexp(1.0, half - exponents)[:, None]
    high, low = np.zeros(count), np.zeros(count)
    for first in range(0, count, together):
        part = slice(first, first + together)
        for start in range(0, columns, run):
            values = rows[part, start : start + run] * scales[0][part]
            values *= scales[1][part]
            coarse = values + _COARSE
            coarse -= _COARSE
            rest = values - coarse
            fine = rest + _FINE
            fine -= _FINE
            rest -= fine
            total, error = two_sum(high[part], np.vecdot(coarse, coarse))
            high[part], another = two_sum(total, 2 * np.vecdot(coarse, fine))
            small = np.vecdot(fine, fine) + 2 * np.vecdot(rest, values)
            low[part] += error + another + small
    return high, low


def square_root(high: Float64, low: Float64) -> tuple[Float64, Float64]:
    """The square roots of non-negative pairs."""
    total, rest = two_sum(high, low)
    root = np.sqrt(total)
    product = root * root
    residue = (total - product) - product_error(root, root, product) + rest
    return two_sum(root, np.where(root > 0, residue / (2 * root), 0.0))


def quotient(a: Float64, high: Float64, low: Float64) -> tuple[Float64, Float64]:
    """`a / (high + low)`; where the quotient is not finite, it has no low part."""
    first = a / high
    product = first * high
    residue = (a - product) - product_error(first, high, product) - first * low
    return first, np.where(np.isfinite(product), residue / high, 0.0)


def times(a: Float64, high: Float64, low: Float64) -> Float64:
    """`a * (high + low)`, rounded once."""
    product = a * high
    error = product_error(a, high, product) + a * low
    # Nothing to add keeps a zero's sign, and an infinity, whose error term is NaN.
    return np.where(np.isfinite(product) & (error != 0), product + error, product)


def times_in_range(a: Float64, high: Float64, low: Float64) -> Float64 | None:
    """`a * (high + low)`, rounded once; None where a number on the way may be out of range.

    Args:
        a: of shape `(rows, columns)`, or more of them.
        high: a factor for each row, as a column, of shape `(rows, 1)`.
        low: what it lacks.

    The products of the parts that `a` and the factor are cut into are exact, or so small that
    their rounding errors are lost; unlike in `times`, only one of them is cut per element.
    """
    magnitudes = np.abs(high)
    if not (magnitudes.min() > _SMALLEST and magnitudes.max() < _LARGEST_FACTOR):
        return None
    coarse = (high.view(np.int64) & _FIRST_26_BITS).view(np.float64)
    a_coarse = (a.view(np.int64) & _FIRST_27_BITS).view(np.float64)
    a_fine = a - a_coarse
    product: Float64 = a_coarse * coarse
    a_coarse *= (high - coarse) + low
    a_fine *= high
    a_fine += a_coarse
    product += a_fine
    np.abs(product, out=a_fine)
    in_range = a_fine.min() > _SMALLEST and a_fine.max() < _LARGEST
    return product if in_range else None


def _split(a: Float64) -> tuple[Float64, Float64]:
    big = a * _SPLITTER
    high = big - (big - a)
    return high, a - high
