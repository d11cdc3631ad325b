"""`wn compare`: what has changed most, what of it is g and what is v, and what would be equal."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wncli
from tests.support.layers import Spelling
from tests.support.run import Ran, on_a_terminal, run_wn

pytestmark = pytest.mark.thinned(5)

RunHere = Callable[..., Ran]
NAN, INF = math.nan, math.inf
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
          torch.complex64, torch.int32, torch.uint8]  # fmt: skip


def compare(a: Any, b: Any, folder: Path, **options: Any) -> wncli.Comparison:  # noqa: ANN401
    torch.save(a, folder / "a.pt")
    torch.save(b, folder / "b.pt")
    return wncli.compare(folder / "a.pt", folder / "b.pt", **options)


def one(a: Tensor, b: Tensor, folder: Path, **options: Any) -> wncli.TensorDifference:  # noqa: ANN401
    found = compare({"t": a, "filler": torch.ones(1)}, {"t": b, "filler": torch.ones(1)}, folder,
                    **options)  # fmt: skip
    return next(tensor for tensor in found.tensors if tensor.name == "t")


def normalized(v: Tensor, g: Tensor, spelling: Spelling = "hook") -> dict[str, Tensor]:
    if spelling == "hook":
        return {"up.weight_g": g, "up.weight_v": v}
    base = "up.parametrizations.weight.original"
    return {f"{base}0": g, f"{base}1": v}


def norms(w: Tensor, dim: int | None) -> Tensor:
    return torch.norm_except_dim(w, 2, -1 if dim is None else dim)


def slices(w: Tensor, dim: int | None) -> Tensor:
    return w.reshape(1, -1) if dim is None else w.movedim(dim, 0).flatten(1)


# The change


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_change_is_the_norm_of_the_difference_over_that_of_a(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    a = (torch.rand(7, 5, 11) * 90).to(dtype)
    b = (a.to(torch.complex128 if dtype.is_complex else torch.float64) * 1.3 + 2).to(dtype)
    b[2] = a[2]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = (b.to(wide) - a.to(wide)).norm() / a.to(wide).norm()
    assert one(a, b, tmp_path).change == pytest.approx(float(expected), rel=1e-13)
    assert one(a.transpose(0, 2), b.transpose(0, 2), tmp_path).change == pytest.approx(
        float(expected), rel=1e-13
    )


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_g_and_v_of_large_weights_are_those_of_torch(
    dtype: torch.dtype, dim: int | None, tmp_path: Path
) -> None:
    v = torch.randn(50, 67, 113, dtype=dtype)
    a = normalized(v, norms(v.double(), dim).to(dtype))
    w = (v.double() + 0.01 * torch.randn(v.shape, dtype=torch.float64)).to(dtype)
    w[:, :40] = torch._weight_norm(v, a["up.weight_g"], -1 if dim is None else dim)[:, :40]
    (found,) = compare(a, {"up.weight": w}, tmp_path).tensors
    composed = torch.empty(0)
    wncli.remove(tmp_path / "a.pt", tmp_path / "folded.pt")
    composed = torch.load(tmp_path / "folded.pt")["up.weight"].double()
    wide = w.double()
    before, after = norms(composed, dim), norms(wide, dim)
    moved = ((after - before) / before).flatten()
    one, other = slices(composed, dim), slices(wide, dim)
    unit, others = (part / part.norm(dim=1, keepdim=True) for part in (one, other))
    # Kahan's angle, which needs no difference of norms.
    angles = 2 * torch.atan2((unit - others).norm(dim=1), (unit + others).norm(dim=1))
    assert found.change == pytest.approx(
        float((wide - composed).norm() / composed.norm()), rel=1e-12
    )
    assert found.g_moved == pytest.approx(float(moved[moved.abs().argmax()]), rel=1e-9)
    assert found.v_turned == pytest.approx(math.degrees(float(angles.max())), rel=1e-9)


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("angle", [1e-5, 1e-3, 0.28, 45.0, 90.0, 135.0, 179.0])
def test_a_slice_that_is_turned_has_turned_by_that_angle(
    angle: float, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    v = torch.randn(4, 3, 5, dtype=torch.float64)
    turned = v.clone()
    flat = turned.view(1, -1) if dim is None else turned.movedim(dim, 0)
    chosen = flat[-1]
    other = torch.randn_like(chosen)
    other -= (other * chosen).sum() / (chosen * chosen).sum() * chosen
    other *= chosen.norm() / other.norm()
    radians = math.radians(angle)
    flat[-1] = math.cos(radians) * chosen + math.sin(radians) * other
    g = norms(v, dim)
    found = compare(normalized(v, g), normalized(turned * 7, g, spelling), tmp_path)
    assert found.tensors[0].v_turned == pytest.approx(angle, rel=1e-6)
    assert found.tensors[0].g_moved == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("factor", [0.5, 0.98, 1 - 1e-9, 1 + 1e-9, 1.0181, 3.0])
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_a_magnitude_that_is_scaled_has_moved_by_that_share(
    dim: int | None, factor: float, tmp_path: Path
) -> None:
    v = torch.randn(4, 3, 5, dtype=torch.float64)
    g = norms(v, dim)
    scaled = g.clone()
    scaled.view(-1)[-1] *= factor
    (found,) = compare(normalized(v, g), normalized(v, scaled), tmp_path).tensors
    assert found.g_moved == pytest.approx(factor - 1, rel=1e-6)
    assert found.v_turned == pytest.approx(0, abs=2e-6)


def test_the_sign_of_g_turns_a_slice_around(tmp_path: Path) -> None:
    v = torch.randn(4, 5, dtype=torch.float64)
    g = norms(v, 0)
    (found,) = compare(normalized(v, g), normalized(v, -g), tmp_path).tensors
    assert found.change == pytest.approx(2)
    assert found.v_turned == pytest.approx(180)
    assert found.g_moved == pytest.approx(0, abs=1e-15)


def test_what_neither_side_normalizes_has_no_g_and_v(tmp_path: Path) -> None:
    w = torch.randn(4, 5)
    found = one(w, 2 * w, tmp_path)
    assert found.change == pytest.approx(1, rel=1e-15)
    assert (found.g_moved, found.v_turned) == (None, None)


def test_slices_without_a_direction_have_not_turned(tmp_path: Path) -> None:
    v = torch.eye(3, dtype=torch.float64)
    g = torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64)
    w = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    (found,) = compare(normalized(v, g), {"up.weight": w}, tmp_path).tensors
    assert (found.g_moved, found.v_turned) == (INF, 0.0)
    (found,) = compare(normalized(v, 0 * g), normalized(v, 0 * g), tmp_path).tensors
    assert (found.change, found.g_moved, found.v_turned) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-160, 1.0, 1e160, 1e200, 1e300])
def test_no_size_of_float64_is_too_large_or_too_small(scale: float, tmp_path: Path) -> None:
    v = torch.randn(3, 40, dtype=torch.float64)
    scales = torch.tensor([[scale], [1.0], [scale]], dtype=torch.float64)
    w = v * scales
    other = w * 1.001
    found = one(w, other, tmp_path)
    assert found.change == pytest.approx(1e-3, rel=1e-9)
    (found,) = compare(normalized(w, norms(v, 0) * scales), {"up.weight": other}, tmp_path).tensors
    assert found.g_moved == pytest.approx(1e-3, rel=1e-9)
    assert found.v_turned == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [
        ([1.0, NAN], [1.0, NAN], 0.0), ([1.0, INF], [1.0, INF], 0.0),
        ([1.0, NAN], [1.5, NAN], 0.5), ([1.0, INF], [1.5, INF], 0.5), ([1.0, -INF], [2, -INF], 1.0),
        ([1.0, NAN], [1.0, 1.0], NAN), ([1.0, 1.0], [1.0, NAN], NAN), ([INF, NAN], [1, 1], NAN),
        ([INF, 1.0], [1.0, NAN], NAN), ([1.0, INF], [1.0, 1.0], INF), ([1.0, 1.0], [1.0, INF], INF),
        ([1.0, INF], [1.0, -INF], INF), ([0.0, 0.0], [0.0, 1.0], INF), ([0.0, 0.0], [0, -0.0], 0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_nan_stays_nan_and_equal_infinities_are_no_change(
    dtype: torch.dtype, a: list[float], b: list[float], change: float, tmp_path: Path
) -> None:
    x, y = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
    found = compare({"t": x, "u": torch.zeros(1)}, {"t": y, "u": torch.zeros(1)}, tmp_path)
    assert found.tensors[0].name == "t"
    assert found.tensors[0].change == pytest.approx(change, nan_ok=True)
    assert found.change == pytest.approx(change, nan_ok=True)


def test_an_infinity_far_from_nan_does_not_hide_it(tmp_path: Path) -> None:
    a = torch.ones(1 << 20)
    b = a.clone()
    b[3], b[-3] = NAN, INF
    assert math.isnan(one(a, b, tmp_path).change)
    assert math.isnan(one(a, b.flip(0), tmp_path).change)


def test_the_total_is_over_all_weights_tied_ones_once_and_counters_never(tmp_path: Path) -> None:
    x, y = torch.randn(30), torch.randn(4, 5)
    dx, dy = torch.randn(30), torch.randn(4, 5)
    a, b = x, x + dx
    found = compare(
        {"x": a, "tied": a, "y": y, "same": torch.ones(9), "steps": torch.tensor(10**6)},
        {"x": b, "tied": b, "y": y + dy, "same": torch.ones(9), "steps": torch.tensor(1)},
        tmp_path,
    )
    moved = torch.cat([b.double() - x.double(), ((y + dy).double() - y.double()).flatten()])
    before = torch.cat([x.double(), y.double().flatten(), torch.ones(9)])
    assert found.change == pytest.approx(float(moved.norm() / before.norm()), rel=1e-13)
    assert len(found.tensors) == 5


def test_what_has_changed_most_is_first(tmp_path: Path) -> None:
    shares = {"a": 0.01, "b": 0.5, "c": 0.0, "d": 3.0}
    a = {name: torch.ones(4) for name in shares} | {"n": torch.ones(1), "z": torch.zeros(1)}
    b = {name: torch.ones(4) * (1 + share) for name, share in shares.items()}
    found = compare(a, b | {"n": torch.tensor([NAN]), "z": torch.ones(1)}, tmp_path)
    assert [tensor.name for tensor in found.tensors] == ["n", "z", "d", "b", "a", "c"]


# What would be equal


@pytest.mark.parametrize("options", [{}, {"atol": 0.03}, {"rtol": 0.02}, {"rtol": 0, "atol": 1e-9}])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_tolerances_that_are_needed_are_enough_and_no_smaller_one_is(
    dtype: torch.dtype, options: dict[str, float], tmp_path: Path
) -> None:
    a = {name: torch.randn(300, dtype=torch.float64).to(dtype) for name in "xyz"}
    b = {name: (value.double() * 1.1 + 0.01).to(dtype) for name, value in a.items()}
    found = compare(a, b, tmp_path, **options)
    for name in ("rtol", "atol"):
        needed = found.needed_rtol if name == "rtol" else found.needed_atol
        assert needed is not None
        assert compare(a, b, tmp_path, **options | {name: needed}).equal
        less = needed * (1 - 1e-9)
        assert not compare(a, b, tmp_path, **options | {name: less}).equal
        both = {"rtol": 0.0, "atol": 0.0} | options | {name: needed}
        for key, value in a.items():
            ours, theirs = value.double().numpy(), b[key].double().numpy()
            assert np.allclose(ours, theirs, rtol=both["rtol"], atol=both["atol"])


def test_what_is_needed_is_enough_as_floats_are_rounded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a = {str(n): torch.randn(2, dtype=torch.float64) for n in range(400)}
    b = {str(n): torch.randn(2, dtype=torch.float64) for n in range(400)}
    for found in compare(a, b, tmp_path).tensors:
        ours, theirs = a[found.name].numpy(), b[found.name].numpy()
        needed = found.needed_rtol
        assert needed is not None
        assert np.allclose(ours, theirs, rtol=needed, atol=0)
        assert not np.allclose(ours, theirs, rtol=needed * (1 - 1e-15), atol=0)


def test_where_no_rtol_does_it_an_atol_may(tmp_path: Path) -> None:
    a, b = torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.0])
    found = one(a, b, tmp_path)
    assert (found.max_relative, found.needed_rtol, found.needed_atol) == (INF, None, 0.25)
    assert one(a, b, tmp_path, atol=0.25).needed_rtol == 0
    for odd in (NAN, INF):
        found = one(a, torch.tensor([1.0, odd]), tmp_path)
        assert (found.needed_rtol, found.needed_atol) == (None, None)


# For programs


def fine_tuned() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model of 30 convolutions, and what a little training made of it."""
    torch.manual_seed(0)
    a: dict[str, Tensor] = {}
    for n in range(30):
        v = torch.randn(6, 4, 3)
        a[f"resblocks.{n}.convs1.0.weight_g"] = norms(v, 0)
        a[f"resblocks.{n}.convs1.0.weight_v"] = v
        a[f"resblocks.{n}.convs1.0.bias"] = torch.randn(6)
    b = dict(a)
    for n, name in enumerate(a):
        if not name.endswith("bias"):
            b[name] = a[name] * (1 + 1e-4 * n * torch.randn_like(a[name]))
    b["resblocks.29.convs1.0.weight_v"] = a["resblocks.29.convs1.0.weight_v"]
    b["resblocks.28.convs1.0.weight_g"] = a["resblocks.28.convs1.0.weight_g"]
    return a, b


def test_rows_json_and_csv_say_the_same(wn_here: RunHere, tmp_path: Path) -> None:
    a, b = fine_tuned()
    found = compare(a, b | {"resblocks.1.convs1.0.bias": torch.full((6,), NAN)}, tmp_path)
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    ran = wn_here("compare", *files, "--csv", "-")
    assert (ran.code, ran.stderr) == (1, "")
    assert wn_here("compare", *files, "--csv", tmp_path / "t.csv", "-q").stdout == ""
    assert (tmp_path / "t.csv").read_text() == ran.stdout
    table = list(csv.DictReader(ran.stdout.splitlines()))
    told = json.loads(wn_here("compare", *files, "--json").stdout)
    assert told["change"] is None
    assert (told["needed_rtol"], told["needed_atol"]) == (None, None)
    assert len(table) == len(told["tensors"]) == len(found.to_rows()) == 60
    for row, cells, plain in zip(found.to_rows(), table, told["tensors"], strict=True):
        assert list(row) == list(cells) == list(plain)
        for key, value in row.items():
            if isinstance(value, float):
                assert float(cells[key]) == pytest.approx(value, rel=0, abs=0, nan_ok=True)
                assert plain[key] == (value if math.isfinite(value) else None)
            elif value is None:
                assert (cells[key], plain[key]) == ("", None)
            elif isinstance(value, tuple):
                assert cells[key] == "x".join(map(str, value))
            else:
                assert cells[key] == str(value)


def test_a_comparison_is_one_line(tmp_path: Path) -> None:
    found = compare(*fine_tuned(), tmp_path)
    assert repr(found) == str(found)
    assert re.fullmatch(
        r"<Comparison '.*a\.pt', '.*b\.pt': different, 30 of 60 tensors equal, change 0\.\d+>",
        repr(found),
    )


def test_a_table_replaces_no_checkpoint(wn_here: RunHere, tmp_path: Path) -> None:
    compare(*fine_tuned(), tmp_path)
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    held = files[1].read_bytes()
    (tmp_path / "model").write_bytes(held)
    (tmp_path / "t.csv").write_text("an older table\n")
    for target, code in ((files[1], 2), (tmp_path / "model", 2), (tmp_path, 2),
                         (tmp_path / "none" / "t.csv", 2), (tmp_path / "t.csv", 1)):  # fmt: skip
        assert wn_here("compare", *files, "--csv", target).code == code
    assert files[1].read_bytes() == (tmp_path / "model").read_bytes() == held
    assert (tmp_path / "t.csv").read_text().startswith("root,name,")
    refused = wn_here("compare", *files, "--csv", "-", "--json")
    assert (refused.code, json.loads(refused.stdout)["error"]["where"]) == (2, "--csv -")


# The screen


def test_the_verdict_is_first_and_a_pipe_has_every_tensor_in_full(
    wn_here: RunHere, tmp_path: Path
) -> None:
    found = compare(*fine_tuned(), tmp_path)
    lines = wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt").stdout.splitlines()
    assert lines[0].startswith("different  30 of 60 tensors · total change ‖ΔW‖/‖W‖ ")
    names = [line.split()[0] for line in lines if line.startswith(" resblocks.")]
    assert names == [tensor.name for tensor in found.tensors if tensor.max_ulps]
    rows = {line.split()[0]: line for line in lines if line.startswith(" resblocks.")}
    assert rows["resblocks.29.convs1.0.weight"].endswith("g only")
    assert rows["resblocks.28.convs1.0.weight"].endswith("v only")
    assert " identical  30 tensors (bias)" in lines


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
def test_a_terminal_of_any_width_shows_what_has_changed_most(columns: int, tmp_path: Path) -> None:
    found = compare(*fine_tuned(), tmp_path)
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    code, shown = on_a_terminal(
        "compare", *files, COLUMNS=str(columns), LINES="24", NO_COLOR="1", TERM="dumb"
    )
    assert code == 1
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    rows = [line.split()[0] for line in lines if line.startswith(" resblocks.")]
    names = [tensor.name.removesuffix(".weight") for tensor in found.tensors]
    assert rows == names[: len(rows)]
    assert len(rows) == 12
    assert " … 18 more: --all" in shown
    _, shown = on_a_terminal("compare", *files, "--all", COLUMNS=str(columns), LINES="24")
    assert "--all" not in shown
    assert all(name in shown for name in names[:30])


def test_ascii_consoles_show_bars_and_degrees_in_ascii(tmp_path: Path) -> None:
    compare(*fine_tuned(), tmp_path)
    ran = run_wn("compare", tmp_path / "a.pt", tmp_path / "b.pt", PYTHONIOENCODING="ascii")
    assert ran.stdout.isascii()
    assert "\\u" not in ran.stdout
    assert "##########" in ran.stdout
    assert " deg " in ran.stdout


def test_what_the_screen_says_other_tolerances_would_do_is_what_they_do(
    wn_here: RunHere, tmp_path: Path
) -> None:
    compare(*fine_tuned(), tmp_path)
    files = tmp_path / "a.pt", tmp_path / "b.pt"
    shown = wn_here("compare", *files).stdout
    said = re.search(
        r"2 ulp of float32 \(a rounding\); --rtol (\S+) would call (\d+) of them equal; "
        r"--rtol (\S+) or --atol (\S+) would call all 30 equal", shown
    )  # fmt: skip
    assert said
    few, count, rtol, atol = said.groups()
    assert f"different  {30 - int(count)} of 60" in wn_here("compare", *files, "--rtol", few).stdout
    for option in (("--rtol", rtol), ("--atol", atol)):
        assert wn_here("compare", *files, *option).stdout.startswith("equal  60 tensors, ")


def test_nan_is_called_nan(wn_here: RunHere, tmp_path: Path) -> None:
    compare({"t": torch.ones(2), "u": torch.ones(1)},
            {"t": torch.tensor([1.0, NAN]), "u": torch.ones(1)}, tmp_path)  # fmt: skip
    shown = wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt").stdout
    assert "inf" not in shown
    assert [line.split() for line in shown.splitlines() if line.startswith(" t ")] == [
        ["t", "nan", "nan", "nan", "nan"]
    ]
    assert "no tolerance would call all equal" in shown
