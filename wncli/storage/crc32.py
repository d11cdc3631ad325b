"""The checksum that zip files record, from zlib-ng; from zlib where that is not installed."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import ZLIBNG_VERSION, crc32

    LIBRARY = f"zlib-ng {ZLIBNG_VERSION}"
except ImportError:
    from zlib import ZLIB_RUNTIME_VERSION, crc32

    LIBRARY = f"zlib {ZLIB_RUNTIME_VERSION}"

__all__ = ["LIBRARY", "crc32"]
