"""The compiled loops: held to exact arithmetic, and to what NumPy makes of the same files."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import wncli
import wncli.arithmetic.kernels
from tests.support.loops import (
    NAMES,
    compiled_dtypes,
    every_shape,
    numbers,
    raw,
    without_compiled_loops,
)
from tests.support.oracles import bits as bits_of
from tests.support.strategies import (
    BFLOAT16,
    DTYPES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LIMITS,
    Array,
    Dtype,
    bits,
    exact,
    from_torch,
    is_near_quotient,
    is_near_root,
    legs,
    named,
    normal,
    square_sum,
    to_torch,
    ulp_of_root,
)
from wncli.arithmetic.kernels import kernel
from wncli.storage.source import BLOCK

pytestmark = pytest.mark.thinned(5)

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=named)
compiled = pytest.mark.skipif(kernel is None, reason="no C compiler built the loops")


@pytest.mark.skipif(sys.platform != "linux", reason="there may be no C compiler")
def test_the_loops_are_built_where_they_run() -> None:
    said = "the tests run the tree: they take a C compiler, and pip install --editable"
    assert wncli.arithmetic.kernels.kernel is not None, said


def norms(v: Array) -> tuple[Array, bool]:
    """The norms of `(outer, channels, inner)`, and whether all is usual."""
    sums, g = numbers(v.shape[1]), np.empty(v.shape[1], v.dtype)
    kernel.add_squares(NAMES[v.dtype], raw(v), sums, v.shape[2])
    found = bytearray(g.nbytes)
    usual = kernel.to_magnitudes(NAMES[v.dtype], sums, found)
    return np.frombuffer(bytes(found), v.dtype), usual


def fold(g: Array, v: Array) -> tuple[Array, bool]:
    """The product, and whether all is usual: else v comes back as it was."""
    w = v.copy()
    usual = kernel.fold(NAMES[v.dtype], raw(w), raw(g), None, v.shape[2])
    return w, usual


@compiled
@compiled_dtypes
@every_shape
def test_norms_are_within_three_quarters_of_an_ulp(
    dtype: Dtype, shape: tuple[int, int, int]
) -> None:
    v = normal(shape, dtype)
    g, usual = norms(v)
    assert usual
    for channel, found in enumerate(g):
        square = square_sum(v[:, channel])
        distance = Fraction(3, 4) * ulp_of_root(square, dtype)
        assert is_near_root(exact(found), square, distance)


@compiled
@compiled_dtypes
@every_shape
def test_products_are_within_an_ulp(dtype: Dtype, shape: tuple[int, int, int]) -> None:
    v, g = normal(shape, dtype), np.abs(normal((shape[1],), dtype, seed=1))
    w, usual = fold(g, v)
    assert usual
    for channel in range(shape[1]):
        square = square_sum(v[:, channel])
        for found, value in zip(w[:, channel].flat, v[:, channel].flat, strict=True):
            assert is_near_quotient(found, exact(g[channel]) * exact(value), square, dtype)


@compiled
@compiled_dtypes
@every_shape
def test_a_weight_under_its_own_norm_comes_back(dtype: Dtype, shape: tuple[int, int, int]) -> None:
    v = normal(shape, dtype)
    v.reshape(-1)[::5] = -0.0
    v.reshape(-1)[1::7] = LIMITS[dtype].tiny
    v[0] += np.asarray(normal((shape[1], 1), dtype) / 4, dtype)
    g, _ = norms(v)
    w, usual = fold(g, v)
    assert usual
    assert bits(w) == bits(v)


@compiled
@compiled_dtypes
@every_shape
def test_sums_of_all_slices_give_the_same_products(
    dtype: Dtype, shape: tuple[int, int, int]
) -> None:
    v, g = normal(shape, dtype), np.abs(normal((shape[1],), dtype, seed=1))
    sums, w = numbers(shape[1]), v.copy()
    kernel.add_squares(NAMES[dtype], raw(v), sums, shape[2])
    assert kernel.fold(NAMES[dtype], raw(w), raw(g), sums, shape[2])
    assert bits(w) == bits(fold(g, v)[0])


@pytest.mark.parametrize("scale", [2.0**-400, 1.0, 2.0**400])
def test_float64_products_are_rounded_from_far_more_digits(scale: float) -> None:
    """Without the low parts, these would be rounded twice."""
    v = np.full((1, 1, 4), 1 + 2.0**-30) * scale
    v[0, 0, 1] = (1 + 2.0**-52) * scale
    g = np.array([(3 - 2.0**-50) * scale])
    for found, value in zip(wncli.compose(g.reshape(1, 1, 1), v).flat, v.flat, strict=True):
        assert is_near_quotient(found, exact(g[0]) * exact(value), square_sum(v), FLOAT64)


LARGE = {FLOAT32: 3e38, FLOAT16: 65504.0, BFLOAT16: 3e38}


@compiled
@compiled_dtypes
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("place", [0, 30])
def test_a_direction_that_is_no_number_is_unusual(dtype: Dtype, odd: float, place: int) -> None:
    v = normal((1, 2, 31), dtype)
    v[0, 1, place] = odd
    assert not norms(v)[1]
    w, usual = fold(np.ones(2, dtype), v)
    assert (bits(w), usual) == (bits(v), False)


@compiled
@compiled_dtypes
@pytest.mark.parametrize("odd", [np.nan, np.inf], ids=str)
def test_a_magnitude_that_is_no_number_is_unusual(dtype: Dtype, odd: float) -> None:
    assert not fold(np.array([1, odd], dtype), normal((1, 2, 5), dtype))[1]


@compiled
@compiled_dtypes
def test_a_slice_of_zeros_is_unusual_under_a_magnitude_that_is_not_zero(dtype: Dtype) -> None:
    v = normal((1, 2, 5), dtype)
    v[0, 1] = 0
    assert not norms(v)[1]
    w, usual = fold(np.ones(2, dtype), v)
    assert (bits(w), usual) == (bits(v), False)


@compiled
@compiled_dtypes
def test_a_norm_beyond_the_dtype_is_unusual(dtype: Dtype) -> None:
    assert not norms(np.full((1, 1, 9), LARGE[dtype], dtype))[1]


@pytest.mark.parametrize(
    ("g", "size"), [(1.0, 1e-200), (1e-155, 1e-155), (1e200, 1.0), (1e-290, 1e-5), (1.0, 1e160)]
)
def test_float64_products_are_within_an_ulp_where_squares_or_errors_leave_the_range(
    g: float, size: float
) -> None:
    v = normal((1, 5), FLOAT64) * size
    v[0, 3] = 5e-324
    for found, value in zip(wncli.compose(np.array([[g]]), v).flat, v.flat, strict=True):
        assert is_near_quotient(found, exact(np.float64(g)) * exact(value), square_sum(v), FLOAT64)


@compiled
@compiled_dtypes
def test_what_is_no_number_stays_none_whatever_its_bits(dtype: Dtype) -> None:
    kinds = {FLOAT32: (0x7F800000, 0x007FFFFF), FLOAT16: (0x7C00, 0x03FF), BFLOAT16: (0x7F80, 0x7F)}
    infinite, payload = kinds[dtype]
    sign = 1 << (8 * dtype.itemsize - 1)
    patterns = [
        infinite | low | high for low in (1, payload, payload // 2 + 1) for high in (0, sign)
    ]
    v = np.array(patterns, f"u{dtype.itemsize}").view(dtype).reshape(1, 1, 6)
    g = np.array([0.75], dtype)
    w, usual = fold(g, v)
    assert (bits(w), usual) == (bits(v), False)
    assert np.isnan(wncli.compose(g.reshape(1, 1, 1), v).astype(np.float64)).all()


@compiled
@compiled_dtypes
def test_numbers_of_a_block_that_turn_out_to_be_none_after_its_norms_stay_none(
    dtype: Dtype,
) -> None:
    """The file was changed in between."""
    v = np.array([[[np.nan, -np.nan, 1, np.inf, -np.inf]]], dtype)
    sums = raw(np.array([4.0, 0.0]))
    assert kernel.fold(NAMES[dtype], raw(v), raw(np.array([3], dtype)), sums, 5)
    expected = [np.nan, np.nan, 1.5, np.inf, -np.inf]
    np.testing.assert_array_equal(v.reshape(-1).astype(np.float64), expected)


@compiled
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=named)
def test_every_number_of_two_bytes_is_read_and_written_as_numpy_does(dtype: Dtype) -> None:
    """As slices of one element each, under g = 1 and g = the norm itself."""
    v = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaN
        v = v[np.isfinite(v.astype(np.float64)) & (v != 0)].reshape(1, -1, 1)
    g, usual = norms(v)
    assert usual
    assert bits(g) == bits(np.abs(v.reshape(-1)))
    w, usual = fold(g, v)
    assert (bits(w), usual) == (bits(v), True)
    w, usual = fold(np.ones(v.shape[1], dtype), v)
    assert usual
    assert bits(w) == bits(np.sign(v.astype(np.float64)).astype(dtype))


@compiled
@compiled_dtypes
def test_products_are_rounded_to_even_once(dtype: Dtype) -> None:
    """From float64, by hand: ties, what is next to them, and numbers below the normal ones."""
    limits = LIMITS[dtype]
    top = 2**limits.digits
    factor = 1 + 2.0 ** (-limits.digits + 1)
    wholes = np.arange(top // 2, min(top, top // 2 + 4096), dtype=np.float64)
    for unit in (limits.tiny, 2.0**-3):
        v = (wholes * unit).astype(dtype).reshape(1, 1, -1)
        for shift in (0, -1, -3):
            g = np.asarray(factor * 2.0**shift, dtype)
            sums = raw(np.array([1.0, 0.0]))
            w = v.copy()
            assert kernel.fold(NAMES[dtype], raw(w), raw(g), sums, v.shape[2])
            for found, value in zip(w.flat, v.flat, strict=True):
                assert exact(found) == rounded(exact(g[()]) * exact(value), dtype)


def rounded(value: Fraction, dtype: Dtype) -> Fraction:
    """The nearest number of a dtype, as a fraction; by way of float32 for bfloat16."""
    limits = LIMITS[dtype]
    if dtype == BFLOAT16:
        value = rounded(value, FLOAT32)
    unit = Fraction(limits.tiny)
    while unit * 2**limits.digits <= abs(value):
        unit *= 2
    return round(value / unit) * unit


@compiled
@pytest.mark.parametrize("inner", [0, -1, 2, 2**62, 2**63 - 1])
@pytest.mark.parametrize("size", [0, 16, 160])
def test_sizes_that_do_not_fit_are_refused(inner: int, size: int) -> None:
    v, sums = memoryview(bytearray(20)), memoryview(bytearray(size))
    if (inner, size) == (2, 16):
        sums = sums[:0]
    with pytest.raises(ValueError, match="do not fit"):
        kernel.add_squares("F32", v, sums, inner)
    g = memoryview(bytearray(size // 4))
    with pytest.raises(ValueError, match="do not fit"):
        kernel.fold("F32", v, g[:0] if (inner, size) == (2, 16) else g, None, inner)
    with pytest.raises(ValueError, match="do not fit"):
        kernel.fold("F32", v, g, sums, inner)


@compiled
def test_a_buffer_that_is_too_small_or_unknown_is_refused() -> None:
    v, sums = memoryview(bytearray(20)), memoryview(bytearray(16))
    for size in (0, 2, 12, 40):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.fold("F32", v, bytes(size), None, 5)
        with pytest.raises(ValueError, match="do not fit"):
            kernel.to_magnitudes("F32", sums, bytearray(size))
    for size in (0, 8, 32):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.fold("F32", v, bytes(4), memoryview(bytes(size)), 5)
    for name in ("I32", "F64", ""):
        with pytest.raises(ValueError, match=f"no loops for {name}"):
            kernel.add_squares(name, v, sums, 5)


# Files


def odd_layers(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Pairs of which some are usual, some are not, and some have blocks of both kinds."""
    torch.manual_seed(5)
    state: dict[str, torch.Tensor] = {}
    sizes = [("plain", (4, 5, 3), 0), ("last", (40, 6), 1), ("whole", (7, 9), None),
             ("long", (2, 300_000), 0), ("tall", (300_000, 2), 1), ("middle", (3, 70, 2000), 1),
             ("mixed", (3000, 100), 0), ("nan", (6, 4), 0), ("dead", (6, 4), 0),
             ("tiny", (5, 40), 0), ("huge", (5, 40), 0)]  # fmt: skip
    for name, shape, dim in sizes:
        v = torch.randn(shape, dtype=torch.float64)
        kept = [size if axis == dim else 1 for axis, size in enumerate(shape)]
        g = torch.rand(kept if dim is not None else (), dtype=torch.float64) + 0.5
        state[f"{name}.weight_v"] = v.to(dtype)
        state[f"{name}.weight_g"] = g.to(dtype)
    state["nan.weight_v"][2, 1] = torch.nan
    state["nan.weight_g"][4] = torch.inf
    state["mixed.weight_v"][2999, 7] = torch.inf
    state["dead.weight_v"][3] = 0
    state["dead.weight_g"][3] = 0
    info = torch.finfo(dtype)
    state["tiny.weight_v"] *= info.tiny
    state["huge.weight_v"] *= info.max / 64
    return state


@compiled
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_files_are_the_same_as_numpy_makes_them(
    dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    source = tmp_path / f"in{suffix}"
    state = odd_layers(dtype)
    torch.save(state, source) if suffix == ".pt" else save_file(state, source)
    found = []
    for way in ("compiled", "numpy"):
        folder = tmp_path / way
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            if way == "numpy":
                without_compiled_loops(patch)
            removed = wncli.remove(source, folder / f"plain{suffix}", exclude=["huge"])
            applied = wncli.apply(folder / f"plain{suffix}", folder / "again.safetensors",
                                  layers=["*"], exclude=["nan", "mixed", "huge*"])  # fmt: skip
        notes = [(note.code, note.message) for note in (*removed.notes, *applied.notes)]
        found.append((load_all(folder), notes))
    assert found[0] == found[1]
    assert {"non-finite", "zero-slices"} <= {code for code, _ in found[0][1]}


def load_all(folder: Path) -> dict[str, Any]:
    """The bits of all tensors in two files."""
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        found |= {f"{path.name} {name}": bits_of(tensor) for name, tensor in state.items()}
    return found


@compiled
@pytest.mark.parametrize("second", ["compiled", "numpy"])
@pytest.mark.parametrize("first", ["compiled", "numpy"])
@pytest.mark.parametrize("length", [9, 25, 49, 121, 200_000])
@every_dtype
def test_a_round_trip_gives_the_same_bits_whichever_way_and_order(
    dtype: Dtype, length: int, first: str, second: str, tmp_path: Path
) -> None:
    """Norms of equal elements are ties for odd squares, and all summation errors go one way."""
    few = 2 if length > 1000 else 60
    values = np.abs(normal((few, 1), dtype, seed=length)) + np.asarray(0.5, dtype)
    w = to_torch(np.broadcast_to(values, (few, length)).astype(dtype)).t()
    torch.save({"weight": w}, tmp_path / "a.pt")
    for way, command in ((first, wncli.apply), (second, wncli.remove)):
        with pytest.MonkeyPatch.context() as patch:
            if way == "numpy":
                without_compiled_loops(patch)
            if command is wncli.apply:  # in the order of memory, then in row-major order
                wncli.apply(tmp_path / "a.pt", tmp_path / "b.safetensors", dim=1)
            else:
                wncli.remove(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert bits_of(load_file(tmp_path / "c.safetensors")["weight"]) == bits_of(w.contiguous())


@pytest.mark.slow
@compiled
@pytest.mark.parametrize("first", ["compiled", "numpy"])
def test_many_sums_that_one_float64_would_lose_count(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block adds less than half a unit of the sum so far: all of them decide the rounding."""
    if first == "numpy":
        without_compiled_loops(monkeypatch)
    monkeypatch.setattr("wncli.streaming.blocks.BLOCK", 64)
    number, blocks = 2**24 - 2, 2**13
    square = ((2 * number + 1) * 4) ** 2 - 3700
    start = np.array(legs(square, 24), FLOAT64)
    rest = np.full((blocks - 1) * 16, 0.24)
    w = np.concatenate([start, np.zeros(16 - len(start)), rest]).astype(FLOAT32).reshape(-1, 1)
    save_file({"weight": to_torch(w)}, tmp_path / "a.safetensors")
    wncli.apply(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dim=1, layers=["weight"])
    g = from_torch(load_file(tmp_path / "b.safetensors")["weight_g"])
    assert square_sum(w) > ((2 * number + 1) * 4) ** 2
    assert g == np.float32((number + 1) * 8)
    for second in ("as before", "numpy"):
        if second == "numpy":
            without_compiled_loops(monkeypatch)
        wncli.remove(tmp_path / "b.safetensors", tmp_path / "c.safetensors", force=True)
        assert bits(from_torch(load_file(tmp_path / "c.safetensors")["weight"])) == bits(w)


@compiled
@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FFF8000])
def test_a_factor_that_is_no_number_makes_none_of_bfloat16(pattern: int) -> None:
    g = np.array(pattern, np.uint32).view(np.float32)
    assert np.isnan(wncli.compose(g, normal((2, 3), BFLOAT16)).astype(np.float32)).all()


@pytest.mark.slow
@compiled
@every_dtype
def test_a_slice_of_many_blocks_is_composed_exactly(dtype: Dtype, tmp_path: Path) -> None:
    length = 2 * BLOCK // dtype.itemsize + 5
    v, g = normal((2, length), dtype), np.array([[0.75], [1.5]], dtype)
    save_file({"a.weight_v": to_torch(v), "a.weight_g": to_torch(g)}, tmp_path / "in.safetensors")
    wncli.remove(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    w = load_file(tmp_path / "out.safetensors")["a.weight"]
    for channel in range(2):
        square = square_sum(v[channel])
        for place in (*range(0, length, length // 50), length - 1):
            value = np.asarray(w[channel, place].to(torch.float64).item(), dtype)[()]
            over = exact(g[channel, 0]) * exact(v[channel, place])
            assert is_near_quotient(value, over, square, dtype)
