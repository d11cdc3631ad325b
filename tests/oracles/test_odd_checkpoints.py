"""Checkpoints that people have and that are easily misread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

import wncli

PAIR = {"c.weight_g": torch.tensor([[2.0], [3.0]]), "c.weight_v": torch.ones(2, 3)}


def load(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    return torch.load(path, weights_only=False)


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata())


def tied() -> torch.nn.ModuleDict:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(4, 3)})
    model["b"].weight = model["a"].weight
    return model


def test_ties_come_back_from_a_file_that_save_model_wrote(tmp_path: Path) -> None:
    safetensors.torch.save_model(tied(), str(tmp_path / "in.safetensors"))
    report = wncli.apply(tmp_path / "in.safetensors", tmp_path / "out.pt")
    assert (report.parameters.before, report.parameters.after) == (18, 21)
    state = load(tmp_path / "out.pt")
    assert state["a.weight_v"].data_ptr() == state["b.weight_v"].data_ptr()
    assert state["a.weight_g"].data_ptr() == state["b.weight_g"].data_ptr()


def test_ties_survive_apply_and_remove_in_safetensors(tmp_path: Path) -> None:
    model = tied()
    torch.save(model.state_dict(), tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "split.safetensors")
    wncli.remove(tmp_path / "split.safetensors", tmp_path / "folded.safetensors")
    assert metadata_of(tmp_path / "folded.safetensors")["b.weight"] == "a.weight"
    fresh = tied()
    safetensors.torch.load_model(fresh, tmp_path / "folded.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_legacy_files_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "in.pt"
    torch.save(PAIR, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert wncli.inspect(path).format == "torch legacy"
    wncli.remove(path, tmp_path / "out.pt")
    weight = load(tmp_path / "out.pt")["c.weight"]
    expected = torch._weight_norm(PAIR["c.weight_v"], PAIR["c.weight_g"], 0)
    assert torch.allclose(weight, expected, rtol=1e-6)


def test_a_tensor_that_is_still_to_be_conjugated_is_kept_or_named(tmp_path: Path) -> None:
    lazy = torch.randn(3, dtype=torch.cfloat).conj()
    torch.save(PAIR | {"phase": lazy}, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert torch.equal(load(tmp_path / "out.pt")["phase"], lazy)
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.safetensors")
    assert any(note.code == "left-out" and "phase" in note.message for note in report.notes)


def test_a_direction_that_is_still_to_be_negated_is_not_folded(tmp_path: Path) -> None:
    direction = torch.randn(2, 3, dtype=torch.cfloat).conj().imag
    assert direction.is_neg()
    torch.save(PAIR | {"c.weight_v": direction}, tmp_path / "in.pt")
    with pytest.raises(wncli.WeightNormError, match="is incomplete"):
        wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")


@pytest.mark.parametrize("container", [dict, list])
def test_several_optimizers_in_one_entry_are_warned_of(container: type, tmp_path: Path) -> None:
    optimizer = {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"params": [0]}]}
    several = [optimizer, optimizer] if container is list else {"g": optimizer, "d": optimizer}
    torch.save({"model": PAIR, "optimizers": several}, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert [(note.code, note.where) for note in report.notes] == [("optimizer", "optimizers")]


def test_a_module_without_a_weight_lends_its_matrices(tmp_path: Path) -> None:
    lstm = {f"lstm.{name}": tensor for name, tensor in torch.nn.LSTM(3, 4).state_dict().items()}
    torch.save(lstm, tmp_path / "in.pt")
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", layers=["lstm"])
    assert {layer.parameter for layer in report.layers} == {"weight_ih_l0", "weight_hh_l0"}


def test_a_glob_that_finds_vectors_alone_says_how_to_take_them(tmp_path: Path) -> None:
    torch.save(torch.nn.LayerNorm(3).state_dict(), tmp_path / "in.pt")
    with pytest.raises(wncli.UsageError, match="weight has one dimension") as refusal:
        wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", layers=["*"])
    assert refusal.value.hint == "layers=['weight'] or layers=['bias']"
    assert wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", layers="weight").layers


@pytest.mark.parametrize(
    "options", [{"naming": "hooks"}, {"format": "onnx"}, {"dim": 1.0}, {"dim": True}]
)
def test_the_functions_refuse_what_the_options_would(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.save({"c.weight": torch.ones(2, 3)}, tmp_path / "in.pt")
    with pytest.raises(wncli.UsageError):
        wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", **options)
    assert not (tmp_path / "out.pt").exists()
