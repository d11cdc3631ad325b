"""Reads a tensor block by block, so that no tensor needs to fit into memory.

A block is a run of the tensor in its order of traversal, seen as `(outer, channels, inner)` from
the dim of its weight norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wncli.dims import slices
from wncli.formats.files import Source
from wncli.norms import boxes, room
from wncli.tensors import DType, TensorSpec

#: Bytes of a block: large enough that a system call costs nothing, small enough for a core's cache.
BLOCK = 1 << 20

Array = npt.NDArray[Any]


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


@dataclass(frozen=True, slots=True)
class Block:
    """A run of elements: `start` is its place in the order of traversal.

    `channel` is the first of the `shape[1]` channels in it. In memory it begins `offset` elements
    behind the tensor's first; gathered ones span `extent` elements, over the axes from `axes` on.
    """

    start: int
    shape: tuple[int, int, int]
    channel: int
    offset: int
    extent: int
    axes: int


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
        order = spec.memory_order
        if row_major and not spec.is_contiguous:
            order = None
        self.dense = order is not None
        order = order or tuple(range(len(spec.shape)))
        self.shape = tuple(spec.shape[axis] for axis in order)
        self.strides = tuple(spec.strides[axis] for axis in order)
        self.dim = None if dim is None else order.index(dim)
        self.slices = slices(self.shape, self.dim)
        outer, channels, inner = self.slices
        per_block = max(1, BLOCK // element.itemsize)
        #: Whether each block has all of every slice that it has a part of.
        self.hold_whole_slices = self.dense and (
            outer * channels * inner <= per_block or (outer == 1 and inner <= per_block)
        )

    def __iter__(self) -> Iterator[Block]:
        return self._runs() if self.dense else self._gathered()

    def _runs(self) -> Iterator[Block]:
        _, channels, inner = self.slices
        for box in boxes(self.slices, max(1, BLOCK // self.element.itemsize)):
            start = (box.outer.start * channels + box.channels.start) * inner + box.inner.start
            yield Block(start, box.shape, box.channels.start, start, 0, 0)

    def _gathered(self) -> Iterator[Block]:
        """Sub-tensors over the last axes, as many as span no more than a block."""
        size = self.element.itemsize
        axes = 0
        while (
            axes < len(self.shape)
            and max(self._extent(axes), math.prod(self.shape[axes:])) * size > BLOCK
        ):
            axes += 1
        shape = self.shape[axes:]
        extent = self._extent(axes)
        channelled = self.dim is not None and self.dim >= axes
        seen = slices(shape, self.dim - axes if channelled and self.dim is not None else None)
        numel = math.prod(shape)
        for number, place in enumerate(itertools.product(*map(range, self.shape[:axes]))):
            first = sum(index * step for index, step in zip(place, self.strides, strict=False))
            channel = 0 if channelled or self.dim is None else place[self.dim]
            yield Block(number * numel, seen, channel, first, extent, axes)

    def _extent(self, axes: int) -> int:
        """Elements from the first to the last of a sub-tensor over the axes from `axes` on."""
        pairs = zip(self.shape[axes:], self.strides[axes:], strict=True)
        return 1 + sum((size - 1) * step for size, step in pairs)

    def read(self, block: Block) -> Array:
        """The block's elements, in an array of its shape that the next read writes over."""
        name = f"tensor {self.spec.name!r}"
        start = (self.spec.offset + block.offset) * self.element.itemsize
        count = block.extent or math.prod(block.shape)
        data = room(self.use, count, self.element)
        self.source.read_into(self.spec.storage.offset + start, bytes_of(data), name)
        if block.extent:
            strides = [step * self.element.itemsize for step in self.strides[block.axes :]]
            data = np.lib.stride_tricks.as_strided(data, self.shape[block.axes :], strides)
        return data.reshape(block.shape)
