"""What ranks have saved in parts is what PyTorch gathers from them, bit for bit."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

import wncli
import wncli.pytorch
from tests.support.distributed_checkpoints import NORMALIZED, numbers, vocoder, write_all
from tests.support.oracles import bits, load
from tests.support.ranks import on_ranks
from tests.support.run import Ran
from wncli.formats.open import open_checkpoint

RunHere = Callable[..., Ran]

RANKS = (1, 2, 3, 4)
GATHERED = ("spread", "training", "named", "named_flat", "threads", "items")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of what so many ranks have written, once for all tests."""
    made: dict[int, Path] = {}

    def write(count: int) -> Path:
        if count not in made:
            made[count] = tmp_path_factory.mktemp(f"of_{count}_ranks")
            on_ranks(write_all, made[count], count)
        return made[count]

    return write


def gathered(folder: Path, path: Path) -> Any:  # noqa: ANN401 - whatever is in a checkpoint
    """What PyTorch makes one file of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, path)
    return load(path, weights_only=False)


def hold_same(found: Any, wanted: Any, place: str = "") -> None:  # noqa: ANN401
    """Both are the same values in the same containers, with the same keys in the same order."""
    assert type(found) is type(wanted), place
    if isinstance(found, dict):
        assert list(found) == list(wanted), place
        for key, value in found.items():
            hold_same(value, wanted[key], f"{place}.{key}")
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(wanted), place
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            hold_same(one, other, f"{place}.{number}")
    elif isinstance(found, Tensor):
        assert bits(found) == bits(wanted), place
    else:
        assert found == wanted, place


@pytest.mark.slow
@pytest.mark.parametrize("count", RANKS)
@pytest.mark.parametrize("name", GATHERED)
def test_a_distributed_checkpoint_is_what_pytorch_gathers(
    count: int, name: str, written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(count) / name
    wncli.convert(folder, tmp_path / "out.pt", verify=True)
    found = load(tmp_path / "out.pt", weights_only=False)
    hold_same(found, gathered(folder, tmp_path / "gathered.pt"))


@pytest.mark.slow
def test_parts_of_two_axes_and_of_fsdp_over_tp_are_what_pytorch_gathers(
    written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(4) / "square"
    wncli.convert(folder, tmp_path / "out.pt", verify=True)
    found = load(tmp_path / "out.pt")
    hold_same(found, gathered(folder, tmp_path / "gathered.pt"))
    assert {name: bits(tensor) for name, tensor in found["tensors"].items()} == {
        "grid": bits(numbers(4, 6)),
        "uneven_grid": bits(numbers(5, 7, 2)),
        "crossed": bits(numbers(5, 7, 3)),
        "twice": bits(numbers(9, 2)),
        "half": bits(numbers(5, 3)),
        "other_half": bits(numbers(5, 3)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", RANKS)
def test_what_ranks_have_written_without_each_other_is_their_union(
    count: int, written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(count) / "ranks"
    assert len(list(folder.glob("__*.metadata"))) == count
    wncli.convert(folder, tmp_path / "out.pt")
    found, whole = load(tmp_path / "out.pt"), load(written(count) / "ranks.pt")
    hold_same(found["generator"], dict(whole["generator"]))
    assert (found["epoch"], found["betas"], found["nothing"]) == (3, (0.9, 0.999), None)
    assert bits(found["numbered"]["1"]["x"]) == bits(numbers(3))


@pytest.mark.slow
@pytest.mark.parametrize("count", RANKS)
def test_safetensors_shards_of_ranks_are_what_pytorch_loads(
    count: int, written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(count) / "safetensors"
    wncli.convert(folder, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    wanted: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(
            wanted,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in wanted.items()
    }
    wncli.convert(folder, tmp_path / "out.pt")
    again = load(tmp_path / "out.pt")
    assert {name: bits(tensor) for name, tensor in again.items()} == {
        name: bits(tensor) for name, tensor in wanted.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", RANKS)
def test_folding_parts_gives_the_bits_of_folding_the_whole(
    count: int, written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(count) / "training"
    gathered(folder, tmp_path / "gathered.pt")
    for suffix, only in ((".pt", None), (".safetensors", "generator")):
        report = wncli.remove(folder, tmp_path / f"one{suffix}", only=only, verify=True)
        wncli.remove(tmp_path / "gathered.pt", tmp_path / f"other{suffix}", only=only)
        assert [layer.dim for layer in report.layers] == [dim for _, _, dim in NORMALIZED]
        read = load_file if suffix == ".safetensors" else load
        hold_same(read(tmp_path / f"one{suffix}"), read(tmp_path / f"other{suffix}"))


@pytest.mark.slow
def test_a_distributed_checkpoint_is_a_reference_and_is_compared(
    written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(3) / "training"
    gathered(folder, tmp_path / "gathered.pt")
    assert wncli.compare(folder, tmp_path / "gathered.pt", only="generator", rtol=0).equal
    wncli.remove(folder, tmp_path / "plain.pt", only="generator")
    wncli.convert(tmp_path / "plain.pt", tmp_path / "like.pt", like=folder, partial=True)
    found, wanted = (load(tmp_path / f"{name}.pt")["generator"] for name in ("like", "gathered"))
    assert found.keys() == wanted.keys()
    wncli.convert(folder, tmp_path / "shards/", only="generator", max_shard_size="1KB")
    assert wncli.compare(tmp_path / "shards", folder, rtol=0, only="=generator").equal


@pytest.mark.slow
def test_a_live_model_takes_the_weights_of_a_distributed_checkpoint(
    written: Callable[[int], Path],
) -> None:
    model, wanted = vocoder(), vocoder().state_dict()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    wncli.pytorch.load_weights(model, written(2) / "training", only="generator")
    found = model.state_dict()
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in wanted.items()
    }


# -- runs that span tensors and parts --------------------------------------------------------------


def saved(state: dict[str, Any], folder: Path) -> Path:
    """A distributed checkpoint of one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, checkpoint_id=folder)
    return folder


def at(state: Any, path: Iterable[str | int]) -> Tensor:  # noqa: ANN401
    """The tensor that these keys lead to."""
    for key in path:
        state = state[key]
    assert isinstance(state, Tensor)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spread", "square"])
def test_any_run_of_the_source_has_the_bytes_of_all_that_stands_there(
    name: str, written: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = written(4) / name
    state = gathered(folder, tmp_path / "gathered.pt")
    with open_checkpoint(folder) as (opened, (source,)):
        assert opened.parts is not None
        whole = b"".join(
            bits(at(state, entry.path or ()))[2] for entry in opened.parts.entries.values()
        )
        assert len(whole) < source.nbytes
        random = Random(0)  # noqa: S311
        for _ in range(500):
            begin = random.randrange(len(whole))
            count = random.randrange(min(400, len(whole) - begin) + 1)
            assert source.read_at(begin, count, "a run") == whole[begin : begin + count]
        assert source.read_at(0, len(whole), "all") == whole


@pytest.mark.slow
def test_a_hundred_megabytes_of_neighbours_come_out_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {f"layer.{number}.weight": torch.randn(512, 513) for number in range(100)}
    state["odd"] = torch.randint(0, 255, (1_000_001,), dtype=torch.uint8)
    state |= {f"other.{number}": torch.randn(300_001 + number) for number in range(10)}
    folder = saved(state, tmp_path / "dcp")
    wncli.convert(folder, tmp_path / "out.safetensors", verify=True)
    wncli.convert(folder, tmp_path / "out.pt")
    for found in (load_file(tmp_path / "out.safetensors"), load(tmp_path / "out.pt")):
        assert {name: bits(tensor) for name, tensor in found.items()} == {
            name: bits(tensor) for name, tensor in state.items()
        }


def cut_in_two(folder: Path) -> None:
    """A hundred megabytes on each of two ranks, by rows and by columns."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    for axis in (0, 1):
        torch.manual_seed(0)
        state = {
            str(number): distribute_tensor(
                torch.randn(1000, 501), mesh, [Shard(axis)], src_data_rank=None
            )
            for number in range(60)
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(state, checkpoint_id=folder / str(axis))


@pytest.mark.slow
def test_neighbours_in_parts_come_out_as_they_are(tmp_path: Path) -> None:
    on_ranks(cut_in_two, tmp_path)
    torch.manual_seed(0)
    wanted = {str(number): bits(torch.randn(1000, 501)) for number in range(60)}
    for axis in (0, 1):
        wncli.convert(tmp_path / str(axis), tmp_path / f"{axis}.safetensors")
        found = load_file(tmp_path / f"{axis}.safetensors")
        assert {name: bits(tensor) for name, tensor in found.items()} == wanted


# -- what is read when -----------------------------------------------------------------------------


def with_g_and_v(folder: Path) -> tuple[Path, dict[str, Any]]:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(30, 40))
    state = {"model": layer.state_dict(), "epoch": 7, "args": (1, "two")}
    return saved(state, folder), state


def items_of(folder: Path, prefix: str) -> list[tuple[Path, int, int]]:
    """The items of the entries whose names begin so: file, offset and length, as PyTorch has it."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    stored = FileSystemReader(folder).read_metadata().storage_data
    return [
        (folder / info.relative_path, info.offset, info.length)
        for index, info in stored.items()
        if index.fqn.startswith(prefix)
    ]


def test_inspect_reads_no_tensor_but_the_magnitudes(tmp_path: Path) -> None:
    folder, _ = with_g_and_v(tmp_path / "dcp")
    before = wncli.inspect(folder)
    for name in ("model.bias", "model.parametrizations.weight.original1"):
        for path, offset, length in items_of(folder, name):
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(b"\0" * length)
    after = wncli.inspect(folder)
    assert (after.layers, after.entries, after.roots) == (
        before.layers, before.entries, before.roots,
    )  # fmt: skip
    assert [entry.path for entry in after.entries] == ["epoch", "args"]


def test_a_damaged_item_is_refused_and_found(wn_here: RunHere, tmp_path: Path) -> None:
    folder, state = with_g_and_v(tmp_path / "dcp")
    ((path, offset, length),) = items_of(folder, "model.parametrizations.weight.original1")
    data = bytearray(path.read_bytes())
    numbers_of_v = bits(state["model"]["parametrizations.weight.original1"])[2]
    place = data.index(numbers_of_v, offset, offset + length)
    data[place + 100] ^= 1
    path.write_bytes(data)
    for output in ("out.safetensors", "out.pt"):
        for command in ("convert", "remove"):
            ran = wn_here(command, folder, tmp_path / output)
            assert ran.code == 2, ran.stdout
            assert "original1" in ran.stderr
            assert "damaged" in ran.stderr
    assert not list(tmp_path.glob("out*"))
    checked = wn_here("inspect", "--check", folder)
    assert checked.code == 1
    assert "original1" in checked.stdout
    assert "checksum" in checked.stdout


def test_files_are_opened_in_turns_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    state = {f"w.{number}": numbers(30, number + 1) for number in range(20)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = FileSystemWriter(tmp_path / "dcp", single_file_per_rank=False)
        save(state, storage_writer=writer)
    monkeypatch.setattr("wncli.formats.dcp.files._MOST_OPEN", 3)
    wncli.convert(tmp_path / "dcp", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert {name: bits(tensor) for name, tensor in found.items()} == {
        name: bits(tensor) for name, tensor in state.items()
    }


def test_a_copied_folder_is_read_where_it_is_now(tmp_path: Path) -> None:
    folder, state = with_g_and_v(tmp_path / "dcp")
    shutil.move(folder, tmp_path / "elsewhere")
    wncli.convert(tmp_path / "elsewhere", tmp_path / "out.pt")
    hold_same(load(tmp_path / "out.pt")["model"], dict(state["model"]))
