"""The checksum that zip files record: compiled where that is there, else that of zlib."""

from __future__ import annotations

try:
    from wncli.arithmetic.kernels.kernel import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
