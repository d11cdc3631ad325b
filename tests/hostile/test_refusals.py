"""Bad input: exit code 2, one message that helps, nothing written, an existing file untouched."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.run import SAMPLES, Ran, Wn, environment

pytestmark = pytest.mark.thinned(3)

Files = dict[str, bytes]
RunHere = Callable[..., Ran]

PLAIN = {"up.weight": torch.randn(4, 3), "up.bias": torch.randn(4)}
NORMALIZED = {"up.weight_g": torch.ones(4, 1), "up.weight_v": torch.ones(4, 3)}


def saved(obj: object, *, legacy: bool = False) -> bytes:
    """What `torch.save` writes."""
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def tensors(folder: Path, state: dict[str, Tensor]) -> bytes:
    """What `safetensors` writes."""
    save_file(state, folder / "made.safetensors")
    data = (folder / "made.safetensors").read_bytes()
    (folder / "made.safetensors").unlink()
    return data


def scripted() -> bytes:
    """A TorchScript archive, as far as its members go."""
    return archive({"model/constants.pkl": b"\x80\x02).", "model/code/__torch__.py": b"x"})


def archive(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, data in members.items():
            made.writestr(name, data)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        made.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file in a folder with its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def hold_refused(ran: Ran, *fragments: str) -> None:
    """One message on stderr, nothing on stdout, exit code 2."""
    assert ran.code == 2, ran.stderr
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error: ") == 1
    assert "Traceback" not in ran.stderr
    assert "defect" not in ran.stderr
    first, *rest = ran.stderr.splitlines()
    assert len(first) > len("error: ")
    assert rest, "the message says what is wrong, but not what would be right"
    assert all(line.startswith(("  expected: ", "  found:    ", "  try:      ")) for line in rest)
    for fragment in fragments:
        assert fragment in ran.stderr


# A file that is no checkpoint, or a damaged one: every command refuses it alike

FILES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty": (lambda: b"", ("not a checkpoint", "an empty file")),
    "text": (lambda: b"Hello, world.\n", ("not a checkpoint", "a text file")),
    "noise": (
        lambda: bytes(range(256)) * 9,
        ("not a checkpoint", "a safetensors, torch or npz file"),
    ),
    "web page": (lambda: b"<!DOCTYPE html><html></html>", ("not a checkpoint", "web page")),
    "git lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        ("not a checkpoint", "git lfs pull"),
    ),
    "gzip": (lambda: b"\x1f\x8b\x08" + b"\0" * 64, ("not a checkpoint", "gunzip")),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 64, ("not a checkpoint", "HDF5")),
    "tar": (tar, ("not a checkpoint", "tar archive", "torch.save")),
    "pickle": (lambda: b"\x80\x04}\x94.", ("not a checkpoint", "plain pickle")),
    "other zip": (lambda: archive({"a/b.txt": b"x"}), ("no torch checkpoint", "data.pkl")),
    "torchscript": (scripted, ("TorchScript",)),
    "scrambled zip": (lambda: b"XXXX" + saved(PLAIN)[4:], ("first bytes have been changed", "dd")),
    "zip behind others": (
        lambda: b"#!/bin/sh\n" + saved(PLAIN),
        ("behind 10 bytes", "tail -c +11"),
    ),
    "zip cut in front": (lambda: saved(PLAIN)[100:], ("first 100 bytes are missing", "again")),
    "truncated zip header": (lambda: saved(PLAIN)[:20], ("truncated",)),
    "truncated zip": (lambda: saved(PLAIN)[:-200], ("truncated",)),
    "zip without its end": (lambda: saved(PLAIN)[:-1], ("damaged", "truncated")),
    "truncated legacy pickle": (lambda: saved(PLAIN, legacy=True)[:100], ("it ends early",)),
    "truncated legacy": (lambda: saved(PLAIN, legacy=True)[:-1], ("the file ends inside storage",)),
}


@pytest.mark.parametrize("command", ["inspect", "apply", "remove"])
@pytest.mark.parametrize("kind", FILES)
def test_what_is_no_checkpoint_is_refused(
    kind: str, command: str, wn_here: RunHere, tmp_path: Path
) -> None:
    make, fragments = FILES[kind]
    source, target = tmp_path / "model.pt", tmp_path / "out.pt"
    source.write_bytes(make())
    target.write_bytes(b"precious")
    before = snapshot(tmp_path)
    more = [] if command == "inspect" else [str(target), "--force"]
    ran = wn_here(command, source, *more)
    hold_refused(ran, str(source))
    assert any(fragment in ran.stderr for fragment in fragments)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("cut", [4, 8, 60, -1])
@pytest.mark.parametrize("command", ["inspect", "apply", "remove"])
def test_truncated_safetensors_are_refused(
    command: str, cut: int, wn_here: RunHere, tmp_path: Path
) -> None:
    source, target = tmp_path / "model.safetensors", tmp_path / "out.pt"
    source.write_bytes(tensors(tmp_path, PLAIN)[:cut])
    before = snapshot(tmp_path)
    ran = wn_here(command, source, *([] if command == "inspect" else [target]))
    hold_refused(ran, str(source))
    assert "truncated" in ran.stderr or "not a checkpoint" in ran.stderr
    assert snapshot(tmp_path) == before


def test_every_cut_through_a_file_is_refused_or_gives_all_of_it(
    wn_here: RunHere, tmp_path: Path
) -> None:
    for legacy in (False, True):
        whole = saved(NORMALIZED, legacy=legacy)
        for end in range(0, len(whole), 37):
            source = tmp_path / "model.pt"
            source.write_bytes(whole[:end])
            hold_refused(wn_here("remove", source, tmp_path / "out.pt"), str(source))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


# What is asked for does not fit what is there


@dataclass(frozen=True)
class Case:
    """A refusal: what is in `model.pt`, what is typed after it, what the message must say."""

    state: Any
    command: str
    says: tuple[str, ...]
    options: tuple[str, ...] = ()
    output: str = "out.pt"
    force: bool = True
    files: Files = field(default_factory=dict)


def pairs(**layers: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, Tensor]:
    """Pairs of g and v of these shapes."""
    return {
        f"{name}.weight_{half}": torch.ones(shape)
        for name, shapes in layers.items()
        for half, shape in zip("gv", shapes, strict=True)
    }


UNDEFINED = {"up.weight_g": torch.ones(4, 1), "up.weight_v": torch.ones(4, 3)}
UNDEFINED["up.weight_v"] = torch.tensor([[1.0, 2, 3], [1, 2, 3], [0, 0, 0], [1, 2, 3]])

CASES: dict[str, Case] = {
    # rules
    "a rule that matches nothing, apply": Case(
        PLAIN, "apply", ("-l upp", "the rule matches no", "-l up"), ("-l", "upp")
    ),
    "a rule that matches nothing, remove": Case(
        NORMALIZED, "remove", ("-l down.*", "the rule matches no"), ("-l", "down.*")
    ),
    "an exclusion that matches nothing": Case(
        PLAIN, "apply", ("-x down", "the rule matches no", "up"), ("-x", "down")
    ),
    "a rule for what is normalized already": Case(
        NORMALIZED, "apply", ("-l up", "normalized already", "up.weight_g"), ("-l", "up")
    ),
    "an empty rule": Case(PLAIN, "apply", ("the rule is empty",), ("-l", "=0")),
    "a word for a dim in a rule": Case(
        PLAIN, "apply", ("-l up=x", "'x' is not a dim", "a whole number"), ("-l", "up=x")
    ),
    "nothing for a dim in a rule": Case(PLAIN, "apply", ("-l up=", "is not a dim"), ("-l", "up=")),
    "a dim in a rule of remove": Case(
        NORMALIZED, "remove", ("-l up=1", "along another dim", "-l up"), ("-l", "up=1")
    ),
    # dims
    "a dim out of range": Case(
        PLAIN, "apply", ("up.weight", "dim 2 is out of range", "0 to 1"), ("--dim", "2")
    ),
    "a dim out of range in a rule": Case(
        PLAIN, "apply", ("up.weight", "dim 7 is out of range", "0 to 1"), ("-l", "up=7")
    ),
    "a negative dim": Case(
        PLAIN, "apply", ("up.weight", "dim -2", "0 to 1", "not the last"), ("--dim", "-2")
    ),
    "a word for a dim": Case(
        PLAIN, "apply", ("--dim", "'all' is not a dim", "none"), ("--dim", "all")
    ),
    # pairs
    "a magnitude without its direction": Case(
        {"up.weight_g": torch.ones(4, 1)},
        "remove",
        ("up.weight", "incomplete", "up.weight_v", "-x"),
    ),
    "a direction without its magnitude": Case(
        {"up.weight_v": torch.ones(4, 3)},
        "remove",
        ("up.weight", "incomplete", "up.weight_g", "-x"),
    ),
    "half of a parametrized pair": Case(
        {"up.parametrizations.weight.original0": torch.ones(4, 1)},
        "remove",
        ("up.weight", "incomplete", "up.parametrizations.weight.original1"),
    ),
    "a magnitude that fits no dim": Case(
        pairs(up=((5, 1), (4, 3))), "remove", ("up.weight", "[5, 1]", "[4, 3]", "fits no dim")
    ),
    "a magnitude of two axes": Case(
        pairs(up=((4, 3), (4, 3))), "remove", ("up.weight", "[4, 3]", "fits no dim")
    ),
    "a vector that fits two dims": Case(
        pairs(up=((4,), (4, 4))), "remove", ("up.weight", "[4]", "fits several dims")
    ),
    "another parametrization of two tensors": Case(
        {
            "up.parametrizations.weight.original0": torch.ones(4, 2),
            "up.parametrizations.weight.original1": torch.ones(2, 3),
        },
        "remove",
        ("up.weight", "original0", "original1"),
    ),
    "both spellings at once": Case(
        {
            **NORMALIZED,
            "up.parametrizations.weight.original0": torch.ones(4, 1),
            "up.parametrizations.weight.original1": torch.ones(4, 3),
        },
        "remove",
        ("up.weight", "both spellings"),
    ),
    "a zero direction under a magnitude": Case(
        UNDEFINED, "remove", ("up.weight", "slice 2 ", "no direction", "-x up.weight")
    ),
    "a zero direction under a magnitude, to safetensors": Case(
        UNDEFINED, "remove", ("up.weight", "slice 2 "), output="out.safetensors"
    ),
    "integers for g and v": Case(
        {name: value.long() for name, value in NORMALIZED.items()},
        "remove",
        ("up.weight", "int64", "float32"),
    ),
    # weights
    "a float16 overflow": Case(
        {"up.weight": torch.full((2, 4), 40_000.0).half()},
        "apply",
        ("up.weight", "float16", "slices 0, 1", "80000", "-x up.weight"),
    ),
    "a float32 overflow": Case(
        {"up.weight": torch.full((2, 4), 3e38)}, "apply", ("up.weight", "float32", "hold")
    ),
    "a float64 overflow": Case(
        {"up.weight": torch.full((2, 4), 1.7e308, dtype=torch.float64)},
        "apply",
        ("up.weight", "float64", "hold"),
    ),
    "a float16 overflow, to safetensors": Case(
        {"up.weight": torch.full((2, 4), 40_000.0).half()},
        "apply",
        ("up.weight", "float16"),
        output="out.safetensors",
    ),
    "integers": Case(
        {"up.weight": torch.ones(2, 2).long()}, "apply", ("up.weight", "int64"), ("-l", "up")
    ),
    "float8": Case(
        {"up.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)},
        "apply",
        ("up.weight", "float8_e4m3fn", "bfloat16"),
        ("-l", "up.weight"),
    ),
    "complex numbers": Case(
        {"up.weight": torch.ones(2, 2).to(torch.complex64)},
        "apply",
        ("up.weight", "complex64", "float64"),
        ("-l", "*.weight"),
    ),
    "a scalar": Case(
        {"up.weight": torch.tensor(2.0), "other": torch.ones(2)},
        "apply",
        ("up.weight", "0-dimensional"),
        ("-l", "up.weight"),
    ),
    "a name that is taken": Case(
        {**PLAIN, "up.weight_g": torch.ones(4)}, "apply", ("up.weight", "up.weight_g", "taken")
    ),
    "a weight under spectral norm": Case(
        torch.nn.utils.spectral_norm(nn.Linear(3, 2)).state_dict(),
        "remove",
        ("-l weight", "spectral"),
        ("-l", "weight"),
    ),
    # roots and entries
    "a root that is not there": Case(
        {"model": PLAIN}, "apply", ("--only ema", "no state dict", "model"), ("--only", "ema")
    ),
    "an entry that is not there": Case(
        {"model": PLAIN, "epoch": 3}, "apply", ("--drop optim", "epoch"), ("--drop", "optim")
    ),
    "an entry that is not there, to safetensors": Case(
        {"model": PLAIN, "epoch": 3},
        "apply",
        ("--drop optim", "epoch"),
        ("--drop", "optim"),
        "out.safetensors",
    ),
    "several state dicts for one safetensors file": Case(
        {"model": PLAIN, "ema": PLAIN | {}},
        "apply",
        ("one state dict", "model", "ema", "--only model"),
        output="out.safetensors",
    ),
    "a dtype that safetensors has not": Case(
        {**NORMALIZED, "waves": torch.ones(2, dtype=torch.complex128)},
        "remove",
        ("waves", "complex128", "--format torch"),
        output="out.safetensors",
    ),
    # OUTPUT
    "an OUTPUT that exists": Case(
        PLAIN, "apply", ("out.pt", "exists already", "--force"), force=False
    ),
    "an OUTPUT that is the input": Case(
        PLAIN, "apply", ("CHECKPOINT itself", "model-2.pt"), output="model.pt", force=False
    ),
    "an OUTPUT that is a directory, in a folder": Case(
        PLAIN, "apply", ("model.pt", "directory", "a file's name"), output="folder"
    ),
    "an OUTPUT in no directory": Case(
        PLAIN, "apply", ("directory does not exist", "mkdir -p"), output="none/such/out.pt"
    ),
    "an OUTPUT that is a device": Case(
        PLAIN, "apply", ("/dev/null", "not a regular file"), output="/dev/null"
    ),
    "an OUTPUT of an unknown suffix": Case(
        PLAIN, "apply", ("out.onnx", ".onnx", "--format", ".safetensors"), output="out.onnx"
    ),
    # usage
    "an unknown option": Case(PLAIN, "apply", ("--bogus", "wn apply --help"), ("--bogus",)),
    "an unknown spelling": Case(
        PLAIN, "apply", ("--naming", "hook", "wn apply --help"), ("--naming", "old")
    ),
    "an unknown format": Case(
        PLAIN, "remove", ("--format", "safetensors", "wn remove --help"), ("--format", "onnx")
    ),
    "an argument too many": Case(PLAIN, "apply", ("third.pt",), ("third.pt",)),
}


@pytest.mark.parametrize("name", CASES)
def test_is_refused_and_nothing_written(name: str, wn_here: RunHere, tmp_path: Path) -> None:
    case = CASES[name]
    (tmp_path / "model.pt").write_bytes(saved(case.state))
    (tmp_path / "out.pt").write_bytes(b"precious")
    (tmp_path / "out.safetensors").write_bytes(b"precious, too")
    (tmp_path / "folder" / "model.pt").mkdir(parents=True)
    before = snapshot(tmp_path)
    force = ["--force"] if case.force else []
    target = tmp_path / case.output
    ran = wn_here(case.command, tmp_path / "model.pt", target, *case.options, *force)
    hold_refused(ran, *case.says)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["inspect", "remove"])
def test_safetensors_with_a_name_twice_are_refused(
    command: str, wn_here: RunHere, tmp_path: Path
) -> None:
    entry = b'"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    source = tmp_path / "twice.safetensors"
    source.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    ran = wn_here(command, source, *([] if command == "inspect" else [tmp_path / "out.pt"]))
    hold_refused(ran, str(source), "'weight'", "twice")


def test_a_missing_file_is_refused_with_names_that_come_near(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "generator.pt").write_bytes(saved(PLAIN))
    ran = wn_here("inspect", tmp_path / "genrator.pt")
    hold_refused(ran, "genrator.pt", "no such file", "generator.pt")


def test_a_folder_without_a_checkpoint_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    hold_refused(wn_here("inspect", tmp_path), str(tmp_path), "directory", "a checkpoint file")


def test_a_fifo_is_refused_and_not_waited_for(wn: Wn, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    hold_refused(wn("inspect", tmp_path / "pipe"), "pipe", "not a regular file")


@pytest.mark.parametrize("arguments", [(), ("apply",), ("apply", "model.pt"), ("bogus",)])
def test_missing_arguments_and_commands_are_refused(
    arguments: tuple[str, ...], wn_here: RunHere
) -> None:
    if not arguments:
        ran = wn_here("inspect")
        hold_refused(ran, "CHECKPOINT", "wn inspect --help")
        return
    hold_refused(wn_here(*arguments), "help")


def test_a_full_disk_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.pt").write_bytes(b"precious")
    before = snapshot(tmp_path)
    command = 'ulimit -f 1; exec "$@"'
    arguments = ["remove", str(SAMPLES / "hifigan_generator"), str(tmp_path / "out.pt"), "--force"]
    ran = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "wncli", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    hold_refused(Ran(ran.returncode, ran.stdout, ran.stderr), "out.pt", "cannot be written")
    assert snapshot(tmp_path) == before


def test_an_unreadable_file_is_refused(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for the system's refusal: to root, nothing is unreadable."""

    open_as_before = os.open
    path = tmp_path / "model.pt"
    path.write_bytes(saved(PLAIN))

    def refuse(given: Path | str, *rest: Any, **more: Any) -> int:  # noqa: ANN401
        if str(given) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_as_before(given, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    ran = wn_here("inspect", tmp_path / "model.pt")
    assert ran.code == 2
    assert ran.stderr.startswith(f"error: {tmp_path / 'model.pt'}: cannot be read (Permission")


def test_an_unexpected_failure_still_shows_no_traceback(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("wncli.api.make_report", fail)
    ran = wn_here("inspect", SAMPLES / "linear.pt")
    assert (ran.code, ran.stdout) == (2, "")
    assert "Traceback" not in ran.stderr
    assert "RuntimeError" in ran.stderr
    assert not list(tmp_path.iterdir())
