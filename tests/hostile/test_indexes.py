"""Hostile indexes of sharded checkpoints: one message that names the rule, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.bounded_runs import Apart
from tests.support.refusals import RunHere, hold_refused, hold_refused_by_all, snapshot
from tests.support.shards import (
    FIRST,
    SECOND,
    contents,
    index_path,
    map_of,
    save,
    shard_name,
    sharded,
    write_index,
)

pytestmark = pytest.mark.thinned(3)

ONE, TWO = shard_name(1), shard_name(2)

# -- names that lead elsewhere -----------------------------------------------------------------

NOT_BESIDE = "the file of 'a.bias' does not stand beside it"
OTHER_KIND = "the file of 'a.bias' is of another kind"
#: What an index says of `a.bias`. All that can be is there and sound, so that it could be read.
NAMES = {
    "in the parent folder": ("../{}", NOT_BESIDE),
    "in the parent folder, by a detour": ("sub/../../{}", NOT_BESIDE),
    "in the same folder, by a detour": ("../model/{}", NOT_BESIDE),
    "in this folder": ("./{}", NOT_BESIDE),
    "in a subfolder": ("sub/{}", NOT_BESIDE),
    "with two slashes": (".//{}", NOT_BESIDE),
    "absolute": ("{root}/{}", NOT_BESIDE),
    "absolute, of this folder": ("{root}/model/{}", NOT_BESIDE),
    "absolute, with two slashes": ("/{root}/{}", NOT_BESIDE),
    "behind a backslash": ("sub\\{}", NOT_BESIDE),
    "in the parent folder, by a backslash": ("..\\{}", NOT_BESIDE),
    "absolute on Windows": ("\\{}", NOT_BESIDE),
    "on a drive": ("C:\\{}", NOT_BESIDE),
    "on a drive, relative": ("C:{}", NOT_BESIDE),
    "on a drive, with slashes": ("C:/{}", NOT_BESIDE),
    "on another host": ("\\\\host\\share\\{}", NOT_BESIDE),
    "in a device": ("\\\\.\\{}", NOT_BESIDE),
    "in a stream": ("{}:x.safetensors", NOT_BESIDE),
    "in the home folder": ("~/{}", NOT_BESIDE),
    "on the net": ("https://example.com/{}", NOT_BESIDE),
    "cut off by NUL": ("{}\0.safetensors", NOT_BESIDE),
    "empty": ("", NOT_BESIDE),
    "the folder": (".", NOT_BESIDE),
    "the parent folder": ("..", NOT_BESIDE),
    "without an extension": ("model", OTHER_KIND),
    "with the extension of torch": ("model.bin", OTHER_KIND),
    "with another extension": ("model.py", OTHER_KIND),
    "with two extensions": ("{}.py", OTHER_KIND),
    "with a space behind": ("{} ", OTHER_KIND),
    "in capitals": ("MODEL.SAFETENSORS", OTHER_KIND),
    "the extension alone": (".safetensors", OTHER_KIND),
    "the index": ("model.safetensors.index.json", OTHER_KIND),
    "with escapes": ("\x1b[2J\x1b]0;x\x07\u202e.py", OTHER_KIND),
    "endless": ("x/" * 500_000 + "{}", NOT_BESIDE),
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_that_leads_elsewhere_is_refused_though_a_sound_file_is_there(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    index = sharded(tmp_path / "model")
    (index.parent / "sub").mkdir()
    name = NAMES[kind][0].replace("{root}", str(tmp_path)).replace("{}", ONE)
    for place in (tmp_path / ONE, index.parent / "sub" / ONE, *_beside(index, name)):
        shutil.copy(index.parent / ONE, place)
    write_index(index, map_of() | {"a.bias": name})
    hold_refused_by_all(wn_here, index, NAMES[kind][1])


def _beside(index: Path, name: str) -> list[Path]:
    """The file of a name that this system takes for a bare one."""
    is_bare = len(name) < 200 and not {"/", "\0"} & set(name) and name not in {"", ".", ".."}
    return [index.with_name(name)] if is_bare and not index.with_name(name).exists() else []


# -- what an index says ------------------------------------------------------------------------

NO_MAP = "it has no weight_map"
NO_TEXT = "the file of 'a.bias' is no text"
#: What stands in the place of the whole map, and in that of one file's name.
MAPS: dict[str, tuple[object, str]] = {
    "null": (None, NO_MAP),
    "a number": (1, NO_MAP),
    "text": (ONE, NO_MAP),
    "an array": (["a.bias", ONE], NO_MAP),
    "an array of pairs": ([["a.bias", ONE]], NO_MAP),
    "empty": ({}, NO_MAP),
    "of null": (map_of() | {"a.bias": None}, NO_TEXT),
    "of numbers": (map_of() | {"a.bias": 1}, NO_TEXT),
    "of bools": (map_of() | {"a.bias": True}, NO_TEXT),
    "of arrays": (map_of() | {"a.bias": [ONE]}, NO_TEXT),
    "of long arrays": (map_of() | {"a.bias": [ONE] * 10_000}, NO_TEXT),
    "of objects": (map_of() | {"a.bias": {"file": ONE}}, NO_TEXT),
    "of maps": ({"model": map_of()}, "the file of 'model' is no text"),
    "with a tensor that no shard has": (
        map_of() | {"c": ONE}, rf": c: {ONE} does not hold this tensor\n.*\n.*in none of"),
    "with a tensor of another shard": (
        map_of() | {"a.bias": TWO}, rf": a.bias: {TWO} does not hold .*\n.*\n.*it in {ONE}"),
    "with an endless name of a tensor": (map_of() | {"c" * 1_000_000: ONE}, "not hold this tensor"),
    "with an endless name of a file": (
        map_of() | {"a.bias": "c" * 1_000_000 + ".safetensors"}, "File name too long"),
    "with an endless name of no file": (map_of() | {"c" * 1_000_000: "c"}, "of another kind"),
    "with a file that is not there": (
        map_of() | {"c": shard_name(3, count=3)}, "1 of 3 shards missing"),
    "of files that are not there": (
        {f"t{n}": f"{n}.safetensors" for n in range(50)}, "50 of 50 shards missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_of_another_kind_is_refused(kind: str, wn_here: RunHere, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    content, says = MAPS[kind]
    write_index(index, content)
    hold_refused_by_all(wn_here, index, says, index.parent)


def test_the_same_index_without_a_defect_is_read(wn_here: RunHere, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    assert wn_here("inspect", index).code == 0
    assert contents(index).keys() == {*FIRST, *SECOND}


def test_what_shards_hold_beyond_the_index_is_kept_with_a_warning(
    wn_here: RunHere, tmp_path: Path
) -> None:
    known = {name: file for name, file in map_of().items() if name != "a.bias"}
    index = write_index(sharded(tmp_path), known)
    ran = wn_here("convert", index, tmp_path / "whole.safetensors")
    assert (ran.code, ran.stderr.count("\n")) == (0, 1)
    assert ran.stderr.startswith("warning: 1 tensor of the shards that the index does not list")
    assert ran.stderr.endswith(": a.bias\n")


def test_an_index_with_a_name_from_another_alphabet_is_shown_by_its_escapes(
    wn_here: RunHere, tmp_path: Path
) -> None:
    index = write_index(sharded(tmp_path), map_of() | {"\x1b[2J\u202e\r\0": ONE})
    hold_refused_by_all(wn_here, index, r"\\x1b\[2J\\u202e\\r\\x00: model.* does not hold")


# -- what stands in the place of a file --------------------------------------------------------


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def loop(path: Path) -> None:
    path.symlink_to("loop")
    path.with_name("loop").symlink_to(path.name)


def outside(path: Path) -> None:
    save(FIRST, path.parent.parent / "x.safetensors")
    path.symlink_to("../x.safetensors")


def index_outside(path: Path) -> None:
    path.symlink_to(os.path.relpath(sharded(path.parent.parent / "other"), path.parent))


def fifo_behind_a_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def socket(path: Path) -> None:
    os.mknod(path, 0o140644)


LOOPS = "leads back to itself|Too many levels"
LEAVES = "this link leaves its folder"
NO_FILE = "not a regular file"
PLACED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a FIFO": (os.mkfifo, NO_FILE),
    "a socket": (socket, NO_FILE),
    "a folder": (Path.mkdir, "directory"),
    "a link to a device": (link_to("/dev/zero"), LEAVES),
    "a link to a file outside": (outside, LEAVES),
    "a link to a folder": (link_to("."), "directory"),
    "a link to itself": (lambda path: path.symlink_to(path.name), LOOPS),
    "a loop of links": (loop, LOOPS),
    "a link to nothing": (link_to("nothing"), "missing"),
    "an empty file": (Path.touch, "an empty file"),
}


@pytest.mark.parametrize("kind", PLACED)
def test_a_shard_that_is_no_file_of_the_folder_is_refused(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    index = sharded(tmp_path / "model")
    put, says = PLACED[kind]
    index.with_name(ONE).unlink()
    put(index.with_name(ONE))
    hold_refused_by_all(wn_here, index, says, index.parent)


PLACED_AS_INDEX: dict[str, tuple[Callable[[Path], None], str]] = {
    "a FIFO": (os.mkfifo, NO_FILE),
    "a socket": (socket, NO_FILE),
    "a link to a device": (link_to("/dev/zero"), NO_FILE),
    "a link to a FIFO": (fifo_behind_a_link, NO_FILE),
    "a link to an index outside": (index_outside, LEAVES),
    "a link to itself": (lambda path: path.symlink_to(path.name), LOOPS),
    "a loop of links": (loop, LOOPS),
    "a link to nothing": (link_to("nothing"), "no such file"),
    "an empty file": (Path.touch, "an empty file"),
}


@pytest.mark.parametrize("kind", PLACED_AS_INDEX)
def test_an_index_that_is_no_file_of_the_folder_is_refused(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    index = index_path(tmp_path / "model")
    index.parent.mkdir()
    put, says = PLACED_AS_INDEX[kind]
    put(index)
    hold_refused_by_all(wn_here, index, says)
    index.with_name("out.pt").unlink()
    hold_refused(wn_here("inspect", index.parent), index, says)


def test_an_index_that_names_itself_is_refused(wn_here: RunHere, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text(json.dumps({"weight_map": {"a": path.name}}))
    hold_refused_by_all(wn_here, path, "not a checkpoint")


def test_two_indexes_that_name_each_other_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    one.write_text(json.dumps({"weight_map": {"a": other.name}}))
    other.write_text(json.dumps({"weight_map": {"a": one.name}}))
    hold_refused_by_all(wn_here, one, "not a checkpoint", other)


def test_a_hostile_index_is_refused_as_reference_and_in_a_comparison(
    wn_here: RunHere, tmp_path: Path
) -> None:
    sound, index = sharded(tmp_path / "sound"), sharded(tmp_path / "model")
    write_index(index, map_of() | {"a.bias": f"../sound/{ONE}"})
    before = snapshot(tmp_path)
    for arguments in (
        ("convert", sound, f"{tmp_path}/out/", "--like", index),
        ("compare", sound, index),
        ("compare", index, sound),
    ):
        hold_refused(wn_here(*arguments), index, NOT_BESIDE)
    assert snapshot(tmp_path) == before


# -- maps that ask for much --------------------------------------------------------------------

HUGE: dict[str, tuple[Callable[[], object], str]] = {
    "100000 tensors": (
        lambda: {f"t{n}": ONE for n in range(100_000)}, "t0: .* does not hold this tensor"),
    "20000 files": (
        lambda: {f"t{n}": f"{n}.safetensors" for n in range(20_000)}, "20,?000 shards missing"),
    "a million arrays": (lambda: {"t": [[]] * 1_000_000}, "the file of 't' is no text"),
}  # fmt: skip


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart() as wn:
        yield wn


@pytest.mark.slow
@pytest.mark.parametrize("kind", HUGE)
def test_a_huge_map_is_refused_in_bounds(kind: str, apart: Apart, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    make, says = HUGE[kind]
    index.write_text(json.dumps({"weight_map": make()}))
    ran = apart("inspect", index)
    hold_refused(ran, index, says)
    ran.hold_bounds()
