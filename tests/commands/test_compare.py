"""`wn compare`: how far apart effective weights are, held to exact arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, normalize
from tests.support.run import Ran

pytestmark = pytest.mark.thinned(5)

RunHere = Callable[..., Ran]
Tensors = dict[str, Tensor]

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
F8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
            torch.int64, torch.uint64]  # fmt: skip
BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def compare(a: Any, b: Any, folder: Path, **options: Any) -> wncli.Comparison:  # noqa: ANN401
    """Save both and compare them."""
    torch.save(a, folder / "a.pt")
    torch.save(b, folder / "b.pt")
    return wncli.compare(folder / "a.pt", folder / "b.pt", **options)


def one(a: Tensor, b: Tensor, folder: Path, **options: Any) -> wncli.TensorDifference:  # noqa: ANN401
    """The difference between two tensors, each alone in its checkpoint but for a filler."""
    filler = {"filler": torch.ones(1)}
    found = compare({"t": a} | filler, {"t": b} | filler, folder, **options)
    assert (found.only_in_a, found.only_in_b, found.misshapen) == ((), (), ())
    return next(tensor for tensor in found.tensors if tensor.name == "t")


def steps(tensor: Tensor, count: int) -> Tensor:
    """The numbers so many places further from zero, by their bits."""
    return (tensor.view(BITS[tensor.element_size()]) + count).view(tensor.dtype)


def exact(tensor: Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.double().reshape(-1).tolist()]


def unit(value: Fraction, dtype: torch.dtype) -> Fraction:
    """The unit of the last place at a number: its binade's spacing, by `ml_dtypes.finfo`."""
    info = ml_dtypes.finfo(str(dtype).removeprefix("torch."))  # type: ignore[no-untyped-call]
    size = max(abs(value), Fraction(float(info.smallest_normal)))
    exponent = math.frexp(float(size))[1] - 1
    return Fraction(2) ** exponent * Fraction(float(info.eps))


# The figures


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS + F8, ids=str)
def test_units_of_the_last_place_are_counted(
    dtype: torch.dtype, count: int, tmp_path: Path
) -> None:
    a = torch.tensor([1.0, 1.25, -4.0, 0.5]).to(dtype)
    b = a.clone()
    b[1] = steps(a, count)[1] if dtype not in F8 or count < 2 else b[1]
    b[2] = steps(a, min(count, 3))[2]
    found = one(a, b, tmp_path)
    pairs = list(zip(exact(a), exact(b), strict=True))
    apart = [abs(x - y) for x, y in pairs]
    larger = [max(abs(x), abs(y)) for x, y in pairs]
    assert found.max_absolute == max(apart)
    assert found.max_relative == max(
        float(d) / abs(float(y)) for d, (_, y) in zip(apart, pairs, strict=True)
    )
    assert found.max_ulps == max(d / unit(m, dtype) for d, m in zip(apart, larger, strict=True))
    assert found.max_ulps == min(count, 3) or dtype in F8
    assert found.within is (found.max_ulps <= 2)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data(), dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)))
def test_the_figures_are_those_of_exact_arithmetic_between_any_dtypes(
    data: st.DataObject,
    dtypes: tuple[torch.dtype, torch.dtype],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    numbers = st.floats(width=16, allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(numbers, min_size=1, max_size=5))
    others = [data.draw(st.sampled_from([x, x * 1.01, -x, 0.0])) for x in values]
    a, b = torch.tensor(values).to(dtypes[0]), torch.tensor(others).to(dtypes[1])
    if not (a.isfinite().all() and b.isfinite().all()):
        return
    found = one(a, b, tmp_path_factory.getbasetemp())
    coarser = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    pairs = [(abs(x - y), max(abs(x), abs(y))) for x, y in zip(exact(a), exact(b), strict=True)]
    assert math.isclose(found.max_absolute, max(d for d, _ in pairs), rel_tol=1e-15)
    shares = [
        0.0 if x == y else float(abs(x - y) / abs(y)) if y else math.inf
        for x, y in zip(exact(a), exact(b), strict=True)
    ]
    assert math.isclose(found.max_relative, max(shares), rel_tol=1e-14)
    ulps = max(d / unit(m, coarser) for d, m in pairs)
    assert math.isclose(found.max_ulps, ulps, rel_tol=1e-15)
    assert found.within is (ulps <= 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_unit_is_what_numpy_calls_the_spacing(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny = torch.finfo(dtype).tiny
    a = torch.tensor([tiny, tiny / 4, 3.0, torch.finfo(dtype).max, 0.0], dtype=dtype)
    for index in range(len(a)):
        b = a.clone()
        b[index] = torch.nextafter(a[index], torch.tensor(0.0 if a[index] else 1.0, dtype=dtype))
        larger = max(a[index], b[index]).numpy()
        found = one(a, b, tmp_path)
        assert found.max_absolute == abs(float(a[index]) - float(b[index]))
        if larger < torch.finfo(dtype).max:  # NumPy has no spacing there
            assert found.max_ulps == found.max_absolute / float(np.spacing(larger))
        assert found.max_ulps == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
def test_a_difference_in_the_last_element_of_many_blocks_is_found(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    a = torch.randint(1, 100, (3, (3 << 20) // dtype.itemsize // 3 + 7)).to(dtype)
    b = a.clone()
    b[-1, -1] = steps(b, 3)[-1, -1]
    found = one(a, b, tmp_path)
    assert found.max_absolute == abs(float(a[-1, -1].double() - b[-1, -1].double()))
    assert found.max_ulps == 3
    assert not found.within
    assert one(a[:, -99:].t(), b[:, -99:].t().contiguous(), tmp_path).max_ulps == 3


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("options", [{}, {"rtol": 1e-3}, {"atol": 1e3, "rtol": 1.0}], ids=str)
@pytest.mark.parametrize(
    ("x", "y"), list(itertools.product([NAN, INF, -INF, 1.0, 0.0, -0.0], repeat=2)), ids=str
)
def test_nan_and_inf_are_equal_to_themselves_alone(
    x: float, y: float, options: dict[str, float], tmp_path: Path
) -> None:
    a, b = torch.tensor([2.0, x]), torch.tensor([2.0, y])
    found = one(a, b, tmp_path, **options)
    if math.isfinite(x) and math.isfinite(y):
        assert found.max_absolute == abs(x - y)
    else:
        same = torch.equal(a.nan_to_num(nan=5), b.nan_to_num(nan=5))
        figures = (found.max_absolute, found.max_relative, found.max_ulps)
        expected = 0.0 if same else NAN if NAN in {x, y} else INF
        assert figures == pytest.approx((expected,) * 3, nan_ok=True)
    allowed = {"rtol": 3e-7, "atol": 0.0} | options if options else {"rtol": 3e-7, "atol": 0.0}
    assert found.within is torch.allclose(a, b, equal_nan=True, **allowed)


@pytest.mark.parametrize(("rtol", "atol"), [(None, 1e-3), (0.5, None), (1e-3, 1e-3), (0.0, None)])
@pytest.mark.parametrize("x", [1.0, 1.0009, 1.0011, 1.0019, 1.0021, 2.0, -1.0])
def test_tolerances_are_those_of_torch_allclose(
    x: float, rtol: float | None, atol: float | None, tmp_path: Path
) -> None:
    a, b = torch.tensor([x], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    found = one(a, b, tmp_path, rtol=rtol, atol=atol)
    assert found.within is torch.allclose(a, b, rtol=rtol or 0.0, atol=atol or 0.0)


# Every dtype


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=str)
def test_whole_numbers_are_equal_or_not(dtype: torch.dtype, tmp_path: Path) -> None:
    a = torch.tensor([1, 0, 1]).to(dtype)
    b = torch.tensor([1, 1, 1]).to(dtype)
    found = one(a, b, tmp_path)
    assert (found.max_absolute, found.max_ulps, found.within) == (1, 1, False)
    assert one(a, a.clone(), tmp_path).within
    assert one(a, b, tmp_path, atol=1).within


@pytest.mark.parametrize("options", [{}, {"atol": 0.0}, {"rtol": 0.0}], ids=str)
def test_whole_numbers_beyond_float64_are_not_taken_for_equal(
    options: dict[str, float], tmp_path: Path
) -> None:
    a = torch.tensor([2**62 + 1])
    assert not one(a, torch.tensor([2**62]), tmp_path, **options).within
    assert one(a, a.clone(), tmp_path, **options).within


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers_are_compared_part_by_part(dtype: torch.dtype, tmp_path: Path) -> None:
    a = torch.tensor([1 + 2j, -3j], dtype=dtype)
    b = a.clone()
    torch.view_as_real(b)[1, 1] = steps(torch.view_as_real(a), 3)[1, 1]
    found = one(a, b, tmp_path)
    assert found.max_ulps == 3
    assert found.max_absolute == float((a - b).abs().max())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.complex64, torch.float32), (torch.complex64, torch.complex128),
        (torch.bfloat16, torch.float32), (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.float64), (torch.bool, torch.int64), (torch.uint8, torch.float16),
        (torch.int64, torch.float32), (torch.uint64, torch.int8),
    ],
)  # fmt: skip
def test_one_number_in_two_dtypes_is_equal(a: torch.dtype, b: torch.dtype, tmp_path: Path) -> None:
    value = torch.tensor([0.0, 1.0, 1.0] * 400)
    found = one(value.to(a), value.to(b), tmp_path)
    assert (found.max_absolute, found.within) == (0, True)
    other = one(value.to(a), (1 - value).to(b), tmp_path)
    assert (other.max_absolute, other.within) == (1, False)


def test_views_ties_and_empty_tensors_are_compared_by_their_elements(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    a = {"t": base.t(), "s": base[::2, 1:4], "tie": base, "e": base.expand(3, 4, 6)[:, 0],
         "none": torch.empty(0, 3), "scalar": torch.tensor(1.0)}  # fmt: skip
    b = {name: value.clone().contiguous() for name, value in a.items()}
    assert compare(a, b, tmp_path).equal
    b["s"][1, 2] += 1
    found = compare(a, b, tmp_path)
    assert [tensor.name for tensor in found.tensors if not tensor.within] == ["s"]


# Effective weights


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_pairs_equal_the_weights_that_pytorch_makes_of_them(
    kind: str, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    module, name = KINDS[kind].make().double(), KINDS[kind].parameter
    normalize(module, name, dim, spelling)
    plain = {key: value for key, value in module.state_dict().items() if name not in key} | {
        name: getattr(module, name).detach()
    }
    found = compare(module.state_dict(), plain, tmp_path)
    assert found.equal
    assert {tensor.name for tensor in found.tensors} == set(plain)
    plain[name].view(-1)[-1] *= 1 + 1e-9
    assert not compare(plain, module.state_dict(), tmp_path).equal


def test_a_large_pair_along_a_late_dim_is_held_against_the_folded_weight(tmp_path: Path) -> None:
    v, g = torch.randn(64, 48, 331), torch.rand(1, 1, 331) + 0.5
    w = torch._weight_norm(v.double(), g.double(), 2).float()
    g0 = w.double().square().sum((1, 2), keepdim=True).sqrt().float()
    pairs = {"up.weight_g": g, "up.weight_v": v}
    along0 = {"up.parametrizations.weight.original0": g0, "up.parametrizations.weight.original1": w}
    for other in ({"up.weight": w}, along0):
        found = compare(pairs, other, tmp_path)
        assert found.equal
        assert found.tensors[0].max_ulps <= 1
    w[-1, -1, -1] = steps(w, 8)[-1, -1, -1]
    assert compare(pairs, {"up.weight": w}, tmp_path).tensors[0].max_ulps >= 7


def test_roots_prefixes_and_formats_do_not_matter(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    for other in (
        {"model": {"generator": state}, "epoch": 1},
        {f"module.{name}": value for name, value in state.items()},
        {"state_dict": {f"net.{name}": value for name, value in state.items()}},
    ):
        torch.save(other, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
        assert wncli.compare(tmp_path / "a.safetensors", tmp_path / "b.pt").equal
        assert wncli.compare(tmp_path / "b.pt", tmp_path / "a.safetensors").equal


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_a_checkpoint_equals_itself(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state: Tensors = {}
    dtypes = [*FLOATS, *F8, *INTEGERS, torch.complex64]
    for index in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from(dtypes))
        shape = data.draw(st.lists(st.integers(0, 3), max_size=3))
        assume(shape not in ([0], [1]))  # placeholders of weights that are elsewhere
        raw = data.draw(st.binary(min_size=0, max_size=64)) or b"\0"
        count = dtype.itemsize * math.prod(shape)
        flat = torch.tensor(list((raw * count)[:count]), dtype=torch.uint8)
        state[f"{index}.weight"] = flat.view(dtype).reshape(shape) if count else torch.empty(shape)
    found = compare(state | {"b": torch.ones(1)}, state | {"b": torch.ones(1)},
                    tmp_path_factory.getbasetemp())  # fmt: skip
    assert found.equal
    assert not any(tensor.max_absolute for tensor in found.tensors)


# The command

KEYS = ("schema", "command", "checkpoint", "output", "parameters", "layers", "notes", "tensors",
        "only_in_a", "only_in_b", "misshapen", "equal")  # fmt: skip


def no_constant(text: str) -> Any:  # noqa: ANN401
    pytest.fail(f"{text} is no JSON")


def run(
    wn_here: RunHere, folder: Path, a: Tensors, b: Tensors, *options: str
) -> tuple[Ran, dict[str, Any]]:
    torch.save(a, folder / "a.pt")
    torch.save(b, folder / "b.pt")
    ran = wn_here("compare", folder / "a.pt", folder / "b.pt", *options, "--json")
    return ran, json.loads(ran.stdout, parse_constant=no_constant)


def test_json_lists_everything_from_the_worst(wn_here: RunHere, tmp_path: Path) -> None:
    a = {"x": torch.ones(3), "y": torch.ones(2), "z": torch.ones(2, 2), "mine": torch.ones(1)}
    b = {"x": torch.ones(3), "y": torch.ones(2) * 2, "z": torch.ones(4), "yours": torch.ones(1)}
    ran, found = run(wn_here, tmp_path, a, b)
    assert ran.code == 1
    assert set(KEYS) <= set(found)
    assert (found["schema"], found["command"], found["output"]) == ("wn/1", "compare", None)
    assert [(t["name"], t["within"]) for t in found["tensors"]] == [("y", False), ("x", True)]
    assert (found["only_in_a"], found["only_in_b"], found["equal"]) == (["mine"], ["yours"], False)
    assert found["misshapen"] == ["z [2, 2] and [4]"]
    assert found["parameters"] == {"before": 10, "after": 10, "change": 0}


@pytest.mark.parametrize("options", [(), ("--atol", "1e300"), ("--rtol", "1")])
def test_json_has_no_infinities(options: tuple[str, ...], wn_here: RunHere, tmp_path: Path) -> None:
    odd = {"x": torch.tensor([INF, 1.0]), "y": torch.tensor([NAN]), "z": torch.tensor([-INF])}
    ran, found = run(wn_here, tmp_path, odd, {name: torch.ones_like(t) for name, t in odd.items()},
                     *options)  # fmt: skip
    assert ran.code == 1
    assert [tensor["max_ulps"] for tensor in found["tensors"]] == [None] * 3
    assert [tensor["max_absolute"] for tensor in found["tensors"]] == [None] * 3


def test_the_exit_code_tells_and_quiet_prints_nothing(wn_here: RunHere, tmp_path: Path) -> None:
    near = {"x": steps(torch.ones(2), 2), "y": torch.ones(1)}
    for b, options, code in (
        (near, (), 0), (near, ("--rtol", "0"), 1), (near, ("--atol", "1e-6"), 0),
        (near, ("-x", "x", "--rtol", "0"), 0), (near, ("-l", "x", "--rtol", "0"), 1),
        (near | {"z": torch.ones(1)}, (), 1), (near | {"z": torch.ones(1)}, ("-x", "z"), 0),
        (near, ("-l", "nothing"), 2), (near, ("--rtol", "nan"), 2), (near, ("--only", "ema"), 2),
    ):  # fmt: skip
        torch.save({"x": torch.ones(2), "y": torch.ones(1)}, tmp_path / "a.pt")
        torch.save(b, tmp_path / "b.pt")
        ran = wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt", *options, "-q")
        assert (ran.code, ran.stdout, bool(ran.stderr)) == (code, "", code == 2)


def test_only_chooses_the_state_dict_and_several_are_refused(
    wn_here: RunHere, tmp_path: Path
) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "b.pt")
    both = tmp_path / "a.pt", tmp_path / "b.pt"
    assert "--only model or --only ema" in wn_here("compare", *both).stderr
    assert wn_here("compare", *both, "--only", "ema").code == 0
    assert wn_here("compare", *reversed(both), "--only", "ema").code == 0
    assert wn_here("compare", *both, "--only", "model").code == 1


def test_the_table_shows_what_differs_and_who_has_what(wn_here: RunHere, tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2), "y": torch.ones(1), "mine": torch.ones(1)}, tmp_path / "a.pt")
    torch.save({"x": torch.ones(2) * 2, "y": torch.ones(1)}, tmp_path / "b.pt")
    lines = wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt").stdout.splitlines()
    assert lines[0].startswith("different  1 of 2 tensors · 1 without a counterpart · ")
    (row,) = (line.split() for line in lines if line.startswith(" x "))
    assert row[1:] == ["100.0", "%", "█" * 10, "1.00", "0.50", "4,194,304"]
    assert any(line.startswith(" identical  1 tensor") for line in lines)
    assert any(line.startswith(" only in A  1 tensor") and line.endswith("mine") for line in lines)


def test_a_direction_that_is_undefined_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    pair = {"up.weight_g": torch.ones(2, 1), "up.weight_v": torch.tensor([[1.0, 2], [0, 0]])}
    torch.save(pair, tmp_path / "a.pt")
    ran = wn_here("compare", tmp_path / "a.pt", tmp_path / "a.pt")
    assert ran.code == 2
    assert "up.weight" in ran.stderr


def test_a_rule_for_a_tensor_of_one_side_finds_a_difference(
    wn_here: RunHere, tmp_path: Path
) -> None:
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"x": torch.ones(2)}, a)
    torch.save({"x": torch.ones(2), "y": torch.ones(1)}, b)
    assert wn_here("compare", a, b, "-l", "y").code == 1
    assert wn_here("compare", a, b, "-l", "x").code == 0
    refused = wn_here("compare", a, b, "-x", "*")
    assert refused.code == 2
    assert "nothing to compare" in refused.stderr


def test_roots_can_be_named_on_both_sides(wn_here: RunHere, tmp_path: Path) -> None:
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"model": {"x": torch.ones(2)}, "ema": {"x": torch.zeros(2)}}, a)
    torch.save({"gen": {"x": torch.ones(2)}, "avg": {"x": torch.zeros(2)}}, b)
    refused = wn_here("compare", a, b, "--only", "model")
    assert refused.code == 2
    assert "--only model=gen or --only model=avg" in refused.stderr
    assert wn_here("compare", a, b, "--only", "model=gen").code == 0
    assert wn_here("compare", a, b, "--only", "model=avg").code == 1


def test_names_of_many_dots_take_no_memory(tmp_path: Path) -> None:
    a, b = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({f"{'.' * 50_000}{n}": torch.ones(1) for n in range(8)}, a)
    torch.save({f"{'.' * 50_000}{n}": torch.ones(1) for n in range(8, 16)}, b)
    tracemalloc.start()
    assert not wncli.compare(a, b).equal
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6
