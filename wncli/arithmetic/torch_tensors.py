"""The arithmetic on PyTorch's tensors: the very numbers of NumPy's, with gradients, on any device.

What is computed is computed on the CPU as for arrays, so that every device has the same bits. Where
a gradient is wanted it is that of PyTorch's own operations on the same formula, of any order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from wncli.arithmetic.norms import raw
from wncli.checkpoint.dims import fitting_dims, magnitude_shape, resolve_dim
from wncli.errors import WeightNormError

Array = npt.NDArray[Any]
Tensor = torch.Tensor

_DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}


class _Exactly(torch.autograd.Function):
    """Has the value of one tensor and the gradient of another, which is computed less exactly."""

    @staticmethod
    def forward(_context: Any, _formula: Tensor, exact: Tensor) -> Tensor:  # noqa: ANN401
        return exact.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient, None


def magnitude(
    exactly: Callable[[Array, int | None, float], Array], w: Tensor, dim: int | None, p: float
) -> Tensor:
    """Return the norms of slices; `exactly` computes them of an array.

    Raises:
        WeightNormError: as `exactly` does, or the tensor has no elements at hand.
    """
    g = _tensor(exactly(_array(w, "magnitude"), dim, p), w.device)
    if not _has_gradient(w):
        return g
    norms = _norms(w, resolve_dim(dim, w.dim()), p)
    return _exactly(norms.reshape(g.shape), g)


def decompose(
    exactly: Callable[[Array, int | None, float], Array], w: Tensor, dim: int | None
) -> tuple[Tensor, Tensor]:
    """Split a weight; v is `w` itself unless it has all-zero slices.

    Raises:
        WeightNormError: as `magnitude` does.
    """
    g = magnitude(exactly, w, dim, 2)
    zero = (g.detach().reshape(-1) == 0).nonzero().flatten()
    if not (w.numel() and zero.numel()):
        return g, w
    v = w.clone()
    kept = resolve_dim(dim, w.dim())
    slices = v.movedim(kept, 0) if kept is not None else v.unsqueeze(0)
    first: tuple[Any, ...] = (zero, *[0] * (slices.dim() - 1))
    slices[first] = torch.copysign(torch.ones_like(slices[first]), slices[first])
    return g, v


def compose(exactly: Callable[[Any, Any], Array], g: Any, v: Any) -> Tensor:  # noqa: ANN401
    """Return the weight, on v's device; where one of the two is an array, it is taken as a tensor.

    Raises:
        WeightNormError: as `exactly` does, or a tensor has no elements at hand.
    """
    g, v = (
        one if isinstance(one, Tensor) else _tensor(np.asarray(one), other.device)
        for one, other in ((g, v), (v, g))
    )
    w = _tensor(exactly(_array(g, "compose"), _array(v, "compose")), v.device)
    if not _has_gradient(g, v):
        return w
    (dim, *_) = fitting_dims(tuple(g.shape), tuple(v.shape))
    norms = _norms(v, dim, 2)
    norms = torch.where(norms == 0, torch.ones_like(norms), norms)  # where g is 0 as well
    factors = g.to(norms).reshape(magnitude_shape(tuple(v.shape), dim) or [1] * v.dim()) / norms
    return _exactly(v.to(norms.dtype) * factors, w)


def _exactly(formula: Tensor, exact: Tensor) -> Tensor:
    found: Tensor = _Exactly.apply(formula.to(exact.dtype), exact)  # type: ignore[no-untyped-call]
    return found


def _has_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _norms(tensor: Tensor, dim: int | None, p: float) -> Tensor:
    is_apple = tensor.device.type == "mps"  # which has no float64
    wide = tensor.to(torch.float32 if is_apple else torch.float64)
    axes = [axis for axis in range(tensor.dim()) if axis != dim]
    if not axes:
        return wide.abs()
    found: Tensor = torch.linalg.vector_norm(wide, ord=p, dim=axes, keepdim=True)
    return found


def bytes_of(tensor: Tensor) -> memoryview:
    """Return all bytes of the storage that a tensor on the CPU is a view of, not copied.

    `Tensor.numpy` would leave a storage that nobody can resize any more.
    """
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return memoryview(bytearray())
    array = (ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr())
    array.storage = storage  # type: ignore[attr-defined] # it lives as long as what looks into it
    return raw(np.frombuffer(memoryview(array), np.uint8))


def elements_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU whose elements are one run, in whatever order."""
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return bytes_of(tensor)[begin : begin + tensor.nbytes]


def _array(tensor: Tensor, where: str) -> Array:
    """Return the elements as an array; on the CPU they are not copied."""
    is_plain = tensor.layout is torch.strided and not hasattr(tensor, "device_mesh")
    if not is_plain or tensor.is_meta:
        raise WeightNormError(
            where,
            "the tensor has no elements at hand: it is on the meta device, sparse or distributed",
            expected="a dense tensor",
        )
    if tensor.dtype not in _DTYPES:
        raise WeightNormError(
            where,
            f"{str(tensor.dtype).removeprefix('torch.')} has no weight norm",
            expected="float64, float32, float16 or bfloat16",
        )
    held = tensor.detach().cpu().resolve_neg().contiguous()
    return np.frombuffer(elements_of(held), _DTYPES[held.dtype]).reshape(held.shape)


def _tensor(array: Array, device: torch.device) -> Tensor:
    array = np.asarray(array, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
    return torch.from_numpy(array).to(device)
