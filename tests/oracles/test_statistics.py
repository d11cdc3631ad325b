"""The numbers of g, g / ||v|| and norms are those that PyTorch computes from the same tensors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

import wncli

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def pair(shape: tuple[int, ...], dim: int | None, dtype: torch.dtype) -> dict[str, Tensor]:
    v = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = torch.norm_except_dim(v, 2, -1 if dim is None else dim)
    spread = torch.linspace(0.55, 2.05, g.numel(), dtype=torch.float64).reshape(g.shape)
    return {"up.weight_g": (g * spread).to(dtype), "up.weight_v": v.to(dtype)}


def exactly(values: Tensor) -> dict[str, float | int]:
    """The count, smallest, median and largest of numbers; torch.median is the lower of two."""
    flat = values.double().flatten()
    middle = torch.quantile(flat, 0.5, interpolation="midpoint").item()
    return {
        "count": len(flat),
        "min": flat.min().item(),
        "median": middle,
        "max": flat.max().item(),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "dim"), [((6, 4, 3), 0), ((5, 4, 3), 1), ((4, 3, 7), 2), ((4, 3), None)]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_magnitudes_are_those_in_the_file(
    suffix: str, shape: tuple[int, ...], dim: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = pair(shape, dim, dtype)
    path = tmp_path / f"in{suffix}"
    (torch.save if suffix == ".pt" else save_file)(state, path)
    (found,) = wncli.inspect(path).statistics or ()
    assert found.g.to_json() == pytest.approx(exactly(state["up.weight_g"]), rel=1e-15)
    assert list(found.g.values) == state["up.weight_g"].double().flatten().tolist()
    assert (found.name, found.ratio, found.dead, found.non_finite) == ("up.weight", None, 0, 0)


def test_a_magnitude_with_gaps_in_memory_is_read_in_its_order(tmp_path: Path) -> None:
    state = pair((6, 4), 0, torch.float32)
    state["up.weight_g"] = torch.arange(12.0).reshape(6, 2)[:, 1:]
    torch.save(state, tmp_path / "in.pt")
    report = wncli.inspect(tmp_path / "in.pt")
    assert report.statistics is not None
    assert list(report.statistics[0].g.values) == [1, 3, 5, 7, 9, 11]
    assert torch.equal(torch.from_numpy(report.layers["up"].g), state["up.weight_g"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((6, 4, 3), 0), ((5, 4, 3), 1), ((4, 3), None)])
def test_ratios_are_g_over_the_norm_of_v(
    shape: tuple[int, ...], dim: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = pair(shape, dim, dtype)
    torch.save(state, tmp_path / "in.pt")
    (found,) = wncli.inspect(tmp_path / "in.pt", statistics=True).statistics or ()
    g, v = (state[f"up.weight_{half}"].double() for half in "gv")
    expected = (g / torch.norm_except_dim(v, 2, -1 if dim is None else dim)).flatten()
    assert found.ratio is not None
    assert list(found.ratio.values) == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ratios_are_exactly_one_where_weight_norm_was_only_just_applied(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.save({"up.weight": torch.randn(7, 33, 3).to(dtype)}, tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    (found,) = wncli.inspect(tmp_path / "out.pt", statistics=True).statistics or ()
    assert found.ratio is not None
    assert set(found.ratio.values) == {1.0}


def test_dead_and_non_finite_slices_are_counted(tmp_path: Path) -> None:
    state = pair((6, 4), 0, torch.float32)
    state["up.weight_g"][1] = 0
    state["up.weight_g"][2] = math.inf
    state["up.weight_v"][3, 1] = math.nan
    state["up.weight_g"][4] = math.nan
    torch.save(state, tmp_path / "in.pt")
    (seen,) = wncli.inspect(tmp_path / "in.pt").statistics or ()
    assert (seen.dead, seen.non_finite) == (1, 2)
    finite = state["up.weight_g"].flatten()[[0, 1, 3, 5]]
    assert seen.g.to_json() == pytest.approx(exactly(finite) | {"count": 6})
    (seen,) = wncli.inspect(tmp_path / "in.pt", statistics=True).statistics or ()
    assert (seen.dead, seen.non_finite) == (1, 3)


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, 7, math.inf])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_norms_are_those_of_pytorch(p: float, dim: int | None, tmp_path: Path) -> None:
    for dtype in DTYPES:
        w = torch.randn(4, 5, 3).to(dtype)
        torch.save({"w": w.transpose(0, 1)}, tmp_path / "in.pt")
        (found,) = wncli.inspect(tmp_path / "in.pt", norms=True, p=p, dim=dim).norms or ()
        rows = w.transpose(0, 1).double().reshape(1, -1)
        if dim is not None:
            rows = w.transpose(0, 1).double().movedim(dim, 0).flatten(1)
        expected = torch.linalg.vector_norm(rows, p, dim=1)
        assert list(found.norms.values) == pytest.approx(expected.tolist(), rel=1e-12)
        assert (found.p, found.dim, found.shape) == (p, dim, (5, 4, 3))


def test_norms_of_ones_are_those_of_the_textbook(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(5, 5, 5)}, tmp_path / "in.pt")
    for p, dim, expected in ((2, 0, 5.0), (3, 0, 2.9240), (2, None, 11.1803)):
        (found,) = wncli.inspect(tmp_path / "in.pt", norms=True, p=p, dim=dim).norms or ()
        assert found.norms.median == pytest.approx(expected, abs=5e-5)
        assert torch.norm_except_dim(torch.ones(5, 5, 5), p, -1 if dim is None else dim).flatten()[
            0
        ].item() == pytest.approx(expected, abs=5e-5)


def test_norms_neither_overflow_nor_vanish_on_the_way(tmp_path: Path) -> None:
    w = torch.tensor([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64)
    torch.save({"w": w}, tmp_path / "in.pt")
    (found,) = wncli.inspect(tmp_path / "in.pt", norms=True).norms or ()
    assert list(found.norms.values) == pytest.approx([5e200, 5e-200, 0.0], rel=1e-15)


def test_norms_of_what_the_rules_take(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "n": torch.ones(2).long()}
    torch.save(state, tmp_path / "in.pt")

    def names(**options: object) -> list[str]:
        report = wncli.inspect(tmp_path / "in.pt", norms=True, **options)  # type: ignore[arg-type]
        return [one.name for one in report.norms or ()]

    assert names() == ["a.weight", "a.bias"]
    assert names(layers=["a.bias"]) == ["a.bias"]
    assert names(exclude=["*bias"]) == ["a.weight"]
    assert names(dim=1) == ["a.weight"]
    with pytest.raises(wncli.WnError, match="dim"):
        names(dim=1, layers=["a.bias"])
    for p in (0, -1, math.nan):
        with pytest.raises(wncli.UsageError, match="order"):
            names(p=p)


def test_layers_are_found_by_name_and_read_when_asked_for(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(4, 2)})
    weight_norm(model["a"])
    state = model.state_dict()
    torch.save({"model": state, "ema": state}, tmp_path / "in.pt")
    report = wncli.inspect(tmp_path / "in.pt")
    layer = report.layers["model.a"]
    assert layer is report.layers["model.a.weight"] is report.layers[0]
    assert torch.equal(torch.from_numpy(layer.g), state["a.parametrizations.weight.original0"])
    assert torch.equal(torch.from_numpy(layer.v), state["a.parametrizations.weight.original1"])
    with pytest.raises(KeyError, match=r"several layers.*model\.a\.weight, ema\.a\.weight"):
        report.layers["a"]
    with pytest.raises(KeyError, match=r"no layer.*model\.a\.weight"):
        report.layers["model.b"]
    torch.save({"model": {"a.weight": torch.ones(4, 3)}}, tmp_path / "in.pt")
    with pytest.raises(wncli.FileError, match="inspect it again"):
        layer.g  # noqa: B018


def test_what_had_no_magnitude_says_where_there_is_one(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    with pytest.raises(wncli.UsageError, match="inspect the output"):
        report.layers["a"].g  # noqa: B018
    assert wncli.inspect(tmp_path / "out.pt").layers["a"].g.shape == (2, 1)


def test_tied_tensors_name_the_first(tmp_path: Path) -> None:
    w = torch.ones(3, 4, dtype=torch.float16)
    torch.save({"a": w, "b": w, "c": w.clone(), "d": w.T}, tmp_path / "in.pt")
    tensors = wncli.inspect(tmp_path / "in.pt", tensors=True).tensors or ()
    assert [(one.name, one.tied, one.nbytes) for one in tensors] == [
        ("a", "", 24), ("b", "a", 24), ("c", "", 24), ("d", "", 24),
    ]  # fmt: skip


def test_sizes_and_what_was_verified_are_in_the_report(tmp_path: Path) -> None:
    state = pair((6, 4), 0, torch.float32) | {"up.bias": torch.ones(6)}
    torch.save(state, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.safetensors", verify=True)
    assert report.checkpoint_bytes == (tmp_path / "in.pt").stat().st_size
    assert report.output_bytes == (tmp_path / "out.safetensors").stat().st_size
    assert report.verified == 2  # the weight, and the bias
    assert report.seconds > 0
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "dry.safetensors", dry_run=True)
    assert report.output_bytes == (tmp_path / "out.safetensors").stat().st_size
    assert report.verified is None
