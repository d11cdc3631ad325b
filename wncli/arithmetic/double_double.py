"""Sums and products of float64 whose rounding errors are kept: a value is an unevaluated pair.

The pair `high + low` carries about 106 bits ("double-double": Dekker 1971, Numer. Math. 18:224;
Knuth, The Art of Computer Programming 2, 4.2.2).
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

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
LONGEST_EXACT = 2048
_DIGIT_BITS = 21

#: Of the smallest number above 0.
SMALLEST_EXPONENT = -1074

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
    """Return `a + b` rounded, and exactly what the rounding lost."""
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
    """Return the sum of squares of each row of a `(rows, columns)` array, over the power of two.

    Args:
        rows: finite values.
        exponents: of each row, `2**exponent` being above all magnitudes in it.

    Each value is cut into three, so that the products of the first two parts add up without any
    rounding error, a few at a time; those that have one are at most 2**-43 of the power of two
    squared (Ozaki et al. 2012, Numer. Algorithms 59:95).
    """
    count, columns = rows.shape
    run = min(columns, LONGEST_EXACT)
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
            total, first_error = two_sum(high[part], np.vecdot(coarse, coarse))
            total, second_error = two_sum(total, 2 * np.vecdot(coarse, fine))
            high[part], third_error = two_sum(total, np.vecdot(fine, fine))
            small = 2 * np.vecdot(rest, values)
            low[part] += first_error + second_error + third_error + small
    return high, low


def exact_sums_of_squares(rows: Float64) -> list[int]:
    """Return the sums of squares of the rows of a `(rows, columns)` array, in units of 2**-2148.

    Args:
        rows: finite values, in at most `LONGEST_EXACT` columns.

    Each value is cut into whole numbers of 21 bits, as many as it takes, so that no sum of products
    of them has more than 53.
    """
    rest = np.abs(rows)
    digits: list[tuple[int, Float64]] = []
    while largest := float(rest.max(initial=0)):
        unit = max(math.frexp(largest)[1] - _DIGIT_BITS, SMALLEST_EXPONENT)
        digit = np.floor(np.ldexp(rest, -unit))
        rest -= np.ldexp(digit, unit)
        digits.append((unit - SMALLEST_EXPONENT, digit))
    sums = [0] * len(rows)
    for (place, digit), (other_place, other) in combinations_with_replacement(digits, 2):
        shift = place + other_place + (digit is not other)
        products = map(int, np.vecdot(digit, other).tolist())
        sums = [total + (found << shift) for total, found in zip(sums, products, strict=True)]
    return sums


def rounded_root(square: int, digits: int, lowest: int) -> float:
    """Return the square root of what is in units of 2**-2148, rounded once, a tie to even.

    Args:
        square: such a sum of squares.
        digits: bits of a significand.
        lowest: exponent of the smallest normal number.
    """
    place = (square.bit_length() - 1) // 2 + SMALLEST_EXPONENT
    unit = max(place, lowest) - digits + 1
    shift = 2 * (unit - SMALLEST_EXPONENT)
    halves = math.isqrt(4 * square >> shift)
    is_tie = halves**2 << shift == 4 * square
    number, is_odd = divmod(halves, 2)
    number += is_odd and not (is_tie and number % 2 == 0)
    return float(np.ldexp(float(number), unit))


def square_root(high: Float64, low: Float64) -> tuple[Float64, Float64]:
    """Return the square roots of non-negative pairs."""
    total, rest = two_sum(high, low)
    root = np.sqrt(total)
    product = root * root
    residue = (total - product) - product_error(root, root, product) + rest
    return two_sum(root, np.where(root > 0, residue / (2 * root), 0.0))


def quotient(a: Float64, high: Float64, low: Float64) -> tuple[Float64, Float64]:
    """Return `a / (high + low)`; where the quotient is not finite, it has no low part."""
    first = a / high
    product = first * high
    residue = (a - product) - product_error(first, high, product) - first * low
    return first, np.where(np.isfinite(product), residue / high, 0.0)


def times(a: Float64, high: Float64, low: Float64) -> Float64:
    """Return `a * (high + low)`, rounded once."""
    product = a * high
    error = product_error(a, high, product) + a * low
    # Nothing to add keeps a zero's sign, and an infinity, whose error term is NaN.
    return np.where(np.isfinite(product) & (error != 0), product + error, product)


def times_in_range(a: Float64, high: Float64, low: Float64) -> Float64 | None:
    """Return `a * (high + low)`, rounded once; None where a number may go out of range.

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
