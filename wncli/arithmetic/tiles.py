"""Cuts tensors into runs that fit a core's cache, and has the memory to work on them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

#: Elements that one step of the arithmetic works on: fewer cost calls, more cost the cache.
STEP = 128 * 1024

_thread = threading.local()


def memory(use: str, nbytes: int) -> memoryview:
    """Return the same memory for each use in a thread: new pages cost more than many a step."""
    found: memoryview | None = getattr(_thread, use, None)
    if found is None or len(found) < nbytes:
        found = memoryview(bytearray(nbytes))
        setattr(_thread, use, found)
    return found[:nbytes]


class Box(NamedTuple):
    """A contiguous block of a tensor seen as `(outer, channels, inner)`."""

    outer: slice
    channels: slice
    inner: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """Sizes of the block."""
        o, c, i = self.outer, self.channels, self.inner
        return o.stop - o.start, c.stop - c.start, i.stop - i.start


def boxes(shape: tuple[int, ...], limit: int) -> Iterator[Box]:
    """Cut `(outer, channels, inner)` into row-major runs of at most `limit` elements."""
    outer, channels, inner = shape
    if 0 < outer * channels * inner <= limit:
        yield Box(slice(0, outer), slice(0, channels), slice(0, inner))
        return
    if not outer * channels * inner:
        return
    inners = min(inner, limit)
    cs = min(channels, max(1, limit // inner)) if inners == inner else 1
    os = min(outer, max(1, limit // (channels * inner))) if cs == channels else 1
    for o in range(0, outer, os):
        for c in range(0, channels, cs):
            for i in range(0, inner, inners):
                yield Box(
                    slice(o, min(o + os, outer)),
                    slice(c, min(c + cs, channels)),
                    slice(i, min(i + inners, inner)),
                )
