"""The checksum that zip files record, from the fastest library that is there.

Intel's ISA-L (`pip install wncli[fast]`) sums up 74 GB/s where the zlib of most systems does 4.
"""

from __future__ import annotations

try:
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = ["crc32"]
