"""Short options: each does what its long one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import wncli
from tests.support.run import SAMPLES, Ran

RunHere = Callable[..., Ran]
LSTM = SAMPLES / "lstm.pt"


def test_n_is_a_dry_run_and_f_replaces(wn_here: RunHere, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    assert wn_here("remove", LSTM, target, "-n").code == 0
    assert not target.exists()
    target.write_bytes(b"precious")
    assert wn_here("remove", LSTM, target).code == 2
    assert target.read_bytes() == b"precious"
    assert wn_here("remove", "-f", LSTM, target).code == 0
    assert "weight_hh_l0" in load_file(target)


def test_capital_v_is_the_version(wn_here: RunHere) -> None:
    assert wn_here("-V").stdout == f"wn {wncli.__version__}\n"
    assert wn_here("-Vv").stdout == wn_here("--version", "--verbose").stdout


@pytest.mark.parametrize("option", ["-o", "--output"])
@pytest.mark.parametrize("command", ["remove", "convert"])
def test_output_may_be_an_option(
    command: str, option: str, wn_here: RunHere, tmp_path: Path
) -> None:
    target = tmp_path / "out.safetensors"
    for words in ([LSTM, option, target], [option, target, LSTM, "-f"]):
        assert wn_here(command, *words).code == 0
        assert load_file(target)
        target.write_bytes(b"")


def test_verbose_lists_the_layers(wn_here: RunHere, tmp_path: Path) -> None:
    for option in ("-v", "--verbose"):
        ran = wn_here("remove", LSTM, tmp_path / "out.pt", "-f", option)
        assert ran.code == 0
        assert "weight_hh_l0" in ran.stdout


def test_two_outputs_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    twice = wn_here("remove", LSTM, tmp_path / "a.pt", "-o", tmp_path / "b.pt")
    assert (twice.code, twice.stdout) == (2, "")
    assert "one OUTPUT" in twice.stderr
    both = wn_here("remove", LSTM, "-o", tmp_path / "b.pt", "--output-dir", tmp_path)
    assert (both.code, both.stdout) == (2, "")
    assert "--output-dir names the outputs" in both.stderr
    assert not list(tmp_path.iterdir())
