"""OUTPUT is the CHECKPOINT: replaced as a whole, and what is no content of it kept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.run import WITHOUT_CHOWN, Ran, environment
from tests.support.sharded_folders import (
    State,
    folded,
    hold_bits,
    hold_equal,
    merged,
    read,
    snapshot,
    three,
)
from tests.support.shards import KINDS, save, sharded

pytestmark = pytest.mark.thinned(5)

RunHere = Callable[..., Ran]

SUFFIXES = [".pt", ".safetensors"]
COMMANDS: dict[str, tuple[str, ...]] = {
    "remove": (),
    "apply": ("--dim", "1"),
    "convert": ("--naming", "parametrized"),
}
each_command = pytest.mark.parametrize("command", COMMANDS)
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)


def load(path: Path) -> State:
    """A file as its users read it; torch and safetensors are told apart by what it holds."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return load_file(path)
        file.seek(0)
        return dict(torch.load(file, weights_only=True))


def some() -> State:
    """A layer with weight norm and a plain one."""
    return {
        "a.weight_g": torch.rand(4, 1) + 0.5,
        "a.weight_v": torch.randn(4, 300),
        "a.bias": torch.randn(4),
        "b.weight": torch.randn(5, 20).double(),
    }


def hold_done(command: str, before: State, after: State) -> None:
    """Hold what a command made against PyTorch's own arithmetic."""
    if command == "remove":
        hold_equal(after, folded(before))
        return
    if command == "convert":
        names = {"_g": ".original0", "_v": ".original1"}
        parametrized = {
            name.replace("weight", "parametrizations.weight")[:-2] + names[name[-2:]]
            if name[-2:] in names
            else name: tensor
            for name, tensor in before.items()
        }
        hold_bits(after, parametrized)
        return
    plain = [n for n, t in before.items() if n.endswith(".weight") and f"{n}_g" in after]
    assert plain
    rest = {n: t for n, t in before.items() if n not in plain}
    for name in plain:
        rest[f"{name}_v"] = before[name]
        rest[f"{name}_g"] = torch.norm_except_dim(before[name], 2, 1)
    hold_equal(after, rest)


def hold_only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


#: CHECKPOINT and OUTPUT, typed in the folder where `model`, `link` to it, and `there`, a link to
#: the folder itself, stand. `{m}` is the model's name.
SPELLINGS = {
    "as it is called": ("{m}", "{m}"),
    "both with a dot": ("./{m}", "./{m}"),
    "one with a dot": ("{m}", "./{m}"),
    "back and forth": ("{m}", "../home/{m}"),
    "absolute and relative": ("{home}/{m}", "{m}"),
    "relative and absolute": ("{m}", "{home}/{m}"),
    "through a link": ("link{s}", "link{s}"),
    "from a link to its target": ("link{s}", "{m}"),
    "from the target to its link": ("{m}", "link{s}"),
    "through a linked folder": ("there/{m}", "there/{m}"),
    "from a linked folder": ("there/{m}", "{m}"),
    "from another hard link": ("hard{s}", "{m}"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    (home / "there").symlink_to(".")
    monkeypatch.chdir(home)
    return home


@each_suffix
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_is_replaced_however_its_name_is_spelled(
    spelling: str, suffix: str, home: Path, wn_here: RunHere
) -> None:
    for command, options in COMMANDS.items():
        model, link, hard = (home / f"{name}{suffix}" for name in ("model", "link", "hard"))
        before = some()
        for path in (model, link, hard):
            path.unlink(missing_ok=True)
        save(before, model)
        link.symlink_to(model.name)
        hard.hardlink_to(model)
        content = model.read_bytes()
        paths = [s.format(m=model.name, s=suffix, home=home) for s in SPELLINGS[spelling]]
        refused = wn_here(command, *paths, *options)
        assert refused.code == 2
        assert "exists already" in refused.stderr
        assert model.read_bytes() == content
        ran = wn_here(command, *paths, *options, "--force")
        assert (ran.code, ran.stderr) == (0, "")
        hold_done(command, before, load(model))
        assert link.is_symlink()
        assert (link.readlink(), (home / "there").readlink()) == (Path(model.name), Path())
        assert not model.is_symlink()
        assert hard.read_bytes() == content  # the other name keeps the old file
        hold_only(home, model.name, link.name, hard.name, "there")


@each_command
@pytest.mark.parametrize("names", ["same", "other"])
def test_the_other_name_of_a_hard_linked_checkpoint_keeps_the_old_content(
    command: str, names: str, home: Path, wn_here: RunHere
) -> None:
    """One of them is OUTPUT; CHECKPOINT is the same name, or the other one."""
    before = some()
    save(before, home / "kept.pt")
    content = (home / "kept.pt").read_bytes()
    (home / "out.pt").hardlink_to(home / "kept.pt")
    source = "out.pt" if names == "same" else "kept.pt"
    assert wn_here(command, source, "out.pt", *COMMANDS[command], "--force").code == 0
    hold_done(command, before, load(home / "out.pt"))
    assert (home / "kept.pt").read_bytes() == content
    assert (home / "kept.pt").stat().st_nlink == (home / "out.pt").stat().st_nlink == 1


@pytest.mark.parametrize("target", ["torch", "safetensors"])
@each_suffix
def test_a_file_changes_its_format_in_place(
    suffix: str, target: str, home: Path, wn_here: RunHere
) -> None:
    before = some()
    save(before, home / f"model{suffix}")
    name = f"model{suffix}"
    assert wn_here("convert", name, name, "--format", target, "--force").code == 0
    hold_bits(load(home / name), before)
    assert ((home / name).read_bytes()[:2] == b"PK") == (target == "torch")
    hold_only(home, name, "there")


def test_there_and_back_in_place_gives_the_same_bits(home: Path, wn_here: RunHere) -> None:
    before = {"a.weight": torch.randn(7, 30), "b.weight": torch.randn(5, 20).bfloat16()}
    save(before, home / "model.pt")
    for command in ("apply", "convert", "remove"):
        options = COMMANDS[command]
        assert wn_here(command, "model.pt", "model.pt", *options, "--force").code == 0
    hold_bits(load(home / "model.pt"), before)


# -- what is kept --------------------------------------------------------------------------------


@each_suffix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o664, 0o2640, 0o6750], ids=oct)
def test_permissions_are_kept(mode: int, suffix: str, home: Path, wn_here: RunHere) -> None:
    for command, options in COMMANDS.items():
        model = home / f"model{suffix}"
        model.unlink(missing_ok=True)
        save(some(), model)
        model.chmod(mode)
        assert wn_here(command, model, model, *options, "--force").code == 0
        assert stat.S_IMODE(model.stat().st_mode) == mode


def other_owner() -> tuple[int, int]:
    """Numbers of a user and a group that this process may give its files to."""
    if os.geteuid() == 0:
        return 12345, 23456
    groups = [number for number in os.getgroups() if number != os.getegid()]
    if not groups:
        pytest.skip("this user can give files to nobody, not even to another group")
    return os.geteuid(), groups[0]


def owner(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@each_suffix
@pytest.mark.parametrize("through", ["itself", "a link"])
def test_the_owner_of_a_file_is_kept(
    through: str, suffix: str, home: Path, wn_here: RunHere
) -> None:
    model, link = home / f"model{suffix}", home / f"link{suffix}"
    save(some(), model)
    link.symlink_to(model.name)
    os.chown(model, *other_owner())
    model.chmod(0o2640)  # which giving it away clears
    path = model if through == "itself" else link
    assert wn_here("remove", path, path, "--force").code == 0
    assert owner(model) == (*other_owner(), 0o2640)
    assert link.lstat().st_uid == os.geteuid()


@pytest.mark.parametrize("kind", KINDS)
def test_the_owners_of_the_files_in_a_folder_are_kept(
    kind: str, home: Path, wn_here: RunHere
) -> None:
    sharded(home / "model", kind, three())
    for path in (home / "model", *(home / "model").iterdir()):
        os.chown(path, *other_owner())
        path.chmod(0o2750 if path.is_dir() else 0o2640)
    before = {path.name for path in (home / "model").iterdir()}
    assert wn_here("remove", "model", "model", "--force").code == 0
    assert owner(home / "model") == (*other_owner(), 0o2750)
    assert {path.name for path in (home / "model").iterdir()} == before
    assert {owner(path) for path in (home / "model").iterdir()} == {(*other_owner(), 0o2640)}


def test_who_may_not_give_files_away_writes_one_that_is_his_own(home: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a file of somebody else")
    before = some()
    save(before, home / "model.pt")
    os.chown(home / "model.pt", 12345, 23456)
    (home / "model.pt").chmod(0o640)
    command = [sys.executable, "-c", WITHOUT_CHOWN, "remove", "model.pt", "model.pt", "--force"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment())
    assert ran.stderr == ""
    hold_done("remove", before, load(home / "model.pt"))
    assert owner(home / "model.pt") == (0, os.getegid(), 0o600)
    hold_only(home, "model.pt", "there")


# -- folders -------------------------------------------------------------------------------------


def plain_and_normalized() -> dict[int, State]:
    """Three shards with work for each command."""
    found = three()
    found[3] |= {"d.weight": torch.randn(6, 50), "e.weight": torch.randn(3, 4, 5).half()}
    return found


@each_command
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", ["", "--max-shard-size 300", "--max-shard-size 1MB"])
def test_a_folder_is_replaced_by_itself_also_in_other_shards(
    command: str, kind: str, more: str, home: Path, wn_here: RunHere
) -> None:
    shards = plain_and_normalized()
    sharded(home / "model", kind, shards)
    (home / "model" / "config.json").write_bytes(b"{}")
    (home / "model" / "notes.txt").write_bytes(b"mine")
    (home / "link").symlink_to("model")
    before = snapshot(home)
    place = "link" if more else "model"
    options = (*COMMANDS[command], *more.split())
    assert wn_here(command, place, place, *options).code == 2
    assert snapshot(home) == before
    assert wn_here(command, place, place, *options, "--force").code == 0
    hold_done(command, merged(shards), read(home / "model"))
    assert (home / "link").readlink() == Path("model")
    count = len(list((home / "model").glob("*.safetensors")) + list((home / "model").glob("*.bin")))
    assert (count == 3) == (more == "")
    assert (count == 1) == ("1MB" in more)
    for name, content in (("config.json", b"{}"), ("notes.txt", b"mine")):
        assert (home / "model" / name).read_bytes() == content
    hold_only(home, "link", "model", "there")


@pytest.mark.parametrize(
    "paths", [("model/", "model"), ("./model", "model/"), ("there/model", "model")]
)
def test_a_folder_is_replaced_however_its_name_is_spelled(
    paths: tuple[str, str], home: Path, wn_here: RunHere
) -> None:
    shards = three()
    sharded(home / "model", "torch", shards)
    assert wn_here("remove", *paths, "--force").code == 0
    hold_equal(read(home / "model"), folded(merged(shards)))
    hold_only(home, "model", "there")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_changes_its_format_in_place(kind: str, home: Path, wn_here: RunHere) -> None:
    shards = three()
    sharded(home / "model", kind, shards)
    other = "torch" if kind == "safetensors" else "safetensors"
    assert wn_here("convert", "model", "model", "--format", other, "--force").code == 0
    hold_bits(read(home / "model"), merged(shards))
    assert (home / "model" / f"{''.join(KINDS[other])}.index.json").exists()
