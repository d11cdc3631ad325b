"""Checkpoints as `torch.distributed.checkpoint` writes them, on the ranks that are there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from tests.support.layers import Spelling, normalize

Tree = dict[str, Any]

#: Of each dtype that tensors are saved in.
DTYPES = (
    torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
#: A layer of each dim in each spelling: the name, the spelling and the dim.
NORMALIZED: tuple[tuple[str, Spelling, int | None], ...] = tuple(
    (f"{spelling}{'none' if dim is None else dim}", spelling, dim)
    for spelling in ("hook", "parametrized")
    for dim in (0, 1, 2, None)
)


def numbers(*shape: int) -> Tensor:
    """Numbers that are all different, the same on every rank."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) / 7 + 1


def vocoder() -> nn.Module:
    """Layers normalized along each dim, in both spellings, the same on every rank."""
    torch.manual_seed(0)
    made = nn.ModuleDict()
    for name, spelling, dim in NORMALIZED:
        made[name] = nn.Conv1d(5, 7, 3)
        normalize(made[name], "weight", dim, spelling)
    made["plain"] = nn.Linear(3, 4)
    return made


def spread(mesh: DeviceMesh) -> Tree:
    """Tensors in parts of all kinds, of a mesh of one axis."""

    def cut(tensor: Tensor, *placements: Any) -> Tensor:  # noqa: ANN401 - they have no public base
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)

    made: Tree = {
        "even": cut(numbers(12, 3), Shard(0)),
        "uneven": cut(numbers(5, 3, 2), Shard(0)),
        "few": cut(numbers(2, 3), Shard(0)),
        "nothing": cut(numbers(0, 3), Shard(0)),
        "columns": cut(numbers(3, 10), Shard(1)),
        "uneven_columns": cut(numbers(4, 7, 3), Shard(1)),
        "last": cut(numbers(2, 3, 5), Shard(2)),
        "vector": cut(numbers(9), Shard(0)),
        "replicated": cut(numbers(3, 5), Replicate()),
        "own": numbers(4),
        "scalar": torch.tensor(1.5),
        "rows.one": cut(numbers(1, 6), Shard(1)),
    }
    for dtype in DTYPES:
        kind = str(dtype).rpartition(".")[2]
        made[f"kinds.{kind}"] = cut((numbers(6, 3) * 3).to(dtype), Shard(0))
        made[f"kinds.{kind}_columns"] = cut((numbers(3, 5) * 3).to(dtype), Shard(1))
    return made


def training(mesh: DeviceMesh) -> Tree:
    """What a training script saves: layers of both spellings, optimizers, values of all kinds."""
    state = vocoder().state_dict()
    cut: Tree = {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if tensor.ndim else tensor
        for name, tensor in state.items()
    }
    parameters = [nn.Parameter(numbers(3, 2)), nn.Parameter(numbers(2))]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "generator": cut,
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "lr": 1e-4,
        "name": "run \N{SNOWMAN}",
        "nothing": None,
        "flags": [True, 2, "three"],
        "betas": (0.9, 0.999),
        "together": (numbers(2), 7),
        "numbered": {0: numbers(2, 2), 1: {"x": numbers(3)}},
        "listed": [numbers(2), {"y": 1}, [numbers(3), "deep"]],
        "scores": {"best": [0.5, 0.25], "none": {}},
    }


class Wide(nn.Module):
    """Two matrices, of which the first is cut by columns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 5)


def trained(mesh: DeviceMesh, *, flat: bool) -> Tree:
    """A model of FSDP2 and its optimizer, which knows the parameters by their names."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
    normalize(model[0], "weight", 0, "parametrized")
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state, state_of_optimizer = get_state_dict(model, optimizer, options=options)
    return {"model": state, "optim": state_of_optimizer}


def of_two_axes(mesh: DeviceMesh) -> Tree:
    """Tensors in parts of a mesh of two axes, and what FSDP2 makes of what is cut already."""

    def cut(tensor: Tensor, *placements: Any) -> Tensor:  # noqa: ANN401
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)

    made: Tree = {
        "grid": cut(numbers(4, 6), Shard(0), Shard(1)),
        "uneven_grid": cut(numbers(5, 7, 2), Shard(0), Shard(1)),
        "crossed": cut(numbers(5, 7, 3), Shard(2), Shard(0)),
        "twice": cut(numbers(9, 2), Shard(0), Shard(0)),
        "half": cut(numbers(5, 3), Replicate(), Shard(0)),
        "other_half": cut(numbers(5, 3), Shard(1), Replicate()),
    }
    model = Wide()
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    return {"tensors": made, "strided": dict(model.state_dict())}


def write_all(folder: Path) -> None:
    """Write every checkpoint, each into a folder of its own."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    torch.manual_seed(0)
    spread_out = spread(mesh)
    _save(folder, "spread", spread_out)
    _save(folder, "training", training(mesh))
    _save(folder, "named", trained(mesh, flat=False))
    _save(folder, "named_flat", trained(mesh, flat=True))
    _save(folder, "threads", spread_out, lambda path: FileSystemWriter(path, thread_count=3))
    _save(
        folder, "items", spread_out, lambda path: FileSystemWriter(path, single_file_per_rank=False)
    )
    _save(folder, "ranks", training(mesh), use_collectives=False)
    whole = _gathered(training(mesh))
    if dist.get_rank() == 0:
        torch.save(whole, folder / "ranks.pt")
    if count == 4:  # two by two
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        _save(folder, "square", of_two_axes(square))
    flat = {
        name: tensor
        for name, tensor in spread_out.items()
        if tensor.dtype not in {torch.complex64, torch.float8_e5m2}
    }
    _save(folder, "safetensors", flat, _sharded)


def _sharded(path: Path) -> HuggingFaceStorageWriter:
    return HuggingFaceStorageWriter(str(path), save_distributed=True)


def _save(
    folder: Path,
    name: str,
    state: Tree,
    writer: Callable[[Path], Any] = FileSystemWriter,
    **options: bool,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=writer(folder / name), **options)


def _gathered(value: Any) -> Any:  # noqa: ANN401 - whatever is in a checkpoint
    if isinstance(value, dict):
        return {key: _gathered(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_gathered(item) for item in value)
    return value.full_tensor() if hasattr(value, "full_tensor") else value
