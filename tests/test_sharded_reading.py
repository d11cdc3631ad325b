"""Reading sharded checkpoints, held against safetensors and torch, and what is refused in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import SAMPLES, bits, environment
from torch import Tensor

import wncli
from wncli.checkpoint import Checkpoint
from wncli.errors import FileError, FormatError, WnError
from wncli.formats import open_checkpoint
from wncli.formats.shard_files import is_bare_name
from wncli.formats.shard_index import LONGEST_INDEX
from wncli.tensors import TensorSpec

State = dict[str, Tensor]
#: Two layers of which one has its g and v in different shards, and a third tensor in each.
FIRST: State = {
    "b.weight_g": torch.tensor([[2.0], [3.0]]),
    "a.bias": torch.arange(5, dtype=torch.float16),
}
SECOND: State = {
    "b.weight_v": torch.arange(6.0).reshape(2, 3) + 1,
    "a.weight": torch.arange(8, dtype=torch.bfloat16).reshape(2, 4),
}
BOTH = {1: FIRST, 2: SECOND}
KINDS = {"safetensors": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}


def save(state: Mapping[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(dict(state), path, metadata or {"format": "pt"})
    else:
        torch.save(state, path)


def shard_name(number: int, kind: str = "safetensors", count: int = 2) -> str:
    stem, suffix = KINDS[kind]
    return f"{stem}-{number:05}-of-{count:05}{suffix}"


def index_path(folder: Path, kind: str = "safetensors") -> Path:
    return folder / f"{''.join(KINDS[kind])}.index.json"


def write_index(path: Path, weight_map: object, **metadata: object) -> Path:
    content = {"metadata": {"total_size": 1} | metadata, "weight_map": weight_map}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return path


def map_of(kind: str = "safetensors", shards: Mapping[int, State] = BOTH) -> dict[str, str]:
    return {name: shard_name(n, kind, len(shards)) for n, s in shards.items() for name in s}


def sharded(folder: Path, kind: str = "safetensors", shards: Mapping[int, State] = BOTH) -> Path:
    """What `save_torch_state_dict` writes; the path of the index."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, state in shards.items():
        save(state, folder / shard_name(number, kind, len(shards)))
    return write_index(index_path(folder, kind), map_of(kind, shards))


def opened(path: Path) -> Checkpoint:
    with open_checkpoint(path) as (checkpoint, _):
        return checkpoint


def refused(path: Path, error: type[WnError] = FormatError) -> str:
    with pytest.raises(error) as found:
        opened(path)
    assert type(found.value) is error
    return str(found.value)


def tensors(path: Path) -> dict[str, TensorSpec]:
    (state_dict,) = opened(path).state_dicts
    assert state_dict.root == ""
    found = {spec.name: spec for spec in state_dict.tensors}
    assert len(found) == len(state_dict.tensors)
    return found


def contents(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor as its bytes, read through the sources: dtype, shape, bytes."""
    with open_checkpoint(path) as (checkpoint, sources):
        found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        for spec in checkpoint.state_dicts[0].tensors:
            start = spec.storage.offset + spec.offset * spec.dtype.itemsize
            data = sources[spec.storage.file].read_at(start, spec.nbytes, spec.name)
            found[spec.name] = (f"torch.{spec.dtype.torch}", spec.shape, data)
        return found


def codes(path: Path) -> list[str]:
    return [note.code for note in opened(path).notes]


def read_by_libraries(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What safetensors and torch read, file by file."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                found |= {name: bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        elif path.suffix == ".bin":
            found |= {name: bits(tensor) for name, tensor in torch.load(path).items()}
    return found


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
    assert checkpoint.path == path
    assert checkpoint.index == index
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
        assert [source.path for source in sources] == [tmp_path / name for name in expected]
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
        "from wncli.errors import FileError\nfrom wncli.formats import open_checkpoint\n"
        "try:\n"
        "    with open_checkpoint(Path(sys.argv[1])) as (_, sources):\n"
        "        print(len({source.file.fileno() for source in sources}))\n"
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
    assert "ulimit -n" in run(100)


def test_all_files_are_closed_behind_a_refusal_and_at_the_end(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    with open_checkpoint(index) as (_, sources):
        files = [source.file for source in sources]
        assert not any(file.closed for file in files)
    assert all(file.closed for file in files)
    (tmp_path / shard_name(2)).write_bytes(b"no checkpoint")
    before = len([*Path("/proc/self/fd").iterdir()])
    refused(index)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize("sample", ["training.pt", "bfloat16.safetensors"])
def test_a_plain_file_is_opened_without_the_rooms_for_shards(sample: str) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom wncli.formats import open_checkpoint\n"
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
    assert "no plain state dict" in message


# -- hostile and damaged indexes ---------------------------------------------------------------

BAD_NAMES = {
    "empty": "",
    "dot": ".",
    "dot dot": "..",
    "parent": "../model-00001-of-00002.safetensors",
    "parent inside": "x/../model-00001-of-00002.safetensors",
    "current folder": "./model-00001-of-00002.safetensors",
    "subfolder": "sub/model.safetensors",
    "trailing separator": "model-00001-of-00002.safetensors/",
    "root": "/model.safetensors",
    "absolute": "/etc/passwd.safetensors",
    "backslash": "sub\\model.safetensors",
    "parent with a backslash": "..\\model.safetensors",
    "Windows root": "\\model.safetensors",
    "drive": "C:\\model.safetensors",
    "drive without a root": "C:model.safetensors",
    "UNC path": "\\\\host\\share\\model.safetensors",
    "device path": "\\\\.\\pipe\\model.safetensors",
    "NTFS stream": "model:stream.safetensors",
    "NUL": "model.safetensors\0",
    "NUL inside": "model\0.safetensors",
    "no extension": "model-00001-of-00002",
    "suffix alone": ".safetensors",
    "another extension": "model-00001-of-00002.bin",
    "executable": "model.exe",
    "extension with a space": "model.safetensors ",
    "extension in capitals": "model.SAFETENSORS",
    "the index itself": "model.safetensors.index.json",
    "URL": "https://example.com/model.safetensors",
    "home": "~/model.safetensors",
}


@pytest.mark.parametrize("defect", BAD_NAMES)
def test_a_file_name_that_leads_elsewhere_is_refused(defect: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    for stray in ("model.safetensors", "model-00001-of-00002.safetensors"):
        shutil.copy(index.parent / shard_name(1), tmp_path / stray)
    write_index(index, map_of() | {"a.bias": BAD_NAMES[defect]})
    message = refused(index)
    assert "'a.bias'" in message
    assert "not a valid index" in message
    assert message.isprintable() or message.replace("\n", "").isprintable()


def test_a_bare_name_is_no_folder_whatever_its_extension() -> None:
    assert is_bare_name("..model..safetensors")
    assert not any(is_bare_name(name) for name in ("", ".", "..", "a/", "/", "\\"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.pkl", "a.bin.exe"])
def test_a_torch_index_with_files_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path, "torch"), map_of("torch") | {"a.bias": name})
    assert "of another kind" in refused(index)


DEFECTS: dict[str, bytes] = {
    "cut off": b'{"weight_map": {"a": "b.safeten',
    "not UTF-8": b'{"weight_map": {"\xff": "b.safetensors"}}',
    "UTF-16": '{"weight_map": {}}'.encode("utf-16-le"),
    "lone surrogate": b'{"weight_map": {"\\ud800": "b.safetensors"}}',
    "NaN": b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "b.safetensors"}}',
    "trailing comma": b'{"weight_map": {"a": "b.safetensors",}}',
    "text behind": b'{"weight_map": {"a": "b.safetensors"}} x',
    "deep nesting": b'{"weight_map": ' + b"[" * 100_000,
    "number of 5000 digits": b'{"weight_map": {"a": "b.safetensors"}, "x": ' + b"9" * 5000 + b"}",
    "no weight_map": b'{"metadata": {}}',
    "nothing in it": b"{}",
    "weight_map is null": b'{"weight_map": null}',
    "weight_map is an array": b'{"weight_map": ["a"]}',
    "weight_map is text": b'{"weight_map": "a"}',
    "weight_map is empty": b'{"weight_map": {}}',
    "file is null": b'{"weight_map": {"a": null}}',
    "file is a number": b'{"weight_map": {"a": 1}}',
    "file is an array": b'{"weight_map": {"a": ["b.safetensors"]}}',
    "file is an object": b'{"weight_map": {"a": {"b": "c"}}}',
    "metadata is text": b'{"metadata": "x", "weight_map": {"a": "b.safetensors"}}',
    "tensor twice": b'{"weight_map": {"a": "b.safetensors", "a": "b.safetensors"}}',
    "tensor twice in two files": b'{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}',
    "weight_map twice": b'{"weight_map": {"a": "b.safetensors"}, "weight_map": {}}',
    "array at the top": b'["weight_map"]',
    "text at the top": b'"weight_map"',
    "no JSON": b"weight_map: {}",
    "empty": b"",
    "byte order mark": b'\xef\xbb\xbf{"weight_map": {"a": "b.safetensors"}}',
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_index_is_refused(defect: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(DEFECTS[defect])
    for path in (index, tmp_path):
        message = refused(path)
        assert str(index) in message
        assert "index" in message


@pytest.mark.parametrize("end", range(0, 60, 3))
def test_an_index_cut_off_at_any_byte_is_refused(end: int, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    index.write_bytes(index.read_bytes()[:end])
    refused(index)


def test_an_index_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    with index.open("r+b") as file:
        file.truncate(LONGEST_INDEX + 1)
    assert "too long" in refused(index)
    other = index.rename(tmp_path / "model.json")
    assert "no checkpoint" in refused(other)


@pytest.mark.parametrize("name", ["config.json", "index.json.txt"])
def test_other_json_is_no_index(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{"architectures": ["BertModel"], "hidden_size": 768}')
    assert "a text file" in refused(path)


def test_a_git_lfs_pointer_in_place_of_an_index_is_named(tmp_path: Path) -> None:
    index = index_path(tmp_path)
    index.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in refused(index)


def test_a_git_lfs_pointer_in_place_of_a_shard_is_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).write_text("version https://git-lfs.github.com/spec/v1\noid\n")
    message = refused(index)
    assert "git lfs pull" in message
    assert shard_name(2) in message


def test_a_shard_that_is_an_index_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shutil.copy(index, tmp_path / shard_name(2))
    assert shard_name(2) in refused(index)


def test_a_truncated_shard_is_refused_by_its_name(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = tmp_path / shard_name(2)
    shard.write_bytes(shard.read_bytes()[:-1])
    message = refused(index)
    assert shard_name(2) in message
    assert "truncated" in message


# -- links and what is no file -----------------------------------------------------------------


def hugging_face_cache(home: Path, subfolder: str = "", model: str = "models--o--m") -> Path:
    """The layout of `~/.cache/huggingface/hub`; the snapshot's folder, or one inside it."""
    folder = home / model / "snapshots" / "0123abc" / subfolder
    blobs = home / model / "blobs"
    index = sharded(folder)
    blobs.mkdir(parents=True)
    for number, path in enumerate([index, *(folder / shard_name(n) for n in BOTH)]):
        path.rename(blobs / f"{number}")
        path.symlink_to(os.path.relpath(blobs / f"{number}", folder))
    return folder


@pytest.mark.parametrize("subfolder", ["", "unet", "a/b"])
def test_the_links_of_the_hugging_face_cache_are_followed(subfolder: str, tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path, subfolder)
    expected = {name: bits(tensor) for name, tensor in (FIRST | SECOND).items()}
    assert contents(folder) == contents(index_path(folder)) == expected
    (tmp_path / "link").symlink_to(folder)
    assert contents(tmp_path / "link") == expected


def test_a_relative_path_into_the_hugging_face_cache_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hugging_face_cache(tmp_path))
    assert contents(Path()) == contents(index_path(Path()))


def other_model(_: Path, home: Path) -> Path:
    blob = hugging_face_cache(home, model="models--o--other").parents[1] / "blobs" / "1"
    assert blob.exists()
    return blob


FOREIGN: dict[str, Callable[[Path, Path], Path]] = {
    "the blobs of another model": other_model,
    "a folder in the blobs": lambda folder, _: folder.parents[1] / "blobs" / "sub" / "1",
    "a snapshot of another revision": lambda folder, _: folder.parent / "4567def" / "1",
    "the model's refs": lambda folder, _: folder.parents[1] / "refs" / "1",
    "the folder of all models": lambda _, home: home / "1",
    "a device": lambda _, __: Path(os.devnull),
}


@pytest.mark.parametrize("target", FOREIGN)
def test_a_link_from_the_cache_to_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path)
    blob = FOREIGN[target](folder, tmp_path)
    if not blob.exists():
        blob.parent.mkdir(parents=True, exist_ok=True)
        save(FIRST, tmp_path / "made.safetensors")
        (tmp_path / "made.safetensors").rename(blob)
    shard = folder / shard_name(1)
    shard.unlink()
    shard.symlink_to(blob)
    message = refused(folder)
    assert shard_name(1) in message
    assert "leaves its folder" in message


def test_blobs_that_are_a_link_are_refused(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path / "hub")
    blobs = folder.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "leaves its folder" in refused(folder)


def test_blobs_without_a_models_folder_around_are_refused(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path, model="o--m")
    assert "leaves its folder" in refused(folder)


@pytest.mark.parametrize("name", [shard_name(1), "model.safetensors.index.json"])
def test_a_link_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    index = sharded(tmp_path / "model")
    (tmp_path / "model" / name).rename(tmp_path / name)
    (tmp_path / "model" / name).symlink_to(f"../{name}")
    for path in (index, tmp_path / "model"):
        message = refused(path)
        assert "leaves its folder" in message
        assert str(tmp_path / "model" / name) in message


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    expected = contents(index)
    (tmp_path / "files").mkdir()
    for name in (shard_name(1), shard_name(2), index.name):
        (tmp_path / name).rename(tmp_path / "files" / name)
        (tmp_path / name).symlink_to(f"files/{name}")
    assert contents(index) == contents(tmp_path) == expected


def test_a_loop_of_links_as_a_shard_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for number in (1, 2):
        (tmp_path / shard_name(number)).unlink()
        (tmp_path / shard_name(number)).symlink_to(shard_name(3 - number))
    message = refused(index, FileError)
    assert shard_name(1) in message
    assert "leads back to itself" in message


def test_a_loop_of_links_as_the_index_is_refused(tmp_path: Path) -> None:
    index_path(tmp_path).symlink_to(index_path(tmp_path))
    for path in (index_path(tmp_path), tmp_path):
        assert str(index_path(tmp_path)) in refused(path, FileError)


@pytest.mark.parametrize("what", ["a FIFO", "a directory", "a socket", "a link to a FIFO"])
def test_a_shard_that_is_no_file_is_refused_and_not_waited_for(what: str, tmp_path: Path) -> None:
    index = sharded(tmp_path)
    shard = tmp_path / shard_name(2)
    shard.unlink()
    if what == "a directory":
        shard.mkdir()
    elif what == "a FIFO":
        os.mkfifo(shard)
    elif what == "a link to a FIFO":
        os.mkfifo(tmp_path / "pipe")
        shard.symlink_to("pipe")
    else:
        os.mknod(shard, 0o140644)
    message = refused(index, FileError)
    assert shard_name(2) in message
    assert ("directory" if what == "a directory" else "no regular file") in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_shard_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).chmod(0)
    message = refused(index, FileError)
    assert shard_name(2) in message
    assert "Permission denied" in message


def test_a_shard_name_that_the_system_does_not_take_is_refused(tmp_path: Path) -> None:
    index = write_index(sharded(tmp_path), map_of() | {"x": "y" * 300 + ".safetensors"})
    assert "File name too long" in refused(index, FileError)


# -- missing shards ----------------------------------------------------------------------------


def test_a_missing_shard_is_named_with_how_many_are_there(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    (tmp_path / shard_name(2)).unlink()
    for path in (index, tmp_path):
        message = refused(path, FileError)
        assert f"1 of 2 shards missing: {shard_name(2)}" in message
        assert "1 of 2\n" in message
        assert "download" in message


def test_a_link_to_nothing_is_a_missing_shard(tmp_path: Path) -> None:
    folder = hugging_face_cache(tmp_path)
    (folder / shard_name(1)).resolve().unlink()
    assert f"1 of 2 shards missing: {shard_name(1)}" in refused(folder, FileError)


def test_of_many_missing_shards_the_first_are_named(tmp_path: Path) -> None:
    names = {f"t{n}": shard_name(n, count=40) for n in range(1, 41)}
    message = refused(write_index(index_path(tmp_path), names), FileError)
    assert "40 of 40 shards missing" in message
    assert shard_name(3, count=40) in message
    assert shard_name(4, count=40) not in message
    assert "and 37 more" in message


# -- directories -------------------------------------------------------------------------------

WHOLE = {"x.weight": torch.ones(2, 3)}
TRAINER = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt",
    "rng_state.pth", "rng_state_0.pth", "rng_state_1.pth", "random_states_0.pkl", "sampler.bin",
    "optimizer_1.bin", "custom_checkpoint_0.pkl",
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin", "G_1000.pth", "best.ckpt", "a.pt", "a.pkl", "a.tar",
        "a.pth.tar", "model-00001-of-00001.safetensors", "adapter_model.safetensors",
    ],
)  # fmt: skip
def test_the_only_checkpoint_file_of_a_directory_is_opened(name: str, tmp_path: Path) -> None:
    save(WHOLE, tmp_path / name)
    for other in ("config.json", "README.md", "tokenizer.model", "._model.safetensors", ".x.pt"):
        (tmp_path / other).write_text("{}")
    for other in TRAINER:
        torch.save({"lr": 1}, tmp_path / other)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "folder.pt").mkdir()
    checkpoint = opened(tmp_path)
    assert checkpoint.path == tmp_path / name
    assert not checkpoint.shards
    assert not checkpoint.notes
    assert contents(tmp_path) == contents(tmp_path / name)


def test_a_file_of_the_trainer_is_opened_where_it_is_the_only_one(tmp_path: Path) -> None:
    save(WHOLE, tmp_path / "optimizer.pt")
    assert opened(tmp_path).path == tmp_path / "optimizer.pt"
    torch.save({"lr": 1}, tmp_path / "scheduler.pt")
    message = refused(tmp_path, FileError)
    assert "optimizer.pt, scheduler.pt" in message


def test_an_index_is_taken_before_other_files(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    save(WHOLE, tmp_path / "consolidated.safetensors")
    save(WHOLE, tmp_path / "other.pt")
    assert opened(tmp_path).index == index


def test_of_two_indexes_that_of_safetensors_is_taken_and_the_other_noted(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    other = sharded(tmp_path, "torch")
    checkpoint = opened(tmp_path)
    assert checkpoint.index == index
    (note,) = checkpoint.notes
    assert (note.code, note.where, note.is_warning) == ("passed-over", index.name, False)
    assert other.name in note.message
    assert not codes(index)
    assert opened(other).format == "torch"
    assert not codes(other)


def names_of_the_libraries() -> list[tuple[str, ...]]:
    """The order of transformers' `_get_resolved_checkpoint_files`, each with all behind it."""
    order = (
        "model.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin", "pytorch_model.bin.index.json",
    )  # fmt: skip
    return [order[start:] for start in range(len(order) - 1)]


@pytest.mark.parametrize("names", names_of_the_libraries(), ids=lambda names: names[0])
def test_what_transformers_would_load_is_taken_and_the_others_noted(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    sharded(tmp_path)
    sharded(tmp_path, "torch")
    for name in ("model.safetensors", "pytorch_model.bin"):
        save(WHOLE, tmp_path / name)
    for path in tmp_path.iterdir():
        if path.name not in names and "-of-" not in path.name:
            path.unlink()
    first, *others = names
    checkpoint = opened(tmp_path)
    assert (checkpoint.index or checkpoint.path) == tmp_path / first
    (note,) = checkpoint.notes
    assert note.code == "passed-over"
    assert all(name in note.message for name in others)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_several_indexes_of_one_kind_are_refused(suffix: str, tmp_path: Path) -> None:
    names = [f"a{suffix}.index.json", f"b{suffix}.index.json"]
    for name in names:
        write_index(tmp_path / name, map_of())
    message = refused(tmp_path, FileError)
    assert "several indexes" in message
    assert ", ".join(names) in message
    assert str(tmp_path / names[0]) in message


@pytest.mark.parametrize(
    "names",
    [
        ("a.pt", "b.pt"), ("G_1.pth", "D_1.pth"), ("a.pt", "model.safetensors"),
        ("model.safetensors", "diffusion_pytorch_model.safetensors"),
    ],
)  # fmt: skip
def test_several_checkpoint_files_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        save(WHOLE, tmp_path / name)
    message = refused(tmp_path, FileError)
    assert "several checkpoints" in message
    assert all(name in message for name in names)
    assert "give one of them" in message


def test_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path).unlink()
    message = refused(tmp_path, FileError)
    assert "index is missing" in message
    assert shard_name(1) in message
    (tmp_path / shard_name(1)).unlink()
    assert "index is missing" in refused(tmp_path, FileError)


@pytest.mark.parametrize("names", [(), ("config.json", "generator"), (".hidden.pt",)])
def test_a_directory_without_a_checkpoint_is_refused_with_what_is_there(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    message = refused(tmp_path, FileError)
    assert "no checkpoint stands in this directory" in message
    assert ", ".join(sorted(names)) in message
    assert "give the file itself" in message


def test_a_directory_that_is_a_link_is_opened(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    assert contents(tmp_path / "link") == contents(tmp_path / "model")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_directory_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir(mode=0)
    assert "Permission denied" in refused(tmp_path / "model", FileError)
