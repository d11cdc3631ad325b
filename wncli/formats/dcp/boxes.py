"""Boxes that a tensor is cut into: whether they cover it, and which bytes of them a run needs.

A tensor is seen here in as few axes as tell its chunks apart: one that each chunk has whole is
counted with the one before it, and the last one counts bytes. Rows of a matrix are then runs of one
axis, whatever the rank.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from wncli.checkpoint.parts import Chunk

#: Axes along which chunks are cut; meshes have two or three.
MOST_CUT = 8

_Place = tuple[int, ...]


class Box(NamedTuple):
    """A box of a grid: where it begins and how large it is along each axis; its chunk's number."""

    begin: _Place
    size: _Place
    chunk: int


class Grid(NamedTuple):
    """A tensor in boxes, sorted by where they begin along `axis`, the first that tells them apart.

    `begins` are these places, and `longest` is the largest size along that axis.
    """

    shape: _Place
    boxes: tuple[Box, ...]
    axis: int
    begins: tuple[int, ...]
    longest: int


class Part(NamedTuple):
    """A run of a chunk, row-major, that is a box of what is read.

    Attributes:
        chunk: the number of the chunk.
        place: where in the chunk the run begins, in bytes.
        size: of the box that it is.
        target: where in the buffer the block begins that this box is part of, in bytes.
        block: the size of that block; along all axes but one it is 1, or whole.
        within: where in the block the box begins.
    """

    chunk: int
    place: int
    size: _Place
    target: int
    block: _Place
    within: _Place

    @property
    def nbytes(self) -> int:
        """Bytes of the box."""
        return math.prod(self.size)

    @property
    def block_nbytes(self) -> int:
        """Bytes of the block."""
        return math.prod(self.block)

    @property
    def is_run(self) -> bool:
        """Whether the box is one run of bytes in the block as well."""
        axis = next((axis for axis, size in enumerate(self.size) if size > 1), len(self.size))
        return self.size[axis + 1 :] == self.block[axis + 1 :]

    @property
    def start(self) -> int:
        """Where in the buffer the box begins."""
        return self.target + _linear(self.within, self.block)


def covers(shape: _Place, chunks: Sequence[Chunk]) -> bool:
    """Whether chunks inside a tensor of this shape cover each of its elements once.

    Of a box, the corners with alternating signs are the mixed difference of the function that is 1
    in it and 0 elsewhere; those functions add up to that of the tensor where their differences do.
    """
    cut = [
        axis
        for axis, whole in enumerate(shape)
        if any(chunk.sizes[axis] != whole for chunk in chunks)
    ]
    full = [chunk for chunk in chunks if math.prod(chunk.sizes)]
    if not math.prod(shape):
        return not full
    if len(cut) == 1:
        (axis,) = cut
        return _follow(
            sorted((chunk.offsets[axis], chunk.sizes[axis]) for chunk in full), shape[axis]
        )
    if len(cut) > MOST_CUT:
        return False
    corners: Counter[_Place] = Counter()
    for chunk in full:
        _add_corners(corners, [(chunk.offsets[axis], chunk.sizes[axis]) for axis in cut], 1)
    _add_corners(corners, [(0, shape[axis]) for axis in cut], -1)
    return not any(corners.values())


def _follow(sides: Iterable[tuple[int, int]], end: int) -> bool:
    """Whether these runs, sorted, follow each other from 0 on to the end."""
    place = 0
    for begin, size in sides:
        if begin != place:
            return False
        place += size
    return place == end


def _add_corners(corners: Counter[_Place], sides: Sequence[tuple[int, int]], sign: int) -> None:
    found: list[tuple[_Place, int]] = [((), sign)]
    for begin, size in sides:
        found = [
            (((*corner, begin + side * size)), -value if side else value)
            for corner, value in found
            for side in (0, 1)
        ]
    for corner, value in found:
        corners[corner] += value


def make_grid(shape: _Place, itemsize: int, chunks: Sequence[Chunk]) -> Grid:
    """Return the grid of a tensor, without the chunks that are empty."""
    full = [
        (number, chunk) for number, chunk in enumerate(chunks) if all(size for size in chunk.sizes)
    ]
    heads = [
        axis
        for axis, whole in enumerate(shape)
        if not axis or any(chunk.sizes[axis] != whole for _, chunk in full)
    ] or [0]
    ends = [*heads[1:], max(1, len(shape))]
    steps = [math.prod(shape[head + 1 : end]) for head, end in zip(heads, ends, strict=True)]
    steps[-1] *= itemsize

    def merged(place: _Place) -> _Place:
        known = place or (1,)  # a tensor without dims has one element
        return tuple(known[head] * step for head, step in zip(heads, steps, strict=True))

    boxes = [
        Box(merged(chunk.offsets or (0,)), merged(chunk.sizes), number) for number, chunk in full
    ]
    axis = next(
        (axis for axis in range(len(heads)) if len({box.begin[axis] for box in boxes}) > 1), 0
    )
    boxes.sort(key=lambda box: box.begin[axis])
    return Grid(
        merged(shape),
        tuple(boxes),
        axis,
        tuple(box.begin[axis] for box in boxes),
        max((box.size[axis] for box in boxes), default=0),
    )


def parts_of(grid: Grid, begin: int, end: int) -> Iterator[Part]:
    """Give what the bytes of a tensor from `begin` to `end` are made of."""
    target = 0
    for start, size in _blocks(grid.shape, begin, end):
        first = bisect_left(grid.begins, start[grid.axis] - grid.longest + 1)
        last = bisect_left(grid.begins, start[grid.axis] + size[grid.axis])
        for box in grid.boxes[first:last]:
            part = _shared(box, start, size, target)
            if part:
                yield part
        target += math.prod(size)


def _blocks(shape: _Place, begin: int, end: int) -> Iterator[tuple[_Place, _Place]]:
    """Give the blocks of a run, each with where it begins and its size; in order.

    A block has size 1 along some axes, is a part of the next one, and has the others whole.
    """
    if len(shape) == 1:
        yield (begin,), (end - begin,)
        return
    row = math.prod(shape[1:])
    first, last = begin // row, end // row
    start, rest = begin - first * row, end - last * row
    if first == last:
        for place, size in _blocks(shape[1:], start, rest):
            yield (first, *place), (1, *size)
        return
    if start:
        for place, size in _blocks(shape[1:], start, row):
            yield (first, *place), (1, *size)
        first += 1
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if rest:
        for place, size in _blocks(shape[1:], 0, rest):
            yield (last, *place), (1, *size)


def _shared(box: Box, start: _Place, size: _Place, target: int) -> Part | None:
    """Return what a box has of a block; None where that is nothing."""
    low: list[int] = []
    shared: list[int] = []
    for begin, whole, at, count in zip(box.begin, box.size, start, size, strict=True):
        most = max(begin, at)
        common = min(begin + whole, at + count) - most
        if common <= 0:
            return None
        low.append(most)
        shared.append(common)
    inside = tuple(place - begin for place, begin in zip(low, box.begin, strict=True))
    within = tuple(place - at for place, at in zip(low, start, strict=True))
    return Part(box.chunk, _linear(inside, box.size), tuple(shared), target, size, within)


def _linear(place: _Place, shape: _Place) -> int:
    found = 0
    for at, size in zip(place, shape, strict=True):
        found = found * size + at
    return found
