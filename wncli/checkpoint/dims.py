"""Dims and shapes of weight norm: the shape that g has for a dim, the dim that a shape tells.

`dim` is the axis that keeps its size in g; None is the norm of the whole tensor. PyTorch also
writes None as -1 (`torch/nn/utils/weight_norm.py`), so -1 is *not* the last axis.
"""

from __future__ import annotations

import math

from wncli.errors import WeightNormError


def resolve_dim(dim: int | None, rank: int, where: str = "") -> int | None:
    """`dim` in its canonical form for a weight of this rank: 0 … rank-1, or None.

    Raises:
        WeightNormError: the weight has no dims, or none of this number.
    """
    if rank == 0:
        raise WeightNormError(
            where,
            "a 0-dimensional tensor has no slices to normalize",
            expected="a weight of at least one dimension",
        )
    if dim is None or dim == -1:
        return None
    if not 0 <= dim < rank:
        raise WeightNormError(
            where,
            f"dim {dim} is out of range",
            expected=f"a dim from 0 to {rank - 1} (the weight has {rank} dimensions), or none",
            found=f"dim {dim}"
            + (" (-1 means the whole tensor, not the last axis)" if dim < 0 else ""),
        )
    return dim


def magnitude_shape(shape: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    """Return g's shape for a weight of this shape: 1 on every axis but `dim`; `()` for None."""
    if dim is None:
        return ()
    return tuple(size if axis == dim else 1 for axis, size in enumerate(shape))


def fitting_dims(g_shape: tuple[int, ...], v_shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Every dim that a g of `g_shape` can mean beside a v of `v_shape`, lowest first.

    Where v itself has axes of size 1, several dims give one g shape; they compute the same
    numbers. Older PyTorch and Paddle store a 1-d g: of length 1 for the whole tensor, else of the
    length of one axis, which is accepted where only one axis has it. Empty: g fits no dim.
    """
    if not v_shape:
        return ()
    if g_shape == ():
        return (None,)
    keeping: tuple[int, ...] = ()
    if len(g_shape) == len(v_shape):
        kept = [axis for axis, size in enumerate(g_shape) if size != 1]
        if len(kept) == 1 and g_shape[kept[0]] == v_shape[kept[0]]:
            keeping = (kept[0],)
        elif not kept:
            keeping = tuple(axis for axis, size in enumerate(v_shape) if size == 1)
    if keeping or len(g_shape) != 1:
        return keeping
    if g_shape == (1,):
        return (None,)
    axes = fitting_axes(g_shape, v_shape)
    return axes if len(axes) == 1 else ()


def fitting_axes(g_shape: tuple[int, ...], v_shape: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes of v that are as long as a vector g; of a square convolution, several are."""
    is_vector = len(g_shape) == 1 and g_shape != (1,)
    return tuple(n for n, size in enumerate(v_shape) if size == g_shape[0]) if is_vector else ()


def slices(shape: tuple[int, ...], dim: int | None) -> tuple[int, int, int]:
    """See a row-major `shape` from `dim`: `(outer, channels, inner)`, a slice per channel."""
    if dim is None:
        return 1, 1, math.prod(shape)
    return math.prod(shape[:dim]), shape[dim], math.prod(shape[dim + 1 :])
