"""`wncli.apply`: what it writes is what PyTorch's own weight norm would have saved."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, forward, normalize, pair_of
from tests.support.oracles import bits, load

pytestmark = [pytest.mark.usefixtures("both_ways"), pytest.mark.thinned(11)]

#: The spelling that is written, and the weight norm of the module that is to load it.
ROUTES: list[tuple[Spelling, Spelling]] = [
    ("hook", "hook"),
    ("hook", "parametrized"),
    ("parametrized", "parametrized"),
]


def apply(state: Any, folder: Path, suffix: str = ".pt", **options: Any) -> Any:  # noqa: ANN401
    """Save, apply, load."""
    torch.save(state, folder / "in.pt")
    wncli.apply(folder / "in.pt", folder / f"out{suffix}", **options)
    return load_file(folder / "out.safetensors") if suffix != ".pt" else load(folder / "out.pt")


@pytest.mark.parametrize("route", ROUTES, ids="-into-".join)
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_what_apply_writes_loads_strictly_and_computes_the_same(
    kind: str, dim: int | None, route: tuple[Spelling, Spelling], tmp_path: Path
) -> None:
    written, loading = route
    made = KINDS[kind]
    torch.manual_seed(1)
    plain, value = made.make(), made.feed()
    rule = f"{made.parameter}={'none' if dim is None else dim}"
    state = apply(plain.state_dict(), tmp_path, layers=[rule], naming=written)
    target = made.make()
    normalize(target, made.parameter, dim, loading)
    target.load_state_dict(state, strict=True)
    torch.testing.assert_close(forward(target, value), forward(plain, value))
    torch.testing.assert_close(
        getattr(target, made.parameter), getattr(plain, made.parameter), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_names_shapes_and_order_are_those_that_pytorch_saves(
    kind: str, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    made = KINDS[kind]
    plain = made.make()
    rule = f"{made.parameter}={'none' if dim is None else dim}"
    state = apply(plain.state_dict(), tmp_path, layers=[rule], naming=spelling)
    reference = made.make()
    normalize(reference, made.parameter, dim, spelling)
    expected = reference.state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }
    g, v = pair_of(made.parameter, spelling)
    assert bits(state[v]) == bits(getattr(plain, made.parameter))
    exact = torch.norm_except_dim(state[v].double(), 2, -1 if dim is None else dim)
    torch.testing.assert_close(state[g].double(), exact, rtol=2**-23, atol=0)


def test_g_and_v_stand_where_the_weight_stood(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    state = apply(model.state_dict(), tmp_path)
    assert list(state) == [
        *("0.weight_g", "0.weight_v", "0.bias"),
        *("1.weight_g", "1.weight_v", "1.bias"),
    ]


def test_without_rules_every_floating_weight_of_two_dimensions_is_taken_and_said(
    tmp_path: Path,
) -> None:
    state = {
        "conv.weight": torch.randn(2, 3, 4),
        "norm.weight": torch.randn(3),
        "table.weight": torch.ones(2, 2, dtype=torch.int64),
        "waves.weight": torch.ones(2, 2, dtype=torch.complex64),
        "half.weight": torch.randn(2, 2).half(),
        "done.weight_g": torch.ones(2, 1),
        "done.weight_v": torch.randn(2, 3),
        "lstm.weight_hh_l0": torch.randn(4, 4),
    }
    torch.save(state, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    assert [layer.module for layer in report.layers] == ["conv", "half"]
    assert "default-selection" in [note.code for note in report.notes]
    written = load(tmp_path / "out.pt")
    for name, value in state.items():
        if name not in ("conv.weight", "half.weight"):
            assert bits(written[name]) == bits(value)


def test_the_first_rule_that_matches_sets_the_dim(tmp_path: Path) -> None:
    state = {f"{name}.weight": torch.randn(2, 3, 4) for name in ("a", "b", "c", "d")}
    written = apply(state, tmp_path, layers=["a=2", "b=none", "[abc]=1", "*"], dim=0)
    shapes = [tuple(written[f"{name}.weight_g"].shape) for name in "abcd"]
    assert shapes == [(1, 1, 4), (), (1, 3, 1), (2, 1, 1)]


def test_minus_one_is_the_whole_tensor_as_in_pytorch(tmp_path: Path) -> None:
    written = apply({"weight": torch.ones(5, 5, 5)}, tmp_path, dim=-1)
    assert written["weight_g"].shape == ()
    assert math.isclose(written["weight_g"].item(), math.sqrt(125), rel_tol=1e-7)


def test_excluded_layers_stay_as_they_are(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(2, 2), "b.weight": torch.randn(2, 2)}
    assert set(apply(state, tmp_path, exclude=["b"])) == {"a.weight_g", "a.weight_v", "b.weight"}


def test_biases_can_be_named_and_load_into_pytorchs_modules(tmp_path: Path) -> None:
    plain, target = nn.Linear(3, 4), nn.Linear(3, 4)
    state = apply(plain.state_dict(), tmp_path, layers=["bias"])
    normalize(target, "bias", 0, "hook")
    target.load_state_dict(state, strict=True)
    value = torch.randn(2, 3)
    torch.testing.assert_close(forward(target, value), forward(plain, value))


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_auto_naming_takes_the_spelling_that_is_there(spelling: Spelling, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    normalize(model[0], "weight", 0, spelling)
    written = apply(model.state_dict(), tmp_path)
    normalize(model[1], "weight", 0, spelling)
    assert set(written) == set(model.state_dict())


def test_metadata_of_the_state_dict_is_kept(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    written = apply(state, tmp_path)
    assert isinstance(written, OrderedDict)
    assert written._metadata == state._metadata  # type: ignore[attr-defined]
    assert written._metadata["1"]["version"] == 2  # type: ignore[attr-defined]


def test_tied_weights_stay_tied_and_count_once(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    torch.save({"encoder.weight": weight, "decoder.weight": weight}, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    assert (report.parameters.before, report.parameters.after) == (12, 16)
    written = load(tmp_path / "out.pt")
    for half in "gv":
        tied = [written[f"{name}.weight_{half}"] for name in ("encoder", "decoder")]
        assert tied[0].data_ptr() == tied[1].data_ptr()
    assert bits(written["encoder.weight_v"]) == bits(weight)


def test_a_weight_that_is_a_view_of_another_tensor_is_split_on_its_own(tmp_path: Path) -> None:
    whole = torch.randn(6, 4)
    whole[3] = 0
    state = {"weight": whole[2:5, 1:], "buffer": whole}
    written = apply(state, tmp_path)
    assert bits(written["buffer"]) == bits(whole)
    recomputed = torch._weight_norm(written["weight_v"], written["weight_g"], 0)
    torch.testing.assert_close(recomputed, whole[2:5, 1:], rtol=1e-6, atol=0)
    assert not recomputed[1].any()


def test_transposed_weights_in_memory_are_split_like_others(tmp_path: Path) -> None:
    weight = torch.randn(5, 3, 2).permute(2, 0, 1)
    written = apply({"weight": weight}, tmp_path, dim=1)
    assert bits(written["weight_v"]) == bits(weight)
    exact = torch.norm_except_dim(weight.double().contiguous(), 2, 1)
    torch.testing.assert_close(written["weight_g"].double(), exact, rtol=2**-23, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_parameters_stay_parameters(frozen: bool, tmp_path: Path) -> None:  # noqa: FBT001
    state = {"weight": nn.Parameter(torch.randn(3, 2), requires_grad=not frozen)}
    written = apply(state, tmp_path)
    assert all(isinstance(value, nn.Parameter) for value in written.values())
    assert all(value.requires_grad is not frozen for value in written.values())


def test_tensors_that_require_grad_go_on_requiring_it(tmp_path: Path) -> None:
    written = apply({"weight": torch.randn(3, 2).requires_grad_()}, tmp_path)
    assert [value.requires_grad for value in written.values()] == [True, True]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_pytorch_recomputes_exactly_zero_from_all_zero_slices(
    spelling: Spelling, dim: int | None, suffix: str, tmp_path: Path
) -> None:
    weight = torch.randn(4, 3, 2)
    if dim is None:
        weight.zero_()
    else:
        weight.select(dim, 1).zero_()
    state = apply({"weight": weight}, tmp_path, suffix, dim=dim, naming=spelling)
    g, v = (state[name] for name in pair_of("weight", spelling))
    recomputed = torch._weight_norm(v, g, -1 if dim is None else dim)
    assert torch.equal(recomputed == 0, weight == 0)
    torch.testing.assert_close(recomputed, weight, rtol=1e-6, atol=0)
    assert v.reshape(-1).isfinite().all()


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_modules_with_all_zero_rows_compute_zero_for_them(
    spelling: Spelling, tmp_path: Path
) -> None:
    plain, target = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        plain.weight[1] = 0
    state = apply(plain.state_dict(), tmp_path, naming=spelling)
    normalize(target, "weight", 0, spelling)
    target.load_state_dict(state, strict=True)
    output = forward(target, torch.randn(5, 4))
    assert torch.equal(output[:, 1], torch.zeros(5))


def test_the_report_names_the_all_zero_slices(tmp_path: Path) -> None:
    weight = torch.randn(9, 4)
    weight[[2, 7]] = 0
    torch.save({"up.weight": weight}, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    (note,) = [note for note in report.notes if note.code == "zero-slices"]
    assert "up.weight" in note.message
    assert "2, 7" in note.message


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_are_carried_as_the_formula_carries_them_and_reported(
    odd: float, tmp_path: Path
) -> None:
    weight = torch.randn(3, 4)
    weight[1, 2] = odd
    torch.save({"conv.weight": weight}, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    state = load(tmp_path / "out.pt")
    assert bits(state["conv.weight_v"]) == bits(weight)
    expected = torch.norm_except_dim(weight, 2, 0)
    torch.testing.assert_close(state["conv.weight_g"], expected, equal_nan=True)
    (note,) = [note for note in report.notes if note.code == "non-finite"]
    assert "conv.weight" in note.message
    assert "slice 1 " in note.message


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30, 1e37])
def test_huge_and_tiny_weights_do_not_overflow_on_the_way(scale: float, tmp_path: Path) -> None:
    weight = torch.randn(3, 4, dtype=torch.float64).mul(scale).float()
    written = apply({"weight": weight}, tmp_path)
    exact = torch.norm_except_dim(weight.double(), 2, 0).float()
    torch.testing.assert_close(written["weight_g"], exact, rtol=2**-23, atol=2**-149)


def test_only_writes_that_state_dict_alone_and_flat(tmp_path: Path) -> None:
    state = {"ema": {"weight": torch.ones(2, 2)}, "model": {"weight": torch.zeros(2, 2)}, "step": 7}
    written = apply(state, tmp_path, only="ema")
    assert list(written) == ["weight_g", "weight_v"]
    assert bits(written["weight_v"]) == bits(torch.ones(2, 2))


def test_several_state_dicts_are_all_normalized(tmp_path: Path) -> None:
    state = {
        "model": {"generator": {"a.weight": torch.randn(2, 2)}, "disc": {"b.weight": torch.eye(2)}},
        "step": 7,
    }
    written = apply(state, tmp_path)
    assert written["step"] == 7
    assert list(written["model"]) == ["generator", "disc"]
    assert list(written["model"]["generator"]) == ["a.weight_g", "a.weight_v"]
    assert list(written["model"]["disc"]) == ["b.weight_g", "b.weight_v"]


def test_an_optimizer_beside_changed_parameters_is_kept_with_a_warning_or_dropped(
    tmp_path: Path,
) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    torch.autograd.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    (warning,) = [note for note in report.notes if note.code == "optimizer"]
    assert "drop=['optim']" in warning.message
    kept = load(tmp_path / "out.pt")["optim"]
    torch.testing.assert_close(kept, optimizer.state_dict(), rtol=0, atol=0)
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "less.pt", drop=["optim"])
    assert "optimizer" not in [note.code for note in report.notes]
    assert list(load(tmp_path / "less.pt")) == ["model"]


def test_safetensors_metadata_is_kept(tmp_path: Path) -> None:
    from safetensors import safe_open

    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"weight": torch.ones(2, 2)}, source, {"format": "pt", "author": "me"})
    wncli.apply(source, target)
    with safe_open(target, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "author": "me"}
        assert set(opened.keys()) == {"weight_g", "weight_v"}


def test_a_dry_run_reports_the_same_and_writes_nothing(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "in.pt")
    planned = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]
    done = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    assert planned.dry_run
    assert (planned.layers, planned.parameters) == (done.layers, done.parameters)


def test_applying_again_finds_nothing_to_do(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "once.pt")
    with pytest.raises(wncli.NothingToDo):
        wncli.apply(tmp_path / "once.pt", tmp_path / "twice.pt")
    assert not (tmp_path / "twice.pt").exists()


def test_progress_adds_up_to_the_bytes_of_the_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.randn(600, 700), "bias": torch.randn(600)}, tmp_path / "in.pt")
    seen: list[tuple[int, int]] = []
    wncli.apply(
        tmp_path / "in.pt",
        tmp_path / "out.pt",
        progress=lambda count, total: seen.append((count, total)),
    )
    size = (tmp_path / "out.pt").stat().st_size
    assert {total for _, total in seen} == {size}
    assert 600 * 700 * 4 <= sum(count for count, _ in seen) <= size


@pytest.mark.parametrize("legacy", [False, True])
def test_the_input_may_be_of_either_torch_format(legacy: bool, tmp_path: Path) -> None:  # noqa: FBT001
    state: dict[str, Tensor] = nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "in", _use_new_zipfile_serialization=not legacy)
    wncli.apply(tmp_path / "in", tmp_path / "out")
    written = load(tmp_path / "out")
    assert bits(written["weight_v"]) == bits(state["weight"])
    assert bits(written["bias"]) == bits(state["bias"])
