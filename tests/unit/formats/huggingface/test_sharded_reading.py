"""Reading sharded checkpoints, held against safetensors and torch."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

import wncli
from tests.support.oracles import bits
from tests.support.run import SAMPLES, environment
from tests.support.shards import (
    BOTH,
    FIRST,
    KINDS,
    SECOND,
    codes,
    contents,
    index_path,
    map_of,
    opened,
    read_by_libraries,
    refused,
    save,
    shard_name,
    sharded,
    tensors,
    write_index,
)
from wncli.formats.open import open_checkpoint

# -- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["index", "directory"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_read_as_the_libraries_read_it(
    kind: str, given: str, tmp_path: Path
) -> None:
    index = sharded(tmp_path, kind)
    path = index if given == "index" else tmp_path
    assert contents(path) == read_by_libraries(tmp_path)
    checkpoint = opened(path)
    assert checkpoint.name == str(path)
    assert checkpoint.index == index.name
    assert checkpoint.format == kind
    assert checkpoint.nbytes == sum(
        file.stat().st_size for file in tmp_path.iterdir() if file != index
    )
    assert not checkpoint.notes
    assert not checkpoint.refused_names


def test_tensors_stand_in_the_order_of_the_index_and_shards_in_that_of_their_names(
    tmp_path: Path,
) -> None:
    names = ["b.weight_v", "a.bias", "b.weight_g", "a.weight"]
    assert sorted(names) == sorted(map_of())
    index = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": {name: map_of()[name] for name in names}}))
    assert list(tensors(index)) == names
    with open_checkpoint(index) as (checkpoint, sources):
        expected = [shard_name(1), shard_name(2)]
        assert [shard.name for shard in checkpoint.shards] == expected
        assert [source.name for source in sources] == [str(tmp_path / name) for name in expected]
        assert [source.number for source in sources] == [0, 1]
        for number, shard in enumerate(checkpoint.shards):
            files = {s.storage.file for sd in shard.checkpoint.state_dicts for s in sd.tensors}
            assert files == {number}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_that_is_split_over_two_shards_is_found(kind: str, tmp_path: Path) -> None:
    for path in (sharded(tmp_path, kind), tmp_path):
        report = wncli.inspect(path)
        assert [(layer.module, layer.parameter, layer.dim) for layer in report.layers] == [
            ("b", "weight", 0)
        ]
        assert report.parameters.before - report.parameters.after == 2
        assert report.checkpoint == str(path)
        assert report.format == kind


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_one_storage_key_in_two_torch_shards_are_not_tied(
    tmp_path: Path, *, legacy: bool
) -> None:
    for number in (1, 2):
        state = {f"w{number}": torch.full((2, 2), float(number))}
        path = tmp_path / shard_name(number, "torch")
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    names = {f"w{number}": shard_name(number, "torch") for number in (1, 2)}
    index = write_index(index_path(tmp_path, "torch"), names)
    assert contents(index) == read_by_libraries(tmp_path)
    assert len({spec.view for spec in tensors(index).values()}) == 2
    assert wncli.inspect(index).parameters.before == 8


def test_ties_inside_a_torch_shard_stay_ties(tmp_path: Path) -> None:
    shared = torch.ones(2, 3)
    index = sharded(tmp_path, "torch", {1: {"x": shared, "y": shared}, 2: {"z": torch.ones(2)}})
    found = tensors(index)
    assert found["x"].view == found["y"].view
    assert wncli.inspect(index).parameters.before == 8


def test_shards_of_several_formats_are_told_apart_by_content(tmp_path: Path) -> None:
    index = sharded(tmp_path, "torch")
    first, second = (tmp_path / shard_name(number, "torch") for number in (1, 2))
    first.write_bytes(safetensors.torch.save(FIRST))
    checkpoint = opened(index)
    assert checkpoint.format == "torch"
    assert checkpoint.metadata is None
    assert [shard.checkpoint.format for shard in checkpoint.shards] == ["safetensors", "torch"]
    expected = {name: bits(tensor) for name, tensor in (FIRST | SECOND).items()}
    assert contents(index) == expected
    torch.save(SECOND, second, _use_new_zipfile_serialization=False)
    assert opened(index).format == "torch legacy"
    assert contents(index) == expected


def test_metadata_of_all_shards_is_kept_and_the_first_wins(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    save(FIRST, tmp_path / shard_name(1), {"format": "pt", "a": "1"})
    save(SECOND, tmp_path / shard_name(2), {"format": "np", "b": "2"})
    assert opened(index).metadata == {"format": "pt", "a": "1", "b": "2"}
    for number, state in BOTH.items():
        (tmp_path / shard_name(number)).write_bytes(safetensors.torch.save(state))
    assert opened(index).metadata is None


def test_what_torch_shards_hold_beside_tensors_is_listed_once(tmp_path: Path) -> None:
    index = sharded(tmp_path, "torch")
    for number, state in BOTH.items():
        save(
            state | {"version": number, f"only{number}": {1}},
            tmp_path / shard_name(number, "torch"),
        )
    (state_dict,) = opened(index).state_dicts
    assert state_dict.others == ("version", "only1", "only2")
    assert {spec.name for spec in state_dict.tensors} == {*FIRST, *SECOND}


def test_names_that_weights_only_refuses_are_those_of_all_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path, "torch")
    for number, value in ((1, Fraction(1, 2)), (2, Fraction(2))):
        save(BOTH[number] | {"x": value, "y": Path()}, tmp_path / shard_name(number, "torch"))
    names = opened(index).refused_names
    assert "fractions.Fraction" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": map_of()},
        {"weight_map": map_of(), "metadata": {}},
        {"weight_map": map_of(), "metadata": {"total_size": 13.5}},
        {"weight_map": map_of(), "metadata": {"total_size": -1, "x": [None]}, "more": 1},
    ],
)
def test_an_index_may_say_more_or_less_of_itself(content: object, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index.write_text(json.dumps(content))
    assert contents(index) == read_by_libraries(tmp_path)


@pytest.mark.parametrize("name", ["index", "model.json", "weights.txt", "x.safetensors"])
def test_an_index_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    expected = contents(sharded(tmp_path))
    index = index_path(tmp_path).rename(tmp_path / name)
    index.write_text(" \n" + index.read_text())
    assert contents(index) == expected
    index.write_text(json.dumps(json.loads(index.read_text()), separators=(",", ":")))
    assert contents(index) == expected


def test_an_index_of_a_variant_is_known_by_its_name(tmp_path: Path) -> None:
    expected = contents(sharded(tmp_path))
    index_path(tmp_path).rename(tmp_path / "model.safetensors.index.fp16.json")
    assert contents(tmp_path) == expected


def test_a_torch_index_may_list_files_of_every_torch_suffix(tmp_path: Path) -> None:
    names = {"x": "a.pt", "y": "b.pth", "z": "c.bin"}
    for tensor, file in names.items():
        save({tensor: torch.ones(2)}, tmp_path / file)
    assert list(tensors(write_index(index_path(tmp_path, "torch"), names))) == [*"xyz"]


def test_one_shard_is_a_checkpoint_too(tmp_path: Path) -> None:
    index = sharded(tmp_path, shards={1: SECOND})
    assert contents(index) == read_by_libraries(tmp_path)


def test_more_shards_than_files_may_be_open_are_read(tmp_path: Path) -> None:
    shards = {number: {f"t{number}": torch.full((1,), float(number))} for number in range(1, 301)}
    sharded(tmp_path, shards=shards)
    program = (
        "import resource, sys\nfrom pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))\n"
        "from wncli.errors import FileError\nfrom wncli.formats.open import open_checkpoint\n"
        "try:\n"
        "    with open_checkpoint(Path(sys.argv[1])) as (_, sources):\n"
        "        print(len({source.read_at(0, source.nbytes, '') for source in sources}))\n"
        "except FileError as error:\n    print(error)\n"
    )

    def run(hard: int) -> str:
        command = [sys.executable, "-c", program, str(tmp_path), str(hard)]
        ran = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment(), timeout=60
        )
        return ran.stdout

    assert run(1000) == "300\n"
    assert "Too many open files" in run(100)
    assert "have the hard limit of open files raised" in run(100)


def test_all_files_are_closed_behind_a_refusal_and_at_the_end(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    with open_checkpoint(index) as (_, sources):
        assert all(source.read_at(0, 1, "") for source in sources)
    for source in sources:
        with pytest.raises(ValueError, match="closed"):
            source.read_at(0, 1, "")
    (tmp_path / shard_name(2)).write_bytes(b"no checkpoint")
    before = len([*Path("/proc/self/fd").iterdir()])
    refused(index)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize("sample", ["training.pt", "bfloat16.safetensors"])
def test_a_plain_file_is_opened_without_the_rooms_for_shards(sample: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom wncli.formats.open import open_checkpoint\n"
        "with open_checkpoint(Path(sys.argv[1])):\n    pass\n"
        "print([name for name in sys.modules if 'shard' in name or 'folder' in name])\n"
    )
    command = [sys.executable, "-c", program, str(SAMPLES / sample)]
    ran = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment(), timeout=60
    )
    assert ran.stdout == "[]\n"


# -- index and files that do not agree ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_the_index_does_not_list_is_kept_and_noted(kind: str, tmp_path: Path) -> None:
    index = sharded(tmp_path, kind)
    names = map_of(kind)
    del names["a.bias"]
    write_index(index, names)
    assert list(tensors(index)) == [*sorted(names), "a.bias"]
    (note,) = opened(index).notes
    assert (note.code, note.where, note.is_warning) == ("unlisted", index.name, True)
    assert "1 tensor " in note.message
    assert "a.bias" in note.message


@pytest.mark.parametrize("decided", [1, 2])
def test_a_tensor_that_two_shards_hold_is_taken_from_where_the_index_says(
    decided: int, tmp_path: Path
) -> None:
    index = sharded(tmp_path)
    for number, state in BOTH.items():
        save(state | {"twice": torch.tensor([number])}, tmp_path / shard_name(number))
    write_index(index, map_of() | {"twice": shard_name(decided)})
    assert contents(index)["twice"] == bits(torch.tensor([decided]))
    (note,) = opened(index).notes
    assert (note.code, note.where, note.is_warning) == ("duplicate", index.name, True)
    assert "twice" in note.message


def test_a_tensor_that_two_shards_hold_and_the_index_does_not_list_is_refused(
    tmp_path: Path,
) -> None:
    index = sharded(tmp_path)
    for number, state in BOTH.items():
        save(state | {"twice": torch.tensor([number])}, tmp_path / shard_name(number))
    message = refused(index)
    for part in ("twice", shard_name(1), shard_name(2)):
        assert part in message


def test_a_tensor_that_is_in_another_shard_than_the_index_says_is_refused(
    tmp_path: Path,
) -> None:
    index = sharded(tmp_path)
    write_index(index, map_of() | {"a.bias": shard_name(2)})
    message = refused(index)
    assert "a.bias" in message
    assert f"{shard_name(2)} does not hold" in message
    assert f"it in {shard_name(1)}" in message


def test_a_tensor_that_no_shard_holds_is_refused(tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path), map_of() | {"gone": shard_name(2)})
    message = refused(index)
    assert "gone" in message
    assert "none of the shards" in message


def test_a_shards_own_ties_are_kept_without_a_word(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    save(FIRST, tmp_path / shard_name(1), {"format": "pt", "c.bias": "a.bias"})
    found = tensors(index)
    assert found["c.bias"].view == found["a.bias"].view
    assert not codes(index)
    for number in (1, 2):  # and in the other shard's metadata, as a tie between shards
        save(BOTH[number], tmp_path / shard_name(number), {"format": "pt"})
    save(SECOND, tmp_path / shard_name(2), {"format": "pt", "c.bias": "a.bias"})
    found = tensors(index)
    assert found["c.bias"].view == found["a.bias"].view


def test_ties_that_the_index_names_are_tensors(tmp_path: Path) -> None:
    """As `save_torch_state_dict` writes them: a shard's own metadata says nothing of ties."""
    index = write_index(sharded(tmp_path), map_of(), **{"c.bias": "a.bias", "x": "no tensor"})
    found = tensors(index)
    assert list(found) == [*sorted(map_of()), "c.bias"]
    assert found["c.bias"].view == found["a.bias"].view
    assert (
        wncli.inspect(index).parameters.before == wncli.inspect(sharded(tmp_path)).parameters.before
    )


def test_a_tie_that_the_index_lists_as_a_tensor_is_taken(tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path), map_of() | {"c.bias": shard_name(1)})
    save(FIRST, tmp_path / shard_name(1), {"format": "pt", "c.bias": "a.bias"})
    assert tensors(index)["c.bias"].view == tensors(index)["a.bias"].view
    assert not codes(index)


NO_SHARDS: dict[str, object] = {
    "a state dict below the top": {"model": SECOND},
    "two state dicts": {"model": SECOND, "ema": SECOND},
    "a state dict with another inside": SECOND | {"ema": SECOND},
    "no tensors": {"epoch": 3},
    "a list": [torch.ones(2)],
    "a whole module": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("defect", NO_SHARDS)
def test_a_torch_shard_that_is_no_plain_state_dict_is_refused(defect: str, tmp_path: Path) -> None:
    index = sharded(tmp_path, "torch")
    torch.save(NO_SHARDS[defect], tmp_path / shard_name(2, "torch"))
    message = refused(index)
    assert shard_name(2, "torch") in message
    assert "not a plain state dict" in message
