"""Writing distributed checkpoints from files: PyTorch reads them, and would write the same."""

from __future__ import annotations

import argparse
import collections
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

import wncli
import wncli.pytorch
from tests.support.dcp import (
    hold_same,
    hold_same_structure,
    hold_sound,
    items_of,
    leaves,
    load_dcp,
    metadata_of,
    save_dcp,
)
from tests.support.every_dtype import DTYPES, tensor_of
from tests.support.layers import KINDS, Spelling, normalize, pair_of
from tests.support.oracles import bits, load, save
from tests.support.run import SAMPLES
from wncli.errors import FileError, FormatError, UsageError

SPELLINGS: tuple[Spelling, ...] = ("hook", "parametrized")


def training() -> dict[str, Any]:
    """What a training script saves, with containers of all kinds."""
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Linear(5, 4))
    normalize(model[0], "weight", 0, "hook")
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 2, 7)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "lr": 1e-4,
        "name": "run \N{SNOWMAN}",
        "nothing": None,
        "flags": [True, 2, "three"],
        "betas": (0.9, 0.999),
        "pair": (torch.ones(2), 7),
        "numbered": {0: torch.ones(2, 2), True: "text", None: 1, 1.5: b"raw"},
        "listed": [torch.ones(2), {"y": 1}, [torch.zeros(3), "deep"], [], (1, 2)],
        "nested": [[1, [torch.ones(1)]], [[]], 2],
        "values": [[1, 2], ["a", (torch.ones(1),)], []],
        "scores": collections.defaultdict(list, best=[0.5, 0.25]),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "where": torch.device("cpu"),
        "kinds": {1, 2},
        "dotted.name": {"inner.name": 5},
    }


def written(tree: Any, folder: Path, **options: Any) -> wncli.Report:  # noqa: ANN401
    torch.save(tree, folder / "in.pt")
    return wncli.convert(folder / "in.pt", folder / "out", format="dcp", **options)


# -- as PyTorch writes it ----------------------------------------------------------------------


def test_a_training_checkpoint_has_the_structure_that_pytorch_writes(tmp_path: Path) -> None:
    tree = training()
    report = written(tree, tmp_path, verify=True)
    save_dcp(tree, tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    hold_same(load_dcp(tmp_path / "out"), load_dcp(tmp_path / "theirs"))
    hold_sound(tmp_path / "out")
    assert report.output_files == ("__0_0.distcp",)
    assert [note.message for note in report.notes] == [
        "distributed checkpoints have no place for the versions of modules (_metadata), left out"
    ]


@pytest.mark.parametrize("file", sorted(path.name for path in SAMPLES.iterdir() if path.is_file()))
def test_a_sample_has_the_structure_that_pytorch_writes(file: str, tmp_path: Path) -> None:
    if file.endswith((".py", ".md")):
        return
    source = SAMPLES / file
    wncli.convert(source, tmp_path / "out", format="dcp", verify=True)
    if source.suffix == ".safetensors":
        from safetensors.torch import load_file

        tree = {name: load_file(source)[name] for name in load_file(source)}
    else:
        tree = load(source, weights_only=False)
    save_dcp(tree, tmp_path / "theirs")
    found, expected = metadata_of(tmp_path / "out"), metadata_of(tmp_path / "theirs")
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.planner_data == expected.planner_data
    hold_same(load_dcp(tmp_path / "out"), load_dcp(tmp_path / "theirs"))


@pytest.mark.parametrize("stored", ["torch", "legacy", "safetensors", "npz"])
def test_every_format_becomes_one(stored: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3), "n": torch.tensor(7)}
    if stored == "npz":
        arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
        np.savez(tmp_path / "in.npz", **arrays)
        source = tmp_path / "in.npz"
    else:
        source = save(state, tmp_path / "in.pt", stored)
    wncli.convert(source, tmp_path / "out", format="dcp", verify=True)
    found = load_dcp(tmp_path / "out")
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(value) for name, value in state.items()
    }
    hold_sound(tmp_path / "out")


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (0, 3), ()])
def test_every_dtype_keeps_its_bits(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = tensor_of(dtype, *shape)
    tree = {"model": {"a.weight": torch.ones(2, 2), "it": tensor}}
    written(tree, tmp_path)
    save_dcp(tree, tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    (item,) = [raw for index, raw in items_of(tmp_path / "out").items() if "it" in index.fqn]
    (tmp_path / "item.pt").write_bytes(item)
    assert bits(load(tmp_path / "item.pt")) == bits(tensor)


@pytest.mark.parametrize("view", ["transposed", "strided", "part", "expanded", "channels_last"])
def test_a_view_is_written_in_full_and_in_order(view: str, tmp_path: Path) -> None:
    base = torch.randn(2, 4, 6, 3)
    tensor = {
        "transposed": base[0, 0].T,
        "strided": base[0, 0, ::2],
        "part": base[1],
        "expanded": torch.randn(3, 1).expand(3, 5),
        "channels_last": base.to(memory_format=torch.channels_last),
    }[view]
    written({"model": {"a.weight": tensor, "b.bias": base[0, 0, 0]}}, tmp_path, verify=True)
    found = load_dcp(tmp_path / "out")["model"]
    assert bits(found["a.weight"]) == bits(tensor)
    assert bits(found["b.bias"]) == bits(base[0, 0, 0])
    hold_sound(tmp_path / "out")


def test_a_parameter_is_a_tensor_that_requires_a_gradient(tmp_path: Path) -> None:
    tree = {
        "a": nn.Parameter(torch.ones(2, 2)),
        "b": nn.Parameter(torch.ones(2), requires_grad=False),
    }
    written(tree, tmp_path)
    save_dcp(tree, tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    found = load_dcp(tmp_path / "out")
    assert all(type(value) is Tensor for value in found.values())


def test_a_class_that_nobody_has_is_kept_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "gone.py"
    module.write_text("class Config:\n    pass\nclass Names(dict):\n    pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        gone: Any = __import__("gone")
        config = gone.Config()
        config.lr, config.shape = 0.1, (1, [2])
        torch.save(
            {"model": {"a.weight": torch.ones(2, 2)}, "c": config, "n": gone.Names(x=1)},
            tmp_path / "in.pt",
        )
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", format="dcp")
    found = load_dcp(tmp_path / "out")
    assert (type(found["c"]).__name__, vars(found["c"])) == ("Config", vars(config))
    assert (type(found["n"]).__name__, found["n"]) == ("Names", {"x": 1})


def test_a_whole_module_is_a_value(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    written({"state": {"a.weight": torch.ones(2, 2)}, "net": model}, tmp_path)
    found = load_dcp(tmp_path / "out")
    assert bits(found["net"].weight) == bits(model.weight)
    hold_sound(tmp_path / "out")


# -- what has no place -------------------------------------------------------------------------


def test_tied_tensors_are_written_under_each_name_and_noted(tmp_path: Path) -> None:
    weight = torch.randn(3, 2)
    report = written({"emb.weight": weight, "head.weight": weight, "b": weight[0]}, tmp_path)
    found = load_dcp(tmp_path / "out")
    assert bits(found["emb.weight"]) == bits(found["head.weight"]) == bits(weight)
    assert bits(found["b"]) == bits(weight[0])
    (note,) = report.notes
    assert note.code == "ties"
    assert "emb.weight = head.weight" in note.message


def test_empty_dicts_are_noted(tmp_path: Path) -> None:
    tree = {"a.weight": torch.ones(2, 2), "state": {}, "deep": {"x": {}, "l": [{}]}, "none": []}
    report = written(tree, tmp_path)
    assert list(load_dcp(tmp_path / "out")) == ["a.weight", "none"]
    (note,) = report.notes
    assert "empty dicts (state, deep.x, deep.l.0)" in note.message


def test_mappings_without_items_have_the_structure_that_pytorch_writes(tmp_path: Path) -> None:
    empty: tuple[Any, ...] = (collections.defaultdict(list), collections.OrderedDict(), {})
    tree = {"w": torch.ones(2), **{type(one).__name__: one for one in empty}, "listed": [*empty, 3]}
    written(tree, tmp_path)
    save_dcp(tree, tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    assert list(metadata_of(tmp_path / "out").state_dict_metadata) == ["w", "listed.3"]


# -- the commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_removing_and_applying_give_what_torch_files_get(
    spelling: Spelling, dim: int | None, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Conv1d(6, 2, 1))
    torch.save({"net": model.state_dict()}, tmp_path / "plain.pt")
    wncli.apply(tmp_path / "plain.pt", tmp_path / "out", naming=spelling, dim=dim, format="dcp",
                verify=True)  # fmt: skip
    wncli.apply(tmp_path / "plain.pt", tmp_path / "split.pt", naming=spelling, dim=dim)
    hold_same(load_dcp(tmp_path / "out"), load(tmp_path / "split.pt"))
    hold_sound(tmp_path / "out")

    normalize(model[0], "weight", dim, spelling)
    normalize(model[1], "weight", dim, spelling)
    model.load_state_dict(load_dcp(tmp_path / "out")["net"], strict=True)

    wncli.remove(tmp_path / "split.pt", tmp_path / "folded", format="dcp", verify=True)
    wncli.remove(tmp_path / "split.pt", tmp_path / "folded.pt")
    hold_same(load_dcp(tmp_path / "folded"), load(tmp_path / "folded.pt"))
    hold_sound(tmp_path / "folded")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer_is_split_and_folded(kind: str, tmp_path: Path) -> None:
    layer = KINDS[kind].make()
    parameter = KINDS[kind].parameter
    torch.save(layer.state_dict(), tmp_path / "plain.pt")
    wncli.apply(tmp_path / "plain.pt", tmp_path / "split", format="dcp", layers=[parameter])
    assert set(pair_of(parameter, "hook")) <= set(load_dcp(tmp_path / "split"))
    wncli.remove(tmp_path / "split", tmp_path / "folded.pt")
    found = load(tmp_path / "folded.pt")
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(value) for name, value in layer.state_dict().items()
    }


@pytest.mark.parametrize("limit", [None, 2000])
def test_a_zero_slice_gets_its_direction_under_every_name(
    limit: int | None, tmp_path: Path
) -> None:
    weight = torch.randn(4, 3)
    weight[2] = 0
    tree = {"a.weight": weight, "b.weight": weight, "c.weight": torch.randn(2, 2)}
    torch.save(tree, tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "out", format="dcp", max_shard_size=limit)
    wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt")
    hold_same(load_dcp(tmp_path / "out"), load(tmp_path / "out.pt"))
    hold_sound(tmp_path / "out")
    for name in ("a", "b"):
        v = load_dcp(tmp_path / "out")[f"{name}.weight_v"]
        assert v[2].norm() == 1


@pytest.mark.parametrize("rules", [{"only": "model"}, {"drop": ["optimizer", "listed"]},
                                   {"rename": ["*.weight=*.kernel"]}, {"flatten": True},
                                   {"naming": "parametrized"}])  # fmt: skip
def test_what_else_is_asked_for_is_as_for_torch_files(rules: Any, tmp_path: Path) -> None:  # noqa: ANN401
    torch.save(training(), tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", format="dcp", **rules)
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", **rules)
    save_dcp(load(tmp_path / "out.pt", weights_only=False), tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    hold_same(load_dcp(tmp_path / "out"), load_dcp(tmp_path / "theirs"))


def test_the_structure_of_another_checkpoint_is_taken(tmp_path: Path) -> None:
    plain, model = nn.Conv1d(2, 3, 3), nn.Conv1d(2, 3, 3)
    normalize(model, "weight", 0, "parametrized")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    save_dcp({"app": {"model": model.state_dict()}}, tmp_path / "like")
    wncli.convert(tmp_path / "plain.pt", tmp_path / "out", like=tmp_path / "like", format="dcp")
    found = load_dcp(tmp_path / "out")
    model.load_state_dict(found["app"]["model"], strict=True)
    torch.testing.assert_close(model.weight, plain.weight)
    like = metadata_of(tmp_path / "like")
    assert metadata_of(tmp_path / "out").state_dict_metadata == like.state_dict_metadata
    assert metadata_of(tmp_path / "out").planner_data == like.planner_data


def test_both_sides_of_a_comparison_can_be_one(tmp_path: Path) -> None:
    tree = training()
    del tree["numbered"]  # whose keys become text, as names have them
    written(tree, tmp_path)
    assert wncli.compare(tmp_path / "out", tmp_path / "in.pt").equal
    assert wncli.compare(tmp_path / "in.pt", tmp_path / "out").equal
    tree["model"]["2.weight"][0, 0] += 1
    save_dcp(tree, tmp_path / "other")
    assert not wncli.compare(tmp_path / "out", tmp_path / "other").equal


def test_a_model_in_memory_is_saved_as_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(3, 2))
    normalize(model[0], "weight", 0, "parametrized")
    wncli.pytorch.save(model, tmp_path / "out", format="dcp")
    save_dcp(model.state_dict(), tmp_path / "theirs")
    hold_same_structure(tmp_path / "out", tmp_path / "theirs")
    hold_same(load_dcp(tmp_path / "out"), load_dcp(tmp_path / "theirs"))


def test_what_is_missing_can_be_filled_in_from_one(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(3, 2))
    whole = save_dcp({"model": model.state_dict()}, tmp_path / "whole")
    part = {name: value * 2 for name, value in model.state_dict().items() if "1." not in name}
    save_dcp({"model": part}, tmp_path / "part")
    wncli.convert(tmp_path / "part", tmp_path / "out", like=whole, fill=True, verify=True)
    found = load_dcp(tmp_path / "out")["model"]
    expected = dict(model.state_dict()) | part
    assert {n: bits(v) for n, v in found.items()} == {n: bits(v) for n, v in expected.items()}
    hold_sound(tmp_path / "out")


# -- the folder --------------------------------------------------------------------------------


def test_a_size_divides_it_into_files(tmp_path: Path) -> None:
    tree = training()
    report = written(tree, tmp_path, max_shard_size=5000, verify=True)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.distcp"))
    assert files == sorted(report.output_files)
    assert len(files) > 3
    assert all((tmp_path / "out" / name).stat().st_size <= 5000 for name in files)
    save_dcp(tree, tmp_path / "theirs")
    hold_same(load_dcp(tmp_path / "out"), load_dcp(tmp_path / "theirs"))
    hold_sound(tmp_path / "out")


def test_it_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    torch.save(training(), tmp_path / "in.pt")
    found = []
    for number in range(2):
        place = tmp_path / str(number) / "out"
        wncli.convert(tmp_path / "in.pt", place, format="dcp", make_folder=True, jobs=number + 1)
        found.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert found[0]["__0_0.distcp"] == found[1]["__0_0.distcp"]
    assert len(found[0][".metadata"]) == len(found[1][".metadata"])


def test_an_old_one_is_replaced_whole_and_its_metadata_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = training()
    place = save_dcp(tree, tmp_path / "out", single_file_per_rank=False)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match="force"):
        written(tree, tmp_path)
    moved: list[str] = []
    replace = Path.replace

    def recorded(self: Path, target: Path) -> Path:
        assert not (place / ".metadata").exists()
        moved.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    written(tree, tmp_path, force=True)
    assert moved[-1] == ".metadata"
    assert (place / "notes.txt").read_text() == "mine"
    hold_sound(place)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    report = written(training(), tmp_path, dry_run=True)
    assert report.output_files == ("__0_0.distcp",)
    assert not (tmp_path / "out").exists()


# -- what is refused ---------------------------------------------------------------------------


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("it ran",)


def test_what_would_run_is_refused_unless_it_is_left_out(tmp_path: Path) -> None:
    tree = {"model": {"a.weight": torch.ones(2, 2)}, "bad": _Runs()}
    with pytest.raises(FormatError, match="runs more than"):
        written(tree, tmp_path)
    written(tree, tmp_path, drop=["bad"])
    assert list(load_dcp(tmp_path / "out")) == ["model"]


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b": 1}, "a.b": 2},
        {"cfg": {"a": {"b": 1}, "a.b": 2}},
        {"n": {0: 1, "0": 2}},
    ],
)
def test_two_entries_of_one_name_are_refused_with_what_leaves_them_out(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    content = {"model": {"x.weight": torch.ones(2, 2)}, **tree}
    with pytest.raises(CheckpointException, match="duplicated"):
        save_dcp(content, tmp_path / "theirs")
    with pytest.raises(UsageError, match="two entries would have the name") as refused:
        written(content, tmp_path)
    assert not (tmp_path / "out").exists()
    dropped = refused.value.hint.removeprefix("drop=['").removesuffix("']")
    written(content, tmp_path, drop=[dropped])
    load_dcp(tmp_path / "out")


@pytest.mark.parametrize("key", [(1, 2), frozenset({1}), torch.float32, b"raw", 1 << 70])
def test_a_key_without_a_text_of_its_own_is_refused(key: Any, tmp_path: Path) -> None:  # noqa: ANN401
    content = {"model": {"x.weight": torch.ones(2, 2)}, "cfg": {key: 1}}
    with pytest.raises(UsageError, match="a key is no text"):
        written(content, tmp_path)
    written(content, tmp_path, drop=["cfg"])


@pytest.mark.parametrize("top", [list, tuple])
def test_a_list_at_the_top_is_refused_and_what_is_in_it_is_not(top: type, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="a dict at its top"):
        written(top([{"x.weight": torch.ones(2, 2)}, {"y.weight": torch.ones(2, 2)}]), tmp_path)
    wncli.convert(tmp_path / "in.pt", tmp_path / "out", format="dcp", only="1")
    assert list(load_dcp(tmp_path / "out")) == ["y.weight"]


def test_what_few_bytes_would_unfold_into_is_refused(tmp_path: Path) -> None:
    shared: Any = {"x": 1, "y": [1.5]}
    for _ in range(30):
        shared = {"a": shared, "b": shared}
    with pytest.raises(FormatError, match="too many names"):
        written({"model": {"x.weight": torch.ones(2, 2)}, "cfg": shared}, tmp_path)
    deep: Any = 1
    for _ in range(100):
        deep = {"d": deep}
    with pytest.raises(FormatError, match="too deeply"):
        written({"model": {"x.weight": torch.ones(2, 2)}, "cfg": deep}, tmp_path)


def test_a_long_value_under_many_names_is_refused(tmp_path: Path) -> None:
    value = [str(number) for number in range(20_000)]
    tree = {"model": {"x.weight": torch.ones(2, 2)}, **{str(n): value for n in range(2000)}}
    with pytest.raises(FormatError, match="too many names"):
        written(tree, tmp_path)


@pytest.mark.parametrize("how", ["tied", "expanded", "tuples", "optimizer"])
def test_what_would_grow_beyond_the_file_is_refused(how: str, tmp_path: Path) -> None:
    large = torch.zeros(1 << 18)  # a megabyte
    tree: dict[str, Any] = {"x.weight": torch.ones(2, 2)}
    if how == "tied":
        tree |= {f"{n}.weight": large for n in range(100)}
    elif how == "expanded":
        tree["y.weight"] = torch.zeros(1).expand(1 << 25)
    elif how == "tuples":
        tree = {"model": tree} | {f"t{n}": (large[n:], n) for n in range(100)}
    else:
        tree = {"model": tree, "state": {n: {"exp_avg": large} for n in range(100)}}
    torch.save(tree, tmp_path / "in.pt")
    with pytest.raises(FormatError, match="expanded"):
        wncli.convert(tmp_path / "in.pt", tmp_path / "out", format="dcp")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    save({"x.weight": torch.ones(2, 2)}, tmp_path / "in.pt")
    with pytest.raises(UsageError, match="suffix of a file"):
        wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", format="dcp")
    (tmp_path / "plain").write_text("")
    with pytest.raises(FileError, match="is a file"):
        wncli.convert(tmp_path / "in.pt", tmp_path / "plain", format="dcp", force=True)


def test_leaves_tell_trees_apart() -> None:
    assert list(leaves({"a": [1]})) != list(leaves({"a": (1,)}))
    assert zipfile.is_zipfile(SAMPLES / "training.pt")
