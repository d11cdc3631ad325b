"""The checksum that zip files record, from zlib-ng; from zlib where that is not installed."""

from __future__ import annotations

from functools import lru_cache

try:
    from zlib_ng.zlib_ng import ZLIBNG_VERSION, crc32

    LIBRARY = f"zlib-ng {ZLIBNG_VERSION}"
except ImportError:
    from zlib import ZLIB_RUNTIME_VERSION, crc32

    LIBRARY = f"zlib {ZLIB_RUNTIME_VERSION}"

__all__ = ["LIBRARY", "crc32", "moved_on"]

#: The polynomial, its bits reversed, and 1 and x as such.
_POLYNOMIAL = 0xEDB88320
_ONE, _X = 1 << 31, 1 << 30


def moved_on(checksum: int, nbytes: int) -> int:
    """Return what bytes of this checksum add to that of a run in which `nbytes` follow them.

    The checksum of A and B together is `moved_on(crc32(A), len(B)) ^ crc32(B)`: multiplied by x to
    the power of the bits, modulo the polynomial (zlib `crc32.c`, `crc32_combine`).
    """
    return _multiply(_power(nbytes), checksum)


@lru_cache(maxsize=1024)  # the layers of a model share a few sizes
def _power(nbytes: int) -> int:
    found, square = _ONE, _X
    for _ in range(3):
        square = _multiply(square, square)
    while nbytes:
        if nbytes & 1:
            found = _multiply(square, found)
        square = _multiply(square, square)
        nbytes >>= 1
    return found


def _multiply(one: int, other: int) -> int:
    found = 0
    while one:
        if one & _ONE:
            found ^= other
        one = one << 1 & 0xFFFFFFFF
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return found
