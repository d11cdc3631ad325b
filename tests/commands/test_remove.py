"""`wncli.remove`: the plain weights that the normalized module computes with, nothing else lost."""

from __future__ import annotations

import argparse
import math
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, forward, normalize, pair_of
from tests.support.oracles import bits, load

pytestmark = [pytest.mark.usefixtures("both_ways"), pytest.mark.thinned(5)]


def remove(state: Any, folder: Path, suffix: str = ".pt", **options: Any) -> Any:  # noqa: ANN401
    """Save, remove, load."""
    torch.save(state, folder / "in.pt")
    wncli.remove(folder / "in.pt", folder / f"out{suffix}", **options)
    return load_file(folder / "out.safetensors") if suffix != ".pt" else load(folder / "out.pt")


def pair(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A g for dim 0 and a v of this shape, g not the norm of v."""
    g = torch.rand(shape[0], *(1 for _ in shape[1:])) + 0.5
    return g.to(dtype), torch.randn(shape).to(dtype)


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_what_remove_writes_loads_strictly_and_computes_the_same(
    kind: str, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    made = KINDS[kind]
    torch.manual_seed(2)
    normalized, plain, value = made.make(), made.make(), made.feed()
    normalize(normalized, made.parameter, dim, spelling)
    with torch.no_grad():
        for name, g in normalized.named_parameters():
            if name == pair_of(made.parameter, spelling)[0]:
                g.mul_(torch.rand_like(g) + 0.5)
    state = remove(normalized.state_dict(), tmp_path)
    plain.load_state_dict(state, strict=True)
    torch.testing.assert_close(forward(plain, value), forward(normalized, value))
    torch.testing.assert_close(
        getattr(plain, made.parameter), getattr(normalized, made.parameter), rtol=1e-6, atol=0
    )


# The round trip

DTYPES = {
    "float64": (np.float64, torch.float64, 1e150),
    "float32": (np.float32, torch.float32, 2.0**100),
    "float16": (np.float16, torch.float16, 512.0),
    "bfloat16": (np.float32, torch.bfloat16, 2.0**100),
}


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Weights of any rank and dtype, zeros of both signs and subnormals among them."""
    numpy_dtype, torch_dtype, largest = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    if draw(st.integers(0, 9)) == 0:
        shape = (*shape[:-1], 0)
    rows = st.sampled_from([0.0, -0.0, 1.0, largest])
    elements = arrays.from_dtype(
        np.dtype(numpy_dtype), min_value=-largest, max_value=largest, allow_nan=False
    )
    array = draw(arrays.arrays(numpy_dtype, shape, elements=elements, fill=rows))
    return torch.from_numpy(array).to(torch_dtype)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, database=None)
@given(
    weight=weights(),
    data=st.data(),
    spelling=st.sampled_from(["hook", "parametrized"]),
    formats=st.tuples(*[st.sampled_from([".pt", ".safetensors"])] * 3),
)
def test_apply_then_remove_gives_the_same_bits(
    weight: Tensor,
    data: st.DataObject,
    spelling: Spelling,
    formats: tuple[str, str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assume(weight.shape not in {(0,), (1,)})  # placeholders of parameters that are elsewhere
    dim = data.draw(st.sampled_from([*range(weight.dim()), None]), label="dim")
    plain, normalized, again = (
        folder / f"{stage}{suffix}" for stage, suffix in zip("abc", formats, strict=True)
    )
    state = {"up.weight": weight, "up.bias": torch.arange(3)}
    save_file(state, plain) if formats[0] == ".safetensors" else torch.save(state, plain)
    wncli.apply(plain, normalized, layers=["up"], dim=dim, naming=spelling, force=True)
    wncli.remove(normalized, again, force=True)
    found = load_file(again) if formats[2] == ".safetensors" else load(again)
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(value) for name, value in state.items()
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_round_trip_is_exact_on_many_trained_looking_weights(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(512, 512, 7, generator=generator).mul(0.02).to(dtype)
    torch.save({"weight": weight}, tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "normalized.pt")
    wncli.remove(tmp_path / "normalized.pt", tmp_path / "out.pt")
    assert torch.equal(load(tmp_path / "out.pt")["weight"], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_folded_weights_are_within_one_ulp_of_the_exact_ones(
    dtype: torch.dtype, dim: int | None, tmp_path: Path
) -> None:
    torch.manual_seed(4)
    whole = -1 if dim is None else dim
    v = torch.randn(6, 5, 4).to(dtype)
    g = torch.norm_except_dim(v, 2, whole).mul(1.7)
    (w,) = remove({"weight_g": g, "weight_v": v}, tmp_path).values()
    exact = torch._weight_norm(v.double(), g.double(), whole)
    spacing = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(exact.abs()))
    assert w.dtype == dtype
    assert ((w.double() - exact).abs() <= spacing).all()


# What stands beside the pairs


def trained_step() -> tuple[nn.Linear, Tensor]:
    """A hook-normalized layer after a step on g and v, and the stale weight it still holds."""
    layer = nn.Linear(4, 3)
    normalize(layer, "weight", 0, "hook")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    torch.autograd.backward(layer(torch.randn(8, 4)).square().sum())
    optimizer.step()
    return layer, layer.weight.detach().clone()


def test_a_stale_weight_is_replaced_by_what_the_forward_hook_would_compute(tmp_path: Path) -> None:
    layer, stale = trained_step()
    state = OrderedDict([("weight", stale), *layer.state_dict().items()])
    torch.save(state, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    plain = nn.Linear(4, 3)
    plain.load_state_dict(load(tmp_path / "out.pt"), strict=True)
    value = torch.randn(2, 4)
    torch.testing.assert_close(forward(plain, value), forward(layer, value))
    (note,) = [note for note in report.notes if note.code == "stale-weight"]
    assert note.is_warning
    assert "weight" in note.message


def test_a_weight_that_agrees_with_its_g_and_v_is_replaced_without_a_warning(
    tmp_path: Path,
) -> None:
    g, v = pair(3, 4)
    state = {"weight": torch._weight_norm(v, g, 0), "weight_g": g, "weight_v": v}
    torch.save(state, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert list(load(tmp_path / "out.pt")) == ["weight"]
    assert "stale-weight" not in [note.code for note in report.notes]


def test_a_stale_weight_is_noticed_in_safetensors_too(tmp_path: Path) -> None:
    g, v = pair(3, 4)
    save_file(
        {"a.weight": v, "a.weight_g": g, "a.weight_v": v.clone()}, tmp_path / "in.safetensors"
    )
    report = wncli.remove(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert "stale-weight" in [note.code for note in report.notes]
    (w,) = load_file(tmp_path / "out.safetensors").values()
    torch.testing.assert_close(w, torch._weight_norm(v, g, 0))


@pytest.mark.parametrize("g_shape", [(4,), (1,)])
def test_the_one_dimensional_g_of_older_pytorch_and_paddle_is_read(
    g_shape: tuple[int, ...], tmp_path: Path
) -> None:
    g, v = torch.rand(g_shape), torch.randn(4, 3, 2)
    (w,) = remove({"weight_g": g, "weight_v": v}, tmp_path).values()
    expected = (
        g.view(-1, 1, 1) * v / (v.norm() if g_shape == (1,) else v.norm(dim=(1, 2))[:, None, None])
    )
    torch.testing.assert_close(w, expected)


def test_a_pair_of_mixed_dtypes_gives_what_pytorch_promotes_it_to(tmp_path: Path) -> None:
    g, v = pair(3, 4)
    (w,) = remove({"weight_g": g, "weight_v": v.half()}, tmp_path).values()
    expected = g * v.half().float() / v.half().float().norm(dim=1, keepdim=True)
    assert w.dtype == torch.float32
    torch.testing.assert_close(w, expected)


def test_layers_can_be_chosen_and_left_out(tmp_path: Path) -> None:
    state = {
        f"{name}.weight_{h}": t for name in "abc" for h, t in zip("gv", pair(2, 2), strict=True)
    }
    assert list(remove(state, tmp_path, layers=["[ab]"], exclude=["b.weight"], force=True)) == [
        *("a.weight", "b.weight_g", "b.weight_v", "c.weight_g", "c.weight_v")
    ]


def test_the_weight_stands_where_its_pair_stood(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    order = list(model.state_dict())
    for layer in (model[0], model[2]):
        normalize(layer, "weight", 0, "parametrized")
    assert set(remove(model.state_dict(), tmp_path)) == set(order)
    g, v = pair(2, 2)
    state = {"first": g, "weight_g": g.clone(), "between": v, "weight_v": v.clone(), "last": v}
    assert list(remove(state, tmp_path, force=True)) == ["first", "weight", "between", "last"]


def test_nested_roots_are_folded_each_in_its_place(tmp_path: Path) -> None:
    states = [dict(zip(("up.weight_g", "up.weight_v"), pair(3, 2), strict=True)) for _ in range(3)]
    checkpoint = {
        "epoch": 7,
        "model": {"generator": states[0], "discriminator": states[1]},
        "ema": [states[2]],
    }
    written = remove(checkpoint, tmp_path)
    assert list(written) == ["epoch", "model", "ema"]
    found = [written["model"]["generator"], written["model"]["discriminator"], written["ema"][0]]
    for state, folded in zip(states, found, strict=True):
        assert list(folded) == ["up.weight"]
        expected = torch._weight_norm(state["up.weight_v"], state["up.weight_g"], 0)
        torch.testing.assert_close(folded["up.weight"], expected)


def test_only_writes_that_state_dict_alone_and_flat(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    checkpoint = {"model": {"generator": {"up.weight_g": g, "up.weight_v": v}}, "epoch": 7}
    for suffix in (".pt", ".safetensors"):
        written = remove(checkpoint, tmp_path, suffix, only="model.generator")
        assert list(written) == ["up.weight"]
        torch.testing.assert_close(written["up.weight"], torch._weight_norm(v, g, 0))


def test_entries_can_be_dropped_wherever_they_stand(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    checkpoint = {
        "model": {"generator": {"up.weight_g": g, "up.weight_v": v}, "config": {"a": 1}},
        "epoch": 7,
        "optimizer": {"state": {}, "param_groups": []},
    }
    written = remove(checkpoint, tmp_path, drop=["optimizer", "model.config"])
    assert list(written) == ["model", "epoch"]
    assert list(written["model"]) == ["generator"]


def test_a_dropped_state_dict_is_neither_folded_nor_refused(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    checkpoint = {"model": {"up.weight_g": g, "up.weight_v": v}, "broken": {"up.weight_g": g}}
    assert list(remove(checkpoint, tmp_path, drop=["broken"])) == ["model"]


def test_what_safetensors_cannot_hold_is_listed(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    torch.save({"model": {"weight_g": g, "weight_v": v}, "epoch": 7, "cfg": {}}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.safetensors")
    (note,) = [note for note in report.notes if note.code == "left-out"]
    assert "epoch" in note.message
    assert "cfg" in note.message


def test_what_only_leaves_out_of_safetensors_is_listed(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    state = {"weight_g": g, "weight_v": v}
    torch.save({"model": state, "ema": dict(state), "epoch": 7}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.safetensors", only="ema")
    (note,) = [note for note in report.notes if note.code == "left-out"]
    assert "epoch" in note.message
    assert "model" in note.message


def test_an_optimizer_beside_folded_parameters_is_kept_with_a_warning(tmp_path: Path) -> None:
    layer, _ = trained_step()
    optimizer = torch.optim.Adam(layer.parameters()).state_dict()
    torch.save({"model": layer.state_dict(), "optim_g": optimizer}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    (warning,) = [note for note in report.notes if note.code == "optimizer"]
    assert "drop=['optim_g']" in warning.message
    assert load(tmp_path / "out.pt")["optim_g"] == optimizer


# What survives from torch to torch


def test_metadata_of_the_state_dict_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    normalize(model[0], "weight", 0, "hook")
    state = model.state_dict()
    written = remove(state, tmp_path)
    assert isinstance(written, OrderedDict)
    assert written._metadata == state._metadata  # type: ignore[attr-defined]


def test_one_state_dict_under_two_names_stays_one(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    state = {"weight_g": g, "weight_v": v}
    written = remove({"model": state, "best": state}, tmp_path)
    assert written["model"] is written["best"]
    assert list(written["best"]) == ["weight"]


def test_tied_pairs_become_one_tied_weight_counted_once(tmp_path: Path) -> None:
    g, v = pair(4, 3)
    state = {f"{name}.weight_{half}": t for name in "ab" for half, t in (("g", g), ("v", v))}
    torch.save(state, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert (report.parameters.before, report.parameters.after) == (16, 12)
    written = load(tmp_path / "out.pt")
    assert written["a.weight"].data_ptr() == written["b.weight"].data_ptr()


def test_other_ties_and_strides_stay(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    table = torch.randn(4, 6)
    state = {"weight_g": g, "weight_v": v, "a": table, "b": table, "part": table.t()[1:3]}
    written = remove(state, tmp_path)
    assert written["a"].data_ptr() == written["b"].data_ptr()
    assert written["part"].untyped_storage().data_ptr() == written["a"].untyped_storage().data_ptr()
    assert written["part"].stride() == state["part"].stride()
    assert bits(written["part"]) == bits(state["part"])


def test_a_direction_with_other_strides_folds_to_the_same_numbers(tmp_path: Path) -> None:
    g = torch.rand(4, 1, 1)
    for v in (torch.randn(2, 3, 4).permute(2, 0, 1), torch.randn(4, 9, 5)[:, ::2, 1:4]):
        for suffix in (".pt", ".safetensors"):
            state = {"weight_g": g, "weight_v": v}
            (w,) = remove(state, tmp_path, suffix, force=True).values()
            torch.testing.assert_close(w, torch._weight_norm(v.contiguous(), g, 0))


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_stay_parameters(frozen: bool, tmp_path: Path) -> None:  # noqa: FBT001
    g, v = (nn.Parameter(half, requires_grad=not frozen) for half in pair(3, 2))
    written = remove({"weight_g": g, "weight_v": v, "bias": nn.Parameter(g.clone())}, tmp_path)
    assert isinstance(written["weight"], nn.Parameter)
    assert written["weight"].requires_grad is not frozen
    assert written["bias"].requires_grad


def test_tensors_that_require_grad_go_on_requiring_it(tmp_path: Path) -> None:
    g, v = (half.requires_grad_() for half in pair(3, 2))
    written = remove({"weight_g": g, "weight_v": v}, tmp_path)
    assert written["weight"].requires_grad


def test_tensors_of_any_other_dtype_are_copied_untouched(tmp_path: Path) -> None:
    g, v = pair(3, 2)
    state: dict[str, Tensor] = {"weight_g": g, "weight_v": v}
    raw = torch.arange(64, dtype=torch.uint8)
    for dtype in (
        *(torch.int8, torch.int64, torch.uint16, torch.uint64, torch.complex64, torch.complex128),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16),
    ):
        state[str(dtype)] = raw.clone().view(dtype)
    state["bool"] = torch.tensor([True, False])
    state["scalar"] = torch.tensor(3)
    state["empty"] = torch.empty(0, 4)
    written = remove(state, tmp_path)
    for name in set(state) - {"weight_g", "weight_v"}:
        assert bits(written[name]) == bits(state[name])


def namespace_module() -> ModuleType:
    """A module with a class in it that nobody else has."""
    module = ModuleType("training_code_that_is_gone")
    source = "class Config:\n    def __init__(self):\n        self.rate = 48000\n"
    exec(source, module.__dict__)  # noqa: S102 - the class must belong to that module
    return module


def test_whatever_else_is_in_the_tree_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = namespace_module()
    monkeypatch.setitem(sys.modules, module.__name__, module)
    layer, _ = trained_step()
    config = module.Config()
    config.parent = config
    shared = [1, 2]
    checkpoint = {
        "model": layer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.99), nested=argparse.Namespace(a=None)),
        "config": config,
        "numpy": [np.float32(1.5), np.float64(math.pi), np.int64(-3), np.arange(6).reshape(2, 3)],
        "counts": defaultdict(int, a=3),
        "numbers": [True, None, -1, 2**80, 1e300, float("inf"), 3 + 4j, b"\x00\xff", "ü\n"],
        "set": {1, 2, 3},
        "path": Path("a/b"),
        "shared": [shared, shared],
        "step": torch.tensor(12.0),
        5: "a number for a key",
    }
    torch.save(checkpoint, tmp_path / "in.pt")
    monkeypatch.delitem(sys.modules, module.__name__)
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert "training_code_that_is_gone.Config" in report.unsafe
    monkeypatch.setitem(sys.modules, module.__name__, module)
    written = load(tmp_path / "out.pt", weights_only=False)
    assert list(written) == list(checkpoint)
    assert set(written["model"]) == {"bias", "weight"}
    for key in ("args", "counts", "numbers", "set", "path", "shared", "step", 5):
        assert written[key] == checkpoint[key]
        assert type(written[key]) is type(checkpoint[key])
    assert type(written["counts"].default_factory) is type
    assert written["config"].rate == 48000
    assert written["config"].parent is written["config"]
    assert written["shared"][0] is written["shared"][1]
    for found, value in zip(written["numpy"], checkpoint["numpy"], strict=True):
        assert type(found) is type(value)
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_survive_in_every_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    g, v = pair(3, 2)
    others = {
        "args": argparse.Namespace(a=1, b=[b"x", {"y"}, frozenset({2}), bytearray(b"z")]),
        "array": np.arange(4.0),
        "text": "long " * 100,
    }
    checkpoint = {"model": {"weight_g": g, "weight_v": v}, **others}
    torch.save(checkpoint, tmp_path / "in.pt", pickle_protocol=protocol)
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    written = load(tmp_path / "out.pt", weights_only=False)
    assert written["args"] == others["args"]
    assert written["text"] == others["text"]
    np.testing.assert_array_equal(written["array"], others["array"])


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    g, v = pair(3, 2)
    torch.save({"model": {"weight_g": g, "weight_v": v}, "bomb": Bomb()}, tmp_path / "in.pt")
    wncli.inspect(tmp_path / "in.pt")
    with pytest.raises(wncli.FormatError, match="more than it takes to make tensors"):
        wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt", drop=["bomb"])
    assert not (tmp_path / "exploded").exists()
    assert load(tmp_path / "out.pt").keys() == {"model"}
    load(tmp_path / "in.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()


# Undefined and odd numbers


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_a_zero_direction_under_a_zero_magnitude_is_zero(
    spelling: Spelling, tmp_path: Path
) -> None:
    g, v = pair(3, 2)
    g[1], v[1] = 0, 0
    state = dict(zip(pair_of("weight", spelling), (g, v), strict=True))
    (w,) = remove(state, tmp_path).values()
    assert torch.equal(w[1], torch.zeros(2))
    torch.testing.assert_close(w[::2], torch._weight_norm(v[::2].clone(), g[::2].clone(), 0))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("rows", [9, 300_000])
def test_a_zero_direction_under_another_magnitude_is_refused_naming_layer_and_slice(
    rows: int, suffix: str, tmp_path: Path
) -> None:
    g, v = pair(rows, 2)
    v[rows - 2] = 0
    torch.save({"ups.0.weight_g": g, "ups.0.weight_v": v}, tmp_path / "in.pt")
    with pytest.raises(wncli.WeightNormError) as refusal:
        wncli.remove(tmp_path / "in.pt", tmp_path / f"out{suffix}")
    assert "ups.0.weight" in str(refusal.value)
    assert f"slice {rows - 2} " in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("half", ["g", "v"])
def test_nan_and_inf_are_carried_as_the_formula_carries_them_and_reported(
    half: str, odd: float, tmp_path: Path
) -> None:
    g, v = pair(4, 3)
    (g if half == "g" else v)[2, 0] = odd
    torch.save({"conv.weight_g": g, "conv.weight_v": v}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    expected = g * (v / v.norm(dim=1, keepdim=True))
    torch.testing.assert_close(load(tmp_path / "out.pt")["conv.weight"], expected, equal_nan=True)
    (note,) = [note for note in report.notes if note.code == "non-finite"]
    assert "conv.weight" in note.message
    assert "slice 2 " in note.message


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e25, 1e37])
def test_huge_and_tiny_directions_do_not_overflow_on_the_way(scale: float, tmp_path: Path) -> None:
    g, v = pair(3, 4)
    v = v.double().mul(scale).float()
    (w,) = remove({"weight_g": g, "weight_v": v}, tmp_path).values()
    exact = torch._weight_norm(v.double(), g.double(), 0)
    torch.testing.assert_close(w.double(), exact, rtol=2**-23, atol=0)


def test_removing_from_plain_weights_finds_nothing_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "in.pt")
    with pytest.raises(wncli.NothingToDo) as outcome:
        wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert outcome.value.report.layers == ()
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_spectral_norms_are_left_alone(tmp_path: Path) -> None:
    with_hook = torch.nn.utils.spectral_norm(nn.Linear(3, 2)).state_dict()
    parametrized = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)).state_dict()
    g, v = pair(3, 2)
    state = {f"a.{name}": value for name, value in with_hook.items()}
    state |= {f"b.{name}": value for name, value in parametrized.items()}
    written = remove(state | {"c.weight_g": g, "c.weight_v": v}, tmp_path)
    assert list(written) == [*state, "c.weight"]
    assert all(bits(written[name]) == bits(state[name]) for name in state)


def test_dropping_an_entry_takes_the_state_dicts_below_it(tmp_path: Path) -> None:
    state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3)}
    whole = {"model": {"generator": state, "discriminator": {"b.weight": torch.ones(2, 2)}}}
    torch.save(whole | {"other": dict(state)}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt", drop=["model"])
    assert [layer.root for layer in report.layers] == ["other"]
    assert list(torch.load(tmp_path / "out.pt")) == ["other"]


def test_dropping_the_only_item_of_a_mapping_leaves_it_empty(tmp_path: Path) -> None:
    state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3)}
    torch.save({"model": state, "rest": {"b.weight": torch.ones(2, 2)}}, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt", drop=["rest.b.weight"])
    assert torch.load(tmp_path / "out.pt")["rest"] == {}


def test_an_optimizer_that_safetensors_leaves_out_is_not_said_to_be_kept(tmp_path: Path) -> None:
    state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.ones(2, 3)}
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 1)}}, "param_groups": [{"params": [0]}]}
    torch.save({"model": state, "optimizer": optimizer}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert [note.code for note in report.notes] == ["left-out"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_several_roots_are_folded_into_one_flat_state_dict(suffix: str, tmp_path: Path) -> None:
    model = nn.ModuleDict({"decoder": nn.Conv1d(3, 4, 2), "bert": nn.Linear(5, 2)})
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in model.values():
        normalize(layer, "weight", 0, "hook")
    roots = {
        name: {f"module.{key}": value for key, value in layer.state_dict().items()}
        for name, layer in model.items()
    }
    torch.save({"net": roots, "epoch": 3}, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / f"out{suffix}", flatten=True)
    made = (load_file if suffix == ".safetensors" else load)(tmp_path / f"out{suffix}")
    assert made.keys() == {f"net.{name}" for name in expected}
    for name, value in expected.items():
        torch.testing.assert_close(made[f"net.{name}"], value, rtol=2**-22, atol=0)
