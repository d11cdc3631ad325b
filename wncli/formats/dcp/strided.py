"""Reads tensors that are stored in another order than their shape says, as `channels_last` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wncli.arithmetic.tiles import memory
from wncli.formats.dcp.boxes import blocks
from wncli.storage.source import BLOCK

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

#: Fills a buffer with what is stored from a place on.
Read = Callable[[int, memoryview], Any]


def read_strided(
    read: Read, shape: Sequence[int], strides: Sequence[int], begin: int, buffer: memoryview
) -> None:
    """Fill `buffer` with the bytes of a tensor from `begin` on, as they are in row-major order.

    Args:
        read: reads what is stored.
        shape: of the tensor, with the bytes of an element as its last axis.
        strides: how far apart the places along each axis are, in bytes.
        begin: the place of the first byte.
        buffer: what is filled.
    """
    import numpy as np

    done = 0
    for start, size in blocks(tuple(shape), begin, begin + len(buffer)):
        block = np.frombuffer(buffer[done : done + math.prod(size)], np.uint8).reshape(size)
        _fill(read, block, _place(start, strides), strides)
        done += block.size


def _fill(read: Read, block: Bytes, place: int, strides: Sequence[int]) -> None:
    """Fill a block, in one read where that takes little more than it holds, else axis by axis."""
    import numpy as np

    extent = 1 + _place([size - 1 for size in block.shape], strides)
    if extent <= max(BLOCK, 2 * block.size):
        span = memory("strided", extent)
        read(place, span)
        stored = np.frombuffer(span, np.uint8)
        block[...] = np.lib.stride_tricks.as_strided(stored, block.shape, tuple(strides))
        return
    axis = max(range(block.ndim), key=lambda axis: (block.shape[axis] > 1, strides[axis]))
    others = (*strides[:axis], *strides[axis + 1 :])
    for index in range(block.shape[axis]):
        inner = block[(slice(None),) * axis + (index,)]
        _fill(read, inner, place + index * strides[axis], others)


def _place(indexes: Sequence[int], strides: Sequence[int]) -> int:
    return sum(index * step for index, step in zip(indexes, strides, strict=True))
