"""Hostile safetensors files: one message that names the rule, and nothing written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
from safetensors.numpy import load_file

import wncli
from tests.corpus.hostile_safetensors import (
    DEFECTS,
    FILES,
    HOSTILE_NAME,
    SOUND,
    STRICTER,
    entry_of,
    file_of,
    header_of,
    metadata,
)
from tests.support.bounded_runs import Apart
from tests.support.refusals import (
    MOST_CHARACTERS,
    RunHere,
    hold_printable,
    hold_refused,
    hold_refused_by_all,
    snapshot,
)
from tests.support.shards import index_path, write_index

pytestmark = pytest.mark.thinned(7)

#: The reference reader; its stubs leave it without types.
deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


def the_reference_reads(path: Path) -> bool:
    """Whether the reference reads a file, from memory and mapped alike."""
    found = []
    for read in (lambda: deserialize(path.read_bytes()), lambda: opened_by_the_reference(path)):
        try:
            read()
        except safetensors.SafetensorError:
            found.append(False)
        else:
            found.append(True)
    assert found[0] == found[1]
    return found[0]


def opened_by_the_reference(path: Path) -> list[str]:
    with safetensors.safe_open(path, "numpy") as file:
        return list(file.keys())


# -- single files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_breaks_a_rule_is_refused_by_its_rule(
    name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    FILES[name].write(tmp_path / name)
    hold_refused_by_all(wn_here, tmp_path / name, FILES[name].says)


@pytest.mark.parametrize("name", DEFECTS)
def test_the_reference_refuses_what_breaks_a_rule(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(DEFECTS[name].broken)
    assert not the_reference_reads(path)


@pytest.mark.parametrize("name", STRICTER)
def test_the_reference_reads_what_is_refused_as_ambiguous(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(STRICTER[name].broken)
    assert the_reference_reads(path)


@pytest.mark.parametrize("name", DEFECTS | STRICTER)
def test_the_same_file_without_its_defect_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes((DEFECTS | STRICTER)[name].mended)
    assert the_reference_reads(path)
    report = wncli.inspect(path)
    assert sum(root.tensors for root in report.roots) == len(opened_by_the_reference(path))


@pytest.mark.parametrize("name", FILES)
def test_a_shard_that_breaks_a_rule_is_refused_by_its_rule(
    name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    FILES[name].write(tmp_path / name)
    write_index(index_path(tmp_path), {"a": name})
    hold_refused(wn_here("inspect", tmp_path), tmp_path / name, FILES[name].says)


@pytest.mark.parametrize("name", ["hole", "nan", "missing_byte", "name_twice"])
@pytest.mark.parametrize("place", ["REFERENCE", "A", "B", "in a folder"])
def test_it_is_refused_wherever_a_checkpoint_is_taken(
    place: str, name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    path, sound = tmp_path / "model" / f"{name}.safetensors", tmp_path / "sound.safetensors"
    path.parent.mkdir()
    FILES[path.name].write(path)
    sound.write_bytes(SOUND)
    arguments = {
        "REFERENCE": ("convert", sound, tmp_path / "out.pt", "--like", path),
        "A": ("compare", path, sound),
        "B": ("compare", sound, path),
        "in a folder": ("inspect", path.parent),
    }[place]
    before = snapshot(tmp_path)
    hold_refused(wn_here(*arguments), path, FILES[path.name].says)
    assert snapshot(tmp_path) == before


# -- names -------------------------------------------------------------------------------------

NAME: str = json.loads(f'"{HOSTILE_NAME}"')


def hostile_pair(path: Path) -> None:
    """Two layers with every hostile character in the names, and a tensor that is none."""
    name = HOSTILE_NAME
    entries = [
        f'"{name}_g":' + entry_of(shape="[1,1]"),
        f'"{name}_v":' + entry_of(shape="[1,2]", data_offsets="[4,12]"),
        f'"/x{name}":' + entry_of(shape="[1,2]", data_offsets="[12,20]"),
    ]
    path.write_bytes(file_of(("{" + ",".join(entries) + "}").encode(), b"\0\0\x80?" * 5))
    assert the_reference_reads(path)


COMMANDS: dict[str, tuple[str | None, ...]] = {
    "inspect": ("inspect", None),
    "inspect as JSON": ("inspect", None, "--json"),
    "compare": ("compare", None, "other.safetensors"),
    "apply": ("apply", None, "out.safetensors", "--dim", "1", "-v"),
    "remove": ("remove", None, "out.safetensors", "-v"),
    "respell": ("convert", None, "out.safetensors", "--naming", "parametrized", "-v"),
    "make shards": ("convert", None, "out/", "--max-shard-size", "8"),
    "no such layer": ("remove", None, "out.safetensors", "-l", "nowhere"),
    "no such dim": ("apply", None, "out.safetensors", "--dim", "9"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_names_are_escaped_on_the_screen_and_kept_in_the_file(
    command: str, wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    hostile_pair(folder / "model.safetensors")
    (folder / "other.safetensors").write_bytes(SOUND)
    ran = wn_here(*(part or "model.safetensors" for part in COMMANDS[command]))
    hold_printable(ran.stdout)
    hold_printable(ran.stderr)
    shown = r"\x1b[2J" if command != "inspect as JSON" else r"\u001b[2J"
    assert shown in ran.stdout + ran.stderr or command == "make shards"
    assert ran.code == (2 if command.startswith("no such") else command == "compare")
    names = {
        "apply": {f"{NAME}_g", f"{NAME}_v", f"/x{NAME}_g", f"/x{NAME}_v"},
        "remove": {NAME, f"/x{NAME}"},
        "respell": {*(NAME.removesuffix("weight") + f"parametrizations.weight.original{n}"
                      for n in (0, 1)), f"/x{NAME}"},
        "make shards": {f"{NAME}_g", f"{NAME}_v", f"/x{NAME}"},
    }  # fmt: skip
    written = [path for path in tmp_path.rglob("*.safetensors") if "out" in str(path)]
    assert {name for path in written for name in load_file(path)} == names.get(command, set())
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} <= {folder, folder / "out"}


# -- headers that ask for much -----------------------------------------------------------------


def tensors(count: int) -> bytes:
    places = ((f"t{n}", f"[{4 * n},{4 * n + 4}]") for n in range(count))
    entries = ",".join(f'"{name}":{entry_of(data_offsets=place)}' for name, place in places)
    return file_of(("{" + entries + "}").encode(), bytes(4 * count))


def pairs(*names: str) -> bytes:
    """Layers of one element."""
    halves = [f"{name}.weight_{half}" for name in names for half in "gv"]
    entries = (
        f'"{half}":' + entry_of(shape="[1,1]", data_offsets=f"[{4 * n},{4 * n + 4}]")
        for n, half in enumerate(halves)
    )
    return file_of(("{" + ",".join(entries) + "}").encode(), b"\0\0\x80?" * len(halves))


def pair_of_rank(rank: int) -> bytes:
    ones = ",1" * (rank - 2)
    g = entry_of(shape=f"[2,1{ones}]", data_offsets="[0,8]")
    v = entry_of(shape=f"[2,3{ones}]", data_offsets="[8,32]")
    return file_of(f'{{"a.weight_g":{g},"a.weight_v":{v}}}'.encode(), b"\0\0\x80?" * 8)


def aliased_pair(count: int) -> bytes:
    """A pair of a mebibyte, and as many further names for it."""
    size = 512
    ties = {f"l{n}.weight_{half}": f"a.weight_{half}" for n in range(count) for half in "gv"}
    end = 4 * size * (1 + size)
    g = entry_of(shape=f"[{size},1]", data_offsets=f"[0,{4 * size}]")
    v = entry_of(shape=f"[{size},{size}]", data_offsets=f"[{4 * size},{end}]")
    header = f'{{"__metadata__":{json.dumps(ties)},"a.weight_g":{g},"a.weight_v":{v}}}'
    return file_of(header.encode(), b"\0\0\x80?" * (end // 4))


MANY = 1_000_000
#: What is read: its content, and the commands that go through it.
HEAVY: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "10000 tensors": (lambda: tensors(10_000), ("inspect", "convert")),
    "200000 entries of metadata": (
        lambda: metadata(json.dumps({f"k{n}": "v" for n in range(200_000)})), ("inspect",)),
    "a name of a million characters": (
        lambda: file_of(header_of(entry_of(), name="x" * MANY), b"abcd"), ("convert", "compare")),
    "a layer of a million characters among others": (
        lambda: pairs("x" * MANY, *(f"l{n}" for n in range(2000))), ("inspect", "remove")),
    "a shape of a million sizes": (
        lambda: file_of(header_of(entry_of(shape=f"[1{',1' * MANY}]")), b"abcd"), ("inspect",)),
    "a pair of 20000 dimensions": (
        lambda: pair_of_rank(20_000), ("inspect", "remove")),
    "4000 names for one pair of a mebibyte": (
        lambda: aliased_pair(4000), ("remove", "compare")),
}  # fmt: skip
#: What is refused.
TOO_HEAVY: dict[str, tuple[Callable[[], bytes], str]] = {
    "300000 members of a tensor": (
        lambda: file_of(header_of("{" + ",".join(f'"{n}":1' for n in range(300_000)) + "}")),
        "'a' needs"),
    "a million times one name": (
        lambda: file_of(b"{" + b",".join([b'"a":1'] * MANY) + b"}"), "twice"),
    "a million empty arrays": (
        lambda: file_of(header_of("[[]" + ",[]" * MANY + "]")), "'a' needs"),
}  # fmt: skip


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart() as wn:
        yield wn


@pytest.mark.parametrize(
    ("kind", "command"), [(kind, command) for kind in HEAVY for command in HEAVY[kind][1]]
)
def test_a_header_that_asks_for_much_is_read_in_bounds(
    kind: str, command: str, apart: Apart, tmp_path: Path
) -> None:
    path, output = tmp_path / "heavy.safetensors", tmp_path / "out.pt"
    path.write_bytes(HEAVY[kind][0]())
    assert the_reference_reads(path)
    more = {"inspect": (), "compare": (path,)}.get(command, (output,))
    ran = apart(command, path, *more)
    assert (ran.code, ran.stderr[:MOST_CHARACTERS]) == (0, "")
    ran.hold_bounds()
    assert output.exists() == (command in {"remove", "convert"})


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOO_HEAVY)
def test_a_header_that_asks_for_much_is_refused_in_bounds(
    kind: str, apart: Apart, tmp_path: Path
) -> None:
    path = tmp_path / "heavy.safetensors"
    content, says = TOO_HEAVY[kind]
    path.write_bytes(content())
    assert not the_reference_reads(path) or "twice" in says
    ran = apart("inspect", path)
    hold_refused(ran, path, says)
    ran.hold_bounds()


@pytest.mark.parametrize("length", [100_000_000, 100_000_001, 1 << 30, 1 << 40])
@pytest.mark.parametrize("start", [b'{"a', '{"\U0001f600'.encode()], ids=["ASCII", "wide"])
def test_a_header_of_holes_is_refused_in_bounds(
    start: bytes, length: int, apart: Apart, tmp_path: Path
) -> None:
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(file_of(start, claimed=length))
    os.truncate(path, 8 + length)
    assert path.stat().st_blocks < 100
    ran = apart("inspect", path)
    hold_refused(ran, path, "control character|NUL" if length <= 100_000_000 else "too long")
    ran.hold_bounds()
