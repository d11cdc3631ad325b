"""How far a tensor has moved as a whole, and of weight norm: how far its g, how far its v.

A slice with the norms `n` and `m` before and after, whose difference has the norm `d`, has turned
by the angle `t` of `sin(t/2)**2 = (d**2 - (n - m)**2) / (4 * n * m)`. Unlike the cosine it tells
small angles: from about 1e-8 of what the slice has moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wncli.arithmetic.double_double import Float64
from wncli.arithmetic.kernels import COMPILED, kernel
from wncli.arithmetic.norms import raw, unwarned
from wncli.arithmetic.tiles import boxes
from wncli.arithmetic.ulps import as_real
from wncli.checkpoint.dims import slices
from wncli.checkpoint.tensors import DType

Array = npt.NDArray[Any]

#: Elements that a step works on: a few arrays of as many float64 fit a cache.
_STEP = 32 * 1024
#: Sums of squares between these have lost nothing to over- or underflow that shows.
_SMALLEST, _LARGEST = 2.0**-900, 2.0**1000


class Moved(NamedTuple):
    """How far a tensor has moved.

    `before` is its norm and `change` that of the difference; infinite where a number has become
    infinite or the other way round, NaN where one has become NaN. `g_moved` is the largest change
    of a slice's norm as a share of it, with its sign, `v_turned` the largest angle between a slice
    and what it was, in degrees.
    """

    before: float
    change: float
    g_moved: float
    v_turned: float

    @property
    def share(self) -> float:
        """The change as a share of the norm."""
        return share(self.change, self.before)


def share(change: float, before: float) -> float:
    """Return a change as a share: 0 where nothing has changed, infinite where all was 0."""
    if not change or not math.isfinite(change):
        return change
    return change / before if before else math.inf


def norm_of(norms: Iterator[float]) -> float:
    """Return the norm of parts that have these; NaN where one is."""
    found = list(norms)
    return math.nan if any(map(math.isnan, found)) else math.hypot(*found)


class Movement:
    """Accumulates how far a tensor has moved, from runs in row-major order.

    NaN that meets NaN, and infinities that are equal, are left out on both sides.

    Args:
        shape: of the tensor.
        dim: whose slices are looked at one by one; None for the whole tensor.
    """

    def __init__(self, shape: tuple[int, ...], dim: int | None) -> None:
        _, self.channels, self.inner = slices(shape, dim)
        self.place = 0
        #: Of each slice: the norms before and after, and that of the difference.
        self.norms: Float64 = np.zeros((3, self.channels))

    @unwarned
    def add_same(self, run: Array, dtype: DType) -> None:
        """Accumulate elements that have not changed."""
        (run,) = as_real(run)
        for part, first, shape in self._pieces(run.size):
            found = _norms_by_kernel(run[part], shape, dtype)
            if found is not None and np.isfinite(found).all():
                self._combine(0, first, found)
                self._combine(1, first, found)
                continue
            for where, block in _blocks(run[part], shape):
                block[~np.isfinite(block)] = 0
                found = _norms(block)
                self._combine(0, first + where, found)
                self._combine(1, first + where, found)

    @unwarned
    def add(self, a: Array, b: Array, dtypes: tuple[DType, DType]) -> None:
        """Accumulate elements as they were and as they are."""
        a, b = as_real(a, b)
        for part, first, shape in self._pieces(a.size):
            stored = [
                _norms_by_kernel(run[part], shape, dtype)
                for run, dtype in zip((a, b), dtypes, strict=True)
            ]
            is_done = [found is not None and bool(np.isfinite(found).all()) for found in stored]
            for which, found in enumerate(stored):
                if found is not None and all(is_done):
                    self._combine(which, first, found)
            earlier, afters = _blocks(a[part], shape), _blocks(b[part], shape)
            for (where, before), (_, after) in zip(earlier, afters, strict=True):
                difference = before - after
                if not all(is_done):
                    odd = ~(np.isfinite(before) & np.isfinite(after))
                    same = odd & ((before == after) | (np.isnan(before) & np.isnan(after)))
                    for which, values in enumerate((before, after, difference)):
                        values[same] = 0
                        self._combine(which, first + where, _norms(values))
                else:
                    self._combine(2, first + where, _norms(difference))

    @unwarned
    def result(self) -> Moved:
        """Return how far it has moved, after its last run."""
        before, after, change = self.norms
        moved = np.where(after == before, 0.0, (after - before) / before)
        moved[np.isinf(before)] = np.nan
        small, large = np.minimum(before, after), np.maximum(before, after)
        # Over both norms, so that neither factor is beyond 1 and nothing overflows.
        apart = np.abs(before - after)
        squared = (change - apart) / (2 * small) * ((change + apart) / (2 * large))
        turned = np.degrees(2 * np.arcsin(np.sqrt(np.clip(squared, 0, 1))))
        turned = turned[small != 0]
        return Moved(
            norm_of(map(float, before)),
            norm_of(map(float, change)),
            float(moved[np.argmax(np.abs(moved))]) if moved.size else 0.0,
            float(turned.max(initial=0.0)),
        )

    def _pieces(self, size: int) -> Iterator[tuple[slice, int, tuple[int, int, int]]]:
        """Cut the next run where slices and rows of slices begin.

        Each piece has its place in the run, the number of its first slice, and its shape.
        """
        row, start, end = self.channels * self.inner, self.place, self.place + size
        while self.place < end:
            left = end - self.place
            segment, within = divmod(self.place, self.inner)
            channel = segment % self.channels
            if within or left < self.inner:
                shape = 1, 1, min(self.inner - within, left)
            elif channel or left < row:
                shape = 1, min(self.channels - channel, left // self.inner), self.inner
            else:
                shape = left // row, self.channels, self.inner
            at = self.place - start
            self.place += math.prod(shape)
            yield slice(at, self.place - start), channel, shape

    def _combine(self, which: int, first: int, found: Float64) -> None:
        held = self.norms[which, first : first + len(found)]
        is_nan = np.isnan(held) | np.isnan(found)
        np.hypot(held, found, out=held)
        held[is_nan] = np.nan  # which an infinity would hide


def _blocks(run: Array, shape: tuple[int, int, int]) -> Iterator[tuple[int, Float64]]:
    """Cut a piece into blocks that fit a cache, as float64, each with its first slice."""
    piece = run.reshape(shape)
    for box in boxes(shape, _STEP):
        block = piece[box.outer, box.channels, box.inner]
        yield box.channels.start, block.astype(np.float64)


def _norms(block: Float64) -> Float64:
    """Return the norm of each slice of `(outer, channels, inner)`."""
    sums: Float64 = (block * block).sum(axis=2).sum(axis=0)
    if ((sums > _SMALLEST) & (sums < _LARGEST)).all():
        return np.sqrt(sums)
    peak = np.abs(block).max(axis=(0, 2))
    scale = np.where((peak > 0) & np.isfinite(peak), peak, 1.0)
    scaled = block / scale[:, None]
    norms: Float64 = scale * np.sqrt((scaled * scaled).sum(axis=2).sum(axis=0))
    return norms


def _norms_by_kernel(run: Array, shape: tuple[int, int, int], dtype: DType) -> Float64 | None:
    """Return the same of elements as they are stored; None where there are no loops for them."""
    if kernel is None or dtype not in COMPILED:
        return None
    sums = memoryview(bytearray(16 * shape[1]))
    kernel.add_squares(dtype.name, raw(run), sums, shape[2])
    pairs = np.frombuffer(sums).reshape(-1, 2)
    found: Float64 = np.sqrt(pairs[:, 0] + pairs[:, 1])
    return found
