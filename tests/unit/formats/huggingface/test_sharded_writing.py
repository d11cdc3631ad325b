"""Writing sharded checkpoints: names, index and bytes as Hugging Face's libraries have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from torch import nn

import wncli
from tests.support.run import Ran
from tests.support.sharded_folders import (
    State,
    both_kinds,
    folded,
    hold_bits,
    hold_equal,
    load,
    merged,
    names,
    read,
    snapshot,
    three,
    weight_files,
)
from tests.support.shards import KINDS, index_path, save, shard_name, sharded
from wncli.errors import UsageError
from wncli.formats.registry import FormatName

pytestmark = pytest.mark.thinned(3)

Wn = Callable[..., Ran]


# -- from shards to shards ---------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("given", ["folder", "index"])
def test_removal_folds_pairs_inside_and_across_shards(
    kind: str, given: str, tmp_path: Path
) -> None:
    shards = three()
    index = sharded(tmp_path / "in", kind, shards)
    before = snapshot(tmp_path / "in")
    report = wncli.remove(index if given == "index" else index.parent, tmp_path / "out")
    hold_equal(read(tmp_path / "out"), folded(merged(shards)))
    assert snapshot(tmp_path / "in") == before
    assert names(tmp_path / "out") == names(tmp_path / "in")
    assert set(load(tmp_path / "out" / shard_name(2, kind, 3))) == {"a.weight", "b.weight"}
    assert (report.parameters.change, report.notes) == (-7, ())


@both_kinds
@pytest.mark.parametrize("command", ["apply", "remove", "convert"])
def test_a_shard_that_does_not_change_is_the_same_file_byte_for_byte(
    kind: str, command: str, tmp_path: Path
) -> None:
    third = sharded(tmp_path / "in", kind, three()).with_name(shard_name(3, kind, 3))
    if kind == "torch":  # both as no writer but a copy would make them again
        torch.save(torch.load(third), third, _use_new_zipfile_serialization=False)
    else:
        raw = third.read_bytes()
        third.write_bytes(bytes([raw[0] + 8, *raw[1:9]]) + b" " * 8 + raw[9:])
    options: dict[str, Any] = {"apply": {"layers": ["a.bias"]}, "convert": {"naming": "hook"}}
    getattr(wncli, command)(tmp_path / "in", tmp_path / "out", **options.get(command, {}))
    assert (tmp_path / "out" / third.name).read_bytes() == third.read_bytes()


@both_kinds
def test_apply_then_remove_gives_the_same_bits_in_the_same_shards(
    kind: str, tmp_path: Path
) -> None:
    sharded(tmp_path / "in", kind, three())
    wncli.remove(tmp_path / "in", tmp_path / "plain")
    wncli.apply(tmp_path / "plain", tmp_path / "split", naming="parametrized")
    wncli.convert(tmp_path / "split", tmp_path / "hook", naming="hook")
    wncli.remove(tmp_path / "hook", tmp_path / "again")
    assert {"a.weight_g", "a.weight_v", "b.weight_g"} < set(read(tmp_path / "hook"))
    hold_bits(read(tmp_path / "again"), read(tmp_path / "plain"))
    for name in weight_files(tmp_path / "plain"):
        assert set(load(tmp_path / "again" / name)) == set(load(tmp_path / "plain" / name))


@both_kinds
def test_a_shard_that_loses_its_last_tensor_is_gone_and_the_others_are_numbered_anew(
    kind: str, tmp_path: Path
) -> None:
    shards = three()
    del shards[1]["a.bias"]
    sharded(tmp_path / "in", kind, shards)
    wncli.remove(tmp_path / "in", tmp_path / "out")
    hold_equal(read(tmp_path / "out"), folded(merged(shards)))
    assert weight_files(tmp_path / "out") == [shard_name(n, kind, 2) for n in (1, 2)]


def test_parameters_views_and_what_else_torch_shards_hold_stay_in_shards_that_change(
    tmp_path: Path,
) -> None:
    view, pair = torch.arange(6.0).reshape(2, 3).t(), (torch.rand(3, 1), torch.ones(3, 2))
    first = {f"a.weight_{half}": nn.Parameter(t) for half, t in zip("gv", pair, strict=True)}
    first |= {"frozen": nn.Parameter(torch.ones(2), requires_grad=False)}
    state = first | {"grad": torch.ones(2, requires_grad=True), "view": view, "tied": view}
    sharded(tmp_path / "in", "torch", {1: state, 2: {"b": torch.ones(2)}})
    save(state | {"a._extra_state": {"scale": 3}}, tmp_path / "in" / shard_name(1, "torch"))
    report = wncli.remove(tmp_path / "in", tmp_path / "out")
    found: Any = load(tmp_path / "out" / shard_name(1, "torch"))
    assert isinstance(found["a.weight"], nn.Parameter)
    assert isinstance(found["frozen"], nn.Parameter)
    assert (found["frozen"].requires_grad, found["grad"].requires_grad) == (False, True)
    assert found["view"].stride() == (1, 3)
    assert found["tied"].data_ptr() == found["view"].data_ptr()
    assert found["a._extra_state"] == {"scale": 3}
    assert "_extra_state" not in str(report.notes)  # nothing is left out, nor said to be


def test_a_tensor_to_which_the_index_ties_another_name_keeps_its_own(tmp_path: Path) -> None:
    """huggingface_hub notes ties in the index; here the tied name sorts before its tensor's."""
    index = sharded(tmp_path / "in", shards=three())
    content = json.loads(index.read_text())
    content["metadata"]["a.table"] = "c.table"
    index.write_text(json.dumps(content))
    for path in index.parent.glob("*.safetensors"):
        path.write_bytes(safetensors_bytes(load(path)))  # no metadata of their own
    wncli.convert(tmp_path / "in", tmp_path / "out", naming="parametrized")
    assert "c.table" in read(tmp_path / "out")
    assert wncli.inspect(tmp_path / "out").roots == wncli.inspect(tmp_path / "in").roots


# -- one file and shards -----------------------------------------------------------------------


def blocks(count: int = 6) -> State:
    """Layers of 4,000 bytes each, g and v and a bias beside them."""
    state: State = {}
    for n in range(count):
        state |= {f"l{n}.bias": torch.full((25,), float(n)), f"l{n}.weight_g": torch.rand(25, 1)}
        state[f"l{n}.weight_v"] = torch.randn(25, 38)
    return state


LIMITS: dict[int | str, float] = {
    1: 1, 100: 100, 4000: 4000, 7999: 7999, 8000: 8000, "8KB": 8e3, "8kb": 8e3, "0.008MB": 8e3,
    "7.9KiB": 7.9 * 1024, "0.000008 GB": 8e3, "5GB": 5e9, "1GiB": 2**30, "8100B": 8100,
}  # fmt: skip


@both_kinds
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("command", ["convert", "remove"])
def test_shards_hold_no_more_than_is_asked_for_and_keep_pairs_together(
    kind: str, limit: int | str, command: str, tmp_path: Path
) -> None:
    state, source = blocks(), tmp_path / f"in{KINDS[kind][1]}"
    save(state, source)
    getattr(wncli, command)(source, tmp_path / "out", max_shard_size=limit)
    hold_equal(read(tmp_path / "out"), folded(state) if command == "remove" else state)
    sizes = []
    for name in weight_files(tmp_path / "out"):
        held = load(tmp_path / "out" / name)
        halves = {key for key in held if key[-2:] in {"_g", "_v"}}
        assert halves == {f"{key[:-2]}_{half}" for key in halves for half in "gv"}
        sizes.append(sum(tensor.nbytes for tensor in held.values()))
        assert sizes[-1] <= LIMITS[limit] or len(held) == (len(halves) or 1)
    assert all(a + b > LIMITS[limit] for a, b in pairwise(sizes))


def test_tied_tensors_stay_in_one_shard_and_tied(tmp_path: Path) -> None:
    shared = torch.randn(30)
    state = {"a": shared, "b": torch.ones(30), "c": torch.ones(30), "d": shared}
    torch.save(state, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "safe", max_shard_size=120, format="safetensors")
    hold_bits(read(tmp_path / "safe"), {name: state[name] for name in "abc"})
    wncli.convert(tmp_path / "safe", tmp_path / "back.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size=120)
    for found in (load(tmp_path / "back.pt"), read(tmp_path / "out")):
        assert found["a"].data_ptr() == found["d"].data_ptr()
        hold_bits(found, state)


def test_sharding_keeps_requires_grad_strides_and_metadata_or_says_what_it_loses(
    tmp_path: Path,
) -> None:
    state = nn.Conv1d(2, 3, 1).state_dict(keep_vars=True)
    state["view"] = torch.arange(6.0).reshape(2, 3).t()
    torch.save(state, tmp_path / "in.pt")
    said = str(wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size="1GB").notes)
    found = torch.load(tmp_path / "out" / "pytorch_model.bin")
    assert isinstance(found["weight"], nn.Parameter) or "Parameter" in said
    assert found["view"].stride() == (1, 3) or "stride" in said
    assert hasattr(found, "_metadata") or "_metadata" in said


@both_kinds
@pytest.mark.parametrize("kind_out", KINDS)
def test_shards_become_one_file_and_shards_again_in_either_format(
    kind: FormatName, kind_out: FormatName, tmp_path: Path
) -> None:
    shards = three()
    sharded(tmp_path / "in", kind, shards)
    one = tmp_path / f"one{KINDS[kind_out][1]}"
    wncli.convert(tmp_path / "in", one)
    hold_bits(load(one), merged(shards))
    wncli.convert(one, tmp_path / "again", max_shard_size=200, format=kind)
    wncli.convert(tmp_path / "in", tmp_path / "other", format=kind_out)
    for folder, has in (("again", kind), ("other", kind_out)):
        hold_bits(read(tmp_path / folder), merged(shards))
        assert index_path(tmp_path / folder, has).is_file()


FOLDERS = {
    "out/": "in.pt", "out/ --format safetensors": "in.safetensors", "v1.5/ --format torch": "in.pt",
    "out --max-shard-size 5GB": "pytorch_model.bin",
    "out/ --max-shard-size 5GB --format safetensors": "model.safetensors",
}  # fmt: skip


@pytest.mark.parametrize("arguments", FOLDERS)
def test_one_file_in_a_folder_has_no_number_and_no_index(
    arguments: str, tmp_path: Path, wn_here: Wn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = blocks()
    torch.save({"model": state}, "in.pt")
    folder, *options = arguments.split()
    ran = wn_here("remove", "in.pt", folder, *options)
    assert (ran.code, ran.stderr) == (0, "")
    assert names(tmp_path / folder) == [FOLDERS[arguments]]
    if "size" in arguments:
        hold_equal(read(tmp_path / folder), folded(state))


def test_several_state_dicts_go_into_a_folder_one_at_a_time(tmp_path: Path, wn_here: Wn) -> None:
    state = blocks(2)
    torch.save({"generator": blocks(1), "discriminator": state, "epoch": 3}, tmp_path / "in.pt")
    command = ["remove", tmp_path / "in.pt", tmp_path / "out", "--max-shard-size", "1GB"]
    ran = wn_here(*command)
    assert ran.code == 2
    assert "--only generator or --only discriminator" in ran.stderr
    assert names(tmp_path) == ["in.pt"]
    ran = wn_here(*command, "--only", "discriminator")
    assert "epoch" in ran.stderr + ran.stdout  # is left out
    hold_equal(read(tmp_path / "out"), folded(state))


@pytest.mark.parametrize("size", ["0", "", "x", "-1", "5XB", "GB", "1e9", "0.1"])
def test_what_is_no_size_is_refused(size: str, tmp_path: Path) -> None:
    torch.save(blocks(), tmp_path / "in.pt")
    with pytest.raises(UsageError, match="max_shard_size"):
        wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size=size)


def test_a_shard_of_scalars_alone_is_read_again(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(3000), "n": torch.tensor(1), "b.weight": torch.ones(3000)}
    torch.save(state, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", max_shard_size=12_000)
    assert len(weight_files(tmp_path / "out")) == 3
    assert wncli.compare(tmp_path / "in.pt", tmp_path / "out").equal
