"""`wncli.inspect` and the report's JSON: what is in a file, counted without being changed."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import wncli
from tests.support.layers import Spelling, normalize, pair_of
from tests.support.run import SAMPLES, Wn

Check = Callable[[Any], bool]


def is_count(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and value >= 0


def is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str)


#: Section 6 of the design: what programs may rely on; more may be added.
TOP: dict[str, Check] = {
    "schema": lambda value: value == "wn/1",
    "command": lambda value: value in ("inspect", "apply", "remove"),
    "checkpoint": is_text,
    "output": lambda value: value is None or is_text(value),
    "parameters": lambda value: isinstance(value, dict),
    "layers": lambda value: isinstance(value, list),
    "notes": lambda value: isinstance(value, list),
}
PARAMETERS: dict[str, Check] = {
    "before": is_count,
    "after": is_count,
    "change": lambda value: type(value) is int,
}
LAYER: dict[str, Check] = {
    "root": is_text,
    "module": is_text,
    "parameter": is_text,
    "dim": lambda value: value is None or is_count(value),
    "naming": lambda value: value in ("hook", "parametrized"),
    "shape": lambda value: isinstance(value, list) and all(map(is_count, value)),
    "dtype": is_text,
    "g": is_text,
    "v": is_text,
    "action": lambda value: value in ("none", "apply", "remove"),
}
NOTE: dict[str, Check] = {"code": is_text, "message": is_text, "where": is_text}


def hold(found: dict[str, Any], promised: dict[str, Check]) -> None:
    """Hold an object against the keys and types that were promised for it."""
    assert set(found) >= set(promised)
    for key, check in promised.items():
        assert check(found[key]), f"{key} is {found[key]!r}"


def hold_schema(found: dict[str, Any]) -> None:
    hold(found, TOP)
    hold(found["parameters"], PARAMETERS)
    counts = found["parameters"]
    assert counts["after"] - counts["before"] == counts["change"]
    for layer in found["layers"]:
        hold(layer, LAYER)
    for note in found["notes"]:
        hold(note, NOTE)


def inspect(state: Any, folder: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Save, inspect, and see the report as a program would."""
    torch.save(state, folder / "in.pt")
    report = wncli.inspect(folder / "in.pt", **options)
    found: dict[str, Any] = json.loads(json.dumps(report.to_json()))
    hold_schema(found)
    return found


@pytest.mark.parametrize("command", ["inspect", "apply", "remove"])
@pytest.mark.parametrize("dim", ["0", "none"])
def test_the_json_of_every_command_has_the_keys_and_types_that_are_promised(
    command: str, dim: str, wn: Wn, tmp_path: Path
) -> None:
    source = tmp_path / "in.pt"
    torch.save({"model": nn.Linear(5, 3).state_dict(), "epoch": 3}, source)
    if command != "apply":
        wncli.apply(source, source, dim=None if dim == "none" else 0, force=True)
    target = [] if command == "inspect" else [str(tmp_path / "out.pt")]
    extra = ["--dim", dim] if command == "apply" else []
    ran = wn(command, source, *target, *extra, "--json")
    assert ran.code == 0
    found = json.loads(ran.stdout)
    hold_schema(found)
    assert found["command"] == command
    assert found["checkpoint"] == str(source)
    assert found["output"] == (target[0] if target else None)
    (layer,) = found["layers"]
    assert layer["dim"] == (0 if dim == "0" else None)
    assert layer["action"] == ("none" if command == "inspect" else command)
    with_weight_norm = 18 + (3 if dim == "0" else 1)
    before, after = (18, with_weight_norm) if command == "apply" else (with_weight_norm, 18)
    assert (found["parameters"]["before"], found["parameters"]["after"]) == (before, after)


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_layers_are_listed_as_pytorch_names_them(spelling: Spelling, tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(4, 6, 3), "up": nn.ConvTranspose1d(4, 3, 5), "rnn": nn.LSTM(3, 4)}
    )
    normalize(model["conv"], "weight", 2, spelling)
    normalize(model["up"], "weight", None, spelling)
    normalize(model["rnn"], "weight_hh_l0", 0, spelling)
    found = inspect({"model": model.state_dict()}, tmp_path)
    by_module = {layer["module"]: layer for layer in found["layers"]}
    expected = {
        "conv": ("weight", 2, [6, 4, 3]),
        "up": ("weight", None, [4, 3, 5]),
        "rnn": ("weight_hh_l0", 0, [16, 4]),
    }
    assert set(by_module) == set(expected)
    for module, (parameter, dim, shape) in expected.items():
        g, v = pair_of(parameter, spelling)
        assert by_module[module] == {
            "name": f"{module}.{parameter}",
            "root": "model",
            "module": module,
            "parameter": parameter,
            "dim": dim,
            "naming": spelling,
            "shape": shape,
            "dtype": "float32",
            "g": f"{module}.{g}",
            "v": f"{module}.{v}",
            "action": "none",
        }


def test_counts_are_what_is_stored_and_what_removal_would_leave(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6))
    left = sum(value.numel() for value in model.state_dict().values())
    normalize(model[0], "weight", 0, "hook")
    stored = sum(value.numel() for value in model.state_dict().values())
    counts = inspect(model.state_dict(), tmp_path)["parameters"]
    assert counts == {"before": stored, "after": left, "change": left - stored}


def test_tied_tensors_are_counted_once(tmp_path: Path) -> None:
    table, g = torch.randn(5, 3), torch.ones(5, 1)
    state = {"a.weight_g": g, "a.weight_v": table, "b.weight_g": g, "b.weight_v": table, "c": table}
    counts = inspect(state, tmp_path)["parameters"]
    assert counts["before"] == 15 + 5
    assert counts["after"] == 15 + 15  # the folded weight is no longer the table that c is


def test_roots_and_what_else_is_in_the_file_are_listed(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    checkpoint = {
        "model": {"generator": model.state_dict(), "discriminator": model.state_dict()},
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
        "args": Namespace(a=1),
        "epoch": 12,
    }
    found = inspect(checkpoint, tmp_path)
    assert [root["root"] for root in found["roots"]] == ["model.generator", "model.discriminator"]
    kinds = {entry["path"]: entry["kind"] for entry in found["entries"]}
    assert kinds == {"optimizer": "optimizer", "args": "object", "epoch": "value"}
    assert found["unsafe"] == ["argparse.Namespace"]


def test_what_only_resembles_weight_norm_is_named_and_not_listed(tmp_path: Path) -> None:
    spectral = torch.nn.utils.spectral_norm(nn.Linear(3, 2)).state_dict()
    newer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)).state_dict()
    state = {f"old.{name}": value for name, value in spectral.items()}
    state |= {f"new.{name}": value for name, value in newer.items()}
    state["half.weight_g"] = torch.ones(2, 1)
    state |= {"misfit.weight_g": torch.ones(5, 1), "misfit.weight_v": torch.ones(2, 3)}
    found = inspect(state, tmp_path)
    assert found["layers"] == []
    where = {note["where"]: note["code"] for note in found["notes"]}
    assert where == {
        "old.weight": "spectral-norm",
        "new.weight": "spectral-norm",
        "half.weight": "half-pair",
        "misfit.weight": "misfit",
    }


def test_among_several_state_dicts_a_note_names_the_place_once(wn: Wn, tmp_path: Path) -> None:
    spectral = torch.nn.utils.spectral_norm(nn.Linear(3, 2)).state_dict()
    state = {f"conv.{name}": value for name, value in spectral.items()}
    torch.save({"mpd": state, "msd": {"weight": torch.eye(2)}}, tmp_path / "in.pt")
    printed = wn("inspect", tmp_path / "in.pt").stdout
    assert "note: mpd.conv.weight is spectral norm, not weight norm\n" in printed


def test_a_stale_weight_is_named(tmp_path: Path) -> None:
    state = {"weight": torch.eye(2), "weight_g": torch.ones(2, 1), "weight_v": torch.eye(2)}
    found = inspect(state, tmp_path)
    assert [note["code"] for note in found["notes"]] == ["stale-weight"]
    assert found["parameters"] == {"before": 10, "after": 4, "change": -6}


def test_rules_and_roots_choose_what_is_listed(tmp_path: Path) -> None:
    state = {
        f"{name}.weight_{h}": torch.ones(2, 1 if h == "g" else 2) for name in "ab" for h in "gv"
    }
    checkpoint = {"model": state, "ema": dict(state)}
    assert [layer["module"] for layer in inspect(checkpoint, tmp_path)["layers"]] == [*"abab"]
    found = inspect(checkpoint, tmp_path, only="ema", layers=["a*"])
    assert [(layer["root"], layer["module"]) for layer in found["layers"]] == [("ema", "a")]
    found = inspect(checkpoint, tmp_path, exclude=["a.weight"], only="model")
    assert [layer["module"] for layer in found["layers"]] == ["b"]


def test_safetensors_files_are_listed_alike(tmp_path: Path) -> None:
    state = {"a.weight_g": torch.ones(2, 1), "a.weight_v": torch.eye(2), "n": torch.ones(3).half()}
    save_file(state, tmp_path / "in.safetensors")
    found = wncli.inspect(tmp_path / "in.safetensors").to_json()
    expected = inspect(state, tmp_path)
    hold_schema(json.loads(json.dumps(found)))
    assert found["format"] == "safetensors"
    assert json.loads(json.dumps(found["layers"])) == expected["layers"]
    assert found["parameters"] == expected["parameters"]


def test_no_tensor_data_is_read(tmp_path: Path) -> None:
    source = tmp_path / "in.pt"
    torch.save({"weight_g": torch.ones(2, 1), "weight_v": torch.full((2, 64), 7.0)}, source)
    data = source.read_bytes()
    marker = torch.full((2, 64), 7.0).numpy().tobytes()
    assert data.count(marker) == 1
    source.write_bytes(data.replace(marker, b"\xff" * len(marker)))  # all NaN, and no checksum fits
    assert [layer.g_name for layer in wncli.inspect(source).layers] == ["weight_g"]


def test_a_file_without_weight_norm_is_listed_all_the_same(wn: Wn) -> None:
    ran = wn("inspect", SAMPLES / "linear.pt", "--json")
    assert ran.code == 0
    found = json.loads(ran.stdout)
    assert found["layers"] == []
    assert found["parameters"] == {"before": 18, "after": 18, "change": 0}
