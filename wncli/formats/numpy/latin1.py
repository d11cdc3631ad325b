"""Bytes that protocols up to 2 have as text in a pickle, a character for each, read by ranges."""

from __future__ import annotations

import threading
from bisect import bisect_right

from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Unread
from wncli.storage.source import BLOCK

#: The first of a character of two bytes, or of more; and of any, as a signed number.
_LEADS = 0xC0
_BEGINS = -64


class Latin1Text:
    """The bytes of a text that has to have `nbytes` characters, each of them one byte.

    What is decoded is forgotten; remembered is where each block of it begins.
    """

    def __init__(self, text: Unread, nbytes: int) -> None:
        self.text = text
        self.nbytes = nbytes
        #: Where blocks of the text begin and end, and how many characters stand before there.
        self.places = [0]
        self.counts = [0]
        #: The block that was decoded last, and its number.
        self.last = -1, b""
        self.lock = threading.Lock()

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on.

        Raises:
            FormatError: the text has other characters, or more or fewer of them.
        """
        found = bytearray()
        with self.lock:
            while self.counts[-1] < start + count:
                self._count_on()
            number = bisect_right(self.counts, start) - 1
            skipped = start - self.counts[number]
            while len(found) < skipped + count:
                found += self._block(number)
                number += 1
        return bytes(found[skipped : skipped + count])

    def _count_on(self) -> None:
        """Count the characters of one more block: the bytes that do not go on with another."""
        import numpy as np  # which is there where tensors are read, and counts far faster

        place = self.places[-1]
        end = min(place + BLOCK, self.text.nbytes)
        raw = self._read(place, end)
        if end < self.text.nbytes and raw[-1] >= _LEADS:  # the rest of it is in the next
            raw, end = raw[:-1], end - 1
        count = self.counts[-1] + int(np.count_nonzero(np.frombuffer(raw, np.int8) >= _BEGINS))
        if (count == self.nbytes) != (end == self.text.nbytes) or count > self.nbytes:
            raise self._broken("its bytes do not fill its shape")
        self.places.append(end)
        self.counts.append(count)

    def _block(self, number: int) -> bytes:
        if self.last[0] != number:
            raw = self._read(self.places[number], self.places[number + 1])
            try:
                self.last = number, raw.decode().encode("latin1")
            except UnicodeError:
                raise self._broken("its content is no bytes") from None
        return self.last[1]

    def _read(self, place: int, end: int) -> bytes:
        return self.text.source.read_at(self.text.offset + place, end - place, "an array")

    def _broken(self, problem: str) -> FormatError:
        return FormatError(
            self.text.source.name,
            f"an array in the pickle is not as NumPy writes it: {problem}",
            hint="load it with NumPy and save it again",
        )
