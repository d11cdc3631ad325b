"""Live models on several ranks: DistributedDataParallel and FSDP2 over gloo."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import set_model_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import wncli
import wncli.pytorch as wn
from tests.support.layers import Spelling
from tests.support.live import norms_of_their_own
from tests.support.oracles import bits
from tests.support.ranks import RANKS, on_ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not dist.is_available(), reason="PyTorch was built without distributed"),
]
needs_forward = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="FSDP2 of this PyTorch has no forward on the CPU",
)
SPELLINGS: tuple[Spelling | None, ...] = (None, "hook", "parametrized")


def network(spelling: Spelling | None, dim: int = 0, seed: int = 0) -> Any:  # noqa: ANN401
    """Some layers, of which one has fewer rows than it could be divided into evenly."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv1d(4, 7, 3),
        nn.ReLU(),
        nn.ConvTranspose1d(7, 5, 3),
        nn.Linear(20, 3),
        nn.Linear(3, 1),
    )
    if spelling:
        wn.apply_weight_norm(made, dim=dim, naming=spelling)
        norms_of_their_own(made)
    return made


def sharded(model: nn.Module) -> Any:  # noqa: ANN401
    return fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))


def batch() -> torch.Tensor:
    return torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(5))


def one_after_the_other(model: nn.Module, path: Path, **more: Any) -> wn.Loaded:  # noqa: ANN401
    """Load on each rank while the others wait: a collective would wait for them in turn."""
    done = None
    for rank in range(RANKS):
        if dist.get_rank() == rank:
            done = wn.load_weights(model, path, **more)
        dist.barrier()
    assert done is not None
    return done


# -- FSDP2 ----------------------------------------------------------------------------------------


def load_everything(folder: Path) -> None:
    for spelling in SPELLINGS:
        for into in SPELLINGS:
            for dim in (0, 1):
                for assign in (False, True):
                    load_one(folder, spelling, into, dim, assign=assign)


def load_one(
    folder: Path, spelling: Spelling | None, into: Spelling | None, dim: int, *, assign: bool
) -> None:
    source = network(spelling, dim)
    path = folder / f"{spelling} {dim}.pt"
    if dist.get_rank() == 0 and not path.exists():
        torch.save(source.state_dict(), path)
    dist.barrier()
    model = network(into, dim, seed=7)
    model = sharded(model.to("meta") if assign else model)
    done = one_after_the_other(model, path, assign=assign)
    assert (done.missing, done.unexpected) == ((), ())
    assert "unchecked" in {note.code for note in done.notes}
    found = model(batch())
    torch.testing.assert_close(found, source(batch()), rtol=0, atol=2e-6)
    state = {name: value.to_local().clone() for name, value in model.state_dict().items()}
    wn.load_weights(model, source.state_dict())  # from memory, which gives the same
    again = {name: value.to_local() for name, value in model.state_dict().items()}
    assert {n: bits(v) for n, v in again.items()} == {n: bits(v) for n, v in state.items()}
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@needs_forward
@pytest.mark.slow
def test_a_sharded_model_loads_every_spelling_without_a_collective(tmp_path: Path) -> None:
    on_ranks(load_everything, tmp_path)


def load_one_of_each(folder: Path) -> None:
    load_one(folder, "hook", "parametrized", 0, assign=True)
    load_one(folder, None, "parametrized", 0, assign=False)
    load_one(folder, "parametrized", None, 1, assign=False)


@needs_forward
def test_a_sharded_model_loads_without_a_collective(tmp_path: Path) -> None:
    on_ranks(load_one_of_each, tmp_path)


def load_from_parts(folder: Path) -> None:
    source = network("hook", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(sharded(network("hook", 0)).state_dict(), checkpoint_id=folder / "dcp")
    for into in SPELLINGS:
        model = sharded(network(into, 0, seed=7))
        done = one_after_the_other(model, folder / "dcp")
        assert (done.missing, done.unexpected) == ((), ())
        torch.testing.assert_close(model(batch()), source(batch()), rtol=0, atol=2e-6)


@needs_forward
@pytest.mark.slow
def test_a_sharded_model_loads_from_the_parts_that_others_have_saved(tmp_path: Path) -> None:
    on_ranks(load_from_parts, tmp_path)


def read_own_rows(folder: Path) -> None:
    """The last rows have no direction: the rank that has them is refused, and the other is not."""
    path = folder / "in.safetensors"
    if dist.get_rank() == 0:
        state = network("hook").state_dict()
        state["0.weight_v"][6] = 0
        save_file(state, path)
    dist.barrier()
    model = sharded(network(None, seed=7))
    if dist.get_rank() == 0:
        wn.load_weights(model, path)
    else:
        before = bits(model[0].weight.to_local())
        with pytest.raises(wncli.WeightNormError, match="all zero and has no direction"):
            wn.load_weights(model, path)
        assert bits(model[0].weight.to_local()) == before


@pytest.mark.slow
def test_each_rank_reads_its_own_rows_alone(tmp_path: Path) -> None:
    on_ranks(read_own_rows, tmp_path)


def refuse_sharded(_folder: Path) -> None:
    for spelling in ("hook", "parametrized"):
        model = sharded(network(spelling))
        for function in (wn.remove_weight_norm, wn.apply_weight_norm):
            before = {name: id(value) for name, value in model.named_parameters()}
            with pytest.raises(
                wncli.WeightNormError, match=r"the model: 0\.bias: .* sharded"
            ) as caught:
                function(model)
            assert {name: id(value) for name, value in model.named_parameters()} == before
            assert caught.value.hint == f"call {function.__name__} before fully_shard"
        with pytest.raises(wncli.WeightNormError, match="are sharded"):
            wn.initialize(model, batch())
        if dist.get_rank() == 0:
            with pytest.raises(wncli.FormatError, match="each rank has a part") as refused:
                wn.save(model, _folder / "out.pt")
            assert "full_state_dict=True" in refused.value.hint
            with pytest.raises(wncli.WeightNormError, match="it is a DTensor"):
                wn.fold(model.state_dict())
        dist.barrier()
    plain = network("parametrized")
    wn.remove_weight_norm(plain)
    expected = plain(batch())
    torch.testing.assert_close(sharded(plain)(batch()), expected, rtol=1e-5, atol=1e-6)


@needs_forward
@pytest.mark.slow
def test_what_needs_whole_weights_is_refused_after_sharding(tmp_path: Path) -> None:
    on_ranks(refuse_sharded, tmp_path)


def set_state(_folder: Path) -> None:
    source = network("hook")
    state = source.state_dict()
    model = sharded(network("parametrized", seed=7))
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever PyTorch says
        set_model_state_dict(model, dict(state))
    model = sharded(network("parametrized", seed=7))
    parts = wn.respell(state, "parametrized")
    own = dict(model.state_dict())
    assert set(parts) == set(own)
    hooked = wn.respell(own, "hook")  # of DTensors, which it gives other names
    assert all(one is two for one, two in zip(own.values(), hooked.values(), strict=True))
    wn.load_weights(model, state)
    torch.testing.assert_close(model(batch()), source(batch()), rtol=0, atol=2e-6)


@needs_forward
@pytest.mark.slow
def test_the_older_spelling_does_not_go_into_a_sharded_model_by_pytorchs_own(
    tmp_path: Path,
) -> None:
    on_ranks(set_state, tmp_path)


# -- DistributedDataParallel ----------------------------------------------------------------------


def train(folder: Path) -> None:
    source = network("hook")
    if dist.get_rank() == 0:
        torch.save({"model": DistributedDataParallel(source).state_dict()}, folder / "in.pt")
    else:
        DistributedDataParallel(source)
    dist.barrier()
    model = DistributedDataParallel(network("parametrized", seed=7))
    wn.load_weights(model, folder / "in.pt")
    assert bits(model(batch()).detach()) == bits(source(batch()).detach())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    before = model(batch()).detach()
    inner = model.module
    assert len(wn.remove_weight_norm(model)) == 4
    again = DistributedDataParallel(inner)
    torch.testing.assert_close(again(batch()).detach(), before, rtol=1e-5, atol=1e-6)
    again(batch()).sum().backward()
    assert inner[0].weight.grad is not None


@pytest.mark.slow
def test_a_model_trains_on_two_ranks_and_is_folded(tmp_path: Path) -> None:
    on_ranks(train, tmp_path)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """Return those of a batch of this rank's own, and of all ranks."""
    model.zero_grad()
    data = torch.randn(2, 4, 20, generator=torch.Generator().manual_seed(dist.get_rank()))
    model(data).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def are_averaged(mine: list[torch.Tensor]) -> list[bool]:
    sums = [grad.clone() for grad in mine]
    for each in sums:
        dist.all_reduce(each)
    return [torch.allclose(each / RANKS, grad) for each, grad in zip(sums, mine, strict=True)]


def wrapped_before(_: Path) -> None:
    for change in (
        wn.apply_weight_norm,
        wn.remove_weight_norm,
        lambda model: wn.load_weights(model, network(None), assign=True),
    ):
        inner = network("hook" if change is wn.remove_weight_norm else None)
        model = DistributedDataParallel(inner)
        assert all(are_averaged(gradients(model)))
        done = change(model)
        assert not all(are_averaged(gradients(model)))
        assert "wrap the model again" in repr(done)
        del model
        again = DistributedDataParallel(inner)
        assert all(are_averaged(gradients(again)))
    assert "wrap" not in repr(wn.apply_weight_norm(network(None)))


@pytest.mark.slow
def test_what_gets_new_parameters_says_that_a_wrapper_averages_the_old_ones(tmp_path: Path) -> None:
    on_ranks(wrapped_before, tmp_path)
