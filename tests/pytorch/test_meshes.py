"""`load_weights` into DTensors on meshes of two dimensions, over gloo on four ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import wncli
import wncli.pytorch as wn
from tests.support.layers import Spelling
from tests.support.live import norms_of_their_own
from tests.support.oracles import bits
from tests.support.ranks import on_ranks
from wncli.pytorch.sharded import box_of

if dist.is_available():
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without distributed"),
]
RANKS = 4
SPELLINGS: tuple[Spelling | None, ...] = (None, "hook", "parametrized")


def network(spelling: Spelling | None, dim: int = 0, seed: int = 0, rows: int = 8) -> Any:  # noqa: ANN401
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8), nn.Conv1d(4, rows, 3))
    if spelling:
        wn.apply_weight_norm(made, dim=dim, naming=spelling)
        norms_of_their_own(made)
    return made


def by_hand(model: nn.Module, mesh: Any, placements: Any) -> Any:  # noqa: ANN401
    """Divide every parameter, on the axes that it has and that can be divided so."""
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                usable = [
                    placement if _divides(placement, held) else Replicate()
                    for placement in placements
                ]
                found = distribute_tensor(held.data, mesh, usable)
                module._parameters[name] = nn.Parameter(found)
    return model


def _divides(placement: Any, held: nn.Parameter) -> bool:  # noqa: ANN401
    axis = getattr(placement, "dim", None)
    if axis is None or axis >= held.dim():
        return False
    return not isinstance(placement, _StridedShard) or held.shape[axis] % RANKS == 0


def tensor_parallel(model: nn.Module, mesh: Any) -> Any:  # noqa: ANN401
    """Divide columns and rows among ranks, and what these have by `fully_shard`: strided shards."""
    for layer, axis in zip(model.children(), (0, 1, 0), strict=True):
        for module in layer.modules():
            for name, held in module._parameters.items():
                if held is not None:
                    is_divided = held.dim() > axis and held.shape[axis] % RANKS == 0
                    placement = Shard(axis) if is_divided else Replicate()
                    found = distribute_tensor(held.data, mesh["tp"], [placement])
                    module._parameters[name] = nn.Parameter(found)
    return fully_shard(model, mesh=mesh["dp"])


Ways = dict[str, Callable[[nn.Module, Any], Any]]


def ways() -> Ways:
    """Make the kinds of layouts; the last three let a rank have rows that are not one run."""
    replicated, strided, crossed = (
        Replicate(),
        _StridedShard(0, split_factor=2),
        _StridedShard(1, split_factor=2),
    )
    placed: dict[str, list[Any]] = {
        "S0 S1": [Shard(0), Shard(1)],
        "S1 S0": [Shard(1), Shard(0)],
        "S0 S0": [Shard(0), Shard(0)],
        "R S0": [replicated, Shard(0)],
        "S1 R": [Shard(1), replicated],
        "_S0 S0": [strided, Shard(0)],
        "_S0 R": [strided, replicated],
        "R _S1": [replicated, crossed],
        "_S1 S0": [crossed, Shard(0)],
    }
    found: Ways = {
        name: partial(by_hand, placements=placements) for name, placements in placed.items()
    }
    found["HSDP"] = lambda model, mesh: fully_shard(model, mesh=mesh)
    found["FSDP and TP"] = tensor_parallel
    return found


def load(path: Path, way: str, into: Spelling | None, dim: int, *, assign: bool) -> None:
    """Compare with what `distribute_tensor` gives each rank of the whole tensors."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    # Strided shards are of even parts alone; PyTorch 2.6 pads nothing that has no columns.
    rows = 8 if "_" in way or "TP" in way or way == "S1 S0" else 7
    whole = network(into, dim, seed=7, rows=rows)
    wn.load_weights(whole, path.with_suffix(f".{rows}"))
    expected = whole.state_dict()
    model = ways()[way](network(into, dim, seed=7, rows=rows), mesh)
    model = model.to("meta") if assign else model
    done = wn.load_weights(model, path.with_suffix(f".{rows}"), assign=assign)
    assert (done.missing, done.unexpected) == ((), ())
    for name, found in model.state_dict().items():
        given = distribute_tensor(expected[name].clone(), found.device_mesh, found.placements)
        assert bits(found.to_local()) == bits(given.to_local()), (way, name)


def on_all_meshes(folder: Path) -> None:
    stored: list[tuple[Spelling | None, int]] = [(None, 0), ("hook", 0), ("parametrized", 1)]
    for turn, (spelling, dim) in enumerate(stored):
        path = folder / f"{spelling}"
        for rows in (7, 8) if dist.get_rank() == 0 else ():
            torch.save(network(spelling, dim, rows=rows).state_dict(), path.with_suffix(f".{rows}"))
        dist.barrier()
        for number, way in enumerate(ways()):
            load(path, way, None, dim, assign=bool(number % 2))
            load(path, way, SPELLINGS[1 + (number + turn) % 2], dim, assign=not number % 2)


@pytest.mark.slow
def test_each_rank_has_what_distribute_tensor_gives_it(tmp_path: Path) -> None:
    on_ranks(on_all_meshes, tmp_path, RANKS)


def directions_elsewhere(folder: Path) -> None:
    """A rank's part of g has as many rows as that of v, but others."""
    mesh = init_device_mesh("cpu", (2, 2))
    if dist.get_rank() == 0:
        torch.save(network(None).state_dict(), folder / "in.pt")
    dist.barrier()
    whole, model = network("parametrized", seed=7), network("parametrized", seed=7)
    wn.load_weights(whole, folder / "in.pt")
    pair = model[0].parametrizations.weight
    strided = [_StridedShard(0, split_factor=2), Shard(0)]
    pair.original0 = nn.Parameter(distribute_tensor(pair.original0.data, mesh, strided))
    placements = [Shard(0), Shard(0)]
    pair.original1 = nn.Parameter(distribute_tensor(pair.original1.data, mesh, placements))
    wn.load_weights(model, folder / "in.pt")
    expected = whole[0].parametrizations.weight
    assert bits(pair.original0.full_tensor()) == bits(expected.original0)
    assert bits(pair.original1.full_tensor()) == bits(expected.original1)


@pytest.mark.slow
def test_a_magnitude_in_other_parts_than_its_direction_is_that_of_its_own_rows(
    tmp_path: Path,
) -> None:
    on_ranks(directions_elsewhere, tmp_path, RANKS)


def some_of_the_ranks(folder: Path) -> None:
    path = folder / "in.pt"
    if dist.get_rank() == 0:
        torch.save(network("hook").state_dict(), path)
    dist.barrier()
    mesh = DeviceMesh("cpu", [0, 1])
    model, whole = network(None, seed=7), network(None, seed=7)
    first = model[0].weight.data
    model[0].weight = nn.Parameter(distribute_tensor(first, mesh, [Shard(0)]))
    wn.load_weights(model, path)
    wn.load_weights(whole, path)
    assert bits(model[1].weight) == bits(whole[1].weight)
    if dist.get_rank() < 2:
        assert bits(model[0].weight.full_tensor()) == bits(whole[0].weight)
    mesh = init_device_mesh("cpu", (2, 2))
    for parts, rows, message in (
        ([Partial(), Replicate()], slice(None), "each rank has a summand of it"),
        ([Shard(0), Replicate()], slice(5), "not the one that its placements say"),
    ):
        made = DTensor.from_local(
            first[rows], mesh, parts, run_check=False, shape=first.shape, stride=first.stride()
        )
        model[0].weight = nn.Parameter(made)
        before = bits(model[0].weight.to_local()), bits(model[1].weight)
        with pytest.raises(wncli.WeightNormError, match=rf"the model: 0\.weight: .*{message}"):
            wn.load_weights(model, path)
        assert (bits(model[0].weight.to_local()), bits(model[1].weight)) == before


@pytest.mark.slow
def test_ranks_outside_a_mesh_load_the_rest_and_other_parts_are_refused(tmp_path: Path) -> None:
    on_ranks(some_of_the_ranks, tmp_path, RANKS)


def test_a_part_is_as_large_as_distribute_tensor_makes_it() -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=RANKS - 1, world_size=RANKS)
    try:
        mesh = init_device_mesh("cpu", (2, 2))
        for rows in (1, 3, 7, 8):
            for placements in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Shard(0)]):
                found = distribute_tensor(torch.zeros(rows, 8), mesh, placements)
                assert box_of("weight", found).shape == tuple(found.to_local().shape)
    finally:
        dist.destroy_process_group()
