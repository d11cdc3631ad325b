"""What is no command: a file is inspected, a mistake gets the whole line to type."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.run import SAMPLES, Ran

RunHere = Callable[..., Ran]


@pytest.mark.parametrize("sample", ["linear.pt", "hifigan_generator", "training.pt"])
def test_a_file_alone_is_inspected(sample: str, wn_here: RunHere) -> None:
    path = SAMPLES / sample
    assert wn_here(path) == wn_here("inspect", path)
    found, expected = (
        json.loads(wn_here(*command, path, "--json").stdout) for command in ([], ["inspect"])
    )
    assert found | {"seconds": 0} == expected | {"seconds": 0}


def test_a_file_in_the_folder_needs_no_suffix_and_a_command_wins_over_it(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("g_02500000", "remove"):
        shutil.copy(SAMPLES / "hifigan_generator", name)
    assert wn_here("g_02500000").code == 0
    assert "CHECKPOINT: missing" in wn_here("remove").stderr
    assert wn_here("./remove").code == 0


def test_a_file_that_is_not_there_is_said_not_to_be(wn_here: RunHere) -> None:
    ran = wn_here(SAMPLES / "linera.pt")
    assert (ran.code, ran.stdout) == (2, "")
    assert "no such file" in ran.stderr
    assert f"try:      {SAMPLES / 'linear.pt'}" in ran.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ls a.npz2", "inspect a.npz2"),
        ("list 'a b' -q", "inspect 'a b' -q"),
        ("show x", "inspect x"),
        ("diff a b", "compare a b"),
        ("fold a b --drop 'x y'", "remove a b --drop 'x y'"),
        ("fuse a b", "remove a b"),
        ("remov a b", "remove a b"),
        ("Inspect a", "inspect a"),
        ("version", "--version"),
        ("fold", "help remove"),
        ("compar", "help compare"),
        ("nonsense a b", "help"),
        ("help diff", "help compare"),
        ("help nonsense", "help"),
    ],
)
def test_a_mistake_gets_the_whole_line_to_type(typed: str, meant: str, wn_here: RunHere) -> None:
    ran = wn_here(*shlex.split(typed))
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[-1] == f"  try:      wn {meant}"


def test_what_is_missing_is_called_by_its_name_and_place(wn_here: RunHere) -> None:
    for typed, said in (
        ("compare x", "error: B: missing\n  expected: wn compare A B"),
        ("compare", "error: A: missing\n  expected: wn compare A B"),
        ("remove", "error: CHECKPOINT: missing\n  expected: wn remove CHECKPOINT OUTPUT"),
        ("remove x", "error: OUTPUT: missing\n  expected: wn remove CHECKPOINT OUTPUT"),
    ):
        ran = wn_here(*typed.split())
        assert (ran.code, ran.stdout) == (2, "")
        assert ran.stderr.startswith(said)
