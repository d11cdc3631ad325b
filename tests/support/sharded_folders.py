"""Folders of shards: three to make, all to read with the index held against them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.oracles import bits
from tests.support.shards import KINDS, index_path, shard_name

State = dict[str, Tensor]
both_kinds = pytest.mark.parametrize("kind", KINDS)


def three() -> dict[int, State]:
    """Three shards: `a`'s g and v stand apart, `b`'s together, the third has no weight norm."""
    g, v = torch.rand(3, 1, 1) + 0.5, torch.randn(3, 2, 5)
    return {
        1: {"a.weight_g": torch.rand(4, 1) + 0.5, "a.bias": torch.arange(5).half()},
        2: {"a.weight_v": torch.randn(4, 6), "b.weight_g": g, "b.weight_v": v},
        3: {"c.table": torch.arange(24).reshape(2, 12), "c.scale": torch.tensor(2.5).bfloat16()},
    }


def merged(shards: dict[int, State]) -> State:
    return {name: tensor for state in shards.values() for name, tensor in state.items()}


def folded(state: State) -> State:
    """What PyTorch folds every pair to."""
    found = {name: tensor for name, tensor in state.items() if name[-2:] not in {"_g", "_v"}}
    for name in {name[:-2] for name in state} - {name[:-2] for name in found}:
        found[name] = torch._weight_norm(state[f"{name}_v"], state[f"{name}_g"], 0)
    return found


def load(path: Path) -> State:
    """One file, as its users read it."""
    return load_file(path) if path.suffix == ".safetensors" else dict(torch.load(path))


def weight_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".bin"})


def read(folder: Path) -> State:
    """All tensors of a folder, its index held against every file.

    `total_size` counts each storage once, as huggingface_hub's `split_torch_state_dict_into_shards`
    does.
    """
    files = weight_files(folder)
    indexes = [path for path in folder.iterdir() if path.name.endswith(".index.json")]
    if not indexes:
        assert files in (["model.safetensors"], ["pytorch_model.bin"])
        return load(folder / files[0])
    (path,) = indexes
    kind = "safetensors" if path == index_path(folder) else "torch"
    assert path == index_path(folder, kind)
    assert files == [shard_name(n, kind, len(files)) for n in range(1, len(files) + 1)]
    index = json.loads(path.read_text())
    held = {file: load(folder / file) for file in files}
    assert index["weight_map"] == {name: file for file in files for name in held[file]}
    assert len(files) > 1
    sizes = [{t.data_ptr() or name: t.nbytes for name, t in s.items()} for s in held.values()]
    assert index["metadata"]["total_size"] == sum(sum(of.values()) for of in sizes)
    return {name: tensor for state in held.values() for name, tensor in state.items()}


def hold_equal(found: State, expected: State) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def hold_bits(found: State, expected: State) -> None:
    assert {k: bits(t) for k, t in found.items()} == {k: bits(t) for k, t in expected.items()}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their content, folders with None."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
