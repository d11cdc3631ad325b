"""Entries whose keys are no text: listed where they are not kept, dropped by what is shown."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import wncli
from tests.support.oracles import bits, load
from tests.support.run import Wn
from tests.support.shards import KINDS, codes, map_of, shard_name, write_index
from wncli.errors import UsageError
from wncli.report import Report

STATE: dict[Any, Any] = {"l.weight": torch.randn(3, 4), "l.bias": torch.randn(3)}
LONG = ("x" * 10_000, ((((1,),),),), 2, 3, 4)
#: Keys, and how they are shown.
KEYS: dict[Hashable, str] = {
    0: "0",
    -7: "-7",
    1 << 70: "an int of 71 bits",
    (1, 2): "(1, 2)",
    (): "()",
    ("a", None): "('a', None)",
    b"x": "b'x'",
    b"\x00\xff": r"b'\x00\xff'",
    None: "None",
    1.5: "1.5",
    float("inf"): "inf",
    True: "True",
    torch.float32: "torch.float32",
    torch.device("cpu"): "torch.device('cpu')",
}
key = pytest.mark.parametrize("key", KEYS, ids=KEYS.values())


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def left_out(report: Report) -> list[str]:
    """The notes on what is left out, without their first words."""
    return [
        note.message.rpartition("left out: ")[2] for note in report.notes if note.code == "left-out"
    ]


def entries(path: Path) -> dict[str, str]:
    return {entry.path: entry.summary for entry in wncli.inspect(path).entries}


@key
def test_an_entry_under_any_key_is_left_out_of_safetensors_and_listed(
    key: Hashable,
    tmp_path: Path,
) -> None:
    source = save({**STATE, key: torch.ones(3, 1)}, tmp_path / "a.pt")
    out = tmp_path / "a.safetensors"
    assert left_out(wncli.convert(source, out, verify=True)) == [KEYS[key]]
    assert {name: bits(t) for name, t in load_file(out).items()} == {
        name: bits(t) for name, t in STATE.items()
    }


@key
def test_an_entry_under_any_key_is_listed_with_its_summary(key: Hashable, tmp_path: Path) -> None:
    beside = save({**STATE, key: torch.ones(3, 1)}, tmp_path / "a.pt")
    assert entries(beside) == {KEYS[key]: "float32 tensor [3, 1]"}
    above = save({"model": {**STATE, key: 3}, key: [STATE["l.bias"]]}, tmp_path / "b.pt")
    assert entries(above) == {KEYS[key]: "list, 1 item", f"model.{KEYS[key]}": "3"}


@key
def test_what_stands_beside_a_state_dict_that_is_written_alone_is_listed(
    key: Hashable,
    tmp_path: Path,
) -> None:
    source = save({"model": {**STATE, key: 3}, key: {"x": 1}}, tmp_path / "a.pt")
    report = wncli.convert(source, tmp_path / "b.pt", only="model")
    assert left_out(report) == [KEYS[key]]
    assert load(tmp_path / "b.pt", weights_only=False)[key] == 3  # as it is kept in the file
    report = wncli.convert(source, tmp_path / "a.safetensors", only="model")
    assert left_out(report) == [f"{KEYS[key]}, model.{KEYS[key]}"]


@key
def test_like_lists_what_has_no_place_in_the_structure(key: Hashable, tmp_path: Path) -> None:
    source = save({"model": STATE, key: {"x": 1}}, tmp_path / "a.pt")
    reference = save({"net": STATE}, tmp_path / "reference.pt")
    assert left_out(wncli.convert(source, tmp_path / "b.pt", like=reference)) == [KEYS[key]]
    assert list(load(tmp_path / "b.pt")) == ["net"]


@key
def test_torch_to_torch_keeps_an_entry_under_any_key(key: Hashable, tmp_path: Path) -> None:
    content = {"model": {**STATE, key: 3}, key: 4}
    report = wncli.apply(save(content, tmp_path / "a.pt"), tmp_path / "b.pt", verify=True)
    found = load(tmp_path / "b.pt", weights_only=False)
    assert (found["model"][key], found[key], left_out(report)) == (3, 4, [])


@key
def test_an_entry_is_dropped_by_what_is_shown_of_its_key(key: Hashable, tmp_path: Path) -> None:
    source = save({"model": {**STATE, key: 3}, key: 4, "epoch": 5}, tmp_path / "a.pt")
    wncli.convert(source, tmp_path / "b.pt", drop=[KEYS[key]])
    found = load(tmp_path / "b.pt", weights_only=False)
    assert (set(found), found["model"][key]) == ({"model", "epoch"}, 3)
    wncli.convert(source, tmp_path / "c.pt", drop=[f"model.{KEYS[key]}"])
    found = load(tmp_path / "c.pt", weights_only=False)
    assert (found[key], set(found["model"])) == (4, set(STATE))


@key
def test_a_state_dict_under_such_a_key_is_not_lost(key: Hashable, tmp_path: Path) -> None:
    source = save({"model": STATE, key: dict(STATE), "same": STATE}, tmp_path / "a.pt")
    report = wncli.inspect(source)
    listed = {root.root for root in report.roots} | {entry.path for entry in report.entries}
    assert listed == {"model", "same", KEYS[key]}
    (note,) = left_out(wncli.convert(source, tmp_path / "a.safetensors", only="model"))
    assert note in {f"{KEYS[key]}, same", f"same, {KEYS[key]}"}


def test_keys_of_numpy_are_no_text(tmp_path: Path) -> None:
    names: list[Any] = [np.str_("l.weight_g"), np.int64(3), np.float32(0.5)]
    source = save({**STATE, **dict.fromkeys(names, 1)}, tmp_path / "a.pt")
    listed = list(entries(source))
    assert len(listed) == 3
    assert all("numpy" in path for path in listed)
    (note,) = left_out(wncli.convert(source, tmp_path / "a.safetensors"))
    assert note == ", ".join(listed)
    for path, name in zip(listed, names, strict=True):
        wncli.convert(source, tmp_path / "b.pt", drop=[path], force=True)
        found = load(tmp_path / "b.pt", weights_only=False)
        assert set(found) == {*STATE, *names} - {name}


def test_however_long_or_deep_a_key_is_what_is_shown_is_short_and_its_own(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(400):
        deep = (deep, "\x1b[2K")
    keys = [LONG, (*LONG, 1), (*LONG, 2), deep, (deep, 1), frozenset({1}), b"y" * 100_000]
    content: dict[Any, Any] = {"model": STATE, **dict.fromkeys("abc"), **dict.fromkeys(keys)}
    source = save(content, tmp_path / "a.pt")
    listed = list(entries(source))
    assert len(set(listed)) == len(listed) == 3 + len(keys)
    assert max(map(len, listed)) < 100
    assert all(path.isprintable() for path in listed)
    wncli.convert(source, tmp_path / "b.pt", drop=[listed[4]])
    assert (*LONG, 1) not in load(tmp_path / "b.pt", weights_only=False)
    assert len(load(tmp_path / "b.pt", weights_only=False)) == 3 + len(keys)


def test_keys_that_read_alike_are_told_apart(tmp_path: Path) -> None:
    model: dict[Any, Any] = {**STATE, "1": STATE["l.bias"], 1: 6}
    content = {"epoch": 1, "0": 2, 0: 3, "None": 4, None: 5, "model": model}
    source = save(content, tmp_path / "a.pt")
    listed = entries(source)
    assert listed == {
        "epoch": "1", "0": "2", "0'": "3", "None": "4", "None'": "5", "model.1'": "6",
    }  # fmt: skip
    for path, gone in (("0", "0"), ("0'", 0), ("None", "None"), ("None'", None)):
        wncli.convert(source, tmp_path / "b.pt", drop=[path], force=True)
        assert set(load(tmp_path / "b.pt")) == set(content) - {gone}
    for path, inner in (("model.1", "1"), ("model.1'", 1)):
        wncli.convert(source, tmp_path / "b.pt", drop=[path], force=True, verify=True)
        assert set(load(tmp_path / "b.pt")["model"]) == set(model) - {inner}


def test_an_entry_that_is_not_there_is_still_refused(tmp_path: Path) -> None:
    source = save({"model": STATE, (1, 2): 3}, tmp_path / "a.pt")
    for path in ("(1, 3)", "", "1", "model.", "(1, 2).x"):
        with pytest.raises(UsageError, match="there is no entry of this name"):
            wncli.convert(source, tmp_path / "b.pt", drop=[path])


def test_an_optimizer_under_such_a_key_can_be_dropped_as_the_warning_says(
    tmp_path: Path, wn: Wn
) -> None:
    optimizer = torch.optim.Adam(nn.Linear(4, 3).parameters()).state_dict()
    source = save({"model": STATE, None: optimizer}, tmp_path / "a.pt")
    ran = wn("apply", source, tmp_path / "b.pt")
    assert "--drop None leaves it out" in ran.stdout + ran.stderr
    assert wn("apply", source, tmp_path / "c.pt", "--drop", "None").code == 0
    assert set(load(tmp_path / "c.pt")) == {"model"}


@pytest.mark.parametrize("command", [0, 1], ids=["convert", "remove"])
@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_shards_keep_or_list_what_has_such_a_key(
    kind: Literal["torch", "safetensors"], command: int, tmp_path: Path
) -> None:
    """In the second shard only g stands, so that nothing is left of that when it is folded."""
    v, g = torch.randn(3, 4), torch.rand(3, 1) + 0.5
    shards: dict[int, dict[Any, Any]] = {
        1: {"l.weight_v": v, "m": torch.ones(2)},
        2: {"l.weight_g": g, (1, 2): torch.ones(2), None: 3, "l._extra_state": 4},
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for number, state in shards.items():
        torch.save(state, folder / shard_name(number, "torch"))
    names = map_of("torch", {1: shards[1], 2: {"l.weight_g": g}})
    write_index(folder / f"{''.join(KINDS['torch'])}.index.json", names)
    others = {"(1, 2)": "float32 tensor [2]", "None": "3"}
    assert entries(folder) == others
    run = (wncli.convert, wncli.remove)[command]
    report = run(folder, tmp_path / "out", format=kind)
    listed = [path for note in left_out(report) for path in note.replace("(1, 2)", "t").split(", ")]
    if kind == "torch" and not command:
        assert listed == []
        kept = load(tmp_path / "out" / shard_name(2, "torch"), weights_only=False)
        assert kept.keys() == shards[2].keys()
    else:
        assert sorted(listed) == ["None", "l._extra_state", "t"]
    report = run(folder, tmp_path / "out.pt")
    assert left_out(report) == ["(1, 2), None, l._extra_state"]
    assert codes(folder) == []


def test_a_state_dict_that_holds_another_is_not_said_to_leave_it_out(tmp_path: Path) -> None:
    inner = {f"inner.{name}": tensor for name, tensor in STATE.items()}
    source = save({"a": {**STATE, "ema": inner, 0: 1}, "b": STATE}, tmp_path / "a.pt")
    report = wncli.convert(source, tmp_path / "b.pt", only="a")
    assert left_out(report) == ["b"]
    found = load(tmp_path / "b.pt")
    assert bits(found["ema"]["inner.l.weight"]) == bits(STATE["l.weight"])


def test_what_is_dropped_of_a_shared_mapping_is_gone_from_all_its_places(tmp_path: Path) -> None:
    shared = OrderedDict(STATE | {"gone": torch.ones(2, 2)})
    source = save({"a": shared, "b": [shared]}, tmp_path / "a.pt")
    wncli.convert(source, tmp_path / "b.pt", drop=["a.gone"], verify=True)
    found = load(tmp_path / "b.pt")
    assert [list(found["a"]), list(found["b"][0])] == [list(STATE), list(STATE)]


def test_items_behind_a_dropped_one_of_a_list_are_verified_where_they_are_then(
    tmp_path: Path,
) -> None:
    states = [{name: tensor + place for name, tensor in STATE.items()} for place in range(4)]
    source = save({"nets": states}, tmp_path / "a.pt")
    wncli.apply(source, tmp_path / "b.pt", drop=["nets.0", "nets.2"], verify=True)
    found = load(tmp_path / "b.pt")["nets"]
    assert [bits(net["l.weight_v"]) for net in found] == [
        bits(states[place]["l.weight"]) for place in (1, 3)
    ]


def test_dropping_an_entry_leaves_what_only_reads_as_if_it_were_inside(tmp_path: Path) -> None:
    content = {"a": {"x": 1, "net": STATE}, "a.b": STATE, "c": STATE}
    source = save(content, tmp_path / "a.pt")
    report = wncli.apply(source, tmp_path / "b.pt", drop=["a"], verify=True)
    assert {root.root for root in report.roots} == {"a.b", "c"}
    found = load(tmp_path / "b.pt")
    assert {key: sorted(found[key]) for key in found} == {
        key: ["l.bias", "l.weight_g", "l.weight_v"] for key in ("a.b", "c")
    }


def test_a_key_that_shares_its_parts_without_bound_costs_nothing(tmp_path: Path) -> None:
    key: Any = 1
    for _ in range(60):  # 2 to the 60th parts, were it unfolded
        key = (key, key)
    path = save({"model": STATE, "key": "here"}, tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    opcodes = pickle.BININT1 + b"\x01" + (pickle.DUP + pickle.TUPLE2) * 60
    (name,) = (member for member in members if member.endswith("data.pkl"))
    here = pickle.BINUNICODE + b"\x03\0\0\0key"
    assert members[name].count(here) == 1
    members[name] = members[name].replace(here, opcodes)
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    ((shown, _),) = entries(path).items()
    assert len(shown) < 100
    report = wncli.convert(path, tmp_path / "b.safetensors", only="model")
    assert left_out(report) == [shown]
