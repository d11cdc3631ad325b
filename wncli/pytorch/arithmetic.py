"""Weight norm of torch tensors on any device: on the CPU by the loops that files go through.

There the results are bit for bit those of the commands. On other devices PyTorch computes, with
sums, norms and products in float64, and nothing is copied to the CPU but what a message says.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wncli.arithmetic.norms import raw
from wncli.arithmetic.torch_tensors import elements_of
from wncli.checkpoint.dims import magnitude_shape
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec, row_major
from wncli.errors import WeightNormError
from wncli.hints import phrase, setting
from wncli.notes import Note
from wncli.plan.rules import glob_of
from wncli.pytorch.tensors import (
    TORCH_DTYPES,
    MemorySource,
    describe,
    is_distributed,
    is_run_of_memory,
)
from wncli.streaming.fold import fold_pair, split_weight

#: As many slices are named in a message.
_NAMED = 5


class Split(NamedTuple):
    """The magnitude and direction of a weight, and what the data showed."""

    g: Tensor
    v: Tensor
    notes: tuple[Note, ...] = ()


class Numbers(NamedTuple):
    """The tensors of a pair; `stale` is what stands under the weight's own name."""

    g: Tensor
    v: Tensor
    stale: Tensor | None = None


def compose(
    where: str, pair: Pair, numbers: Numbers, into: Tensor | None = None
) -> tuple[Tensor, tuple[Note, ...]]:
    """Return the weight that a pair is, in v's order of memory, and what the data showed.

    Args:
        where: what refusals call that which has the pair.
        pair: names it, and says its dim.
        numbers: its tensors; v's device is the weight's.
        into: gets the weight, cast to its dtype; nothing else is in its memory, neither g nor v.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    g, v, _ = numbers
    refuse_without_memory(where, pair.weight, g, v)
    notes: tuple[Note, ...] = ()
    if v.device.type == "cpu":
        weight, notes = _compose_by_loops(where, pair, numbers, into)
    else:
        weight = _compose_by_torch(where, pair, g.to(v.device), v)
    return weight if into is None or weight is into else into.copy_(weight), notes


def decompose(where: str, name: str, weight: Tensor, dim: int | None) -> Split:
    """Split a weight; v is the weight itself, or a copy where an all-zero slice needs a direction.

    Args:
        where: what refusals call that which has the weight.
        name: the weight's.
        weight: float64, float32, float16 or bfloat16.
        dim: the axis that keeps its size in g; None for the norm of the whole tensor.

    Raises:
        WeightNormError: a norm is beyond what the weight's dtype can hold.
    """
    refuse_without_memory(where, name, weight)
    weight = weight.detach()
    if weight.device.type == "cpu":
        return _decompose_by_loops(where, name, weight, dim)
    return _decompose_by_torch(where, name, weight, dim)


def refuse_without_direction(where: str, pair: Pair, g: Tensor, v: Tensor) -> None:
    """Refuse what `compose` would refuse; few of the elements are read.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    refuse_without_memory(where, pair.weight, g, v)
    slices = slices_of(v.detach(), pair.dim)
    if v.is_meta or not slices.numel():
        return
    starts = slices[first_of(slice(None), slices)]
    doubtful = ((starts == 0) & (g.detach().reshape(-1).to(v.device) != 0)).nonzero().flatten()
    zero = [channel for channel in doubtful.tolist() if not bool((slices[channel] != 0).any())]
    if zero:
        raise without_direction(where, pair, zero)


def refuse_without_memory(where: str, name: str, *tensors: Tensor) -> None:
    """Refuse tensors whose numbers are not their storage's.

    Raises:
        WeightNormError: one is distributed, sparse, or a wrapper of others.
    """
    if any(map(is_distributed, tensors)):
        raise WeightNormError(
            f"{where}: {name}",
            "it is a DTensor, of which each rank has a part",
            expected="whole tensors",
            hint="call it before fully_shard, or on a full state dict",
        )
    for tensor in tensors:
        if not is_run_of_memory(tensor):
            raise WeightNormError(
                f"{where}: {name}",
                "this tensor is no run of numbers",
                expected="a dense tensor",
                found=f"a {type(tensor).__name__}, {tensor.layout}",
                hint=phrase("{} leaves this layer alone", setting(exclude=[glob_of(name)])),
            )


# -- on the CPU ---------------------------------------------------------------------------------


def _compose_by_loops(
    where: str, pair: Pair, numbers: Numbers, into: Tensor | None
) -> tuple[Tensor, tuple[Note, ...]]:
    held = [tensor.resolve_neg() for tensor in numbers if tensor is not None]
    sources = [MemorySource(where, tensor, number) for number, tensor in enumerate(held)]
    names = (pair.g.name, pair.v.name, pair.weight)
    specs = [_spec(name, tensor, n) for n, (name, tensor) in enumerate(zip(names, held))]  # noqa: B905 - stale may be None
    own = pair._replace(
        g=specs[0], v=specs[1], stale=specs[2] if numbers.stale is not None else None
    )
    is_dense = own.v.memory_order is not None
    strides = own.v.strides if is_dense else row_major(own.v.shape)
    dtype, itemsize = TORCH_DTYPES[own.dtype], own.dtype.itemsize
    if into is not None and _is_laid_out(into, strides, dtype):
        weight = into
    else:
        weight = torch.empty_strided(own.v.shape, strides, dtype=dtype, device="cpu")
    target = elements_of(weight)
    notes: list[Note] = []
    for start, run in fold_pair(sources, own, notes, row_major=False):
        target[start * itemsize : start * itemsize + len(run)] = run
    return weight, tuple(notes)


def _is_laid_out(tensor: Tensor, strides: tuple[int, ...], dtype: torch.dtype) -> bool:
    is_plain = tensor.device.type == "cpu" and not tensor.is_neg() and is_run_of_memory(tensor)
    return is_plain and tensor.dtype is dtype and tensor.stride() == strides


def _decompose_by_loops(where: str, name: str, weight: Tensor, dim: int | None) -> Split:
    read = weight.resolve_neg()
    found = split_weight((MemorySource(where, read),), _spec(name, read, 0), dim)
    g = torch.empty(magnitude_shape(tuple(weight.shape), dim), dtype=weight.dtype, device="cpu")
    elements_of(g)[:] = found if isinstance(found, bytes) else raw(found.g)
    if isinstance(found, bytes):
        return Split(g, weight)
    v = _with_units(weight, torch.from_numpy(found.zero), dim) if found.zero.size else weight
    return Split(g, v, found.notes)


def _spec(name: str, tensor: Tensor, file: int) -> TensorSpec:
    found = describe(name, tensor, file)
    assert found is not None  # noqa: S101 - the planner has seen it
    return found


def _with_units(weight: Tensor, zero: Tensor, dim: int | None) -> Tensor:
    """Return a copy in which each all-zero slice has a unit direction.

    That is 1 with the sign of the zero, as files get it: scaled by 0, it is that very zero again.
    """
    v = weight.clone()
    slices = slices_of(v, dim)
    place = first_of(zero.to(v.device), slices)
    slices[place] = torch.copysign(torch.ones_like(slices[place]), slices[place])
    return v


def slices_of(weight: Tensor, dim: int | None) -> Tensor:
    """See a weight by its slices, which are along the first axis."""
    return weight.unsqueeze(0) if dim is None else weight.movedim(dim, 0)


def first_of(channels: Tensor | slice, slices: Tensor) -> tuple[Tensor | slice | int, ...]:
    """Give the place of the first element of these slices."""
    return (channels, *[0] * (slices.dim() - 1))


# -- on other devices ---------------------------------------------------------------------------


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which has no float64


def _norms(weight: Tensor, dim: int | None) -> Tensor:
    """Return the norms of slices in float64, in g's shape."""
    axes = [axis for axis in range(weight.dim()) if axis != dim]
    wide = _precise(weight.device)
    if not axes:
        return weight.abs().to(wide)
    if weight.dtype is not torch.float64:  # whose squares float64 neither loses nor overflows
        norms: Tensor = torch.linalg.vector_norm(weight, dim=axes, keepdim=True, dtype=wide)
        return norms
    largest = weight.abs().amax(axes, keepdim=True)
    usable = (largest > 0) & largest.isfinite()
    # A power of two, so that it costs no rounding.
    power = torch.exp2(torch.frexp(largest).exponent.to(wide) - 1)
    scale = torch.where(usable, power, torch.ones_like(largest))
    scaled: Tensor = torch.linalg.vector_norm(weight / scale, dim=axes, keepdim=True)
    return scale * scaled


def _compose_by_torch(where: str, pair: Pair, g: Tensor, v: Tensor) -> Tensor:
    g, v = g.detach(), v.detach()
    dtype = TORCH_DTYPES[pair.dtype]
    norms = _norms(v, pair.dim)
    magnitudes = g.reshape(magnitude_shape(tuple(v.shape), pair.dim) or [1] * v.dim())
    norms = norms.reshape(magnitudes.shape)
    undefined = (norms == 0) & (magnitudes != 0)
    if v.numel() and not v.is_meta and bool(undefined.any()):
        raise without_direction(where, pair, undefined.flatten().nonzero().flatten().tolist())
    same = (g.dtype == v.dtype) & (magnitudes == norms.to(g.dtype))
    one = torch.ones((), dtype=norms.dtype, device=norms.device)
    factors = torch.where(same | (norms == 0), one, magnitudes.to(norms.dtype) / norms)
    return (v.to(norms.dtype) * factors).to(dtype)


def without_direction(where: str, pair: Pair, channels: list[int]) -> WeightNormError:
    """Make the refusal of slices of v that are all zero under a g that is not."""
    named = ", ".join(map(str, channels[:_NAMED]))
    return WeightNormError(
        f"{where}: {pair.weight}",
        f"slice {named} (of {pair.g.numel}) of {pair.v.name} is all zero and has no direction,"
        " but its g is not 0",
        expected="g = 0 there, or a v that is not all zero",
        hint=phrase("{} leaves this layer as it is", setting(exclude=[glob_of(pair.weight)])),
    )


def _decompose_by_torch(where: str, name: str, weight: Tensor, dim: int | None) -> Split:
    norms = _norms(weight, dim).reshape(magnitude_shape(tuple(weight.shape), dim))
    g = norms.to(weight.dtype)
    if weight.is_meta:
        return Split(g, weight)
    if bool((g.isinf() & norms.isfinite()).any()):
        raise WeightNormError(
            f"{where}: {name}",
            f"a norm is beyond what {str(weight.dtype).removeprefix('torch.')} can hold",
            found=f"a norm of about {float(norms.max()):.6g}",
            hint=phrase("{} leaves this layer alone", setting(exclude=[glob_of(name)])),
        )
    zero = (norms == 0).flatten().nonzero().flatten()
    if not weight.numel() or not zero.numel():
        return Split(g, weight)
    message = f"{zero.numel()} of the slices of {name} all zero: g = 0 and a unit direction"
    note = Note("zero-slices", message, f"{where}: {name}", is_warning=True)
    return Split(g, _with_units(weight, zero, dim), (note,))
