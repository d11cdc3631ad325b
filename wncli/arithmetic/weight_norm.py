"""The arithmetic of weight norm, arrays in, arrays out; or tensors of PyTorch: `w = g * v / ||v||`.

The norm is taken over every axis but `dim` (Salimans & Kingma 2016, arXiv:1602.07868; PyTorch:
`norm_except_dim`, `_weight_norm`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard, overload

import numpy as np
import numpy.typing as npt

from wncli.arithmetic.kernels import COMPILED, kernel
from wncli.arithmetic.norms import Array, Norms, NormSum, factors, raw, unwarned
from wncli.checkpoint.dims import fitting_dims, magnitude_shape, resolve_dim, slices
from wncli.checkpoint.tensors import NORMALIZABLE, DType, product_dtype
from wncli.errors import WeightNormError

if TYPE_CHECKING:
    from wncli.arithmetic.torch_tensors import Tensor

    class TorchTensor(Protocol):
        """A tensor to type checkers; where PyTorch is missing, `Tensor` is anything to them."""

        requires_grad: bool

        def detach(self) -> Any:  # noqa: ANN401 - another such tensor
            """Give the tensor without its history."""


_DTYPES = {dtype.torch: dtype for dtype in NORMALIZABLE}


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    """Tell a tensor of PyTorch without importing PyTorch: whoever has one has imported it."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


@overload
def magnitude(w: TorchTensor, dim: int | None = 0, p: float = 2) -> Tensor: ...
@overload
def magnitude(w: npt.ArrayLike, dim: int | None = 0, p: float = 2) -> Array: ...
@unwarned
def magnitude(w: npt.ArrayLike | TorchTensor, dim: int | None = 0, p: float = 2) -> Array | Tensor:
    """Return the norm of order `p` of `w` over every axis but `dim`.

    Args:
        w: float64, float32, float16 or bfloat16, of any rank from 1; an array, or a tensor of
            PyTorch on any device.
        dim: the axis that keeps its size; None or -1 for the norm of the whole tensor.
        p: any order above 0, `math.inf` included.

    Returns:
        g in `w`'s dtype, with size 1 on every axis but `dim`, or 0-dimensional for None;
        for `p=2` the number nearest to the exact norm. Of a tensor, a tensor on its device, whose
        gradient is PyTorch's.

    Raises:
        WeightNormError: no such dim, a dtype that is not floating, an order that is not above 0,
            or a norm that the dtype cannot hold.

    Example:
        >>> w = np.array([[3, 4], [0, 2]], np.float32)
        >>> wncli.magnitude(w)
        array([[5.],
               [2.]], dtype=float32)
        >>> wncli.magnitude(w, dim=None, p=1)
        array(9., dtype=float32)
    """
    if _is_tensor(w):
        from wncli.arithmetic import torch_tensors

        return torch_tensors.magnitude(magnitude, w, dim, p)
    array = _floating(w, "magnitude")
    dim = resolve_dim(dim, array.ndim, "magnitude")
    if not p > 0:
        raise WeightNormError("magnitude", f"order {p} is no norm", expected="an order above 0")
    view = array.reshape(slices(array.shape, dim))
    fast = _fast_magnitude(view) if p == 2 else None  # noqa: PLR2004
    if fast is not None:
        return fast.reshape(magnitude_shape(array.shape, dim))
    wide = array.dtype == np.float64
    norms = _norms_of(view, wide=wide) if p == 2 else _power_norms(view, p)  # noqa: PLR2004
    g = norms.rounded(array.dtype)
    overflow = np.flatnonzero(norms.overflowing(g))
    if overflow.size:
        raise WeightNormError(
            "magnitude",
            f"the norm of slice {overflow[0]} is beyond what {array.dtype.name} can hold",
        )
    return g.reshape(magnitude_shape(array.shape, dim))


@overload
def decompose(w: TorchTensor, dim: int | None = 0) -> tuple[Tensor, Tensor]: ...
@overload
def decompose(w: npt.ArrayLike, dim: int | None = 0) -> tuple[Array, Array]: ...
@unwarned
def decompose(
    w: npt.ArrayLike | TorchTensor, dim: int | None = 0
) -> tuple[Array, Array] | tuple[Tensor, Tensor]:
    """Split `w` into magnitude g and direction v, so that `compose(g, v)` gives `w` bit for bit.

    v has the elements of `w`: it shares its memory. Only where a slice of `w` is all zero, v is a
    copy in which that slice is a unit direction: its g is 0, and a zero direction would give 0/0.

    Args:
        w: as for `magnitude`.
        dim: the axis that keeps its size in g; None or -1 for the norm of the whole tensor.

    Returns:
        g, as `magnitude` gives it, and v, in `w`'s shape and dtype.

    Raises:
        WeightNormError: no such dim, a dtype that is not floating, or a norm that it cannot hold.

    Example:
        >>> g, v = wncli.decompose(np.array([[3, 4], [0, 2]], np.float32))
        >>> g.shape, v.shape
        ((2, 1), (2, 2))
        >>> wncli.compose(g, v)
        array([[3., 4.],
               [0., 2.]], dtype=float32)
    """
    if _is_tensor(w):
        from wncli.arithmetic import torch_tensors

        return torch_tensors.decompose(magnitude, w, dim)
    array = _floating(w, "decompose")
    g = magnitude(array, dim)
    view = array.reshape(slices(array.shape, resolve_dim(dim, array.ndim)))
    zero = np.flatnonzero(g.reshape(-1) == 0)
    if not (view.size and zero.size):
        return g, array
    v = view.copy()
    v[0, zero, 0] = unit_like(v[0, zero, 0])
    return g, v.reshape(array.shape)


@overload
def compose(g: TorchTensor, v: TorchTensor) -> Tensor: ...
@overload
def compose(g: npt.ArrayLike, v: npt.ArrayLike) -> Array: ...
@unwarned
def compose(g: npt.ArrayLike | TorchTensor, v: npt.ArrayLike | TorchTensor) -> Array | Tensor:
    """Return the weight that magnitude `g` and direction `v` stand for: `g * v / ||v||`.

    The dim is read off g's shape: for v `(out, in, k)`, g `(out, 1, 1)` is dim 0, `(1, 1, k)`
    dim 2, and `()` the whole tensor.

    Args:
        g: the magnitude: float64, float32, float16 or bfloat16; an array, or a tensor of PyTorch.
        v: the direction, in any of these dtypes too.

    Returns:
        w in the dtype that PyTorch gives the product, within 1 ulp of the exact value; slices
        whose g is the norm of v in their common dtype come back bit for bit. Of tensors, a tensor
        on v's device, whose gradient is PyTorch's.

    Raises:
        WeightNormError: g's shape fits no dim of v, or a slice of v is all zero under a g that
            is not.

    Example:
        >>> wncli.compose(np.float32([[10], [1]]), np.float32([[3, 4], [0, 2]]))
        array([[6., 8.],
               [0., 1.]], dtype=float32)
    """
    if _is_tensor(g) or _is_tensor(v):
        from wncli.arithmetic import torch_tensors

        return torch_tensors.compose(compose, g, v)
    magnitudes, directions = _floating(g, "compose"), _floating(v, "compose")
    dims = fitting_dims(magnitudes.shape, directions.shape)
    if not dims:
        raise WeightNormError(
            "compose",
            "g fits no dim of v",
            expected=f"a g that keeps one axis of v {directions.shape}",
            found=f"g {magnitudes.shape}",
        )
    view = directions.reshape(slices(directions.shape, dims[0]))
    dtype = _product_dtype(magnitudes, directions)
    fast = _fast_product(magnitudes, view)
    if fast is not None:
        return fast.reshape(directions.shape)
    norms = _norms_of(view, wide=np.float64 in (magnitudes.dtype, directions.dtype))
    same_dtype = magnitudes.dtype == directions.dtype
    found = factors(magnitudes.reshape(-1), norms, may_match=same_dtype, empty=not view.size)
    undefined = np.flatnonzero(found.undefined)
    if undefined.size:
        raise WeightNormError(
            "compose",
            f"slice {undefined[0]} of v is all zero and has no direction, but its g is not 0",
        )
    w = np.empty(view.shape, dtype)
    found.scale(view, w)
    return w.reshape(directions.shape)


@unwarned
def unit_like(zeros: Array) -> Array:
    """1 with the sign of each (signed) zero: scaled by 0, it is that very zero again."""
    return np.copysign(1, zeros.astype(np.float64)).astype(zeros.dtype)


def _product_dtype(g: Array, v: Array) -> np.dtype[Any]:
    dtype = product_dtype(_DTYPES[g.dtype.name], g.ndim, _DTYPES[v.dtype.name])
    known = {g.dtype.name: g.dtype, v.dtype.name: v.dtype}
    return known.get(dtype.label) or np.dtype(DType.F32.label)


def _fast_magnitude(view: Array) -> Array | None:
    """Return the norms, by the compiled loops; None where there are none, or not all is usual."""
    name = _compiled(view)
    if name is None:
        return None
    sums = memoryview(bytearray(16 * view.shape[1]))
    g = bytearray(view.itemsize * view.shape[1])
    kernel.add_squares(name, raw(view), sums, view.shape[2])
    return np.frombuffer(g, view.dtype) if kernel.to_magnitudes(name, sums, g) else None


def _fast_product(g: Array, view: Array) -> Array | None:
    """Return the product, by the compiled loops; None where there are none, or not all is usual."""
    name = _compiled(view)
    if name is None or g.dtype != view.dtype:
        return None
    w = view.copy()
    return w if kernel.fold(name, raw(w), raw(g), None, view.shape[2]) else None


def _compiled(view: Array) -> str | None:
    """Return what the loops call a dtype; None where there are none for it, or no elements."""
    dtype = _DTYPES[view.dtype.name]
    return dtype.name if kernel is not None and dtype in COMPILED and view.size else None


def _norms_of(view: Array, *, wide: bool) -> Norms:
    total = NormSum(view.shape[1], view.shape[0] * view.shape[2], wide=wide)
    total.add(view)
    return total.norms(lambda _: [(view, 0)])


def _power_norms(view: Array, p: float) -> Norms:
    """Norms of any order; each slice is scaled by its largest element, so no power overflows."""
    precise = np.longdouble if view.dtype == np.float64 else np.float64
    values = np.abs(view.astype(precise))
    largest = values.max(axis=(0, 2), initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    powers = np.power(values / scale[:, None], p).sum(axis=(0, 2))
    root = scale * np.power(powers, precise(1) / precise(p))
    norm = np.where(np.isfinite(largest), largest if np.isinf(p) else root, largest)
    mantissa, exponent = np.frexp(norm)
    return Norms(mantissa.astype(np.float64), np.zeros(norm.shape), exponent.astype(np.int64))


def _floating(value: object, where: str) -> Array:
    array = np.asarray(value)
    if array.dtype.name not in _DTYPES:
        raise WeightNormError(
            where,
            f"{array.dtype.name} has no weight norm",
            expected="float64, float32, float16 or bfloat16",
        )
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")
