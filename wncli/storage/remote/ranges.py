"""What a file at a distance has to offer: its size, and parts of it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

#: Bytes of the first request, and of every one for something small.
WINDOW = 64 << 10
#: Bytes of a request for data.
PIECE = 8 << 20


class RemoteFile(Protocol):
    """A file of which parts are asked for, from any thread, and which stays the same meanwhile."""

    name: str

    @property
    def mark(self) -> str:
        """What the server tells versions of the file apart by, once it has begun."""

    def begin(self) -> tuple[int, bytes]:
        """Ask for the first `WINDOW` bytes, and return the size of the file with them."""

    def fetch(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with what is at `offset`, by one request.

        Raises:
            FileError: it cannot be read any more, or is another file by now.
        """

    def download(self) -> Path | None:
        """Have all of it on this machine; None where it is read part by part."""
