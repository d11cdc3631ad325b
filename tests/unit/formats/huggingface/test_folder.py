"""Which checkpoint a folder stands for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.run import refused_for_anybody
from tests.support.shards import (
    codes,
    contents,
    map_of,
    opened,
    refused,
    save,
    shard_name,
    sharded,
    write_index,
)
from wncli.errors import FileError

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
        "diffusion_pytorch_model.bin", "G_1000.pth", "best.ckpt", "a.pt", "a.pkl", "state.th",
        "a.tar", "a.pth.tar", "model-00001-of-00001.safetensors", "adapter_model.safetensors",
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
    assert checkpoint.name == str(tmp_path / name)
    assert not checkpoint.shards
    assert not checkpoint.notes
    assert contents(tmp_path) == contents(tmp_path / name)


def test_a_file_of_the_trainer_is_opened_where_it_is_the_only_one(tmp_path: Path) -> None:
    save(WHOLE, tmp_path / "optimizer.pt")
    assert opened(tmp_path).name == str(tmp_path / "optimizer.pt")
    torch.save({"lr": 1}, tmp_path / "scheduler.pt")
    message = refused(tmp_path, FileError)
    assert "optimizer.pt, scheduler.pt" in message


def test_an_index_is_taken_before_other_files(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    save(WHOLE, tmp_path / "consolidated.safetensors")
    save(WHOLE, tmp_path / "other.pt")
    assert opened(tmp_path).index == index.name


def test_of_two_indexes_that_of_safetensors_is_taken_and_the_other_noted(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    other = sharded(tmp_path, "torch")
    checkpoint = opened(tmp_path)
    assert checkpoint.index == index.name
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
    assert (checkpoint.index or Path(checkpoint.name).name) == first
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
    assert "no checkpoint in this directory" in message
    assert ", ".join(sorted(names)) in message
    assert "give the file itself" in message


def test_a_directory_that_is_a_link_is_opened(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    assert contents(tmp_path / "link") == contents(tmp_path / "model")


def test_a_directory_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir(mode=0)
    assert "Permission denied" in refused_for_anybody("inspect", tmp_path / "model")
