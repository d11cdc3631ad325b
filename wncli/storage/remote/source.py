"""A file at a distance as a source: small windows for headers, large pieces for data.

What will be read is announced before, as it is known by then: near parts of it come together, in
pieces of `PIECE` bytes at most, the next ones while one is used, and each is kept until others are
wanted more. So threads that go through the file side by side ask once for each piece. Memory is
`_MOST_PIECES` of them.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from io import FileIO
from itertools import accumulate

from wncli.storage.crc32 import crc32
from wncli.storage.remote.ranges import PIECE, WINDOW, RemoteFile
from wncli.storage.source import FileSource, LocalSource

#: The end of a zip archive: its longest comment, its three records, and a little more.
_TAIL = WINDOW + 512
_MOST_WINDOWS = 32
_MOST_PIECES = 16
#: Pieces that are asked for at the same time.
_AHEAD = 6
#: Bytes between two parts that cost less than another request.
_GAP = 256 << 10
#: Bytes before a member of a zip that its own header takes.
_LEAD = 512
#: The share of a file from which on it is downloaded, where that keeps it for the next time.
_NEARLY_ALL = 0.9

Range = tuple[int, int]


class _Piece:
    """A part of the file that many reads are of, once it has come."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin = begin
        self.end = end
        self.lock = threading.Lock()
        self.data: memoryview | None = None


class _Ranges:
    """Parts of the file, cut into pieces: made as they are asked for, as the file may be huge.

    A server may say of it what it likes, so nothing here is as large as that.
    """

    def __init__(self, ranges: Sequence[Range]) -> None:
        self.begins = [begin for begin, _ in ranges]
        self.ends = [end for _, end in ranges]
        #: The number of the first piece of each, and the number of all.
        self.firsts = [0, *accumulate(-((begin - end) // PIECE) for begin, end in ranges)]

    def number_at(self, offset: int) -> int | None:
        """Return the number of the piece that has what is at `offset`."""
        place = bisect_right(self.begins, offset) - 1
        if place < 0 or offset >= self.ends[place]:
            return None
        return self.firsts[place] + (offset - self.begins[place]) // PIECE

    def piece(self, number: int) -> _Piece:
        """Return a piece by its number."""
        place = bisect_right(self.firsts, number) - 1
        begin = self.begins[place] + (number - self.firsts[place]) * PIECE
        return _Piece(begin, min(begin + PIECE, self.ends[place]))


class Parts:
    """What has come of a file, and what is to come."""

    def __init__(self, file: RemoteFile) -> None:
        self.file = file
        self.nbytes, self.head = file.begin()
        self.lock = threading.Lock()
        self.windows: deque[tuple[int, bytes]] = deque(maxlen=_MOST_WINDOWS)
        self.ranges = _Ranges(())
        self.pieces: OrderedDict[int, _Piece] = OrderedDict()
        #: Checks by the first byte that they are about: how many bytes, and what to call.
        self.checks: dict[int, tuple[int, Callable[[], None]]] = {}
        self.checked: list[int] = []
        self.local: LocalSource | None = None

    # -- what is known beforehand ---------------------------------------------------------------

    def expect(self, ranges: Iterable[Range]) -> None:
        """Make ready for reading these parts of the file, each from its first byte to its last."""
        joined: list[list[int]] = []
        lead = _LEAD if self.checks else 0
        for begin, end in sorted((max(begin - lead, 0), end) for begin, end in ranges):
            if joined and begin - joined[-1][1] <= _GAP:
                joined[-1][1] = max(joined[-1][1], end)
            elif begin < end:
                joined.append([begin, end])
        total = sum(end - begin for begin, end in joined)
        if self.local is None and total >= _NEARLY_ALL * self.nbytes:
            path = self.file.download()
            self.local = LocalSource(self.file.name, FileIO(path)) if path else None
            if self.local is not None and self.local.nbytes != self.nbytes:
                self.local.close()  # what the cache has is another file, or damaged
                self.local = None
        with self.lock:
            self.ranges = _Ranges([(begin, end) for begin, end in joined])
            self.pieces.clear()

    def defer(self, offset: int, nbytes: int, check: Callable[[], None]) -> None:
        """Have `check` run before any of these bytes are given."""
        with self.lock:
            self.checks[offset] = nbytes, check
            self.checked.clear()

    # -- reading --------------------------------------------------------------------------------

    def fill(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on; the file has as many bytes."""
        self._check(offset, offset + len(buffer))
        if self.local is not None:
            self.local.read_into(offset, buffer, "the file")
            return
        done = 0
        while done < len(buffer):
            part = self._part(offset + done, buffer[done:])
            if isinstance(part, int):
                done += part
                continue
            count = min(len(part), len(buffer) - done)
            buffer[done : done + count] = part[:count]
            done += count

    def _check(self, begin: int, end: int) -> None:
        """Run the checks of what is about to be read, once each."""
        if not self.checks:
            return
        with self.lock:
            if not self.checked:
                self.checked = sorted(self.checks)
            first = max(bisect_right(self.checked, begin) - 1, 0)
            last = bisect_right(self.checked, end - 1)
            due = []
            for start in self.checked[first:last]:
                nbytes, check = self.checks.get(start, (0, None))
                if check is not None and start + nbytes > begin:
                    del self.checks[start]
                    due.append(check)
        for check in due:
            check()

    def _part(self, offset: int, buffer: memoryview) -> memoryview | int:
        """Return bytes that are at `offset`, or fill some of `buffer` and return how many."""
        if offset < len(self.head):
            return memoryview(self.head)[offset:]
        number = self.ranges.number_at(offset)
        if number is not None:
            piece = self._piece(number)
            return self._fetched(piece)[offset - piece.begin :]
        for begin, window in tuple(self.windows):
            if begin <= offset < begin + len(window):
                return memoryview(window)[offset - begin :]
        tail = max(self.nbytes - _TAIL, len(self.head))
        if offset >= tail:
            return self._window(tail, self.nbytes)[offset - tail :]
        if any(begin == tail for begin, _ in tuple(self.windows)):
            buffer = buffer[: tail - offset]  # the rest is here
        if len(buffer) < WINDOW:
            return self._window(offset, min(offset + WINDOW, self.nbytes))
        count = min(len(buffer), PIECE)
        self.file.fetch(offset, buffer[:count])
        return count

    def _window(self, begin: int, end: int) -> memoryview:
        window = bytearray(end - begin)
        self.file.fetch(begin, memoryview(window))
        found = bytes(window)
        self.windows.append((begin, found))
        return memoryview(found)

    def _piece(self, number: int) -> _Piece:
        """Return a piece, and have the next ones come meanwhile."""
        coming = []
        with self.lock:
            for place in range(number, min(number + _AHEAD, self.ranges.firsts[-1])):
                if place not in self.pieces:
                    self.pieces[place] = self.ranges.piece(place)
                    if place != number:
                        coming.append(self.pieces[place])
                self.pieces.move_to_end(place)
            found = self.pieces[number]
            while len(self.pieces) > _MOST_PIECES:
                self.pieces.popitem(last=False)
        for piece in coming:
            threading.Thread(target=self._prefetch, args=(piece,), daemon=True).start()
        return found

    def _prefetch(self, piece: _Piece) -> None:
        with contextlib.suppress(Exception):  # whoever needs it asks once more, and is told
            self._fetched(piece)

    def _fetched(self, piece: _Piece) -> memoryview:
        with piece.lock:
            data = piece.data
            if data is None:
                data = memoryview(bytearray(piece.end - piece.begin))
                self.file.fetch(piece.begin, data)
                piece.data = data
            return data

    def close(self) -> None:
        """Close what is open here."""
        if self.local is not None:
            self.local.close()


class RemoteSource(FileSource):
    """A file at a distance, or `nbytes` of it from `begin` on."""

    is_remote = True

    def __init__(
        self, parts: Parts, number: int = 0, begin: int = 0, nbytes: int | None = None
    ) -> None:
        size = parts.nbytes - begin if nbytes is None else nbytes
        super().__init__(parts.file.name, size, number, begin)
        self.parts = parts
        self.stamp = (parts.nbytes, crc32(parts.file.mark.encode()))

    def window(self, begin: int, nbytes: int) -> RemoteSource:
        """Return `nbytes` from `begin` on, as a file of the same name; closed with this."""
        return RemoteSource(self.parts, self.number, self.begin + begin, nbytes)

    def defer(self, offset: int, nbytes: int, check: Callable[[], None]) -> bool:
        """Have `check` run before any of these bytes are read."""
        self.parts.defer(self.begin + offset, nbytes, check)
        return True

    def expect(self, ranges: Iterable[Range]) -> None:
        """Make ready for reading these parts of it, each from its first byte to its last."""
        self.parts.expect(
            (self.begin + begin, self.begin + end) for begin, end in ranges if end <= self.nbytes
        )

    def _give(self, offset: int, nbytes: int, _what: str) -> bytes:
        # Memory follows what has come, not what the file is said to have.
        data = bytearray()
        while len(data) < nbytes:
            step = bytearray(min(PIECE, nbytes - len(data)))
            self.parts.fill(self.begin + offset + len(data), memoryview(step))
            data += step
        return bytes(data)

    def _fill(self, offset: int, buffer: memoryview, _what: str) -> None:
        self.parts.fill(self.begin + offset, buffer)

    def close(self) -> None:
        """Close what is open here."""
        self.parts.close()
