"""Several checkpoints into one folder: each on its own, one line each, the worst exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import wncli
from tests.support.oracles import bits, load
from tests.support.run import Ran, Wn

RunHere = Callable[..., Ran]

V = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
NORMALIZED = {"up.weight_g": torch.tensor([[10.0], [5.0]]), "up.weight_v": V}
FOLDED = torch.tensor([[6.0, 8.0], [3.0, 4.0]])
PLAIN = {"up.weight": V}
BROKEN = {"up.weight_g": torch.ones(7, 1), "up.weight_v": V}

COMMANDS = {
    "remove": ((), NORMALIZED, {"up.weight"}),
    "apply": ((), PLAIN, {"up.weight_g", "up.weight_v"}),
    "convert": (
        ("--naming", "parametrized"),
        NORMALIZED,
        {f"up.parametrizations.weight.original{half}" for half in (0, 1)},
    ),
}  # fmt: skip


def save(folder: Path, **states: object) -> list[Path]:
    """One torch file for each state dict, under its name."""
    paths = []
    for name, state in states.items():
        paths.append(folder / f"{name}.pt")
        torch.save(state, paths[-1])
    return paths


def read(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(path) if path.suffix == ".safetensors" else load(path)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_checkpoint_is_written_under_its_name_with_one_line(
    command: str, wn_here: RunHere, tmp_path: Path
) -> None:
    options, state, expected = COMMANDS[command]
    paths = save(tmp_path, a=state, b={"model": state, "epoch": 1}, c=state)
    out = tmp_path / "not" / "there"
    ran = wn_here(command, *paths, "--output-dir", out, *options)
    assert (ran.code, ran.stderr) == (0, "")
    assert names(out) == ["a.pt", "b.pt", "c.pt"]
    *lines, rule, total = ran.stdout.splitlines()
    assert len(lines) == 3
    assert set(rule) == {" ", "─"}
    assert total == f" 3 written to {out}/"
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f" ✓ {path} ")
        assert re.search(r"1 layer .*\d → \d", line)
    assert set(read(out / "a.pt")) == expected
    written = load(out / "b.pt")
    assert (set(written["model"]), written["epoch"]) == (expected, 1)


def test_one_checkpoint_alone_goes_into_the_folder_too(wn_here: RunHere, tmp_path: Path) -> None:
    (path,) = save(tmp_path, a=NORMALIZED)
    assert wn_here("remove", path, "--output-dir", tmp_path / "out").code == 0
    assert bits(load(tmp_path / "out" / "a.pt")["up.weight"]) == bits(FOLDED)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ({"a": NORMALIZED, "b": NORMALIZED}, 0),
        ({"a": PLAIN, "b": NORMALIZED}, 1),
        ({"a": BROKEN, "b": NORMALIZED}, 2),
        ({"a": BROKEN, "b": PLAIN, "c": NORMALIZED}, 2),
        ({"a": PLAIN, "b": BROKEN, "c": NORMALIZED}, 2),
        ({"a": PLAIN, "b": PLAIN}, 1),
    ],
)
def test_it_goes_on_after_a_failure_and_leaves_with_the_worst_code(
    states: dict[str, object], code: int, wn_here: RunHere, tmp_path: Path
) -> None:
    paths = save(tmp_path, **states)
    ran = wn_here("remove", *paths, "--output-dir", tmp_path / "out")
    assert ran.code == code
    good = [f"{name}.pt" for name, state in states.items() if state is NORMALIZED]
    *rows, _, total = ran.stdout.splitlines()
    marks = {id(NORMALIZED): "✓", id(PLAIN): "-", id(BROKEN): "✗"}
    assert [row.split()[0] for row in rows] == [marks[id(state)] for state in states.values()]
    assert total.startswith(f" {len(good)} written to ")
    assert (names(tmp_path / "out") if good else []) == good
    for name, state in states.items():
        assert (f"{name}.pt" in ran.stderr) is (state is BROKEN)


def test_what_cannot_be_opened_does_not_stop_the_others(wn_here: RunHere, tmp_path: Path) -> None:
    (path,) = save(tmp_path, good=NORMALIZED)
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").touch()
    bad = [tmp_path / name for name in ("missing.pt", "text.pt", "empty.pt")]
    ran = wn_here("remove", *bad, path, "--output-dir", tmp_path / "out")
    assert ran.code == 2
    assert names(tmp_path / "out") == ["good.pt"]
    assert ran.stderr.count("error: ") == 3


def test_json_is_one_object_with_every_file(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=PLAIN, c=BROKEN)
    ran = wn_here("remove", *paths, "--output-dir", tmp_path / "out", "--json")
    found = json.loads(ran.stdout)
    assert (ran.code, found["schema"], found["command"]) == (2, "wn/1", "remove")
    assert [file["checkpoint"] for file in found["files"]] == [str(path) for path in paths]
    good, plain, broken = found["files"]
    assert good["output"] == str(tmp_path / "out" / "a.pt")
    assert good["parameters"] == {"before": 6, "after": 4, "change": -2}
    assert "error" not in good
    assert "no weight norm" in plain["error"]["message"]
    assert "up.weight" in broken["error"]["message"]


def test_quiet_prints_errors_only(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, c=BROKEN)
    ran = wn_here("remove", *paths, "--output-dir", tmp_path / "out", "-q")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.count("error: ") == 1


@pytest.mark.parametrize("options", [(), ("--format", "safetensors")])
def test_two_under_one_name_are_refused_before_anything_is_written(
    options: tuple[str, ...], wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    first, other = save(tmp_path, a=NORMALIZED, b=NORMALIZED)
    same = tmp_path / "x" / ("a.pth" if options else "a.pt")
    torch.save(NORMALIZED, same)
    ran = wn_here("remove", first, other, same, "--output-dir", tmp_path / "out", *options)
    assert ran.code == 2
    assert str(tmp_path / "out" / "a.") in ran.stderr
    assert not (tmp_path / "out").exists()


def test_one_checkpoint_twice_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    (path,) = save(tmp_path, a=NORMALIZED)
    again = tmp_path / "." / ".." / tmp_path.name / "a.pt"
    for twice in (path, again):
        assert wn_here("remove", path, twice, "--output-dir", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()


def test_a_dry_run_makes_no_folder(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=PLAIN)
    ran = wn_here("remove", *paths, "--output-dir", tmp_path / "out", "--dry-run")
    assert ran.code == 1
    assert "would fold 1 layer" in ran.stdout
    assert f"1 would be written to {tmp_path / 'out'}/" in ran.stdout
    assert names(tmp_path) == ["a.pt", "b.pt"]


def test_another_format_has_another_suffix(wn_here: RunHere, tmp_path: Path) -> None:
    for name in ("a.pt", "b.tar", "g_02500000", "C.PTH"):
        torch.save(NORMALIZED, tmp_path / name)
    save_file(NORMALIZED, tmp_path / "s.safetensors")
    paths = [tmp_path / name for name in names(tmp_path)]
    out = tmp_path / "out"
    assert wn_here("remove", *paths, "--output-dir", out, "--format", "safetensors").code == 0
    stems = ["C", "a", "b", "g_02500000", "s"]
    assert names(out) == [f"{stem}.safetensors" for stem in stems]
    assert all(bits(load_file(path)["up.weight"]) == bits(FOLDED) for path in out.iterdir())
    back = sorted(out.iterdir())
    again = tmp_path / "again"
    assert wn_here("apply", *back, "--output-dir", again, "--format", "torch").code == 0
    assert names(again) == [f"{stem}.pt" for stem in stems]
    assert bits(load(again / "s.pt")["up.weight_v"]) == bits(FOLDED)


def test_an_existing_output_is_refused_for_itself_alone(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=NORMALIZED)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.pt").write_bytes(b"mine")
    ran = wn_here("remove", *paths, "--output-dir", out)
    assert ran.code == 2
    assert "--force" in ran.stderr
    assert (out / "a.pt").read_bytes() == b"mine"
    assert bits(load(out / "b.pt")["up.weight"]) == bits(FOLDED)
    assert wn_here("remove", *paths, "--output-dir", out, "--force").code == 0
    assert bits(load(out / "a.pt")["up.weight"]) == bits(FOLDED)


def test_the_folder_of_the_inputs_is_written_in_place_only_by_force(
    wn_here: RunHere, tmp_path: Path
) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=NORMALIZED)
    before = [path.read_bytes() for path in paths]
    assert wn_here("remove", *paths, "--output-dir", tmp_path).code == 2
    assert [path.read_bytes() for path in paths] == before
    assert wn_here("remove", *paths, "--output-dir", tmp_path, "--force").code == 0
    assert all(bits(load(path)["up.weight"]) == bits(FOLDED) for path in paths)
    assert names(tmp_path) == ["a.pt", "b.pt"]


def test_several_outputs_without_a_folder_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=NORMALIZED)
    ran = wn_here("remove", *paths, tmp_path / "c.pt")
    assert ran.code == 2
    assert "--output-dir" in ran.stderr
    assert names(tmp_path) == ["a.pt", "b.pt"]
    ran = wn_here("remove", paths[0])
    assert ran.code == 2
    assert "OUTPUT" in ran.stderr


def test_a_file_in_the_place_of_the_folder_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    paths = save(tmp_path, a=NORMALIZED, b=NORMALIZED)
    (tmp_path / "out").write_bytes(b"mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        ran = wn_here("remove", *paths, "--output-dir", folder)
        assert ran.code == 2
        assert "Traceback" not in ran.stderr
    assert (tmp_path / "out").read_bytes() == b"mine"


def test_every_checkpoint_gets_the_structure_of_one_reference(
    wn_here: RunHere, tmp_path: Path
) -> None:
    *paths, reference = save(tmp_path, a=NORMALIZED, b={"model": NORMALIZED}, reference=PLAIN)
    ran = wn_here("convert", *paths, "--output-dir", tmp_path / "out", "--like", reference)
    assert ran.code == 0
    for name in ("a.pt", "b.pt"):
        assert list(load(tmp_path / "out" / name)) == ["up.weight"]


def test_the_function_makes_the_folder_where_it_is_told_to(tmp_path: Path) -> None:
    (path,) = save(tmp_path, a=NORMALIZED)
    with pytest.raises(wncli.FileError):
        wncli.remove(path, tmp_path / "out" / "a.pt")
    wncli.remove(path, tmp_path / "out" / "a.pt", make_folder=True)
    assert bits(load(tmp_path / "out" / "a.pt")["up.weight"]) == bits(FOLDED)


def test_outputs_stay_in_the_folder_whatever_the_inputs_are_called(wn: Wn, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    save_file({"a.weight": torch.ones(2, 2)}, model / "model.safetensors")
    torch.save({"b.weight": torch.ones(2, 2)}, tmp_path / "b.pt")
    ran = wn("apply", "..", "--output-dir", "out", cwd=model / "sub")
    assert ran.code == 0, ran.stderr
    assert [p.name for p in (model / "sub" / "out").iterdir()] == ["model"]
    ran = wn("convert", "b.pt", "--output-dir", "out", "--max-shard-size", "1KB", cwd=tmp_path)
    assert ran.code == 0, ran.stderr
    assert [p.name for p in (tmp_path / "out" / "b").iterdir()] == ["pytorch_model.bin"]
