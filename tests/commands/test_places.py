"""Where an output goes: into a folder that is there, as `cp` does it, and to stdout."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wncli
from tests.support.run import SAMPLES, Ran

RunHere = Callable[..., Ran]
LSTM = SAMPLES / "lstm.pt"


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_existing_folder_gets_a_file_of_the_same_name(
    slash: str, wn_here: RunHere, tmp_path: Path
) -> None:
    for folder in ("folder", "folder.pt"):
        (tmp_path / folder).mkdir()
        target = f"{tmp_path / folder}{slash}"
        assert wn_here("remove", LSTM, target).code == 0
        assert "weight_hh_l0" in torch.load(tmp_path / folder / "lstm.pt")
        assert wn_here("convert", LSTM, target, "--format", "safetensors").code == 0
        assert "weight_hh_l0_g" in load_file(tmp_path / folder / "lstm.safetensors")
        assert len(list((tmp_path / folder).iterdir())) == 2


def test_what_is_in_an_existing_folder_is_replaced_with_force_alone(
    wn_here: RunHere, tmp_path: Path
) -> None:
    shutil.copy(SAMPLES / "linear.pt", tmp_path / "lstm.pt")
    before = (tmp_path / "lstm.pt").read_bytes()
    ran = wn_here("remove", LSTM, tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert f"error: {tmp_path / 'lstm.pt'}: OUTPUT exists already" in ran.stderr
    assert "--output-dir" not in ran.stderr
    assert (tmp_path / "lstm.pt").read_bytes() == before
    itself = wn_here("remove", tmp_path / "lstm.pt", tmp_path)
    assert "CHECKPOINT itself" in itself.stderr
    assert wn_here("remove", LSTM, tmp_path, "-f").code == 0
    assert "weight_hh_l0" in torch.load(tmp_path / "lstm.pt")


def test_the_function_does_the_same_and_says_where(tmp_path: Path) -> None:
    report = wncli.remove(LSTM, tmp_path)
    assert report.output == str(tmp_path / "lstm.pt")


def test_shards_stay_a_folder_of_their_own(wn_here: RunHere, tmp_path: Path) -> None:
    sample = SAMPLES / "bfloat16.safetensors"
    for name in ("made", "again"):
        (tmp_path / name).mkdir()
    assert wn_here("convert", sample, tmp_path / "made", "--max-shard-size", "5KB").code == 0
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert "model.safetensors.index.json" in names
    assert wn_here("convert", tmp_path / "made", tmp_path / "again").code == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == names


def test_one_of_several_does_not_go_into_a_folder_of_its_name(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "lstm.pt").mkdir()
    ran = wn_here("remove", LSTM, "--output-dir", tmp_path)
    assert ran.code == 2
    assert "is a directory" in ran.stderr
    assert not list((tmp_path / "lstm.pt").iterdir())


def test_another_checkpoint_as_output_is_said_to_be_one(wn_here: RunHere, tmp_path: Path) -> None:
    for name, sample in (("la.pt", "lstm.pt"), ("lb.pt", "wavenet.pt")):
        shutil.copy(SAMPLES / sample, tmp_path / name)
    before = (tmp_path / "lb.pt").read_bytes()
    ran = wn_here("remove", tmp_path / "la.pt", tmp_path / "lb.pt")
    assert (ran.code, ran.stdout) == (2, "")
    first, *_, hint = ran.stderr.splitlines()
    assert first == f"error: {tmp_path / 'lb.pt'}: OUTPUT exists already, and is a checkpoint"
    assert hint.index("--output-dir DIR writes both") < hint.index("--force replaces it")
    assert hint.endswith("what it holds is lost")
    assert (tmp_path / "lb.pt").read_bytes() == before


def test_a_dry_run_shows_its_plan_where_the_output_exists_and_touches_nothing(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "out.pt").write_bytes(b"mine")
    ran = wn_here("remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--dry-run")
    assert (ran.code, ran.stderr) == (0, "")
    assert "would fold 2 layers" in ran.stdout
    assert "exists already: without --force it is refused" in ran.stdout
    assert (
        "exists"
        not in wn_here(
            "remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--dry-run", "--force"
        ).stdout
    )
    assert (tmp_path / "out.pt").read_bytes() == b"mine"
