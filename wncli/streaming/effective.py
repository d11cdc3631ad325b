"""Streams the weights that a checkpoint stands for, pairs composed, in row-major runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wncli.arithmetic.norms import Array
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import DType
from wncli.streaming.blocks import TensorBlocks, numpy_dtype
from wncli.streaming.fold import fold_pair

if TYPE_CHECKING:
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.notes import Note
    from wncli.storage.source import Sources

_ML_DTYPES = {
    DType.BF16: "bfloat16",
    DType.F8_E4M3: "float8_e4m3fn",
    DType.F8_E5M2: "float8_e5m2",
    DType.F8_E8M0: "float8_e8m0fnu",
    DType.F8_E4M3FNUZ: "float8_e4m3fnuz",
    DType.F8_E5M2FNUZ: "float8_e5m2fnuz",
}
_PLAIN = {
    "bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32",
    "float64", "int64", "uint64", "complex64", "complex128",
}  # fmt: skip


def aligned_runs(
    sides: tuple[tuple[Sources, Pair | TensorSpec], tuple[Sources, Pair | TensorSpec]],
    notes: list[Note],
) -> Iterator[tuple[Array, Array]]:
    """Return the elements of two tensors of one shape, as runs of equally many.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    a_runs, b_runs = (runs_of(sources, item, notes) for sources, item in sides)
    a: Array = np.empty(0)
    b: Array = np.empty(0)
    while True:
        # Copies: both sides read into the same memory of this thread.
        a = a if a.size else next(a_runs, a).copy()
        b = b if b.size else next(b_runs, b).copy()
        count = min(a.size, b.size)
        if not count:
            return
        yield a[:count], b[:count]
        a, b = a[count:], b[count:]


def runs_of(sources: Sources, item: Pair | TensorSpec, notes: list[Note]) -> Iterator[Array]:
    """Return the elements of a tensor, or of the product of a pair, in row-major order.

    A run is good until the next is asked for.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    if isinstance(item, Pair):
        dtype = numpy_dtype(item.dtype)
        for _, product in fold_pair(sources, item, notes, row_major=True):
            yield np.frombuffer(product, dtype)
        return
    if not item.dtype.itemsize:  # several elements to a byte
        item = item._replace(dtype=DType.U8, shape=(item.nbytes,), strides=(1,))
    source = sources[item.storage.file]
    element = _element(item.dtype)
    blocks = TensorBlocks(source, item, row_major=True)
    for block in blocks:
        run = blocks.read(block, element).reshape(-1)
        yield run.view(np.uint8) != 0 if item.dtype is DType.BOOL else run


def are_comparable(a: DType, b: DType) -> bool:
    """Whether elements of these dtypes can be held against each other: numbers, or equal bits."""
    packed = {DType.F4, DType.F4X2}
    return a is b or {a, b} <= packed or (_is_number(a) and _is_number(b))


def _is_number(dtype: DType) -> bool:
    return dtype in _ML_DTYPES or dtype.torch in _PLAIN


def _element(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy dtype of one element; bits where NumPy has no such number."""
    name: Any = dtype.torch if dtype.torch in _PLAIN else (np.void, dtype.itemsize)
    if dtype in _ML_DTYPES:
        import ml_dtypes

        name = getattr(ml_dtypes, _ML_DTYPES[dtype])
    found: np.dtype[Any] = np.dtype(name)
    return found
