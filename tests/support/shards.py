"""Builds sharded checkpoints as Hugging Face writes them, and reads them with its libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tests.support.oracles import bits
from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError, WnError
from wncli.formats.open import open_checkpoint

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
    assert isinstance(found.value, FormatError) is (error is FormatError)
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
