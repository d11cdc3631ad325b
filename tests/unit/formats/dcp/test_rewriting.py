"""From one distributed checkpoint to another: names change, items and chunks stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import _version
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

import wncli
from tests.support.dcp import (
    RANKS,
    Rows,
    hold_same,
    hold_same_structure,
    hold_sound,
    items_of,
    load_dcp,
    load_into,
    metadata_of,
    save_dcp,
)
from tests.support.distributed_checkpoints import write_all
from tests.support.layers import Spelling, normalize
from tests.support.oracles import bits, load
from tests.support.ranks import on_ranks
from tests.support.resuming import (
    FORMS,
    load_weights,
    resume_training,
    save_training,
    step,
    vocoder,
)
from wncli.errors import FileError

OTHER: dict[Spelling, Spelling] = {"hook": "parametrized", "parametrized": "hook"}
each_spelling = pytest.mark.parametrize("spelling", ["hook", "parametrized"])
each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of all kinds from 2 and 4 ranks."""
    found = {count: tmp_path_factory.mktemp(f"kinds{count}") for count in (2, 4)}
    for count, folder in found.items():
        on_ranks(write_all, folder, count)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run of FSDP2 on two ranks, in both spellings and forms of the optimizer."""
    folder = tmp_path_factory.mktemp("trained")
    on_ranks(save_training, folder, 2)
    return folder


def small(spelling: Spelling | None = "hook") -> dict[str, Any]:
    """A model and an optimizer that knows its parameters by name."""
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(5, 4))
    if spelling:
        normalize(model[0], "weight", 0, spelling)
    optimizer = torch.optim.SGD(model.named_parameters(), momentum=0.9, lr=0.1)
    model(torch.randn(2, 2, 7)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    names = state["param_groups"][0]["param_names"]
    state["state"] = {names[number]: kept for number, kept in state["state"].items()}
    state["param_groups"][0]["params"] = names
    return {"model": model.state_dict(), "optim": state, "epoch": 3, "step": 3, "lr": [3, 3]}


#: Commands, and what they are asked for.
COMMANDS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (wncli.remove, {}),
    (wncli.convert, {"naming": "hook"}),
    (wncli.apply, {"layers": ["plain"]}),
    (wncli.convert, {"only": "generator"}),
    (wncli.convert, {"drop": ["optimizer", "listed"]}),
    (wncli.convert, {"max_shard_size": 3000}),
)


def hold_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert {name: bits(value) for name, value in found.items()} == {
        name: bits(value) for name, value in expected.items()
    }


# -- items and chunks --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_what_stays_is_copied_byte_for_byte_with_its_chunks(
    count: int, kinds: dict[int, Path], tmp_path: Path
) -> None:
    names = ["spread", "training", "named", "named_flat", "threads", "items"]
    for name in [*names, *(["square"] if count == 4 else [])]:
        source, out = kinds[count] / name, tmp_path / name
        wncli.convert(source, out)
        found, expected = metadata_of(out), metadata_of(source)
        assert found.state_dict_metadata == expected.state_dict_metadata
        assert found.planner_data == expected.planner_data
        assert found.storage_data == expected.storage_data
        files = {path.name for path in source.glob("*.distcp")}
        assert files == {path.name for path in out.glob("*.distcp")}
        assert all((source / file).read_bytes() == (out / file).read_bytes() for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_what_is_written_anew_is_what_a_torch_file_gets(
    count: int, kinds: dict[int, Path], tmp_path: Path
) -> None:
    source = kinds[count] / "training"
    before = items_of(source)
    for number, (command, options) in enumerate(COMMANDS):
        out, file = tmp_path / str(number), tmp_path / f"{number}.pt"
        command(source, out, verify=True, **options)
        command(source, file, **{k: v for k, v in options.items() if k != "max_shard_size"})
        hold_same(load_dcp(out), load(file, weights_only=False))
        hold_sound(out)
        after = items_of(out)
        kept = {index.fqn for index in after} & {index.fqn for index in before}
        assert len(kept) > 3 or command is wncli.convert
        for index, item in after.items():
            if index.fqn in kept:
                assert item == before[index], index


@pytest.mark.slow
def test_what_each_rank_lists_by_itself_gets_one_metadata(
    kinds: dict[int, Path], tmp_path: Path
) -> None:
    source = kinds[4] / "ranks"
    wncli.convert(source, tmp_path / "out", verify=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {".metadata"}
    assert not list((tmp_path / "out").glob("__*.metadata"))
    hold_same(load_dcp(tmp_path / "out"), torch.load(kinds[4] / "ranks.pt", weights_only=False))


@pytest.mark.slow
def test_safetensors_shards_of_ranks_become_whole_items(
    kinds: dict[int, Path], tmp_path: Path
) -> None:
    source = kinds[2] / "safetensors"
    wncli.convert(source, tmp_path / "out", format="dcp", verify=True)
    wncli.convert(source, tmp_path / "out.pt")
    hold_same(load_dcp(tmp_path / "out"), load(tmp_path / "out.pt"))
    hold_sound(tmp_path / "out")


# -- names -------------------------------------------------------------------------------------


@pytest.mark.slow
@each_form
@each_spelling
def test_a_respelled_training_run_is_what_pytorch_saves_in_the_other_spelling(
    spelling: Spelling, form: str, trained: Path, tmp_path: Path
) -> None:
    source, reference = trained / f"{spelling}-{form}", trained / f"{OTHER[spelling]}-{form}"
    (note,) = wncli.convert(source, tmp_path / "out", naming=OTHER[spelling], verify=True).notes
    assert "stays valid" in note.message
    found, expected = metadata_of(tmp_path / "out"), metadata_of(reference)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.planner_data == expected.planner_data
    assert found.storage_data.keys() == expected.storage_data.keys()
    ours, theirs = load_dcp(tmp_path / "out"), load_dcp(reference)
    torch.testing.assert_close(ours["model"], theirs["model"])
    assert items_of(tmp_path / "out").keys() == items_of(reference).keys()
    same = {index.fqn for index in items_of(source)} & {
        index.fqn for index in items_of(tmp_path / "out")
    }
    assert {"epoch", "model.0.bias"} < same
    before = sorted(items_of(source).values())
    after = sorted(items_of(tmp_path / "out").values())
    lists = {name for name in found.state_dict_metadata if name.endswith(".params")}
    assert len(set(after) - set(before)) <= len(lists)
    back = tmp_path / "back"
    wncli.convert(tmp_path / "out", back, naming=spelling)
    hold_same(load_dcp(back), load_dcp(source))
    assert metadata_of(back).state_dict_metadata == metadata_of(source).state_dict_metadata


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_training_goes_on_in_the_other_spelling_on_any_number_of_ranks(
    count: int, trained: Path, tmp_path: Path
) -> None:
    spelling: Spelling = "hook" if count == 2 else "parametrized"
    form = FORMS[count % 2]
    wncli.convert(trained / f"{spelling}-{form}", tmp_path / "out", naming=OTHER[spelling])
    task = {"spelling": OTHER[spelling], "form": form, "checkpoint": str(tmp_path / "out")}
    (tmp_path / "task.json").write_text(json.dumps(task))
    on_ranks(resume_training, tmp_path, count)

    model = vocoder(OTHER[spelling])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for seed in (1, 2, 3):
        step(model, optimizer, seed)
    torch.testing.assert_close(load(tmp_path / "found.pt"), dict(model.state_dict()))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_folded_and_normalized_weights_load_on_any_number_of_ranks(
    count: int, trained: Path, tmp_path: Path
) -> None:
    source = trained / "parametrized-nested"
    wncli.remove(source, tmp_path / "plain", drop=["optim"])
    task = {"spelling": None, "checkpoint": str(tmp_path / "plain")}
    (tmp_path / "task.json").write_text(json.dumps(task))
    on_ranks(load_weights, tmp_path, count)
    hold_same_weights(load(tmp_path / "found.pt"), load_dcp(tmp_path / "plain")["model"])

    again = tmp_path / "again"
    again.mkdir()
    rules = ["0=0", "1=1", "2=0"]
    wncli.apply(tmp_path / "plain", again / "out", layers=rules, naming="parametrized")
    task = {"spelling": "parametrized", "checkpoint": str(again / "out")}
    (again / "task.json").write_text(json.dumps(task))
    on_ranks(load_weights, again, count)
    hold_same_weights(load(again / "found.pt"), load_dcp(again / "out")["model"])


def test_an_optimizer_by_name_is_respelled_and_all_else_is_copied(tmp_path: Path) -> None:
    source = save_dcp(small(), tmp_path / "in")
    wncli.convert(source, tmp_path / "out", naming="parametrized")
    torch.save(small(), tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "like.pt", naming="parametrized")
    like = load(tmp_path / "like.pt")
    save_dcp(like, tmp_path / "like")
    found, expected = metadata_of(tmp_path / "out"), metadata_of(tmp_path / "like")
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.planner_data == expected.planner_data
    out = load_dcp(tmp_path / "out")
    group = out["optim"]["param_groups"][0]
    assert "0.parametrizations.weight.original0" in group["params"]
    assert group["params"] == group["param_names"] == like["optim"]["param_groups"][0]["params"]
    assert set(out["optim"]["state"]) == set(group["params"])
    before, after = items_of(source), items_of(tmp_path / "out")
    new = [index.fqn for index, item in after.items() if item not in before.values()]
    assert sorted(new) == ["optim.param_groups.0.param_names", "optim.param_groups.0.params"]
    assert all(after[index] == item for index, item in before.items() if index in after
               and index.fqn not in new)  # fmt: skip


@pytest.mark.parametrize("limit", [None, 4000])
def test_chunks_of_what_stays_are_kept_and_what_changes_is_whole(
    limit: int | None, tmp_path: Path
) -> None:
    tree = small() | {"wide": torch.randn(9, 40), "one": torch.randn(1, 3), "n": torch.tensor(2)}
    source = save_dcp(tree, tmp_path / "in", Rows(), thread_count=RANKS)
    before: dict[str, Any] = metadata_of(source).state_dict_metadata
    assert len(before["wide"].chunks) == 3
    wncli.remove(source, tmp_path / "out", verify=True, max_shard_size=limit)
    after: dict[str, Any] = metadata_of(tmp_path / "out").state_dict_metadata
    assert {name for name in after if after[name] != before.get(name)} == {"model.0.weight"}
    assert len(after["model.0.weight"].chunks) == 1
    for index in metadata_of(tmp_path / "out").storage_data:
        if index.offset is not None:
            chunk = after[index.fqn].chunks[index.index]
            assert chunk.offsets == index.offset
    same = items_of(source).items() & items_of(tmp_path / "out").items()
    assert len(same) == len(items_of(tmp_path / "out")) - 1
    torch.save(tree, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    hold_same(load_dcp(tmp_path / "out"), load(tmp_path / "out.pt"))
    hold_sound(tmp_path / "out")
    found: dict[str, Any] = {
        "wide": torch.zeros(9, 40),
        "model": {"0.weight": torch.zeros(3, 2, 3)},
    }
    load_into(found, tmp_path / "out")
    assert bits(found["wide"]) == bits(tree["wide"])
    assert bits(found["model"]["0.weight"]) == bits(load(tmp_path / "out.pt")["model"]["0.weight"])


def test_equal_values_keep_the_items_of_their_own_names(tmp_path: Path) -> None:
    tree = small()
    del tree["optim"]
    source = save_dcp(tree, tmp_path / "plain")
    wncli.convert(source, tmp_path / "renamed", rename=["1.*=head.*"])
    places = {index.fqn: info for index, info in metadata_of(source).storage_data.items()}
    for index, info in metadata_of(tmp_path / "renamed").storage_data.items():
        assert info == places[index.fqn.replace("head.", "1.")]

    source = save_dcp(small(), tmp_path / "in")
    wncli.convert(source, tmp_path / "out", rename=["1.*=head.*"])
    before, after = items_of(source), items_of(tmp_path / "out")
    lists = ("params", "param_names")
    assert all(
        after[index] == item
        for index, item in before.items()
        if index in after and not index.fqn.endswith(lists)
    )
    assert len(set(after.values()) - set(before.values())) == 1  # both lists are equal


def test_a_checkpoint_from_before_dicts_were_flattened_keeps_its_values_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_version, "_derived_version", "2_3")
        source = save_dcp(small(), tmp_path / "in")
    assert "optim.param_groups" in metadata_of(source).planner_data
    wncli.convert(source, tmp_path / "out", naming="parametrized")
    assert "optim.param_groups" in metadata_of(tmp_path / "out").planner_data
    found, before = load_dcp(tmp_path / "out"), load_dcp(source)
    names = found["optim"]["param_groups"][0]["params"]
    assert "0.parametrizations.weight.original1" in names
    assert set(names) == set(found["optim"]["state"])
    hold_same(found["optim"]["param_groups"][0]["lr"], before["optim"]["param_groups"][0]["lr"])
    hold_sound(tmp_path / "out")


@pytest.mark.parametrize("nested", [True, False])
def test_what_was_saved_without_paths_gets_some(*, nested: bool, tmp_path: Path) -> None:
    tree = {"model": small()["model"]} if nested else small()["model"]
    save_dcp(tree, tmp_path / "in", DefaultSavePlanner(flatten_state_dict=False))
    wncli.convert(tmp_path / "in", tmp_path / "out", naming="parametrized", verify=True)
    found = load_dcp(tmp_path / "out")
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Linear(5, 4))
    normalize(model[0], "weight", 0, "parametrized")
    model.load_state_dict(found["model"] if nested else found, strict=True)
    hold_sound(tmp_path / "out")


@pytest.mark.parametrize("how", ["another dtype", "a changed byte"])
def test_an_item_that_is_copied_unopened_is_opened_to_be_verified(how: str, tmp_path: Path) -> None:
    tree = {"a.weight": torch.randn(4, 4), "b.weight": torch.randn(4, 4).int()}
    source = save_dcp(tree, tmp_path / "in")
    info = {index.fqn: found for index, found in metadata_of(source).storage_data.items()}
    content = bytearray((source / "__0_0.distcp").read_bytes())
    one, other = (slice(info[name].offset, info[name].offset + info[name].length) for name in tree)
    if how == "another dtype":
        assert info["a.weight"].length == info["b.weight"].length
        content[one], content[other] = content[other], content[one]
    else:
        place = content.index(tree["a.weight"].numpy().tobytes())
        content[place] ^= 1
    (source / "__0_0.distcp").write_bytes(content)
    wncli.convert(source, tmp_path / "out", rename=["a.*=c.*"])
    items = items_of(tmp_path / "out")
    assert bytes(content[one]) in items.values()
    with pytest.raises(wncli.WnError, match=r"is not what|damaged|checksum"):
        wncli.convert(source, tmp_path / "verified", verify=True, rename=["a.*=c.*"])
    assert not (tmp_path / "verified").exists()


@pytest.mark.parametrize("tree", [{"epoch": 3, "args": (1, "two")}, {"none": torch.zeros(0, 4)}])
def test_a_checkpoint_without_numbers_is_copied(tree: dict[str, Any], tmp_path: Path) -> None:
    source = save_dcp(tree, tmp_path / "in")
    wncli.convert(source, tmp_path / "out", verify=True)
    hold_same(load_dcp(tmp_path / "out"), load_dcp(source))
    assert items_of(tmp_path / "out") == items_of(source)
    assert wncli.inspect(source, check=True).findings == ()


# -- the folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [wncli.remove, wncli.convert])
def test_a_checkpoint_can_take_its_own_place(command: Any, tmp_path: Path) -> None:  # noqa: ANN401
    source = save_dcp(small(), tmp_path / "in", single_file_per_rank=False)
    shutil.copytree(source, tmp_path / "same")
    (source / "meta.pt").write_bytes(b"Lightning's")
    (source / "mine.bin").write_bytes(b"mine")
    options = {"naming": "parametrized"} if command is wncli.convert else {}
    with pytest.raises(FileError, match="itself"):
        command(source, source, **options)
    command(source, source, force=True, verify=True, **options)
    command(tmp_path / "same", tmp_path / "out", **options)
    hold_same(load_dcp(source), load_dcp(tmp_path / "out"))
    hold_sound(source)
    assert (source / "meta.pt").read_bytes() == b"Lightning's"
    assert (source / "mine.bin").read_bytes() == b"mine"


def test_what_stands_beside_it_goes_along(tmp_path: Path) -> None:
    source = save_dcp(small(), tmp_path / "in")
    for name in ("meta.pt", "config.json", "other.pt"):
        (source / name).write_bytes(name.encode())
    (note,) = (
        note for note in wncli.convert(source, tmp_path / "out").notes if note.code == "companions"
    )
    assert note.message == "copied beside it: config.json, meta.pt"
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {".metadata", "__0_0.distcp", "meta.pt", "config.json"}


def test_its_files_keep_their_names_and_division(tmp_path: Path) -> None:
    source = save_dcp(small(), tmp_path / "in", thread_count=3)
    wncli.remove(source, tmp_path / "out")
    files = {path.name: path.stat().st_size for path in source.glob("*.distcp")}
    assert len(files) == 3
    assert files.keys() == {path.name for path in (tmp_path / "out").glob("*.distcp")}
    before, after = (
        {index.fqn: info.relative_path for index, info in metadata_of(folder).storage_data.items()}
        for folder in (source, tmp_path / "out")
    )
    assert after["model.0.weight"] == before["model.0.weight_v"] != min(before.values())
    assert all(after[name] == file for name, file in before.items() if name in after)
    wncli.remove(source, tmp_path / "one", max_shard_size="1GB")
    assert [path.name for path in (tmp_path / "one").glob("*.distcp")] == ["__0_0.distcp"]
    hold_same(load_dcp(tmp_path / "one"), load_dcp(tmp_path / "out"))
    hold_same_structure(tmp_path / "one", tmp_path / "one")


def test_another_format_is_written_where_the_name_or_an_option_says_so(tmp_path: Path) -> None:
    source = save_dcp(small(), tmp_path / "in")
    assert wncli.convert(source, tmp_path / "out").output_format == "dcp"
    assert wncli.convert(source, tmp_path / "out.pt").output_format == "torch"
    report = wncli.convert(source, tmp_path / "st", only="model", format="safetensors")
    assert report.output_format == "safetensors"
    assert wncli.compare(tmp_path / "st", source, only="=model").equal
