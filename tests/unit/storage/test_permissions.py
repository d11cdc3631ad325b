"""What is written is never wider open than what it replaces, and keeps its lists and attributes."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.run import WITHOUT_CHOWN, environment
from tests.support.sharded_folders import three
from tests.support.shards import KINDS, save, sharded

pytestmark = pytest.mark.thinned(3)

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
EVERYBODY = 0xFFFFFFFF
#: Tags of acl(5) in the bytes of the attribute (linux/posix_acl.h): version 2, then entries.
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32

needs_lists = pytest.mark.skipif(not hasattr(os, "setxattr"), reason="Linux alone has these calls")


def access_list(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


#: One user more may read, the file's group may not, though the mode shows the mask as its rights.
ONE_READER = access_list(
    (USER_OBJ, 6, EVERYBODY), (USER, 4, 12345), (GROUP_OBJ, 0, EVERYBODY), (MASK, 4, EVERYBODY),
    (OTHER, 0, EVERYBODY),
)  # fmt: skip


def set_list(path: Path, name: str = ACCESS, entries: bytes = ONE_READER) -> None:
    try:
        os.setxattr(path, name, entries)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):
            raise
        pytest.skip(f"this file system has no access lists ({error.strerror})")


def list_of(path: Path) -> bytes | None:
    return os.getxattr(path, ACCESS) if ACCESS in os.listxattr(path) else None


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def state() -> dict[str, torch.Tensor]:
    return {"a.weight_g": torch.rand(4, 1) + 0.5, "a.weight_v": torch.randn(4, 3000)}


@pytest.fixture(autouse=True)
def _widest_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


#: The calls that make, change or fill a file.
STEPS = ("open", "fchmod", "fchown", "setxattr", "removexattr", "ftruncate", "pwrite", "replace")


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The modes that each file in the making has had after any step, by where it stands."""
    modes: dict[str, set[int]] = {}

    def look() -> None:
        for path in tmp_path.rglob("*"):
            inside = path.relative_to(tmp_path).parts
            if any(part.endswith(".wn-partial") for part in inside) and path.is_file():
                modes.setdefault(path.name, set()).add(mode_of(path))

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            found = real(*arguments, **keywords)
            look()
            return found

        return call

    for name in STEPS:
        if hasattr(os, name):
            monkeypatch.setattr(os, name, watched(getattr(os, name)))
    return modes


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o400, 0o604, 0o444, 0o644, 0o2750], ids=oct)
def test_a_file_is_at_no_moment_wider_than_the_one_that_it_replaces(
    mode: int, suffix: str, seen: dict[str, set[int]], tmp_path: Path
) -> None:
    source, out = tmp_path / "in.pt", tmp_path / f"out{suffix}"
    save(state(), source)
    out.write_bytes(b"old")
    out.chmod(mode)
    wncli.remove(source, out, force=True, verify=True)
    (modes,) = seen.values()
    assert {found & ~mode for found in modes} == {0}
    assert mode_of(out) == mode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, "20KB", "1GB"])
def test_files_of_a_folder_are_at_no_moment_wider_than_those_that_they_replace(
    kind: str, size: str | None, seen: dict[str, set[int]], tmp_path: Path
) -> None:
    """Also under other names, and the index and the companions."""
    for name in ("in", "out"):
        sharded(tmp_path / name, kind, three())
        (tmp_path / name / "config.json").write_bytes(b"{}")
    for path in (tmp_path / "out").iterdir():
        path.chmod(0o600)
    wncli.remove(tmp_path / "in", tmp_path / "out", force=True, max_shard_size=size)
    assert {"config.json"} < seen.keys()
    assert {mode for name in seen for mode in seen[name]} == {0o600}
    assert {mode_of(path) for path in (tmp_path / "out").iterdir()} == {0o600}


def test_files_of_one_folder_each_keep_their_own_mode(tmp_path: Path) -> None:
    index = sharded(tmp_path / "model", "safetensors", three())
    modes = dict(zip(sorted((tmp_path / "model").iterdir()), (0o600, 0o640, 0o444, 0o664, 0o604)))  # noqa: B905
    for path, mode in modes.items():
        path.chmod(mode)
    wncli.remove(index.parent, index.parent, force=True)
    assert {path: mode_of(path) for path in modes} == modes


def test_the_folder_in_which_others_are_replaced_is_the_owners_alone(tmp_path: Path) -> None:
    sharded(tmp_path / "model", "safetensors", three())
    found: set[object] = set()

    def look(_count: int, _total: int) -> None:
        found.update(mode_of(path) for path in (tmp_path / "model").glob(".*.wn-partial"))

    wncli.remove(tmp_path / "model", tmp_path / "model", force=True, progress=look)
    assert found == {0o700}


def test_a_private_companion_stays_private_in_a_new_folder(
    seen: dict[str, set[int]], tmp_path: Path
) -> None:
    sharded(tmp_path / "in", "safetensors", three())
    (tmp_path / "in" / "config.json").write_bytes(b"{}")
    (tmp_path / "in" / "config.json").chmod(0o600)
    wncli.remove(tmp_path / "in", tmp_path / "out")
    assert seen["config.json"] == {0o600}
    assert mode_of(tmp_path / "out" / "config.json") == 0o600


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o002])
def test_the_umask_decides_about_a_new_file_and_folder(umask: int, tmp_path: Path) -> None:
    os.umask(umask)
    save(state(), tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out", max_shard_size="20KB")
    assert mode_of(tmp_path / "out.pt") == 0o666 & ~umask
    assert mode_of(tmp_path / "out") == 0o777 & ~umask
    assert {mode_of(path) for path in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


# -- access lists and extended attributes --------------------------------------------------------


@needs_lists
@pytest.mark.parametrize("place", ["file", "folder"])
def test_an_access_list_is_kept_and_its_mask_is_not_taken_for_the_groups_rights(
    place: str, tmp_path: Path
) -> None:
    if place == "folder":
        model = sharded(tmp_path / "model", "safetensors", three()).parent
        files = list(model.iterdir())
    else:
        files = [model := tmp_path / "model.pt"]
        save(state(), model)
    for path in files:
        set_list(path)
    wncli.remove(model, model, force=True)
    for path in files:
        assert list_of(path) == ONE_READER
        assert mode_of(path) == 0o640


@needs_lists
def test_while_it_is_written_a_file_has_the_list_of_the_one_that_it_replaces(
    tmp_path: Path,
) -> None:
    save(state(), tmp_path / "model.pt")
    set_list(tmp_path / "model.pt")
    found: set[object] = set()

    def look(_count: int, _total: int) -> None:
        found.update(list_of(path) for path in tmp_path.glob(".*.wn-partial"))

    wncli.remove(tmp_path / "model.pt", tmp_path / "model.pt", force=True, progress=look)
    assert found == {ONE_READER}


@needs_lists
def test_a_list_that_cannot_be_kept_leaves_a_file_to_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(state(), tmp_path / "model.pt")
    set_list(tmp_path / "model.pt")

    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "setxattr", refuse)
    wncli.remove(tmp_path / "model.pt", tmp_path / "model.pt", force=True)
    assert list_of(tmp_path / "model.pt") is None
    assert mode_of(tmp_path / "model.pt") == 0o600


@needs_lists
def test_what_a_directory_gives_to_new_files_a_new_one_gets_and_a_replaced_one_does_not(
    tmp_path: Path, seen: dict[str, set[int]]
) -> None:
    given = access_list(
        (USER_OBJ, 7, EVERYBODY), (USER, 7, 12345), (GROUP_OBJ, 5, EVERYBODY), (MASK, 7, EVERYBODY),
        (OTHER, 0, EVERYBODY),
    )  # fmt: skip
    save(state(), tmp_path / "old.pt")
    (tmp_path / "old.pt").chmod(0o604)
    set_list(tmp_path, DEFAULT, given)
    (tmp_path / "any").touch()
    wncli.remove(tmp_path / "old.pt", tmp_path / "new.pt")
    assert list_of(tmp_path / "new.pt") == list_of(tmp_path / "any") is not None
    seen.clear()
    wncli.remove(tmp_path / "old.pt", tmp_path / "old.pt", force=True)
    assert list_of(tmp_path / "old.pt") is None
    assert mode_of(tmp_path / "old.pt") == 0o604
    assert {mode & ~0o604 for modes in seen.values() for mode in modes} == {0}


@needs_lists
@pytest.mark.parametrize("place", ["file", "folder"])
def test_extended_attributes_are_kept(place: str, tmp_path: Path) -> None:
    if place == "folder":
        model = sharded(tmp_path / "model", "safetensors", three()).parent
        path = min(model.glob("*.safetensors"))
    else:
        path = model = tmp_path / "model.pt"
        save(state(), model)
    kept = {"user.origin": b"https://example.org/\0x", "user.empty": b""}
    if os.geteuid() == 0:
        kept |= {"security.label_of_this_test": b"secret", "trusted.note": b"1"}
    for name, value in kept.items():
        try:
            os.setxattr(path, name, value)
        except OSError as error:
            pytest.skip(f"this file system has no {name} ({error.strerror})")
    wncli.remove(model, model, force=True)
    for name, value in kept.items():
        assert os.getxattr(path, name) == value


# -- owners that cannot be kept ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o640, 0o600), (0o644, 0o644), (0o664, 0o644), (0o604, 0o600), (0o6755, 0o755),
     (0o2770, 0o700)],
    ids=oct,
)  # fmt: skip
def test_where_the_group_cannot_be_kept_nobody_gets_rights_that_he_had_not(
    mode: int, expected: int, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("only root can make a file of somebody else")
    model = tmp_path / "model.pt"
    save(state(), model)
    os.chown(model, 12345, 23456)
    model.chmod(mode)
    command = [sys.executable, "-c", WITHOUT_CHOWN, "remove", str(model), str(model), "--force"]
    subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=60)
    found = model.stat()
    assert (found.st_uid, found.st_gid) == (0, os.getegid())
    assert mode_of(model) == expected


@needs_lists
def test_a_list_about_a_group_that_cannot_be_kept_is_not_given_to_another(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can make a file of somebody else")
    model = tmp_path / "model.pt"
    save(state(), model)
    os.chown(model, 12345, 23456)
    set_list(model)
    command = [sys.executable, "-c", WITHOUT_CHOWN, "remove", str(model), str(model), "--force"]
    subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=60)
    assert list_of(model) is None
    assert mode_of(model) == 0o600
