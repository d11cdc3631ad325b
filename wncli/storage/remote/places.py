"""What an address leads to: a file, or a folder of files of one revision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from wncli.errors import FileError
from wncli.storage.addresses import Address
from wncli.storage.source import FileSource


class MissingError(FileError):
    """There is no such file; something else may be at that place."""


class RemotePlace(Protocol):
    """A place at a distance, and what stays open for reading from it."""

    address: Address

    def file(self) -> FileSource:
        """Open the file that the address is of.

        Raises:
            MissingError: there is none.
            FileError: it cannot be read.
        """

    def names(self) -> Sequence[str] | None:
        """List the files of the folder that the address is of; None where it cannot be one."""

    def open(self, name: str, number: int = 0) -> FileSource:
        """Open a file of that folder, or one beside the file that the address is of.

        Raises:
            FileError: it cannot be read.
        """

    def near(self) -> Sequence[str]:
        """List addresses of files there that may be meant by one that is missing."""

    def companions(self) -> Sequence[str]:
        """List the files of the folder that `open` opens files of, where that can be known."""

    def read(self, name: str) -> bytes:
        """Return all that is in a file of that folder.

        Raises:
            FileError: it cannot be read.
        """

    def close(self) -> None:
        """Let go of all connections."""


def read_all(source: FileSource) -> bytes:
    """Return all that a file has, and close it."""
    try:
        return source.read_at(0, source.nbytes, "the file")
    finally:
        source.close()
