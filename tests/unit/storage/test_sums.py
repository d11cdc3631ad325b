"""A checksum is that of all bytes, in whatever order, by however many threads they are read."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from wncli.storage.sums import Sum


@pytest.mark.parametrize("seed", range(30))
def test_runs_in_any_order_and_again_add_up_to_the_checksum(seed: int) -> None:
    random = Random(seed)  # noqa: S311
    data = random.randbytes(random.randrange(1, 3000))
    total = Sum(len(data))
    done = 0
    while total.left:
        if random.random() < 0.05:
            begin, end = random.choice(total.missing(0, len(data)))
        else:
            begin = random.randrange(len(data))
            end = min(len(data), begin + random.randrange(400))
        done += total.add(begin, memoryview(data)[begin:end])
    assert done == 1
    assert total.crc == zlib.crc32(data)
    assert total.missing(0, len(data)) == []


def test_what_is_missing_is_what_was_not_read() -> None:
    data = bytes(range(100))
    total = Sum(100)
    for begin, end in ((10, 20), (30, 40), (20, 25), (99, 100)):
        assert not total.add(begin, memoryview(data)[begin:end])
    assert total.missing(0, 100) == [(0, 10), (25, 30), (40, 99)]
    assert total.missing(12, 33) == [(25, 30)]
    assert total.missing(12, 18) == []


def test_threads_that_read_the_same_count_once() -> None:
    data = Random(0).randbytes(1 << 20)  # noqa: S311
    total = Sum(len(data))

    def read(seed: int) -> None:
        random = Random(seed)  # noqa: S311
        places = list(range(0, len(data), 4096))
        random.shuffle(places)
        for place in places:
            total.add(place, memoryview(data)[place : place + random.choice((4096, 5000))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    for begin, end in total.missing(0, len(data)):
        total.add(begin, memoryview(data)[begin:end])
    assert total.left == 0
    assert total.crc == zlib.crc32(data)
