"""Reads a tensor block by block, so that no tensor needs to fit into memory.

A block is a run of the tensor in its order of traversal, seen as `(outer, channels, inner)` from
the dim of its weight norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wncli.dims import slices
from wncli.formats.files import BLOCK, Source
from wncli.norms import STEP, boxes, room
from wncli.tensors import DType, TensorSpec

#: Bytes of a block that is gathered: the larger, the longer the runs that it is gathered from.
_GATHERED = 8 << 20

Array = npt.NDArray[Any]


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """The NumPy dtype of one of the dtypes that weight norm is computed in."""
    name: type[Any] | str = str(dtype.torch)
    if dtype is DType.BF16:
        import ml_dtypes

        name = ml_dtypes.bfloat16
    return np.dtype(name)


def bytes_of(array: Array) -> memoryview:
    """The bytes of a contiguous array, not copied."""
    raw: Any = array.reshape(-1).view(np.uint8)
    return memoryview(raw)


class Block(NamedTuple):
    """A run of elements: `start` is its place in the order of traversal.

    `channel` is the first of the `shape[1]` channels in it. In memory it begins `offset` elements
    behind the tensor's first; `gathered` are its sizes over the last axes where it has gaps there.
    """

    start: int
    shape: tuple[int, int, int]
    channel: int
    offset: int
    gathered: tuple[int, ...] = ()


class TensorBlocks:
    """The blocks of one tensor.

    Args:
        source: the file that holds it.
        spec: the tensor.
        element: the NumPy dtype to read it as, of the size of `spec.dtype`.
        dim: the dim whose slices the blocks are seen in; None for the whole tensor.
        row_major: traverse in row-major order even where memory has another.
        use: what the blocks are for; those for one use share their memory in a thread.
    """

    def __init__(  # noqa: PLR0913 - a tensor and how to go through it
        self,
        source: Source,
        spec: TensorSpec,
        element: np.dtype[Any],
        dim: int | None = None,
        *,
        row_major: bool = False,
        use: str = "block",
    ) -> None:
        self.source = source
        self.spec = spec
        self.element = element
        self.use = use
        axes = tuple(range(len(spec.shape)))
        order = spec.memory_order
        if row_major and order != axes:
            order = None
        self.dense = order is not None
        self.shape, self.strides, self.dim = spec.shape, spec.strides, dim
        if order and order != axes:
            self.shape = tuple(spec.shape[axis] for axis in order)
            self.strides = tuple(spec.strides[axis] for axis in order)
            self.dim = None if dim is None else order.index(dim)
        self.slices = slices(self.shape, self.dim)
        outer, channels, inner = self.slices
        per_block = _elements(element)
        #: Whether each block has all of every slice that it has a part of.
        self.hold_whole_slices = self.dense and (
            outer * channels * inner <= per_block or (outer == 1 and inner <= per_block)
        )

    def __iter__(self) -> Iterator[Block]:
        return self._runs() if self.dense else self._gathered()

    def _runs(self) -> Iterator[Block]:
        _, channels, inner = self.slices
        for box in boxes(self.slices, _elements(self.element)):
            start = (box.outer.start * channels + box.channels.start) * inner + box.inner.start
            yield Block(start, box.shape, box.channels.start, start)

    def _gathered(self) -> Iterator[Block]:
        """Sub-tensors over the last axes, and as many rows of the axis before them as fit."""
        most = max(1, _GATHERED // self.element.itemsize)
        axes = 0
        while axes < len(self.shape) and math.prod(self.shape[axes:]) > most:
            axes += 1
        kept = max(axes - 1, 0)
        inner = math.prod(self.shape[axes:])
        rows = self.shape[kept] if axes else 1
        together = max(1, most // inner)
        for number, place in enumerate(itertools.product(*map(range, self.shape[:kept]))):
            first = sum(index * step for index, step in zip(place, self.strides, strict=False))
            for row in range(0, rows, together):
                part = self.shape
                if axes:
                    part = (min(together, rows - row), *self.shape[axes:])
                channel, seen = 0, slices(part, None)
                if self.dim is not None and self.dim < kept:
                    channel = place[self.dim]
                elif self.dim is not None:
                    channel = row if self.dim == kept else 0
                    seen = slices(part, self.dim - kept)
                offset = first + row * self.strides[kept]
                yield Block((number * rows + row) * inner, seen, channel, offset, part)

    def read(self, block: Block) -> Array:
        """The block's elements, in an array of its shape that the next read writes over."""
        data = room(self.use, math.prod(block.shape), self.element)
        if block.gathered:
            strides = self.strides[len(self.strides) - len(block.gathered) :]
            self._gather(data.reshape(block.gathered), block.offset, strides)
        else:
            self._read_into(data, block.offset)
        return data.reshape(block.shape)

    def _gather(self, out: Array, offset: int, strides: tuple[int, ...]) -> None:
        """Fill `out`, in one read where that takes little more than it holds, else axis by axis."""
        extent = 1 + sum((n - 1) * step for n, step in zip(out.shape, strides, strict=True))
        if extent * self.element.itemsize <= BLOCK or extent <= 2 * out.size:
            span = room(f"{self.use}, gathered", extent, self.element)
            self._read_into(span, offset)
            steps = [step * self.element.itemsize for step in strides]
            out[...] = np.lib.stride_tricks.as_strided(span, out.shape, steps)
            return
        axis = strides.index(max(strides))
        others = strides[:axis] + strides[axis + 1 :]
        for index in range(out.shape[axis]):
            inner = out[(slice(None),) * axis + (index,)]
            self._gather(inner, offset + index * strides[axis], others)

    def _read_into(self, data: Array, offset: int) -> None:
        place = self.spec.storage.offset + (self.spec.offset + offset) * self.element.itemsize
        self.source.read_into(place, bytes_of(data), f"tensor {self.spec.name!r}")


def _elements(element: np.dtype[Any]) -> int:
    """The most elements of a block that is a run: one step of the arithmetic."""
    return min(STEP, max(1, BLOCK // element.itemsize))
