"""Weight norm by hand: every printed figure of one PyTorch session, reproduced."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wncli
from tests.support.run import SAMPLES

LINEAR = SAMPLES / "linear.pt"

WEIGHT = [
    [0.2782, 0.1382, -0.0764, -0.0963, 0.3820],
    [0.0089, -0.2772, 0.0862, -0.3995, -0.0354],
    [0.2126, 0.4394, -0.0193, 0.2077, -0.2931],
]
MAGNITUDE = [[0.5075], [0.4952], [0.6064]]


def printed(values: object) -> object:
    """Numbers as PyTorch prints them, with four digits."""
    return np.round(np.asarray(values, np.float64), 4).tolist()


def load(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def weight_norm(module: nn.Linear, dim: int | None = 0) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found: nn.Linear = nn.utils.weight_norm(module, "weight", -1 if dim is None else dim)
    return found


# -- 18 parameters, 21 with weight norm ---------------------------------------------------------


def test_applying_reports_18_to_21_parameters(tmp_path: Path) -> None:
    report = wncli.apply(LINEAR, tmp_path / "normalized.pt")
    found = report.parameters
    assert (found.before, found.after, found.change) == (18, 21, 3)
    (layer,) = report.layers
    assert (layer.parameter, layer.dim, layer.shape) == ("weight", 0, (3, 5))
    assert (layer.g_name, layer.v_name, layer.naming) == ("weight_g", "weight_v", "hook")


def test_removing_reports_21_to_18_parameters_and_gives_the_weight_back(tmp_path: Path) -> None:
    wncli.apply(LINEAR, tmp_path / "normalized.pt")
    found = wncli.remove(tmp_path / "normalized.pt", tmp_path / "plain.pt").parameters
    assert (found.before, found.after, found.change) == (21, 18, -3)
    plain, original = load(tmp_path / "plain.pt"), load(LINEAR)
    assert list(plain) == list(original)
    assert all(torch.equal(plain[name], original[name]) for name in original)


def test_the_command_line_reports_18_to_21_parameters(tmp_path: Path) -> None:
    output = tmp_path / "normalized.pt"
    command = [sys.executable, "-m", "wncli", "apply", str(LINEAR), str(output)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "18 → 21 (+3)" in ran.stdout
    ran = subprocess.run(
        [*command, "--force", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout)["parameters"] == {"before": 18, "after": 21, "change": 3}
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", "inspect", str(output), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(ran.stdout)["parameters"] == {"before": 21, "after": 18, "change": -3}


def test_the_written_tensors_are_those_of_the_session(tmp_path: Path) -> None:
    wncli.apply(LINEAR, tmp_path / "normalized.pt")
    state = load(tmp_path / "normalized.pt")
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "bias": (3,),
        "weight_g": (3, 1),
        "weight_v": (3, 5),
    }
    original = load(LINEAR)
    assert printed(state["weight_g"]) == MAGNITUDE
    assert printed(state["weight_v"]) == WEIGHT
    assert torch.equal(state["weight_v"], original["weight"])
    assert torch.equal(state["bias"], original["bias"])
    exact = original["weight"].double().norm(dim=1, keepdim=True).float()
    assert torch.equal(state["weight_g"], exact)


@pytest.mark.parametrize("naming", ["hook", "parametrized"])
def test_the_written_state_dict_loads_into_torchs_own_module(tmp_path: Path, naming: str) -> None:
    wncli.apply(LINEAR, tmp_path / "normalized.pt")
    plain = nn.Linear(5, 3)
    plain.load_state_dict(load(LINEAR))
    module: nn.Module = nn.Linear(5, 3)
    if naming == "hook":
        module = weight_norm(nn.Linear(5, 3))
    else:
        module = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
    module.load_state_dict(load(tmp_path / "normalized.pt"), strict=True)
    assert sum(parameter.numel() for parameter in module.parameters()) == 21
    x = torch.linspace(-1, 1, 20).reshape(4, 5)
    torch.testing.assert_close(module(x), plain(x), rtol=1e-6, atol=1e-6)


# -- norms of ones(5, 5, 5) ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "dim", "figure", "shape"),
    [
        (2, 0, 5.0, (5, 1, 1)),
        (3, 0, 2.9240, (5, 1, 1)),
        (2, 2, 5.0, (1, 1, 5)),
        (2, -1, 11.1803, ()),
        (2, None, 11.1803, ()),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norms_of_ones_are_those_of_the_session(
    p: float, dim: int | None, figure: float, shape: tuple[int, ...], dtype: type
) -> None:
    g = wncli.magnitude(np.ones((5, 5, 5), dtype), dim, p)
    assert g.shape == shape
    assert printed(g) == printed(np.full(shape, figure))
    expected = torch.norm_except_dim(torch.ones(5, 5, 5), int(p), -1 if dim is None else dim)
    assert tuple(expected.shape) == shape
    assert printed(expected) == printed(g)


def test_the_norm_of_ones_is_exact_where_it_is_a_whole_number() -> None:
    assert wncli.magnitude(np.ones((5, 5, 5)), 0).reshape(-1).tolist() == [5.0] * 5
    assert wncli.magnitude(np.ones((5, 5, 5)), None) == math.sqrt(125)


# -- composing ----------------------------------------------------------------------------------


V = torch.linspace(-0.9, 1.3, 15).reshape(5, 3)


@pytest.mark.parametrize(
    ("g", "expected"),
    [
        pytest.param(
            g := torch.linspace(0.4, 2, 5).reshape(5, 1),
            g * V / V.norm(dim=1, keepdim=True),
            id="dim 0",
        ),
        pytest.param(
            g := torch.linspace(0.4, 2, 3).reshape(1, 3),
            g * V / V.norm(dim=0, keepdim=True),
            id="dim 1",
        ),
        pytest.param(g := torch.tensor(1.7), g * V / V.norm(), id="whole tensor"),
    ],
)
def test_composing_is_the_formula_of_the_session(g: Tensor, expected: Tensor) -> None:
    w = wncli.compose(g.numpy(), V.numpy())
    np.testing.assert_allclose(w, expected.numpy(), rtol=1e-6)


def test_a_column_of_magnitudes_is_dim_0_although_torch_would_broadcast_it_for_dim_1() -> None:
    g = torch.linspace(0.4, 2, 5).reshape(5, 1)
    broadcast = (g * V / V.norm(dim=0, keepdim=True)).numpy()  # no weight norm
    w = wncli.compose(g.numpy(), V.numpy())
    assert not np.allclose(w, broadcast)
    np.testing.assert_allclose(np.linalg.norm(w, axis=1, keepdims=True), g.numpy(), rtol=1e-6)


# -- a trained layer ----------------------------------------------------------------------------


def trained() -> tuple[nn.Linear, dict[str, Tensor]]:
    """A layer after one step on g and v, and its state dict with the product of before."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    layer.load_state_dict(load(LINEAR))
    weight_norm(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x = torch.linspace(-1, 1, 20).reshape(4, 5)
    layer(x).square().sum().backward()
    optimizer.step()
    state = dict(layer.state_dict())
    return layer, {**state, "weight": layer.weight.detach().clone()}


def test_after_a_step_the_attribute_weight_still_holds_the_old_product() -> None:
    layer, state = trained()
    np.testing.assert_allclose(state["weight"], load(LINEAR)["weight"], rtol=1e-6)
    assert not torch.allclose(state["weight_v"], load(LINEAR)["weight"])
    assert "weight" not in layer.state_dict()
    layer(torch.zeros(1, 5))  # the forward pre-hook
    assert not torch.allclose(layer.weight, state["weight"])


def test_removing_recomputes_a_stale_weight_as_the_forward_hook_would(tmp_path: Path) -> None:
    layer, state = trained()
    torch.save(state, tmp_path / "trained.pt")
    report = wncli.remove(tmp_path / "trained.pt", tmp_path / "plain.pt")
    layer(torch.zeros(1, 5))
    plain = load(tmp_path / "plain.pt")
    assert set(plain) == {"weight", "bias"}
    torch.testing.assert_close(plain["weight"], layer.weight.detach(), rtol=1e-6, atol=1e-7)
    (note,) = [note for note in report.notes if note.code == "stale-weight"]
    assert note.is_warning
    assert note.message.startswith("weight ")
    found = nn.Linear(5, 3)
    found.load_state_dict(plain, strict=True)
    x = torch.linspace(-1, 1, 20).reshape(4, 5)
    torch.testing.assert_close(found(x), layer(x), rtol=1e-6, atol=1e-6)


def test_a_weight_that_agrees_with_its_g_and_v_is_replaced_without_a_word(tmp_path: Path) -> None:
    layer, state = trained()
    layer(torch.zeros(1, 5))
    torch.save({**state, "weight": layer.weight.detach().clone()}, tmp_path / "fresh.pt")
    report = wncli.remove(tmp_path / "fresh.pt", tmp_path / "plain.pt")
    assert [note for note in report.notes if note.code == "stale-weight"] == []
    found = report.parameters
    assert (found.before, found.after) == (36, 18)


def test_listing_names_a_weight_beside_its_own_g_and_v(tmp_path: Path) -> None:
    _, state = trained()
    torch.save(state, tmp_path / "trained.pt")
    report = wncli.inspect(tmp_path / "trained.pt")
    assert [note.code for note in report.notes] == ["stale-weight"]
    assert len(report.layers) == 1
