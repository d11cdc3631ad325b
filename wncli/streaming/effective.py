"""Streams the weights that a checkpoint stands for, pairs composed, in row-major runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from wncli.arithmetic.dtypes import numpy_dtype
from wncli.arithmetic.norms import Array
from wncli.arithmetic.tiles import memory
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import DType
from wncli.streaming.blocks import TensorBlocks
from wncli.streaming.fold import fold_pair

if TYPE_CHECKING:
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.notes import Note
    from wncli.storage.source import Sources


def aligned_runs(
    sides: tuple[tuple[Sources, Pair | TensorSpec], tuple[Sources, Pair | TensorSpec]],
    notes: list[Note],
) -> Iterator[tuple[Array, Array]]:
    """Return the elements of two tensors of one shape, as runs of equally many.

    A run is good until the next is asked for.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    a_runs, b_runs = (runs_of(sources, item, notes) for sources, item in sides)
    a: Array = np.empty(0)
    b: Array = np.empty(0)
    while True:
        a = a if a.size else _copied(next(a_runs, a), "run of a")
        b = b if b.size else _copied(next(b_runs, b), "run of b")
        count = min(a.size, b.size)
        if not count:
            return
        yield a[:count], b[:count]
        a, b = a[count:], b[count:]


def _copied(run: Array, use: str) -> Array:
    """Copy a run: both sides read into the same memory of this thread."""
    found: Array = np.frombuffer(memory(use, run.nbytes), run.dtype)
    found[:] = run
    return found


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
    element = numpy_dtype(item.dtype)
    blocks = TensorBlocks(source, item, row_major=True)
    for block in blocks:
        run = blocks.read(block, element).reshape(-1)
        yield run.view(np.uint8) != 0 if item.dtype is DType.BOOL else run


def are_comparable(a: DType, b: DType) -> bool:
    """Whether elements of these dtypes can be held against each other: numbers, or equal bits."""
    packed = {DType.F4, DType.F4X2}
    return a is b or {a, b} <= packed or (_is_number(a) and _is_number(b))


def _is_number(dtype: DType) -> bool:
    return dtype.numpy is not None
