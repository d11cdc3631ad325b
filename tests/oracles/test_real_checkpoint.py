"""A checkpoint that others trained: FCPE, a pitch estimator, from the wheel torchfcpe 0.0.4.

Its tensors say `cuda:0`, so that a plain `torch.load` needs a GPU or a `map_location`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import wncli
from tests.support.oracles import bits

LAYER = "output_proj.weight"


def load_with_locations(path: Path) -> tuple[Any, set[str]]:
    """The checkpoint on the CPU, and the places that its storages name."""
    locations: set[str] = set()

    def to_cpu(storage: Any, location: str) -> Any:  # noqa: ANN401 - torch's storages
        locations.add(location)
        return storage

    return torch.load(path, map_location=to_cpu, weights_only=True), locations


@pytest.fixture(scope="module")
def original(fcpe: Path) -> dict[str, Any]:
    found: dict[str, Any]
    found, locations = load_with_locations(fcpe)
    assert locations == {"cuda:0"}
    return found


def hold_folded(state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    """Hold a folded state dict against PyTorch's own product, all else against its bits."""
    expected = torch._weight_norm(before[f"{LAYER}_v"], before[f"{LAYER}_g"], 0)
    torch.testing.assert_close(state[LAYER], expected, rtol=1e-6, atol=1e-6)
    others = set(before) - {f"{LAYER}_g", f"{LAYER}_v"}
    assert set(state) == others | {LAYER}
    assert all(bits(state[name]) == bits(before[name]) for name in others)


def test_inspect_finds_its_one_normalized_layer(fcpe: Path, original: dict[str, Any]) -> None:
    report = wncli.inspect(fcpe)
    (layer,) = report.layers
    assert (layer.root, layer.module, layer.parameter) == ("model", "output_proj", "weight")
    assert (layer.dim, layer.naming, layer.shape) == (0, "hook", (360, 512))
    stored = sum(tensor.numel() for tensor in original["model"].values())
    assert report.parameters.before == stored
    assert report.parameters.change == -360
    assert {entry.path for entry in report.entries} == {"global_step", "config_dict"}


def test_remove_folds_it_and_keeps_all_else(
    fcpe: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    report = wncli.remove(fcpe, tmp_path / "folded.pt")
    folded, locations = load_with_locations(tmp_path / "folded.pt")
    assert len(report.layers) == 1
    assert locations == {"cuda:0"}
    hold_folded(folded["model"], original["model"])
    assert list(folded) == list(original)
    assert folded["global_step"] == original["global_step"] == 600_000
    assert folded["config_dict"] == original["config_dict"]
    assert folded["config_dict"]["model"]["type"] == "CFNaiveMelPE"


def test_remove_writes_safetensors_and_lists_what_it_leaves_out(
    fcpe: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    report = wncli.remove(fcpe, tmp_path / "folded.safetensors")
    hold_folded(load_file(tmp_path / "folded.safetensors"), original["model"])
    (note,) = [note for note in report.notes if note.code == "left-out"]
    assert "global_step" in note.message
    assert "config_dict" in note.message


def test_apply_normalizes_the_rest_and_pytorch_computes_the_same_weights(
    fcpe: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    report = wncli.apply(fcpe, tmp_path / "normalized.pt")
    normalized, locations = load_with_locations(tmp_path / "normalized.pt")
    before, state = original["model"], normalized["model"]
    expected = {
        name for name, value in before.items() if name.endswith(".weight") and value.dim() > 1
    }
    assert {f"{layer.module}.{layer.parameter}" for layer in report.layers} == expected
    assert locations == {"cuda:0"}
    assert normalized["config_dict"] == original["config_dict"]
    for name in expected:
        g, v = state[f"{name}_g"], state[f"{name}_v"]
        assert bits(v) == bits(before[name])
        weight = torch._weight_norm(v, g, 0)
        torch.testing.assert_close(weight, before[name], rtol=1e-6, atol=1e-6)
    others = set(before) - expected
    assert all(bits(state[name]) == bits(before[name]) for name in others)


def test_apply_then_remove_gives_the_same_bits(
    fcpe: Path, original: dict[str, Any], tmp_path: Path
) -> None:
    wncli.remove(fcpe, tmp_path / "plain.safetensors")
    wncli.apply(tmp_path / "plain.safetensors", tmp_path / "normalized.pt", naming="parametrized")
    wncli.remove(tmp_path / "normalized.pt", tmp_path / "again.safetensors")
    plain, again = (load_file(tmp_path / f"{name}.safetensors") for name in ("plain", "again"))
    assert list(again) == list(plain)
    assert len(plain) == len(original["model"]) - 1
    assert all(bits(again[name]) == bits(plain[name]) for name in plain)
