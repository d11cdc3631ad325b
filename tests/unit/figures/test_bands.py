"""What a figure shows of each layer: quartiles as NumPy's, axes, layers that meet by name."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wncli.figures.bands import Numbers, Scale, Side, aligned, band_of, groups_of, histogram
from wncli.statistics import Distribution

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


def of(*values: float) -> Distribution:
    return Distribution.of(values)


@given(st.lists(finite, min_size=1, max_size=40))
def test_the_quartiles_are_those_of_numpy(values: list[float]) -> None:
    found = band_of(of(*values)).quantiles
    assert found == pytest.approx(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), rel=1e-12)


def test_what_is_not_finite_is_counted_and_no_quartile() -> None:
    band = band_of(of(math.nan, 0.0, 2.0, math.inf, -0.0))
    assert band.quantiles == (0, 0, 0, 1, 2)
    assert (band.zeros, band.non_finite) == (2, 2)
    assert band_of(of(math.nan)).quantiles is None
    assert band_of(None) == (None, 0, 0)


def test_on_a_logarithmic_axis_zeros_only_count() -> None:
    band = band_of(of(0.0, 1.0, 3.0), is_log=True)
    assert band.quantiles == (1, 1.5, 2, 2.5, 3)
    assert band.zeros == 1


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ((0.5, 1.0, 2.0), False),
        ((0.001, 1.0), True),
        ((0.0, 0.001, 1.0), True),  # a dead slice hides no decades
        ((-0.001, 1.0, 1000.0), False),  # which no logarithm has
        ((0.0, 0.0), False),
        ((math.nan,), False),
        ((), False),
        ((7.0,), False),
        ((-1.7e308, 1.7e308), False),
        ((5e-324, 1.0), True),
    ],
)
def test_an_axis_spans_all_numbers_and_is_logarithmic_where_they_span_decades(
    values: tuple[float, ...], *, is_log: bool
) -> None:
    scale = Scale.of([of(*values)])
    assert scale.is_log == is_log
    assert math.isfinite(scale.low)
    assert scale.low < scale.high
    for value in values:
        if math.isfinite(value) and not (is_log and value == 0):
            is_far = abs(value) > 1e300 or (is_log and value < max(values) / 1e249)
            assert scale.low <= value <= scale.high or is_far
            assert 0 <= scale.share(value) <= 1


@given(st.lists(finite, min_size=1, max_size=40))
def test_a_histogram_counts_all_finite_numbers(values: list[float]) -> None:
    one = of(*values)
    scale = Scale.of([one])
    drawn = [value for value in values if value > 0] if scale.is_log else values
    assert sum(histogram(one, scale, 16)) == len(drawn)


def side(title: str, *names: str) -> Side:
    return Side(title, tuple(Numbers(name, of(len(name)), None) for name in names))


def test_layers_of_two_sides_meet_by_name_and_else_without_their_prefix() -> None:
    a, b = aligned([side("a", "x", "y"), side("b", "y", "z")])
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers] == [*"xyz"]
    assert [layer.g is not None for layer in a.layers] == [True, True, False]
    assert [layer.g is not None for layer in b.layers] == [False, True, True]
    a, b = aligned([side("a", "net.x.0", "net.y.0"), side("b", "x.0", "y.0")])
    assert [layer.name for layer in a.layers] == ["net.x.0", "net.y.0"]
    assert all(one.g and other.g for one, other in zip(a.layers, b.layers, strict=True))


def test_neighbours_are_named_as_finely_as_there_is_place() -> None:
    names = [f"net.{n}.conv.{m}" for n in range(10) for m in range(10)]
    assert [group.name for group in groups_of(names)] == [f"net.{n}" for n in range(10)]
    assert groups_of(["a", "b"]) == []
    few = ["pre", *[f"blocks.{n}" for n in range(5)], "post"]
    assert [group[1:3] for group in groups_of(few)] == [(0, 1), (1, 6), (6, 7)]
    assert [group.label for group in groups_of(few, letter=0.5)] == ["", "blocks", ""]
    assert [group.label for group in groups_of(names, letter=3)] == [*"0123456789"]
    assert groups_of(names, letter=30) == []
