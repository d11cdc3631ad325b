"""`wn --ranks`: one report, one refusal, the exit code on all ranks, and the same answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import wncli
from tests.support.faults import snapshot
from tests.support.launched import Launcher, free_port, told
from tests.support.parted import item, put_parts
from tests.support.run import Wn, environment
from tests.support.shards import save


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    with Launcher() as found:
        yield found


def layers(count: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    found = {}
    for number in range(count):
        found[f"l{number}.weight_g"] = torch.rand(8, 1) + 0.5
        found[f"l{number}.weight_v"] = torch.randn(8, 40)
        found[f"l{number}.bias"] = torch.randn(8)
    return found


def alone(wn: Wn, folder: Path, *arguments: str) -> dict[str, Any]:
    """The report of one process, which exits as all ranks are to."""
    ran = wn(*arguments, "--json", cwd=folder)
    return {"code": ran.code} | timeless(ran.stdout)


def timeless(report: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report)
    found.pop("seconds", None)
    return found


# -- who is asked --------------------------------------------------------------------------------


def test_ranks_in_the_environment_alone_change_nothing(wn: Wn, tmp_path: Path) -> None:
    save(layers(), tmp_path / "in.safetensors")
    plain = wn("remove", "in.safetensors", "plain.safetensors", cwd=tmp_path)
    extra = told(1, 4, free_port())
    ran = wn("remove", "in.safetensors", "told.safetensors", cwd=tmp_path, **extra)
    assert (ran.code, ran.stderr) == (plain.code, plain.stderr) == (0, "")
    assert ran.stdout.startswith("✓ folded 6 layers")
    told_file, plain_file = tmp_path / "told.safetensors", tmp_path / "plain.safetensors"
    assert told_file.read_bytes() == plain_file.read_bytes()


@pytest.mark.parametrize("place", [0, 1, 3])
def test_without_a_launcher_the_line_to_type_is_told(wn: Wn, place: int, tmp_path: Path) -> None:
    words = ["remove", "a file", "out.pt"]
    words.insert(place, "--ranks")
    ran = wn(*words, cwd=tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    line = "torchrun --nproc-per-node 2 -m wncli --ranks remove 'a file' out.pt"
    assert ran.stderr.endswith(f"  try:      {line}\n")
    assert "found:    no RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in ran.stderr
    said = wn(*words, "--json", cwd=tmp_path)
    assert json.loads(said.stdout)["error"]["hint"] == f"{line} --json"


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["remove", "--help"], ["help", "remove"], ["-V"]]
)
def test_questions_about_wn_need_no_launcher(wn: Wn, words: list[str]) -> None:
    asked = wn("--ranks", *words)
    assert asked == wn(*words)
    assert asked.code == 0


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from wncli.cli import main
main()
"""


def test_without_torch_what_to_install_is_told_once(tmp_path: Path) -> None:
    said = []
    for rank in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, "--ranks", "inspect", "x.pt"],
            check=False, capture_output=True, text=True, cwd=tmp_path,
            env=environment(**told(rank, 2, free_port())),
        )  # fmt: skip
        assert (ran.returncode, ran.stdout) == (2, "")
        said.append(ran.stderr)
    assert said[0].startswith("error: --ranks: ranks need PyTorch")
    assert said[0].endswith("  try:      pip install 'wncli[torch]'\n")
    assert said[1] == ""


# -- what they say -------------------------------------------------------------------------------

COMMANDS = {
    "remove": ("remove", "in.pt", "out.safetensors", "--verify"),
    "remove --dry-run": ("remove", "in.pt", "out.pt", "--dry-run"),
    "apply": ("apply", "plain.pt", "out.pt", "--naming", "parametrized"),
    "convert": ("convert", "in.pt", "out.npz"),
    "convert --like": ("convert", "plain.pt", "out.pt", "--like", "in.pt", "--verify"),
    "shards": ("remove", "in.pt", "out/", "--max-shard-size", "2KB"),
    "nothing to do": ("remove", "plain.pt", "out.pt"),
    "refused": ("remove", "in.pt", "out.pt", "-l", "no.such"),
    "compare": ("compare", "in.pt", "other.pt"),
    "equal": ("compare", "in.pt", "plain.pt"),
    "inspect": ("inspect", "in.pt"),
    "inspect --stats": ("inspect", "in.pt", "--stats"),
    "inspect --norms": ("inspect", "in.pt", "--norms", "--p", "inf"),
    "inspect --check": ("inspect", "damaged.pt", "--check"),
    "distributed --check": ("inspect", "parts", "--check"),
    "distributed, damaged": ("remove", "parts", "out.safetensors"),
    "distributed, compared": ("compare", "in.pt", "parts", "--exclude", "l1"),
    "several": ("inspect", "in.pt", "no.pt", "damaged.pt", "plain.pt", "--check"),
    "several outputs": ("remove", "zero.pt", "in.pt", "plain.pt", "--output-dir", "out"),
    "no command": ("lst", "in.pt"),
    "no option": ("inspect", "in.pt", "--no-such"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    torch.save(layers(), folder / "in.pt")
    other = layers()
    other["l2.weight_v"][3] *= 1.5
    other["l4.weight_v"][0, 0] = float("nan")
    torch.save(other, folder / "other.pt")
    zero = layers()
    zero["l5.weight_v"][2] = 0
    torch.save(zero, folder / "zero.pt")
    wncli.remove(folder / "in.pt", folder / "plain.pt")
    raw = bytearray((folder / "other.pt").read_bytes())
    place = raw.index(other["l1.weight_v"].numpy().tobytes())
    raw[place + 5] ^= 1
    (folder / "damaged.pt").write_bytes(raw)
    damaged = bytearray(item(other["l1.weight_v"]))
    damaged[damaged.index(other["l1.weight_v"].numpy().tobytes()) + 5] ^= 1
    put_parts(folder / "parts", layers(), items={"l1.weight_v": bytes(damaged)})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_ranks_answer_what_one_process_answers(
    name: str, files: Path, wn: Wn, launch: Launcher, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(files, home)
    expected = alone(wn, home, *COMMANDS[name])
    written = snapshot(home)
    shutil.rmtree(home)
    shutil.copytree(files, home)
    first, *others = launch(*COMMANDS[name], "--json", cwd=home, ranks=3)
    assert without_seconds({"code": first.code} | timeless(first.stdout)) == without_seconds(
        expected
    )
    assert [(other.code, other.stdout, other.stderr) for other in others] == [
        (expected["code"], "", "")
    ] * 2
    assert snapshot(home) == written


def without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    for one in report.get("files", []):
        one.pop("seconds", None)
    return report


@pytest.mark.slow
def test_people_read_one_report_and_one_refusal(
    files: Path, wn: Wn, launch: Launcher, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(files, home)
    for arguments in (("inspect", "in.pt"), ("compare", "in.pt", "plain.pt"), ("remove", "x", "y")):
        expected = wn(*arguments, cwd=home)
        first, second = launch(*arguments, cwd=home)
        assert (first.code, first.stderr) == (expected.code, expected.stderr)
        assert (second.code, second.stdout, second.stderr) == (expected.code, "", "")
        assert bool(first.stdout) == bool(expected.stdout)


@pytest.mark.slow
def test_tables_and_pictures_are_written_once_and_streams_refused(
    files: Path, launch: Launcher, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(files, home)
    ran = launch("inspect", "in.pt", "--csv", "-", cwd=home)
    assert [one.code for one in ran] == [0, 0]
    assert ran[0].stdout.startswith("root,name,")
    assert ran[1].stdout == ""
    # Rank 1 is where nothing can be written, and does not try.
    other = tmp_path / "other"
    shutil.copytree(files, other, copy_function=shutil.copy2)
    ran = launch("inspect", "in.pt", "--csv", "t.csv", "--plot", "t.html", cwd=[home, other])
    assert [one.code for one in ran] == [0, 0], ran[0].stderr
    assert {path.name for path in home.iterdir()} - {path.name for path in other.iterdir()} == {
        "t.csv", "t.html"
    }  # fmt: skip
    for arguments in (("inspect", "-"), ("remove", "in.pt", "-")):
        ran = launch(*arguments, cwd=home)
        assert [one.code for one in ran] == [2, 2]
        assert "-: ranks have no stream in common" in ran[0].stderr
