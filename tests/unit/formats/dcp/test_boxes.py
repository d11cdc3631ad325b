"""Whether boxes cover a tensor, counted element by element; and what runs of bytes are made of."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from wncli.checkpoint.parts import Chunk, Item
from wncli.formats.dcp.boxes import covers, make_grid, parts_of

Side = tuple[int, ...]


def chunk(offsets: Side, sizes: Side) -> Chunk:
    return Chunk(offsets, sizes, Item(0, 0, 1))


def at_random(random: Random, shape: Side) -> list[Chunk]:
    """Boxes that are cut one out of another, and sometimes moved, left out, or there twice."""
    made = [((0,) * len(shape), shape)]
    for _ in range(random.randrange(6)):
        offsets, sizes = made.pop(random.randrange(len(made)))
        axis = random.randrange(len(shape))
        at = random.randrange(sizes[axis] + 1)
        first, second = list(sizes), list(sizes)
        first[axis], second[axis] = at, sizes[axis] - at
        behind = list(offsets)
        behind[axis] += at
        made += [(offsets, tuple(first)), (tuple(behind), tuple(second))]
    if random.random() < 0.3:
        made.pop(random.randrange(len(made)))
    if random.random() < 0.3 and made:
        made.append(random.choice(made))
    if random.random() < 0.3 and made:
        offsets, sizes = made.pop()
        moved = (max(0, at + random.choice((-1, 0, 1))) for at in offsets)
        inside = tuple(
            min(at, whole - size) for at, whole, size in zip(moved, shape, sizes, strict=True)
        )
        made.append((inside, sizes))
    return [chunk(*box) for box in made]


@pytest.mark.parametrize("seed", range(40))
def test_boxes_cover_a_tensor_where_each_element_is_in_one(seed: int) -> None:
    random = Random(seed)  # noqa: S311
    for _ in range(30):
        shape = tuple(random.randrange(1, 5) for _ in range(random.randrange(1, 4)))
        boxes = at_random(random, shape)
        counts = np.zeros(shape, int)
        for box in boxes:
            region = tuple(
                slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True)
            )
            counts[region] += 1
        assert covers(shape, boxes) == bool((counts == 1).all()), (shape, boxes)


def test_what_has_no_dims_or_no_elements_is_covered_by_one_or_none() -> None:
    assert covers((), [chunk((), ())])
    assert not covers((), [])
    assert not covers((), [chunk((), ())] * 2)
    assert covers((0, 3), [])
    assert covers((0, 3), [chunk((0, 0), (0, 3)), chunk((0, 1), (0, 2))])
    assert covers((3,), [chunk((0,), (3,)), chunk((3,), (0,))])


@pytest.mark.parametrize("seed", range(20))
def test_a_run_is_made_of_runs_of_the_chunks(seed: int) -> None:
    """Every byte of any run stands where its part says, in the chunk and in the buffer."""
    random = Random(seed)  # noqa: S311
    found = 0
    while found < 10:
        shape = tuple(random.randrange(1, 5) for _ in range(random.randrange(1, 4)))
        chunks = at_random(random, shape)
        if not covers(shape, chunks):
            continue
        found += 1
        itemsize = random.choice((1, 2, 4))
        whole = np.random.default_rng(seed).integers(0, 256, (*shape, itemsize), np.uint8)
        stored = [
            whole[tuple(slice(a, a + s) for a, s in zip(c.offsets, c.sizes, strict=True))].tobytes()
            for c in chunks
        ]
        grid = make_grid(shape, itemsize, chunks)
        begin = random.randrange(whole.size)
        end = random.randrange(begin, whole.size) + 1
        buffer = np.zeros(end - begin, np.uint8)
        for part in parts_of(grid, begin, end):
            data = np.frombuffer(stored[part.chunk], np.uint8)[part.place :][: part.nbytes]
            block = buffer[part.target :][: part.block_nbytes].reshape(part.block)
            region = tuple(
                slice(at, at + size) for at, size in zip(part.within, part.size, strict=True)
            )
            block[region] = data.reshape(part.size)
            if part.is_run:
                assert (buffer[part.start :][: part.nbytes] == data).all()
        assert buffer.tobytes() == whole.tobytes()[begin:end]
