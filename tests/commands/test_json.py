"""What `--json` prints, of every command and outcome, is what docs/schema/wn-1.json says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

import wncli
from tests.support.run import ROOT, SAMPLES, Wn

SCHEMA = json.loads((ROOT / "docs" / "schema" / "wn-1.json").read_text())


def closed(node: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The schema without the leave to add keys: so it has to name each that is printed."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: closed(value) for key, value in node.items()}
    return found | ({"additionalProperties": False} if "properties" in node else {})


VALIDATOR = Draft202012Validator(closed(SCHEMA))


def refuse(constant: str) -> None:
    message = f"{constant} is no JSON"
    raise ValueError(message)


def checked(text: str) -> dict[str, Any]:
    """Read one JSON object without NaN and infinities, which the schema describes."""
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    VALIDATOR.validate(found)
    assert found["schema"] == "wn/1"
    assert found["wn"] == wncli.__version__
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of checkpoints: `bad.pt` has NaN and infinities where numbers can be."""
    for name in ("lstm.pt", "linear.pt", "training.pt", "hifigan_generator"):
        shutil.copy(SAMPLES / name, tmp_path)
    bad = torch.load(SAMPLES / "lstm.pt", weights_only=True)
    bad["weight_hh_l0_g"][:] = float("nan")
    bad["weight_ih_l0_v"][0] = float("inf")
    bad["bias_hh_l0"][0] = -float("inf")
    torch.save(bad, tmp_path / "bad.pt")
    half = {"0.weight_g": torch.ones(3, 1), "0.weight": torch.ones(3, 4)}
    torch.save(half, tmp_path / "half.pt")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    return tmp_path


RUNS = {
    "inspect": ("inspect training.pt", 0),
    "inspect all": ("inspect hifigan_generator --stats --tensors --check", 0),
    "norms": ("inspect lstm.pt --norms --p inf --dim none", 0),
    "numbers that are none": ("inspect bad.pt --stats --norms", 0),
    "findings": ("inspect bad.pt --check", 1),
    "apply": ("apply linear.pt out.pt --verify", 0),
    "remove": ("remove hifigan_generator out.safetensors --verify", 0),
    "a dry run": ("remove training.pt out.pt --dry-run", 0),
    "convert": ("convert training.pt out.pt --naming hook", 0),
    "shards": ("convert lstm.pt out/ --format safetensors --max-shard-size 10KB", 0),
    "no fit": ("convert linear.pt out.pt --like lstm.pt --fill", 2),
    "equal": ("compare lstm.pt lstm.pt", 0),
    "different": ("compare lstm.pt bad.pt --rtol 1e-3", 1),
    "other names": ("compare lstm.pt linear.pt", 1),
    "one of two": ("compare training.pt training.pt --only model=ema", 1),
    "nothing to remove": ("remove linear.pt out.pt", 1),
    "nothing to convert": ("convert linear.pt out.pt --naming hook", 1),
    "no such file": ("inspect nothing.pt", 2),
    "half a pair": ("remove half.pt out.pt", 2),
    "no checkpoint": ("remove notes.txt out.pt", 2),
    "no such option": ("remove lstm.pt out.pt --bogus", 2),
    "no output": ("remove lstm.pt", 2),
    "several": ("remove lstm.pt linear.pt half.pt nothing.pt --output-dir out", 2),
    "several to inspect": ("inspect lstm.pt linear.pt notes.txt", 2),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_outcome_is_json_that_the_schema_describes(wn: Wn, folder: Path, run: str) -> None:
    typed, code = RUNS[run]
    ran = wn(*typed.split(), "--json", cwd=folder)
    found = checked(ran.stdout)
    assert ran.code == code, ran.stderr
    assert found["command"] == typed.split()[0]
    assert ("error" in found) == (
        (code == 2 and "files" not in found) or ("nothing" in run and code == 1)
    )


def test_the_schema_is_one_and_each_part_of_it_is_used() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    assert all(f'"#/$defs/{name}"' in text for name in SCHEMA["$defs"])


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"schema": "wn/1", "wn": "0", "command": "inspect"},
        {"schema": "wn/2", "wn": "0", "command": "inspect", "files": []},
        {"schema": "wn/1", "wn": "0", "command": "inspect", "files": [{"checkpoint": "x"}]},
        {"schema": "wn/1", "wn": "0", "command": "inspect", "error": "a text"},
    ],
)
def test_the_schema_refuses_what_is_no_report(broken: dict[str, Any]) -> None:
    assert not Draft202012Validator(SCHEMA).is_valid(broken)


def test_a_refusal_has_the_parts_of_its_message(wn: Wn, folder: Path) -> None:
    ran = wn("remove", "lstm.pt", "linear.pt", "--json", cwd=folder)
    error = checked(ran.stdout)["error"]
    assert f"error: {error['message']}\n" == ran.stderr
    assert error["where"] == "linear.pt"
    assert error["problem"] == "OUTPUT exists already, and is a checkpoint"
    assert error["expected"] == "a name for what is to be written"
    assert error["found"] is None
    assert "--force replaces it" in error["hint"]


def test_nothing_to_do_says_so_in_a_report(wn: Wn, folder: Path) -> None:
    ran = wn("remove", "linear.pt", "out.pt", "--json", cwd=folder)
    found = checked(ran.stdout)
    assert found["nothing_to_do"] is True
    assert found["error"]["hint"] == "wn inspect linear.pt"
    assert found["roots"][0]["tensors"] == 2
    assert not (folder / "out.pt").exists()


def test_each_of_several_has_its_own_outcome(wn: Wn, folder: Path) -> None:
    typed = ("remove", "lstm.pt", "linear.pt", "nothing.pt", "--output-dir", "out", "--json")
    done, nothing, refused = checked(wn(*typed, cwd=folder).stdout)["files"]
    assert done["output_bytes"] == (folder / "out" / "lstm.pt").stat().st_size
    assert "error" not in done
    assert nothing["nothing_to_do"] is True
    assert refused["checkpoint"] == "nothing.pt"
    assert refused["error"]["problem"] == "no such file"


def test_every_report_has_sizes_seconds_and_what_was_verified(wn: Wn, folder: Path) -> None:
    written = checked(wn("remove", "lstm.pt", "out.pt", "--verify", "--json", cwd=folder).stdout)
    assert written["checkpoint_bytes"] == (folder / "lstm.pt").stat().st_size
    assert written["output_bytes"] == (folder / "out.pt").stat().st_size
    assert written["verified"] == 4
    found = checked(wn("compare", "lstm.pt", "out.pt", "--json", cwd=folder).stdout)
    assert found["checkpoint_bytes"] == written["checkpoint_bytes"]
    assert found["other_bytes"] == written["output_bytes"]
    assert 0 < found["seconds"] < 60
    assert 0 < written["seconds"] < 60
