"""What is said where somebody may mean another thing: a suffix, a dim, a model of the Hub."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import nn

import wncli
from tests.support.run import SAMPLES, Ran

RunHere = Callable[..., Ran]
LSTM = SAMPLES / "lstm.pt"


@pytest.mark.parametrize(
    ("suffix", "kind", "said"),
    [
        (".safetensors", "torch", "warning: a "),
        (".pt", "safetensors", "warning: a "),
        (".PTH", "npz", "warning: a "),
        (".npz", "torch", "warning: a "),
        (".safetensors", "safetensors", ""),
        (".ckpt", "torch", ""),
        (".onnx", "torch", ""),
        ("", "safetensors", ""),
    ],
)
def test_a_suffix_that_contradicts_the_format_is_warned_of(
    suffix: str, kind: str, said: str, wn_here: RunHere, tmp_path: Path
) -> None:
    target = tmp_path / f"out{suffix}"
    ran = wn_here("remove", LSTM, target, "--format", kind)
    assert ran.code == 0
    read: Any = {"torch": torch.load, "safetensors": load, "npz": np.load}[kind]
    content = target.read_bytes()
    assert "weight_hh_l0" in read(content if kind == "safetensors" else io.BytesIO(content))
    expected = f"{said}{kind} file is written, though its suffix {suffix} says" if said else ""
    assert ran.stderr.startswith(expected)
    assert bool(ran.stderr) == bool(said)
    report = json.loads(wn_here("remove", LSTM, target, "-f", "--format", kind, "--json").stdout)
    assert ("suffix" in [note["code"] for note in report["notes"]]) == bool(said)


def test_a_name_that_is_kept_in_a_folder_has_the_formats_suffix(
    wn_here: RunHere, tmp_path: Path
) -> None:
    ran = wn_here("remove", LSTM, tmp_path, "--format", "safetensors")
    assert (ran.code, ran.stderr) == (0, "")


def test_dim_minus_one_is_said_to_be_the_whole_tensor(wn_here: RunHere, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 4), nn.Linear(3, 2))
    torch.save(model.state_dict(), tmp_path / "in.pt")
    ran = wn_here("apply", tmp_path / "in.pt", tmp_path / "out.pt", "--dim", "-1")
    assert ran.code == 0
    assert "note: --dim -1: the whole tensor, as in torch; the last axis is 1 or 2\n" in ran.stdout
    theirs = nn.utils.parametrizations.weight_norm(model[0], dim=-1).state_dict()
    ours = torch.load(tmp_path / "out.pt")["0.weight_g"]
    assert ours.shape == theirs["parametrizations.weight.original0"].shape == ()
    ran = wn_here("apply", tmp_path / "in.pt", tmp_path / "o.pt", "-l", "0=-1", "-l", "1=none")
    assert "note: -l 0=-1: the whole tensor, as in torch; the last axis is 2\n" in ran.stdout
    for words in (["--dim", "none"], ["--dim", "1"], ["-l", "0=2"]):
        ran = wn_here("apply", tmp_path / "in.pt", tmp_path / "o.pt", "-f", *words)
        assert "whole tensor" not in ran.stdout
    report = wncli.apply(tmp_path / "in.pt", tmp_path / "o.pt", dim=-1, force=True)
    assert "dim=-1: the whole tensor" in next(
        note.message for note in report.notes if note.code == "whole-tensor"
    )


def test_a_model_of_the_hub_is_said_to_be_downloaded(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = wn_here("remove", "facebook/speecht5_hifigan", "out")
    assert ran.code == 2
    assert "try:      hf://facebook/speecht5_hifigan of the Hugging Face Hub, if" in ran.stderr
    Path("models").mkdir()
    for path in ("models/speecht5_hifigan", "facebook/model.pt", "/facebook/x", "a/b/c", "x"):
        assert "hf://" not in wn_here("remove", path, "out").stderr


@pytest.mark.parametrize(
    ("rule", "offered"),
    [
        ("ups", "-l 'ups.*'"),
        ("resblocks.0.convs1", "-l 'resblocks.0.convs1.*'"),
        ("resblock.0.*", "-l 'resblocks.0.*' or "),
        ("upz", "-l 'ups.*' or -l ups.0 or -l ups.1"),
        ("convpre", "-l conv_pre or "),
        ("ups.2", "-l ups.0 or -l ups.1"),
    ],
)
def test_a_rule_that_matches_nothing_is_told_what_it_may_mean_best_first(
    rule: str, offered: str, wn_here: RunHere
) -> None:
    ran = wn_here("inspect", SAMPLES / "hifigan_generator", "-l", rule)
    assert ran.code == 2
    hint = ran.stderr.splitlines()[-1].removeprefix("  try:      ")
    assert hint.startswith(offered)
    for words in hint.split(" or "):
        again = wn_here("inspect", SAMPLES / "hifigan_generator", *shlex.split(words))
        assert again.code == 0


def test_names_that_come_as_near_are_offered_in_their_order(
    wn_here: RunHere, tmp_path: Path
) -> None:
    torch.save(nn.Sequential(*(nn.Linear(2, 2) for _ in range(5))).state_dict(), tmp_path / "in.pt")
    ran = wn_here("apply", tmp_path / "in.pt", tmp_path / "out.pt", "-l", "weihgt")
    assert ran.stderr.endswith("try:      -l 0.weight or -l 1.weight or -l 2.weight\n")
