"""Norms at and next to halfway between two numbers, made of whole numbers so that all is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import wncli
from tests.support.run import Ran
from tests.support.strategies import (
    BFLOAT16,
    DTYPES,
    FLOAT32,
    FLOAT64,
    LIMITS,
    Array,
    Dtype,
    arrays,
    bits,
    exact,
    examples,
    from_torch,
    is_near_quotient,
    legs,
    named,
    power_of_two,
    square_sum,
    to_torch,
)
from wncli.arithmetic.double_double import exact_sums_of_squares

pytestmark = [pytest.mark.usefixtures("both_ways"), pytest.mark.thinned(11)]

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=named)


class NearTies(NamedTuple):
    """Slices whose norms lie near halfway from `below` to `above`, and what they are rounded to."""

    v: Array
    below: Array
    above: Array
    rounded: Array

    def g(self, which: Array, dim: int | None) -> Array:
        """Such magnitudes in the shape that `dim` wants."""
        return which.reshape(-1, 1) if dim == 0 else which.reshape(1, -1)


def near_ties(dtype: Dtype, scale: str, side: int) -> NearTies:
    """Slices as rows: `side` is 0 for a tie, else the sign of what their norms differ from it by.

    At normal numbers the difference is some 2**-(2 * digits + 10), relatively, or less.
    """
    limits = LIMITS[dtype]
    digits, finer = limits.digits, 0 if scale == "subnormal" else 6
    first = 2 ** (digits - 1)
    numbers = [first, first + 1, first + first // 3, first + first // 3 + 1, 2 * first - 2]
    exponent = -digits
    if scale == "subnormal":
        numbers = [1, 2, 3, 5, first // 3, first // 3 + 1, first - 2]
    elif scale == "huge":
        exponent = limits.high - digits
    if scale in {"subnormal", "tiny"}:
        exponent = limits.low - digits + 1 + finer
    squares = []
    for number in numbers:
        tie = (2 * number + 1) ** 2 * 4**finer  # in fours
        squares.append((tie + side + 2 * (side > 0)) // 4 if finer == 0 else tie // 4 + side)
    rows = [legs(square, digits) for square in squares]
    width = max(map(len, rows)) + 1
    v = np.zeros((len(rows), width))
    for row, whole in zip(v, rows, strict=True):
        row[1 : len(whole) + 1] = [math.ldexp(leg, exponent - finer) for leg in whole]
    for number, row in zip(numbers, v, strict=True):
        halfway = (Fraction(2 * number + 1) / 2 * power_of_two(exponent)) ** 2
        apart = square_sum(row) - halfway
        assert (apart > 0) - (apart < 0) == side
    up = [side > 0 or (side == 0 and number % 2 == 1) for number in numbers]
    lower = np.array([math.ldexp(number, exponent) for number in numbers])
    upper = np.array([math.ldexp(number + 1, exponent) for number in numbers])
    found = NearTies(v.astype(dtype), lower.astype(dtype), upper.astype(dtype),
                     np.where(up, upper, lower).astype(dtype))  # fmt: skip
    assert bits(found.v.astype(FLOAT64)) == bits(v)
    return found


kinds = pytest.mark.parametrize(
    ("scale", "side"),
    [(scale, side) for scale in ("one", "tiny", "huge") for side in (-1, 0, 1)]
    + [("subnormal", -1), ("subnormal", 1)],
)


def assert_products(w: Array, g: Array, v: Array) -> None:
    """Hold rows to 1 ulp of the exact product."""
    for row, magnitude, direction in zip(w, g, v, strict=True):
        square = square_sum(direction)
        for found, value in zip(row, direction, strict=True):
            over = exact(magnitude) * exact(value)
            assert is_near_quotient(found, over, square, v.dtype), (found, magnitude, direction)


@every_dtype
@kinds
@pytest.mark.parametrize("dim", [0, 1])
def test_a_norm_near_halfway_is_rounded_once(dtype: Dtype, scale: str, side: int, dim: int) -> None:
    ties = near_ties(dtype, scale, side)
    v = ties.v if dim == 0 else np.ascontiguousarray(ties.v.T)
    assert bits(wncli.magnitude(v, dim)) == bits(ties.rounded)
    for values, expected in zip(ties.v, ties.rounded, strict=True):
        assert wncli.magnitude(values, None) == expected


@every_dtype
@kinds
@pytest.mark.parametrize("dim", [0, 1])
def test_products_under_either_number_beside_a_norm_are_within_an_ulp(
    dtype: Dtype, scale: str, side: int, dim: int
) -> None:
    ties = near_ties(dtype, scale, side)
    v = ties.v if dim == 0 else np.ascontiguousarray(ties.v.T)
    for g in (ties.below, ties.above):
        w = wncli.compose(ties.g(g, dim), v)
        w = w if dim == 0 else w.T
        assert_products(w, g, ties.v)
        same = g == ties.rounded
        assert bits(w[same]) == bits(ties.v[same])


@every_dtype
@kinds
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("block", [32, 1 << 20])
def test_files_near_halfway_come_back_and_are_within_an_ulp(  # noqa: PLR0913, PLR0917
    dtype: Dtype,
    scale: str,
    side: int,
    dim: int,
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks smaller than a slice, and blocks of all."""
    monkeypatch.setattr("wncli.streaming.blocks.BLOCK", block)
    ties = near_ties(dtype, scale, side)
    v = ties.v if dim == 0 else np.ascontiguousarray(ties.v.T)
    plain, normalized, folded = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"weight": to_torch(v)}, plain)
    wncli.apply(plain, normalized, dim=dim, layers=["weight"])
    assert bits(from_torch(load_file(normalized)["weight_g"])) == bits(ties.rounded)
    wncli.remove(normalized, folded)
    assert bits(from_torch(load_file(folded)["weight"])) == bits(v)
    for g in (ties.below, ties.above):
        pair = {"weight_g": to_torch(ties.g(g, dim)), "weight_v": to_torch(v)}
        save_file(pair, normalized)
        wncli.remove(normalized, folded, force=True)
        w = from_torch(load_file(folded)["weight"])
        assert_products(w if dim == 0 else w.T, g, ties.v)


@pytest.mark.parametrize("side", [-1, 0, 1])
def test_the_commands_round_once_and_give_the_same_bits(
    side: int, wn_here: Callable[..., Ran], tmp_path: Path
) -> None:
    every = {dtype.name: near_ties(dtype, "one", side) for dtype in DTYPES}
    plain, normalized, folded = (tmp_path / f"{name}.safetensors" for name in "abc")
    weights = {f"{name}.weight": to_torch(ties.v) for name, ties in every.items()}
    save_file(weights, plain)
    assert wn_here("apply", plain, normalized).code == 0
    assert wn_here("remove", normalized, folded).code == 0
    state = load_file(normalized)
    for name, ties in every.items():
        assert bits(from_torch(state[f"{name}.weight_g"])) == bits(ties.rounded)
        assert bits(from_torch(load_file(folded)[f"{name}.weight"])) == bits(ties.v)


@every_dtype
@pytest.mark.parametrize("side", [-1, 0, 1])
def test_a_norm_halfway_to_infinity_is_held_or_refused(dtype: Dtype, side: int) -> None:
    limits = LIMITS[dtype]
    square = (2 ** (limits.digits + 1) - 1) ** 2 * 4**5 + side
    values = [
        math.ldexp(leg, limits.high - limits.digits - 6) for leg in legs(square, limits.digits)
    ]
    w = np.array([values]).astype(dtype)
    if side < 0:
        assert wncli.magnitude(w) == np.asarray(limits.max, dtype)
        assert bits(wncli.compose(*wncli.decompose(w))) == bits(w)
    else:
        with pytest.raises(wncli.WeightNormError, match="slice 0 is beyond what"):
            wncli.magnitude(w)


def test_bfloat16_is_not_rounded_twice() -> None:
    """By way of float32 these would be ties."""
    for number, far in ((129, 2.0**-17), (130, -(2.0**-17))):
        halfway = (number + 0.5) / 128
        rest = math.sqrt(abs((halfway * (1 + far / 512)) ** 2 - 1))
        w = [1.0]
        for _ in range(6):
            w.append(float(np.asarray(rest, BFLOAT16)))
            while w[-1] > rest:
                w[-1] = float(np.nextafter(np.asarray(w[-1], BFLOAT16), BFLOAT16.type(0)))
            rest = math.sqrt(max(rest**2 - w[-1] ** 2, 0))
        v = np.array([w]).astype(BFLOAT16)
        g = exact(wncli.magnitude(v)[0, 0])
        assert (g - Fraction(1, 256)) ** 2 <= square_sum(v) <= (g + Fraction(1, 256)) ** 2


@given(values=arrays(FLOAT64, (2, 3)) | arrays(FLOAT32, (2, 3)))
@examples(200)
def test_exact_sums_are_exact(values: Array) -> None:
    found = exact_sums_of_squares(values.astype(FLOAT64))
    assert [Fraction(total, 2**2148) for total in found] == [square_sum(row) for row in values]


@given(columns=st.integers(2, 2048))
@examples(5)
def test_exact_sums_of_long_rows_are_exact(columns: int) -> None:
    largest = np.full((1, columns), 1 - 2.0**-53)
    assert Fraction(exact_sums_of_squares(largest)[0], 2**2148) == square_sum(largest)
