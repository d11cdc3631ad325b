"""The arithmetic, held to exact arithmetic on rational numbers and to PyTorch."""

from __future__ import annotations

import decimal
import math
from decimal import Decimal
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import wncli
from tests.support.strategies import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LIMITS,
    TORCH_DTYPES,
    Array,
    Dtype,
    arrays,
    beyond,
    bits,
    every_slice,
    exact,
    examples,
    from_torch,
    is_near_quotient,
    is_near_root,
    named,
    normal,
    pairs,
    product,
    small_integers,
    square_sum,
    to_torch,
    ulp_of_root,
    weights,
)
from wncli import WeightNormError, compose, decompose, magnitude
from wncli.storage.source import BLOCK

pytestmark = [pytest.mark.usefixtures("both_ways"), pytest.mark.thinned(13)]

THREE_QUARTERS = Fraction(3, 4)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=named)


def assert_is_norm(g: Array, w: Array, dim: int | None) -> None:
    """Hold every magnitude to 0.75 ulp of the exact norm of its slice."""
    assert g.dtype == w.dtype
    for found, values in zip(g.reshape(-1), every_slice(w, dim), strict=True):
        square = square_sum(values)
        ulp = ulp_of_root(square, w.dtype)
        value = exact(found) if np.isfinite(found) else beyond(w.dtype)
        assert is_near_root(value, square, THREE_QUARTERS * ulp), (found, values)


def assert_is_product(w: Array, g: Array, v: Array, dim: int | None) -> None:
    """Hold every element of w to 1 ulp of the exact g * v / ||v||."""
    slices = zip(every_slice(w, dim), g.reshape(-1), every_slice(v, dim), strict=True)
    for ws, magnitude_, vs in slices:
        square = square_sum(vs)
        for w_, v_ in zip(ws.reshape(-1), vs.reshape(-1), strict=True):
            over = exact(magnitude_) * exact(v_)
            assert is_near_quotient(w_, over, square, w.dtype), (w_, magnitude_, v_, vs)


# -- magnitude ----------------------------------------------------------------------------------


@every_dtype
@given(data=st.data())
@examples(60)
def test_magnitude_stays_within_three_quarters_of_an_ulp_or_is_refused(
    dtype: Dtype, data: st.DataObject
) -> None:
    w, dim = data.draw(weights(dtype))
    # What rounds up to infinity begins half an ulp behind the largest number.
    largest = Fraction(LIMITS[dtype].max)
    half = (beyond(dtype) - largest) / 2
    norms = [square_sum(values) for values in every_slice(w, dim)]
    if any(norm >= (largest + half * 3 / 2) ** 2 for norm in norms):
        with pytest.raises(WeightNormError, match=f"beyond what {dtype.name} can hold"):
            magnitude(w, dim)
    elif all(norm < (largest + half / 2) ** 2 for norm in norms):
        assert_is_norm(magnitude(w, dim), w, dim)


@every_dtype
@pytest.mark.parametrize("dim", [0, 1, None])
def test_magnitude_of_long_slices_stays_within_three_quarters_of_an_ulp(
    dtype: Dtype, dim: int | None
) -> None:
    w = normal((3, 4001), dtype) if dim != 1 else normal((4001, 3), dtype)
    assert_is_norm(magnitude(w, dim), w, dim)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_magnitude_takes_torchs_dims_and_gives_its_shapes(dim: int | None) -> None:
    w = normal((4, 3, 5), FLOAT64)
    expected = torch.norm_except_dim(to_torch(w), 2, -1 if dim is None else dim)
    g = magnitude(w, dim)
    assert g.shape == tuple(expected.shape)
    np.testing.assert_allclose(g, expected.numpy(), rtol=1e-15)


@every_dtype
def test_magnitude_takes_minus_one_as_the_whole_tensor(dtype: Dtype) -> None:
    w = normal((4, 3), dtype)
    assert magnitude(w, -1).shape == ()
    assert bits(magnitude(w, -1)) == bits(magnitude(w, None))


def test_magnitude_keeps_dim_zero_where_none_is_given() -> None:
    assert magnitude(np.ones((4, 3, 2))).shape == (4, 1, 1)


@every_dtype
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_magnitude_of_nothing_is_zero_as_in_torch(dtype: Dtype, shape: tuple[int, ...]) -> None:
    w = np.empty(shape, dtype)
    for dim in (*range(len(shape)), None):
        expected = torch.linalg.vector_norm(
            torch.empty(shape, dtype=TORCH_DTYPES[dtype]),
            dim=[axis for axis in range(len(shape)) if axis != dim] or (),
            keepdim=dim is not None,
        )
        if len(shape) > 1 or dim is None:
            assert magnitude(w, dim).shape == tuple(expected.shape)
        assert not magnitude(w, dim).astype(np.float64).any()


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, math.inf])
@every_dtype
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_magnitude_of_any_order_is_within_an_ulp_of_the_exact_norm(
    dtype: Dtype, p: float, dim: int | None
) -> None:
    w = normal((4, 3, 5), dtype)
    g = magnitude(w, dim, p)
    assert g.dtype == dtype
    for found, values in zip(g.reshape(-1), every_slice(w, dim), strict=True):
        assert_is_power_norm(found, values, p)


@pytest.mark.parametrize("p", [1, 3, math.inf])
@every_dtype
@pytest.mark.parametrize("end", ["tiny", "huge"])
def test_magnitude_of_any_order_does_not_overflow_on_the_way(
    dtype: Dtype, p: float, end: str
) -> None:
    scale = LIMITS[dtype].tiny if end == "tiny" else LIMITS[dtype].max / 64
    w = (small_integers((3, 4), FLOAT64) * scale).astype(dtype)
    for found, values in zip(magnitude(w, 0, p).reshape(-1), w, strict=True):
        assert_is_power_norm(found, values, p)


def assert_is_power_norm(found: Array, values: Array, p: float) -> None:
    """Hold a norm of any order to 1 ulp, with a hundred decimal digits."""
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 100, -999999, 999999
        absolute = [Decimal(abs(float(value))) for value in values.reshape(-1)]
        order = Decimal(p)
        norm = max(absolute)
        if math.isfinite(p):
            powers = sum((value**order for value in absolute if value), Decimal(0))
            norm = powers ** (1 / order)
        ulp = ulp_of_root(Fraction(norm) ** 2, values.dtype)
        assert abs(exact(found) - Fraction(norm)) <= ulp, (found, norm, values)


@pytest.mark.parametrize("p", [1, 3])
@every_dtype
def test_magnitude_of_any_order_agrees_with_torch(dtype: Dtype, p: int) -> None:
    w = small_integers((6, 4), dtype)
    expected = torch.norm_except_dim(to_torch(w).double(), p, 1)
    precision = 2.0 ** (1 - LIMITS[dtype].digits)
    np.testing.assert_allclose(magnitude(w, 1, p).astype(FLOAT64), expected, rtol=precision)


@pytest.mark.parametrize("p", [0, -1, -math.inf, math.nan])
def test_magnitude_refuses_an_order_that_is_not_above_zero(p: float) -> None:
    with pytest.raises(WeightNormError, match="is no norm"):
        magnitude(np.ones((2, 2)), 0, p)


@pytest.mark.parametrize("p", [0.5, 1, 2, 3])
@every_dtype
def test_magnitude_refuses_a_norm_beyond_the_dtype(dtype: Dtype, p: float) -> None:
    w = np.ones((3, 4), dtype)
    w[1] = LIMITS[dtype].max
    with pytest.raises(WeightNormError, match=f"slice 1 is beyond what {dtype.name} can hold"):
        magnitude(w, 0, p)


def test_magnitude_refuses_a_float16_norm_above_65504() -> None:
    assert magnitude(np.full((1, 4), 32752, FLOAT16)) == 65504
    with pytest.raises(WeightNormError, match="float16"):
        magnitude(np.full((1, 4), 32768, FLOAT16))


@every_dtype
@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_magnitude_carries_nan_and_infinity_as_torch_does(dtype: Dtype, p: float) -> None:
    w = normal((5, 4), dtype)
    w[1, 2] = math.inf
    w[2, 0] = math.nan
    w[3, 0], w[3, 1] = math.nan, -math.inf
    expected = torch.linalg.vector_norm(to_torch(w).double(), p, dim=1, keepdim=True).numpy()
    found = magnitude(w, 0, p).astype(np.float64)
    np.testing.assert_array_equal(found[1:4], expected[1:4])
    assert np.isfinite(found[[0, 4]]).all()


SIGNALING_NANS = {
    FLOAT64: 0x7FF0000000000001,
    FLOAT32: 0x7F800001,
    FLOAT16: 0x7C01,
    BFLOAT16: 0x7F81,
}


@every_dtype
def test_a_signaling_nan_is_carried_without_a_warning(dtype: Dtype) -> None:
    w = normal((3, 4), dtype)
    w.view(f"u{dtype.itemsize}")[1, 2] = SIGNALING_NANS[dtype]
    g, v = decompose(w)
    assert [math.isnan(float(x)) for x in g.reshape(-1)] == [False, True, False]
    again = [[math.isnan(float(x)) for x in row] for row in compose(g, v)]
    assert again == [[False] * 4, [True] * 4, [False] * 4]


# -- compose ------------------------------------------------------------------------------------


@every_dtype
@given(data=st.data())
@examples(60)
def test_compose_stays_within_one_ulp_of_exact_arithmetic(
    dtype: Dtype, data: st.DataObject
) -> None:
    g, v, dim = data.draw(pairs(dtype, dtype))
    assert_is_product(compose(g, v), g, v, dim)


@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"), [(a, b) for a, b in permutations(DTYPES, 2)], ids=named
)
@given(data=st.data())
@examples(15)
def test_compose_of_mixed_dtypes_stays_within_one_ulp_of_exact_arithmetic(
    g_dtype: Dtype, v_dtype: Dtype, data: st.DataObject
) -> None:
    g, v, dim = data.draw(pairs(g_dtype, v_dtype))
    assert_is_product(compose(g, v), g, v, dim)


@pytest.mark.parametrize(
    ("g_dtype", "v_dtype"), [(a, b) for a, b in permutations(DTYPES, 2)], ids=named
)
def test_compose_of_longer_mixed_slices_stays_within_one_ulp_of_exact_arithmetic(
    g_dtype: Dtype, v_dtype: Dtype
) -> None:
    v = np.tanh(normal((6, 400), FLOAT64)).astype(v_dtype)
    g = np.linspace(0.5, 3, 6).reshape(6, 1).astype(g_dtype)
    assert_is_product(compose(g, v), g, v, 0)


@pytest.mark.parametrize(("g_dtype", "v_dtype"), product(DTYPES, DTYPES), ids=named)
@pytest.mark.parametrize("dim", [0, 1, None])
def test_compose_gives_the_dtype_that_torch_gives(
    g_dtype: Dtype, v_dtype: Dtype, dim: int | None
) -> None:
    v = normal((3, 4), v_dtype)
    g = magnitude(v, dim).astype(g_dtype)
    # Torch's own kernel wants one dtype; this is what it says it computes.
    norm = torch.norm_except_dim(to_torch(v), 2, -1 if dim is None else dim)
    expected = to_torch(v) * (to_torch(g) / norm)
    assert TORCH_DTYPES[compose(g, v).dtype] == expected.dtype


@every_dtype
@pytest.mark.parametrize("dim", [0, 1, None])
def test_compose_of_long_slices_stays_within_one_ulp_of_exact_arithmetic(
    dtype: Dtype, dim: int | None
) -> None:
    v = normal((2, 2003) if dim == 0 else (2003, 2), dtype)
    g = (magnitude(v, dim).astype(FLOAT64) * 1.37).astype(dtype)
    assert_is_product(compose(g, v), g, v, dim)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_compose_agrees_with_torch(dim: int | None) -> None:
    v = normal((4, 3, 5), FLOAT64)
    g = magnitude(v, dim) * -1.7
    expected = torch._weight_norm(to_torch(v), to_torch(g), -1 if dim is None else dim)
    np.testing.assert_allclose(compose(g, v), expected.numpy(), rtol=1e-14)


def test_compose_reads_the_dim_off_the_shape_of_g() -> None:
    v = normal((3, 3), FLOAT64)
    rows, columns = compose(np.ones((3, 1)), v), compose(np.ones((1, 3)), v)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), 1)
    np.testing.assert_allclose(np.linalg.norm(compose(np.float64(1), v)), 1)


@pytest.mark.parametrize(("g_shape", "dim"), [((4,), 0), ((3,), 1), ((1,), None)])
def test_compose_takes_the_flat_g_of_older_torch(g_shape: tuple[int, ...], dim: int | None) -> None:
    v = normal((4, 3), FLOAT64)
    g = np.arange(1.0, 1 + math.prod(g_shape))
    modern = g.reshape(magnitude(v, dim).shape)
    assert bits(compose(g, v)) == bits(compose(modern, v))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@every_dtype
def test_compose_of_nothing_is_nothing(dtype: Dtype, shape: tuple[int, ...]) -> None:
    v = np.empty(shape, dtype)
    for dim in (*range(len(shape)), None):
        w = compose(np.ones_like(magnitude(v, dim)), v)
        assert (w.shape, w.dtype) == (shape, dtype)


@pytest.mark.parametrize(
    "g_shape", [(2,), (5, 1), (3, 4), (4, 1, 1), (1, 3, 1), (4, 3, 1)], ids=str
)
def test_compose_refuses_a_g_that_fits_no_dim(g_shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightNormError, match="fits no dim") as refusal:
        compose(np.ones(g_shape), np.ones((4, 3)))
    assert str(g_shape) in str(refusal.value)
    assert "(4, 3)" in str(refusal.value)


def test_compose_refuses_a_flat_g_that_fits_two_dims() -> None:
    with pytest.raises(WeightNormError, match="fits no dim"):
        compose(np.ones(4), np.ones((4, 4)))


@every_dtype
def test_compose_gives_zero_for_a_zero_direction_under_a_zero_magnitude(dtype: Dtype) -> None:
    v = normal((3, 4), dtype)
    v[1] = 0
    g = np.array([[2], [0], [2]], dtype)
    w = compose(g, v)
    assert not w[1].astype(np.float64).any()
    assert np.isfinite(w.astype(np.float64)).all()


@every_dtype
@pytest.mark.parametrize("dim", [0, 1, None])
def test_compose_refuses_a_zero_direction_under_a_magnitude_that_is_not_zero(
    dtype: Dtype, dim: int | None
) -> None:
    v = np.ones((3, 3), dtype)
    every_zero = (slice(None),) if dim is None else ((slice(None),) * dim + (2,))
    v[every_zero] = -0.0
    g = np.ones_like(magnitude(v, dim))
    with pytest.raises(WeightNormError, match=f"slice {0 if dim is None else 2} of v is all zero"):
        compose(g, v)


@every_dtype
def test_compose_carries_nan_and_infinity_as_torchs_formula_does(dtype: Dtype) -> None:
    v = small_integers((9, 4), dtype)
    v[:, 3] = 0
    g = np.arange(1, 10).reshape(9, 1).astype(dtype)
    v[1, 2] = math.inf
    v[2, 0] = -math.inf
    v[3, 1] = math.nan
    g[4] = math.inf
    g[5] = -math.inf
    g[6] = math.nan
    g[7], v[7, 0] = math.inf, -math.inf
    g[8], v[8, 0] = 0, math.inf
    expected = torch._weight_norm(to_torch(v), to_torch(g), 0).double().numpy()
    found = compose(g, v).astype(np.float64)
    np.testing.assert_array_equal(found[1:], expected[1:])
    assert np.isfinite(found[0]).all()


# -- decompose, and the way back ----------------------------------------------------------------


@every_dtype
@given(data=st.data())
@examples(60)
def test_compose_gives_back_the_bits_that_decompose_took(dtype: Dtype, data: st.DataObject) -> None:
    w, dim = data.draw(weights(dtype))
    try:
        g, v = decompose(w, dim)
    except WeightNormError:  # the norm is beyond the dtype, which another test is about
        return
    assert bits(compose(g, v)) == bits(w)


@every_dtype
@given(data=st.data())
@examples(40)
def test_decompose_gives_the_weight_as_direction_but_for_zero_slices(
    dtype: Dtype, data: st.DataObject
) -> None:
    w, dim = data.draw(weights(dtype))
    try:
        g, v = decompose(w, dim)
    except WeightNormError:
        return
    assert (v.shape, v.dtype, g.dtype) == (w.shape, w.dtype, w.dtype)
    slices = zip(every_slice(w, dim), every_slice(v, dim), g.reshape(-1), strict=True)
    for before, after, magnitude_ in slices:
        if before.astype(np.float64).any():
            assert bits(after) == bits(before)
        else:
            assert magnitude_ == 0
            assert square_sum(after) == 1


@every_dtype
@given(data=st.data())
@examples(40)
def test_torch_too_recomputes_zero_for_a_zero_slice(dtype: Dtype, data: st.DataObject) -> None:
    w = data.draw(arrays(dtype, (3, 4)))
    w = np.sign(w.astype(np.float64)).astype(dtype)  # in a range where torch does not overflow
    w[1] = 0
    g, v = decompose(w, 0)
    again = torch._weight_norm(to_torch(v), to_torch(g), 0)
    assert not again[1].any()


def test_decompose_hands_out_the_weight_itself() -> None:
    w = normal((4, 3), FLOAT32)
    assert np.shares_memory(decompose(w)[1], w)


def test_decompose_leaves_its_input_alone() -> None:
    w = np.zeros((3, 4), FLOAT32)
    w[1] = 1
    before = bits(w)
    decompose(w)
    assert bits(w) == before


@every_dtype
@pytest.mark.parametrize("length", [7, 8, 191, 192, 8193])
def test_compose_of_rows_of_any_length_stays_within_one_ulp(dtype: Dtype, length: int) -> None:
    g, v = normal((3, 1), dtype), normal((3, length), dtype)
    assert_is_product(compose(g, v), g, v, 0)


def test_numpys_settings_stay_as_the_caller_has_them() -> None:
    before = np.getbufsize(), np.geterr()
    compose(normal((3, 1), FLOAT64), normal((3, 500), FLOAT64))
    compose(normal((3, 1), FLOAT32), normal((3, 500), FLOAT32))
    assert (np.getbufsize(), np.geterr()) == before


@every_dtype
@pytest.mark.parametrize(("legs", "norm"), [((3, 4), 5), ((2, 3, 6), 7), ((1, 4, 8), 9)])
def test_a_norm_halfway_between_two_numbers_comes_back(
    dtype: Dtype, legs: tuple[int, ...], norm: int
) -> None:
    # k times the legs are numbers of the dtype; k times the norm, odd, has one bit too many.
    beyond_integers = 2 ** LIMITS[dtype].digits
    first = beyond_integers // norm + 1
    for k in range(first | 1, first + 20, 2):
        for order in permutations(legs):
            w = np.array([[float(k * leg) for leg in order]]).astype(dtype)
            assert square_sum(w) == (k * norm) ** 2
            g, v = decompose(w)
            assert_is_norm(g, w, 0)
            assert bits(compose(g, v)) == bits(w)


def test_a_magnitude_that_is_the_exact_norm_rounded_leaves_the_weight_alone() -> None:
    # 5k lies halfway between two numbers; what lifts the norm above it is lost in a float64 sum.
    first = 2**24 // 5 + 1
    for k in range(first | 1, first + 40, 2):
        v = np.array([[3 * k, 4 * k, 2.0**-5]], FLOAT32)
        g = np.array([[5 * k + 1]], FLOAT32)
        assert is_near_root(exact(g[0, 0]), square_sum(v), Fraction(1))
        assert bits(compose(g, v)) == bits(v)


def test_a_wider_magnitude_of_the_whole_tensor_turns_no_zero_into_nan() -> None:
    g, v = np.array(1e300), np.array([[1e-20, 0]], FLOAT32)
    assert_is_product(compose(g, v), g, v, None)


# -- what is taken and what is refused ----------------------------------------------------------


REFUSED = [
    np.dtype(name)
    for name in ("int8", "int64", "uint8", "bool", "complex64", "complex128", "longdouble", "O")
] + [np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)]


@pytest.mark.parametrize("dtype", REFUSED, ids=named)
def test_only_the_four_floating_dtypes_are_taken(dtype: Dtype) -> None:
    bad, good = np.ones((2, 2), dtype), np.ones((2, 2))
    with pytest.raises(WeightNormError, match=f"{dtype.name} has no weight norm"):
        magnitude(bad)
    with pytest.raises(WeightNormError, match=f"{dtype.name} has no weight norm"):
        decompose(bad)
    with pytest.raises(WeightNormError, match=f"{dtype.name} has no weight norm"):
        compose(bad[:, :1], good)
    with pytest.raises(WeightNormError, match=f"{dtype.name} has no weight norm"):
        compose(good[:, :1], bad)


def test_a_tensor_of_no_dimensions_is_refused() -> None:
    for dim in (0, None, -1):
        with pytest.raises(WeightNormError, match="0-dimensional"):
            magnitude(np.float32(3), dim)
        with pytest.raises(WeightNormError, match="0-dimensional"):
            decompose(np.float32(3), dim)
    with pytest.raises(WeightNormError):
        compose(np.float32(3), np.float32(3))


@pytest.mark.parametrize("dim", [3, 4, 100, -2, -3])
def test_a_dim_out_of_range_is_refused(dim: int) -> None:
    w = np.ones((2, 3, 4))
    for function in (magnitude, decompose):
        with pytest.raises(WeightNormError, match=f"dim {dim} is out of range") as refusal:
            function(w, dim)
        assert "0 to 2" in str(refusal.value)


@every_dtype
def test_memory_order_and_byte_order_do_not_matter(dtype: Dtype) -> None:
    w = normal((4, 3, 5), dtype)
    backwards = np.ascontiguousarray(w[::-1, :, ::-1])[::-1, :, ::-1]
    others = [np.asfortranarray(w), np.repeat(w, 2, axis=1)[:, ::2], backwards]
    if dtype != BFLOAT16:
        others.append(w.astype(w.dtype.newbyteorder()))
    for other in others:
        for dim in (0, 1, 2, None):
            g, v = decompose(other, dim)
            assert bits(g) == bits(magnitude(w, dim))
            assert bits(v) == bits(w)
            assert bits(compose(g, v)) == bits(w)


def test_lists_of_floats_are_taken_as_float64() -> None:
    assert magnitude([[3.0, 4.0]]).tolist() == [[5.0]]
    assert compose([[10.0]], [[3.0, 4.0]]).tolist() == [[6.0, 8.0]]


def test_float64_extremes_do_not_overflow_on_the_way() -> None:
    for scale in (2.0**1018, 2.0**-1074, 1.0):
        v = np.array([[3.0, 4.0]]) * scale
        assert magnitude(v).tolist() == [[5 * scale]]
        assert compose([[10.0 * scale]], v).tolist() == [[6 * scale, 8 * scale]]
        assert compose([[10.0]], v).tolist() == [[6.0, 8.0]]


def test_subnormal_directions_under_a_normal_magnitude_stay_within_one_ulp() -> None:
    """Such a factor is so large that only the direction is out of the range of normal numbers."""
    for seed in range(20):
        numbers = np.random.default_rng(seed).integers(1, 2**20, (8, 9))
        v = np.ldexp(numbers.astype(np.float64), -1074)
        g = np.full((8, 1), 1.1e-200)
        assert_is_product(compose(g, v), g, v, 0)


# -- tensors in files, block by block -----------------------------------------------------------

#: Slices longer than a block, blocks of many slices, and all between, over every dim.
LARGE = [
    pytest.param((3, 300_011), FLOAT32, id="slices longer than a block"),
    pytest.param((150_001, 2), FLOAT32, id="long and thin"),
    pytest.param((300_007,), FLOAT32, id="a vector"),
    pytest.param((7, 11, 4099), FLOAT32, id="float32"),
    pytest.param((7, 11, 2053), FLOAT64, id="float64"),
    pytest.param((7, 11, 8209), FLOAT16, id="float16"),
    pytest.param((7, 11, 8209), BFLOAT16, id="bfloat16"),
]


@pytest.mark.parametrize(("shape", "dtype"), LARGE)
def test_files_larger_than_a_block_give_the_bits_that_arrays_give(
    shape: tuple[int, ...], dtype: Dtype, tmp_path: Path
) -> None:
    # Squares of small whole numbers sum exactly: the order of the blocks cannot matter.
    assert math.prod(shape) * dtype.itemsize > BLOCK
    weight = small_integers(shape, dtype)
    plain, normalized, folded = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file({"layer.weight": to_torch(weight)}, plain)
    for dim in (*range(len(shape)), None):
        rule = f"layer.weight={'none' if dim is None else dim}"
        wncli.apply(plain, normalized, layers=[rule], force=True)
        state = load_file(normalized)
        g = magnitude(weight, dim)
        assert same(state["layer.weight_g"], g)
        assert same(state["layer.weight_v"], weight)
        wncli.remove(normalized, folded, force=True)
        assert same(load_file(folded)["layer.weight"], weight)

        trained = (g.astype(FLOAT64) * 0.7).astype(dtype)
        save_file({**state, "layer.weight_g": to_torch(trained)}, normalized)
        wncli.remove(normalized, folded, force=True)
        assert same(load_file(folded)["layer.weight"], compose(trained, weight))


@pytest.mark.parametrize("dtype", [FLOAT64, BFLOAT16], ids=named)
@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_any_memory_order_in_small_blocks_gives_the_bits_that_arrays_give(
    dtype: Dtype,
    order: tuple[int, ...],
    dim: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wncli.streaming.blocks.BLOCK", 96)
    weight = small_integers((5, 6, 7), dtype)
    weight[:, 2, :] = -0.0
    weight[3] = 0
    back = tuple(order.index(axis) for axis in range(3))
    tensor = to_torch(np.ascontiguousarray(weight.transpose(order))).permute(back)
    assert tensor.shape == (5, 6, 7)
    torch.save({"weight": tensor}, tmp_path / "a.pt")
    wncli.apply(tmp_path / "a.pt", tmp_path / "b.pt", dim=dim)
    state = torch.load(tmp_path / "b.pt", weights_only=True)
    g, v = decompose(weight, dim)
    assert same(state["weight_g"], g)
    assert same(state["weight_v"], v)
    wncli.remove(tmp_path / "b.pt", tmp_path / "c.pt")
    assert same(torch.load(tmp_path / "c.pt", weights_only=True)["weight"], weight)

    trained = (g.astype(FLOAT64) * 0.7).astype(dtype)
    torch.save({**state, "weight_g": to_torch(trained)}, tmp_path / "d.pt")
    for output in ("e.pt", "e.safetensors"):
        wncli.remove(tmp_path / "d.pt", tmp_path / output)
    expected = compose(trained, v)
    assert same(torch.load(tmp_path / "e.pt", weights_only=True)["weight"], expected)
    assert same(load_file(tmp_path / "e.safetensors")["weight"], expected)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_blocks_stay_within_one_ulp_of_exact_arithmetic(
    dtype: Dtype, dim: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wncli.streaming.blocks.BLOCK", 200)
    weight = normal((5, 6, 7), dtype)
    save_file({"weight": to_torch(weight)}, tmp_path / "a.safetensors")
    wncli.apply(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dim=dim)
    state = load_file(tmp_path / "b.safetensors")
    g = from_torch(state["weight_g"])
    assert_is_norm(g, weight, dim)
    trained = (g.astype(FLOAT64) * 1.3).astype(dtype)
    save_file({**state, "weight_g": to_torch(trained)}, tmp_path / "c.safetensors")
    wncli.remove(tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    w = from_torch(load_file(tmp_path / "d.safetensors")["weight"])
    assert_is_product(w, trained, weight, dim)


@pytest.mark.parametrize("scale", [LIMITS[FLOAT64].tiny, 2.0**1017])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_blocks_of_float64_extremes_come_back(
    dim: int | None, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wncli.streaming.blocks.BLOCK", 200)
    weight = small_integers((5, 60), FLOAT64) * scale
    weight[2] = 0  # blocks of nothing but zeros between the others
    save_file({"weight": to_torch(weight)}, tmp_path / "a.safetensors")
    wncli.apply(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dim=dim)
    assert_is_norm(from_torch(load_file(tmp_path / "b.safetensors")["weight_g"]), weight, dim)
    wncli.remove(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert same(load_file(tmp_path / "c.safetensors")["weight"], weight)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", DTYPES, ids=named)
def test_zero_slices_get_a_unit_direction_in_either_format_and_come_back(
    dtype: Dtype, suffix: str, tmp_path: Path
) -> None:
    weight = small_integers((4, 6), dtype)
    weight[1], weight[3] = 0.0, -0.0
    tensors = {"a.bias": to_torch(weight[0]), "weight": to_torch(weight), "z": to_torch(weight[:1])}
    save_file(tensors, tmp_path / "plain.safetensors")
    normalized = tmp_path / f"normalized{suffix}"
    report = wncli.apply(tmp_path / "plain.safetensors", normalized)
    assert [note.code for note in report.notes if note.is_warning] == ["zero-slices"]
    state = load_file(normalized) if suffix != ".pt" else torch.load(normalized, weights_only=True)
    g, v = decompose(weight)
    assert same(state["weight_g"], g)
    assert same(state["weight_v"], v)
    assert same(state["a.bias"], weight[0])
    again = torch._weight_norm(state["weight_v"], state["weight_g"], 0)
    assert not again[[1, 3]].any()
    wncli.remove(normalized, tmp_path / "again.safetensors")
    folded = load_file(tmp_path / "again.safetensors")
    assert {name for name in tensors if same(folded[name], from_torch(tensors[name]))} == {*tensors}


def same(tensor: torch.Tensor, array: Array) -> bool:
    """Whether a tensor has an array's dtype, shape and bits."""
    found = from_torch(tensor)
    return (found.dtype, found.shape, bits(found)) == (array.dtype, array.shape, bits(array))
