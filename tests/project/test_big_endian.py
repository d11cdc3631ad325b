"""On a big-endian machine every command refuses, with one message, and writes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import wncli
from tests.support.run import Ran, environment
from tests.support.sharded_folders import three
from tests.support.shards import sharded
from wncli import FileError

#: Runs `wn` on what is taken for such a machine.
PROGRAM = "import sys; sys.byteorder = 'big'; from wncli.cli import main; main()"

COMMANDS = [
    "inspect in.pt", "inspect --check in.pt", "inspect shards", "apply in.pt out.pt",
    "remove in.pt out.pt", "remove shards out/", "convert in.pt out.safetensors",
    "convert in.pt out.pt --like in.pt", "compare in.pt in.pt",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sharded(tmp_path / "shards", "safetensors", three())
    state = {"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.ones(3, 4)}
    torch.save(state | {"b.weight": torch.ones(2, 2)}, tmp_path / "in.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_and_names_the_byte_order(command: str, folder: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()],
        check=False, capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    ran = Ran(found.returncode, found.stdout, found.stderr)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error") == 1
    assert "this machine is big-endian" in ran.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["in.pt", "shards"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: wncli.inspect("in.pt"),
        lambda: wncli.remove("in.pt", "out.pt"),
        lambda: wncli.apply("in.pt", "out.safetensors"),
        lambda: wncli.convert("shards", "out.pt"),
        lambda: wncli.compare("in.pt", "in.pt"),
    ],
)
def test_every_function_on_files_refuses(
    call: Callable[[], object], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(FileError, match="big-endian"):
        call()
    assert not list(folder.glob("out*"))


def test_arrays_of_the_other_byte_order_are_taken_by_their_values() -> None:
    v, g = (
        np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4),
        np.array([[1], [2], [3]], np.float32),
    )
    expected = wncli.compose(g, v)
    swapped = wncli.compose(g.astype(">f4"), v.astype(">f4"))
    assert np.array_equal(swapped, expected)
    assert np.array_equal(wncli.magnitude(v.astype(">f4")), wncli.magnitude(v))
