"""Reads a tensor block by block, so that no tensor needs to fit into memory.

A block is a run of the tensor in its order of traversal, seen as `(outer, channels, inner)` from
the dim of its weight norm.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from wncli.arithmetic.tiles import STEP, boxes, memory
from wncli.checkpoint.dims import slices
from wncli.checkpoint.tensors import TensorSpec
from wncli.storage.source import BLOCK, Source

if TYPE_CHECKING:
    # Where there are compiled loops, most of what this is read for needs no NumPy.
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

#: Bytes of a block that is gathered: the larger, the longer the runs that it is gathered from.
_GATHERED = 8 << 20
#: Bytes of NumPy's widest integer; it moves them faster than bytes without a meaning.
_WIDEST_NUMBER = 8


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
        dim: the dim whose slices the blocks are seen in; None for the whole tensor.
        row_major: traverse in row-major order even where memory has another.
        use: what the blocks are for; those for one use share their memory in a thread.
    """

    def __init__(
        self,
        source: Source,
        spec: TensorSpec,
        dim: int | None = None,
        *,
        row_major: bool = False,
        use: str = "block",
    ) -> None:
        self.source = source
        self.spec = spec
        self.itemsize = spec.dtype.itemsize
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
        per_block = self._most()
        #: Whether each block has all of every slice that it has a part of.
        self.hold_whole_slices = self.dense and (
            outer * channels * inner <= per_block or (outer == 1 and inner <= per_block)
        )

    def __iter__(self) -> Iterator[Block]:
        return self._runs() if self.dense else self._gathered()

    def _runs(self) -> Iterator[Block]:
        _, channels, inner = self.slices
        for box in boxes(self.slices, self._most()):
            start = (box.outer.start * channels + box.channels.start) * inner + box.inner.start
            yield Block(start, box.shape, box.channels.start, start)

    def _gathered(self) -> Iterator[Block]:
        """Sub-tensors over the last axes, and as many rows of the axis before them as fit."""
        most = max(1, _GATHERED // self.itemsize)
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

    def read(self, block: Block, element: np.dtype[Any]) -> Array:
        """Return the block's elements, in an array of its shape that the next read writes over.

        Args:
            block: one of these.
            element: what to read them as, of the size of the tensor's dtype.
        """
        import numpy as np

        return np.frombuffer(self.read_bytes(block), element).reshape(block.shape)

    def read_bytes(self, block: Block) -> memoryview:
        """Read the block's elements one after the other; the next read writes over them."""
        data = memory(self.use, math.prod(block.shape) * self.itemsize)
        if block.gathered:
            import numpy as np

            strides = self.strides[len(self.strides) - len(block.gathered) :]
            element = f"u{self.itemsize}" if self.itemsize <= _WIDEST_NUMBER else "V16"
            elements = np.frombuffer(data, element).reshape(block.gathered)
            self._gather(elements, block.offset, strides)
        else:
            self._read_into(data, block.offset)
        return data

    def _gather(self, out: Array, offset: int, strides: tuple[int, ...]) -> None:
        """Fill `out`, in one read where that takes little more than it holds, else axis by axis."""
        import numpy as np

        extent = 1 + sum((n - 1) * step for n, step in zip(out.shape, strides, strict=True))
        if extent * self.itemsize <= BLOCK or extent <= 2 * out.size:
            span = memory(f"{self.use}, gathered", extent * self.itemsize)
            self._read_into(span, offset)
            elements = np.frombuffer(span, out.dtype)
            steps = [step * self.itemsize for step in strides]
            out[...] = np.lib.stride_tricks.as_strided(elements, out.shape, steps)
            return
        axis = strides.index(max(strides))
        others = strides[:axis] + strides[axis + 1 :]
        for index in range(out.shape[axis]):
            inner = out[(slice(None),) * axis + (index,)]
            self._gather(inner, offset + index * strides[axis], others)

    def _read_into(self, data: memoryview, offset: int) -> None:
        place = self.spec.storage.offset + (self.spec.offset + offset) * self.itemsize
        self.source.read_into(place, data, f"tensor {self.spec.name!r}")

    def _most(self) -> int:
        """Return the most elements of a block that is a run: one step of the arithmetic."""
        return min(STEP, max(1, BLOCK // self.itemsize))
