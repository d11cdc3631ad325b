"""Reads bytes at places of a file that is taken as hostile: short reads are refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from wncli.errors import FileError, FormatError

#: The most bytes that are read at a time: large enough that a system call costs nothing, small
#: enough for a core's cache.
BLOCK = 1 << 20


#: Bytes that are taken into memory at once, whether or not they are on the disk.
_MOST_UNSTORED = 32 << 20


def refuse_holes(descriptor: int, offset: int, count: int, where: str, what: str) -> None:
    """Hold what a run of bytes takes in memory against what it takes on the disk.

    Of a file of holes, which read as zeros, a few kilobytes can claim to be gigabytes.

    Raises:
        FormatError: more than a few megabytes of it are stored nowhere.
    """
    if count <= _MOST_UNSTORED or not hasattr(os, "SEEK_DATA"):
        return
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    stored, place, end = 0, offset, offset + count
    try:
        while place < end:
            begin = os.lseek(descriptor, place, os.SEEK_DATA)
            place = os.lseek(descriptor, begin, os.SEEK_HOLE)
            stored += max(0, min(place, end) - begin)
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that no more is stored
            return
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
    if count - stored > _MOST_UNSTORED:
        raise FormatError(
            where,
            f"{what} is a hole in the file",
            expected="bytes that are stored",
            found=f"{stored:,} of {count:,}",
            hint="copy or download the file again",
        )


class Source:
    """An input file that is open for reading.

    `file` is for reading headers in turn; `read_at` and `read_into` read anywhere and from any
    thread. `number` is its place among the files that make up a checkpoint.
    """

    def __init__(self, path: Path, file: IO[bytes], number: int = 0) -> None:
        self.path = path
        self.file = file
        self.number = number
        self.descriptor = file.fileno()
        self.nbytes = os.fstat(self.descriptor).st_size

    @property
    def where(self) -> str:
        """The file's name as it is shown in refusals."""
        return str(self.path)

    def read_at(self, offset: int, count: int, what: str) -> bytes:
        """Exactly `count` bytes at `offset`.

        Raises:
            FormatError: the file ends before; `what` says what was to be read.
            FileError: the system cannot read it.
        """
        if offset < 0 or count < 0 or offset + count > self.nbytes:
            raise self.truncated(what, offset + count)
        try:
            data = os.pread(self.descriptor, count, offset)
        except OSError as error:
            raise unreadable(self.where, error) from None
        if len(data) == count:
            return data
        whole = bytearray(count)  # the system may give less: Linux no more than 2 GB at a time
        self.read_into(offset, memoryview(whole), what)
        return bytes(whole)

    def read_stored(self, offset: int, count: int, what: str) -> bytes:
        """As `read_at`, for what is read whole: it must not be a hole in the file.

        Raises:
            FormatError: the file ends before, or the bytes are stored nowhere.
            FileError: the system cannot read it.
        """
        if offset + count <= self.nbytes:
            refuse_holes(self.descriptor, offset, count, self.where, what)
        return self.read_at(offset, count, what)

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on.

        Raises:
            FormatError: the file ends before.
            FileError: the system cannot read it.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise unreadable(self.where, error) from None
            if not count:
                raise self.truncated(what, offset + len(buffer))
            done += count

    def truncated(self, what: str, needed: int) -> FormatError:
        """The refusal of a file that ends inside `what`."""
        return FormatError(
            self.where,
            f"the file ends inside {what}",
            expected=f"at least {needed:,} bytes",
            found=f"{os.fstat(self.descriptor).st_size:,} bytes",
            hint="copy or download it again: it is truncated",
        )


#: The files of one checkpoint, each at the place that its number says.
Sources = Sequence[Source]


def unreadable(where: str, error: OSError) -> FileError:
    """The refusal of a file that the system does not let be read."""
    return FileError(where, f"cannot be read ({os.strerror(error.errno or 0)})")
