"""Where bytes are read from, and go to: a file here is the first kind of it.

A file is taken as hostile: short reads are refused.
"""

from __future__ import annotations

import errno
import io
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from wncli.checkpoint.tensors import Storage
from wncli.errors import FileError, FormatError

#: The most bytes that are read at a time: large enough that a system call costs nothing, small
#: enough for a core's cache.
BLOCK = 1 << 20
#: Whether the system reads and writes at places by itself. Else a file's threads take turns.
_HAS_PLACES = hasattr(os, "preadv") and hasattr(os, "pwrite")
#: Bytes that are taken into memory at once, whether or not they are on the disk.
_MOST_UNSTORED = 32 << 20


class Source(Protocol):
    """Bytes that can be read at any place, and from any thread: one file of a checkpoint.

    `name` is what it is called in refusals, `nbytes` its size, and `number` its place among the
    files that make up a checkpoint. `what` says what was to be read where it cannot be.
    """

    name: str
    nbytes: int
    number: int

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`.

        Raises:
            FormatError: the file ends before.
            FileError: the system cannot read it.
        """

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on.

        Raises:
            FormatError: the file ends before.
            FileError: the system cannot read it.
        """

    def close(self) -> None:
        """Let go of it: what is open cannot be replaced on every system."""


class OnDisk:
    """A source that is on a disk, where files can have holes."""

    def count_stored(self, offset: int, nbytes: int) -> int:
        """Count the bytes of a run that are stored, and no hole in the file."""
        raise NotImplementedError


class Finishing:
    """A source that holds what is read from it against checksums."""

    def finish(self) -> None:
        """Read what is left of what has been read in part.

        Raises:
            FormatError: it is damaged.
        """
        raise NotImplementedError


class Verified(Finishing):
    """One that does so whenever it is read, and knows all that there is to hold against them."""

    def checked(self) -> Sequence[tuple[str, int]]:
        """Name all that has a checksum, each with its bytes; what is no such is left to reading."""
        raise NotImplementedError

    def is_damaged(self, number: int) -> bool:
        """Whether one of these is not what was written; what has not been read of it is read."""
        raise NotImplementedError

    def excuse(self, number: int) -> None:
        """Refuse one of these no more."""
        raise NotImplementedError


class Stamped:
    """A source of files that can be told from others of their names."""

    def stamps(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        """Return each file's name, and numbers that tell it from others."""
        raise NotImplementedError


class Sink(Protocol):
    """Where an output of known size is written, at any place and from any thread.

    Both raise OSError where the system does not let them.
    """

    nbytes: int

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, to begin at `offset`."""

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read what has been written there."""


class _LocalFile:
    """An open file that is read and written at places, from any thread."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.nbytes = os.fstat(file.fileno()).st_size
        self.lock = threading.Lock()

    def read_some(self, offset: int, buffer: memoryview) -> int:
        """Read as many bytes as the system gives at once."""
        if _HAS_PLACES:
            return os.preadv(self.file.fileno(), [buffer], offset)
        with self.lock:
            self.file.seek(offset)
            return self.file.readinto(buffer)

    def write_some(self, offset: int, data: memoryview) -> int:
        """Write as many bytes as the system takes at once."""
        if _HAS_PLACES:
            return os.pwrite(self.file.fileno(), data, offset)
        with self.lock:
            self.file.seek(offset)
            return self.file.write(data)


class Folder(Protocol):
    """The folder at a distance that a checkpoint is; what goes with it can be read from there."""

    def companions(self) -> Sequence[str]:
        """List the files in it."""

    def read(self, name: str) -> bytes:
        """Return all that is in one of them."""


class FileSource(Stamped):
    """A file that is read, or `nbytes` of it from `begin` on, wherever it is.

    Behind its end, at places that are nowhere else, can stand what is in it in another form.
    """

    #: Whether each reading may take a request to another machine.
    is_remote = False
    #: The folder, or that of the index, which the checkpoint is, where it is at a distance.
    folder: Folder | None = None

    def __init__(self, name: str, nbytes: int, number: int = 0, begin: int = 0) -> None:
        self.name = name
        #: What tells the file from others of its name: its size, and when it was changed.
        self.stamp: tuple[int, ...] = (nbytes,)
        self.nbytes = nbytes
        self.number = number
        self.begin = begin
        #: Where what is unpacked begins, how many bytes each has, and what gives them.
        self.starts: list[int] = []
        self.sizes: list[int] = []
        self.unpacking: list[Callable[[int, int], bytes]] = []

    def append(self, nbytes: int, unpack: Callable[[int, int], bytes]) -> int:
        """Have `nbytes` stand behind the end, and return where; `unpack` gives parts of them.

        It is called with the first byte of a part, and how many that are. Between two such there
        is a gap, so that none goes on where another ends.
        """
        start = (self.starts[-1] + self.sizes[-1] if self.starts else self.nbytes) + 1
        self.starts.append(start)
        self.sizes.append(nbytes)
        self.unpacking.append(unpack)
        return start

    def _read_unpacked(self, offset: int, nbytes: int, what: str) -> bytes:
        number = bisect_right(self.starts, offset) - 1
        place = offset - self.starts[number]
        if number < 0 or place + nbytes > self.sizes[number]:
            raise truncated(self, what, offset + nbytes)
        return self.unpacking[number](place, nbytes)

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        if self.starts and offset > self.nbytes:
            return self._read_unpacked(offset, nbytes, what)
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise truncated(self, what, offset + nbytes)
        return self._give(offset, nbytes, what)

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        if self.starts and offset > self.nbytes:
            buffer[:] = self._read_unpacked(offset, len(buffer), what)
            return
        if offset + len(buffer) > self.nbytes:
            raise truncated(self, what, offset + len(buffer))
        self._fill(offset, buffer, what)

    def stamps(self) -> list[tuple[str, tuple[int, ...]]]:
        """Tell the file from others of its name: by its size, and by when it was changed."""
        return [(self.name, self.stamp)]

    def window(self, begin: int, nbytes: int) -> FileSource:
        """Return `nbytes` from `begin` on, as a file of the same name; closed with this."""
        raise NotImplementedError

    def defer(self, offset: int, nbytes: int, check: Callable[[], None]) -> bool:
        """Have `check` run before any of these bytes are read.

        Returns:
            False where what it looks at is read as well now; it is not kept then.
        """
        del offset, nbytes, check
        return False

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Make ready for reading these parts, each from its first byte to behind its last."""

    def _give(self, offset: int, nbytes: int, what: str) -> bytes:
        raise NotImplementedError

    def _fill(self, offset: int, buffer: memoryview, what: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError


class LocalSource(FileSource, OnDisk):
    """A file that is open for reading, or `nbytes` of it from `begin` on; closed with this."""

    def __init__(
        self, name: str, file: io.FileIO, number: int = 0, begin: int = 0, nbytes: int | None = None
    ) -> None:
        self.local = _LocalFile(file)
        self.file = file
        size = self.local.nbytes - begin if nbytes is None else nbytes
        super().__init__(name, size, number, begin)
        self.stamp = (self.local.nbytes, os.fstat(file.fileno()).st_mtime_ns)

    def window(self, begin: int, nbytes: int) -> LocalSource:
        """Return `nbytes` from `begin` on, as a file of the same name; closed with this."""
        return LocalSource(self.name, self.file, self.number, self.begin + begin, nbytes)

    def _give(self, offset: int, nbytes: int, what: str) -> bytes:
        if _HAS_PLACES:
            try:
                data = os.pread(self.file.fileno(), nbytes, self.begin + offset)
            except OSError as error:
                raise unreadable(self.name, error) from None
            if len(data) == nbytes:
                return data
        whole = bytearray(nbytes)  # the system may give less: Linux no more than 2 GB at a time
        self._fill(offset, memoryview(whole), what)
        return bytes(whole)

    def _fill(self, offset: int, buffer: memoryview, what: str) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self.local.read_some(self.begin + offset + done, buffer[done:])
            except OSError as error:
                raise unreadable(self.name, error) from None
            if not count:
                raise truncated(self, what, offset + len(buffer))
            done += count

    def count_stored(self, offset: int, nbytes: int) -> int:
        """Count the bytes of a run that are stored, and no hole in the file."""
        if not hasattr(os, "SEEK_DATA"):
            return nbytes
        descriptor = self.file.fileno()
        stored, place = 0, self.begin + offset
        end = place + nbytes
        try:
            while place < end:
                begin = os.lseek(descriptor, place, os.SEEK_DATA)
                place = os.lseek(descriptor, begin, os.SEEK_HOLE)
                stored += max(0, min(place, end) - begin)
        except OSError as error:
            return stored if error.errno == errno.ENXIO else nbytes  # no more is stored
        return stored

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def stamps(sources: Iterable[Source]) -> list[tuple[str, tuple[int, ...]]]:
    """Tell files from others of their names: each has its size, and the time of its last change."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for source in sources:
        if isinstance(source, Stamped):
            found += source.stamps()
        else:
            found.append((source.name, (source.nbytes,)))
    return found


class LocalSink(_LocalFile):
    """A file that is open for reading and writing."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, to begin at `offset`."""
        while data:
            count = self.write_some(offset, data)
            data = data[count:]
            offset += count

    def flush(self) -> None:
        """Have what has been written here reach the disk, and so all who read it there."""
        os.fsync(self.file.fileno())

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Read what has been written there."""
        found = bytearray(nbytes)
        count = self.read_some(offset, memoryview(found))
        return bytes(found[:count])


def read_stored(source: Source, offset: int, nbytes: int, what: str) -> bytes:
    """Read as `source.read_at`, what is read whole: it must not be a hole in the file.

    Raises:
        FormatError: the file ends before, or the bytes are stored nowhere.
        FileError: the system cannot read it.
    """
    refuse_holes(source, offset, nbytes, what)
    return source.read_at(offset, nbytes, what)


def truncated(source: Source, what: str, needed: int) -> FormatError:
    """Make the refusal of a file that ends inside `what`."""
    found = source.nbytes
    if isinstance(source, LocalSource):
        found = os.fstat(source.file.fileno()).st_size
    return FormatError(
        source.name,
        f"the file ends inside {what}",
        expected=f"at least {needed:,} bytes",
        found=f"{found:,} bytes",
        hint="copy or download it again: it is truncated",
    )


def refuse_holes(source: Source, offset: int, count: int, what: str) -> None:
    """Hold what a run of bytes takes in memory against what it takes on the disk.

    Of a file of holes, which read as zeros, a few kilobytes can claim to be gigabytes.

    Raises:
        FormatError: more than a few megabytes of it are stored nowhere.
    """
    if count <= _MOST_UNSTORED or offset + count > source.nbytes:
        return
    stored = source.count_stored(offset, count) if isinstance(source, OnDisk) else count
    if count - stored > _MOST_UNSTORED:
        raise FormatError(
            source.name,
            f"{what} is a hole in the file",
            expected="bytes that are stored",
            found=f"{stored:,} of {count:,}",
            hint="copy or download the file again",
        )


def defer(source: Source, offset: int, nbytes: int, check: Callable[[], None]) -> bool:
    """Have `check` run before any of these bytes are read, as `FileSource.defer`."""
    return isinstance(source, FileSource) and source.defer(offset, nbytes, check)


#: The files of one checkpoint, each at the place that its number says.
Sources = Sequence[Source]


def expect(sources: Sources, storages: Iterable[Storage]) -> None:
    """Say which storages will be read, so that files at a distance fetch what is near together."""
    ranges: dict[int, set[tuple[int, int]]] = {}
    for storage in storages:
        if is_remote(sources[storage.file]):
            place = storage.offset, storage.offset + storage.nbytes
            ranges.setdefault(storage.file, set()).add(place)
    for number, places in ranges.items():
        source = sources[number]
        if isinstance(source, FileSource):
            source.expect(places)


def is_remote(source: Source) -> bool:
    """Whether each reading may take a request to another machine."""
    return isinstance(source, FileSource) and source.is_remote


def unreadable(where: str, error: OSError) -> FileError:
    """Make the refusal of a file that the system does not let be read."""
    return FileError(where, f"cannot be read ({os.strerror(error.errno or 0)})")
