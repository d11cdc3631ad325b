"""The folder of a sharded output: complete or not there, and nobody else's files harmed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.run import environment
from tests.support.sharded_folders import (
    State,
    both_kinds,
    folded,
    hold_equal,
    merged,
    names,
    read,
    snapshot,
    three,
    weight_files,
)
from tests.support.shards import KINDS, index_path, shard_name, sharded
from wncli.errors import FileError, WeightNormError, WnError

pytestmark = pytest.mark.thinned(3)

# -- the folder --------------------------------------------------------------------------------

COMPANIONS = {"config.json", "tokenizer.json", "README.md", "merges.txt", "modeling.py", "LICENSE"}
NO_COMPANIONS = (
    "x.bin", "y.safetensors", "model.gguf", "m.onnx", "tf_model.h5", "flax_model.msgpack", "a.pt",
    "other.safetensors.index.json", "model.safetensors.index.fp16.json",
)  # fmt: skip


@both_kinds
@pytest.mark.parametrize("size", [None, 200])
def test_what_is_no_weights_comes_along_byte_for_byte(
    kind: str, size: int | None, tmp_path: Path
) -> None:
    index = sharded(tmp_path / "in", kind, three())
    for name in (*COMPANIONS, *NO_COMPANIONS):
        (tmp_path / "in" / name).write_bytes(f"{{{name}\r\n\xff}}".encode("latin-1"))
    (tmp_path / "in" / "link.json").symlink_to("config.json")
    (tmp_path / "in" / "onnx").mkdir()
    wncli.remove(index, tmp_path / "out", max_shard_size=size)
    read(tmp_path / "out")
    kept = COMPANIONS | {"link.json"}
    assert set(names(tmp_path / "out")) == kept | {index.name, *weight_files(tmp_path / "out")}
    for name in kept:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def old_output(folder: Path, kind: str) -> None:
    """A checkpoint of four shards, and what else can stand in a folder."""
    sharded(folder, kind, {n: {f"old{n}": torch.ones(2)} for n in range(1, 5)})
    (folder / "runs").mkdir()
    for name in ("runs/log", "notes.txt", "config.json", ".gitattributes"):
        (folder / name).write_bytes(b"old")
    (folder / "link").symlink_to("/nowhere")
    folder.chmod(0o2750)


@both_kinds
@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("out", ["out", "link"])
def test_force_replaces_the_checkpoint_in_a_folder_and_nothing_else(
    kind: str, old: str, out: str, tmp_path: Path
) -> None:
    shards, place = three(), tmp_path / out
    (sharded(tmp_path / "in", kind, shards).parent / "config.json").write_bytes(b"new")
    old_output(tmp_path / "out", old)
    (tmp_path / "link").symlink_to("out")
    before = snapshot(tmp_path)
    with pytest.raises(FileError, match="exists already"):
        wncli.remove(tmp_path / "in", place)
    wncli.remove(tmp_path / "in", place, force=True, dry_run=True)
    assert snapshot(tmp_path) == before
    wncli.remove(tmp_path / "in", place, force=True)
    hold_equal(read(place), folded(merged(shards)))
    written = {index_path(place, kind).name, *weight_files(place)}
    kept = {name: data for name, data in snapshot(place).items() if name not in written}
    others = dict.fromkeys((".gitattributes", "notes.txt", "runs/log"), b"old")
    assert kept == {**others, "config.json": b"new", "runs": None, "link": None}
    assert stat.S_IMODE(place.stat().st_mode) == 0o2750
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["in", "link", "out"]


@both_kinds
@pytest.mark.parametrize("how", ["path", "link", "index", "here"])
def test_a_sharded_checkpoint_is_replaced_in_place(
    kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, model = three(), tmp_path / "model"
    index = sharded(model, kind, shards)
    (model / "config.json").write_bytes(b"{}")
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(model)
    folder = {"link": tmp_path / "link", "here": Path()}.get(how, model)
    wncli.remove(index if how == "index" else folder, folder, force=True)
    hold_equal(read(model), folded(merged(shards)))
    assert (model / "config.json").read_bytes() == b"{}"
    assert names(tmp_path) == ["link", "model"]


@pytest.mark.parametrize("name", ["assets", "model.safetensors", index_path(Path()).name])
def test_a_subfolder_is_never_lost_to_a_file_of_its_name(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "in", shards=three())
    (index.parent / "assets").write_bytes(b"a file")
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "precious").write_bytes(b"work of years")
    before = snapshot(tmp_path)
    try:
        wncli.convert(index, tmp_path / "out", force=True)
    except WnError:
        assert snapshot(tmp_path) == before
    assert b"work of years" in snapshot(tmp_path / "out").values()


#: Each is planned, and refused while it is written: a norm overflows, a direction is undefined.
BAD: dict[str, State] = {
    "apply": {"z.weight": torch.full((2, 3), 6e4, dtype=torch.float16)},
    "remove": {"z.weight_g": torch.ones(2, 1), "z.weight_v": torch.zeros(2, 3)},
}


@both_kinds
@pytest.mark.parametrize("command", BAD)
@pytest.mark.parametrize("out", ["new", "old", "in"])
def test_a_refusal_half_way_changes_nothing(
    kind: str, command: str, out: str, tmp_path: Path
) -> None:
    sharded(tmp_path / "in", kind, three() | {4: BAD[command]})
    old_output(tmp_path / "old", "safetensors")
    before, inode = snapshot(tmp_path), (tmp_path / "in").stat().st_ino
    with pytest.raises(WeightNormError, match=r"z\.weight"):
        getattr(wncli, command)(tmp_path / "in", tmp_path / out, force=True)
    assert (snapshot(tmp_path), (tmp_path / "in").stat().st_ino) == (before, inode)


@pytest.mark.parametrize("file", ["../in.safetensors", "/etc/x.safetensors", "gone.safetensors"])
def test_from_an_index_that_leads_elsewhere_nothing_is_written(file: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "in", shards=three())
    (tmp_path / "in.safetensors").write_bytes(index.with_name(shard_name(1, count=3)).read_bytes())
    index.write_text(index.read_text().replace(shard_name(1, count=3), file))
    before = snapshot(tmp_path)
    for out in ("new", "in"):
        with pytest.raises(WnError):
            wncli.convert(index, tmp_path / out, force=True)
    assert snapshot(tmp_path) == before


#: Kills a child of itself at each step that Python takes on files, and prints what is left.
KILLED = """
import json, os, shutil, signal, sys
from itertools import pairwise
from pathlib import Path
import wncli
home, steps, dead = Path(sys.argv[1]), float("-inf"), 0
spare = home.with_name("spare")
def look():
    return {str(p.relative_to(home)): p.read_bytes().hex() if p.is_file() else ""
            for p in sorted(home.rglob("*"))}
def count(event, _):
    global steps
    if event == "open" or event.startswith(("os.", "shutil.", "ctypes.dlsym")):
        steps += 1
        if steps == dead:
            os.kill(os.getpid(), signal.SIGKILL)
def run():
    wncli.remove(home / "in", home / "out", force=True)
shutil.copytree(home, spare, symlinks=True)
old = look()
run()
new, found = look(), []
sys.addaudithook(count)
for dead in range(1, 1000):
    shutil.rmtree(home)
    shutil.copytree(spare, home, symlinks=True)
    child = os.fork()
    if not child:
        steps = 0
        run()
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    found.append(look())
print(json.dumps([old, new, found]))
"""


def killed_runs(home: Path) -> tuple[dict[str, str], dict[str, str], list[dict[str, str]]]:
    """What stands below `home` before, after, and after each run that was killed on its way."""
    command = [sys.executable, "-c", KILLED, str(home)]
    ran = subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=60)
    old, new, states = json.loads(ran.stdout)
    assert len(states) > 10
    return old, new, states


def without_leftovers(state: dict[str, str]) -> dict[str, str]:
    """What is no leftover of a killed run; those are known by the end of their names."""
    return {
        name: content
        for name, content in state.items()
        if not any(part.endswith(".wn-partial") for part in name.split("/"))
    }


@pytest.mark.slow
def test_whenever_a_run_is_killed_a_new_folder_is_complete_or_not_there(tmp_path: Path) -> None:
    sharded(tmp_path / "home" / "in", shards=three())
    old, new, states = killed_runs(tmp_path / "home")
    assert all(without_leftovers(state) in (old, new) for state in states)
    assert old in map(without_leftovers, states)


@pytest.mark.slow
def test_whenever_a_run_is_killed_old_and_new_files_are_never_one_checkpoint(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    sharded(home / "in", shards=three())
    old_output(home / "out", "torch")
    old, new, states = killed_runs(home)
    between = 0
    for state in states:
        found = without_leftovers(state)
        assert found["out/runs/log"] == b"old".hex()
        if found in (old, new):
            continue
        between += 1
        assert not any(name.endswith(".index.json") for name in found if name.startswith("out/"))
        assert set(new.values()) <= set(state.values())
    assert 0 < between < len(states) / 2


def test_what_others_keep_in_the_folder_is_neither_opened_nor_moved(tmp_path: Path) -> None:
    sharded(tmp_path / "model", shards=three())
    os.mkfifo(tmp_path / "model" / "pipe")  # opening it would wait for ever
    (tmp_path / "model" / "locked").mkdir(mode=0o555)
    (tmp_path / "model" / "private.txt").write_text("mine")
    (tmp_path / "model" / "private.txt").chmod(0o600)
    inode = (tmp_path / "model").stat().st_ino
    wncli.remove(tmp_path / "model", tmp_path / "model", force=True)
    assert (tmp_path / "model").stat().st_ino == inode  # whoever stands in it still does
    assert stat.S_IMODE((tmp_path / "model" / "private.txt").stat().st_mode) == 0o600
    assert {"pipe", "locked", "private.txt"} <= set(names(tmp_path / "model"))
    hold_equal(read(tmp_path / "model"), folded(merged(three())) | read(tmp_path / "model"))


def test_only_small_papers_go_with_a_checkpoint(tmp_path: Path) -> None:
    sharded(tmp_path / "model", shards=three())
    for name in ("config.json", "vocab.txt", "LICENSE", "movie.mp4", "id_rsa", ".secret.json"):
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "model" / "passwd.txt").symlink_to("/etc/passwd")
    report = wncli.remove(tmp_path / "model", tmp_path / "out")
    papers = {"config.json", "vocab.txt", "LICENSE"}
    assert set(names(tmp_path / "out")) - set(weight_files(tmp_path / "out")) == papers | {
        "model.safetensors.index.json"
    }
    (note,) = [note for note in report.notes if note.code == "companions"]
    assert all(name in note.message for name in papers)
