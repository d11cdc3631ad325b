"""Sums and products of float64 whose rounding errors are kept: a value is an unevaluated pair.

The pair `high + low` carries about 106 bits ("double-double": Dekker 1971, Numer. Math. 18:224;
Knuth, The Art of Computer Programming 2, 4.2.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

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


def sum_of_squares(rows: Float64) -> tuple[Float64, Float64]:
    """The sum of squares of each row of a `(rows, columns)` array with at least one column."""
    values = rows * rows
    low = product_error(rows, rows, values).sum(axis=1)
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        summed, error = two_sum(values[:, :half], values[:, half : 2 * half])
        low = low + error.sum(axis=1)
        values = np.concatenate([summed, values[:, 2 * half :]], axis=1)
    return values[:, 0], low


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


def _split(a: Float64) -> tuple[Float64, Float64]:
    big = a * _SPLITTER
    high = big - (big - a)
    return high, a - high
