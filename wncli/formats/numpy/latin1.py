"""Bytes that protocols up to 2 have as text in a pickle, a character for each, read by ranges."""

from __future__ import annotations

import threading
from bisect import bisect_right

from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Unread
from wncli.storage.source import BLOCK

#: What begins a character of two bytes, or of more.
_LEADS = 0xC0


class Latin1Text:
    """The bytes of a text that has to have `nbytes` characters, each of them one byte.

    What is decoded is forgotten; remembered is where each block of it begins.
    """

    def __init__(self, text: Unread, nbytes: int) -> None:
        self.text = text
        self.nbytes = nbytes
        #: Where blocks of the text begin, and how many characters stand before each.
        self.places = [0]
        self.counts = [0]
        #: The block that was read last, and its number.
        self.last = -1, b""
        self.lock = threading.Lock()

    def read_at(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on.

        Raises:
            FormatError: the text has other characters, or more or fewer of them.
        """
        found = bytearray()
        with self.lock:
            number = bisect_right(self.counts, start) - 1
            skipped = start - self.counts[number]
            while len(found) < skipped + count:
                found += self._block(number)
                number += 1
        return bytes(found[skipped : skipped + count])

    def _block(self, number: int) -> bytes:
        if self.last[0] == number:
            return self.last[1]
        place = self.places[number]
        left = self.text.nbytes - place
        raw = self.text.source.read_at(self.text.offset + place, min(BLOCK, left), "an array")
        if left > BLOCK and raw[-1] >= _LEADS:  # the rest of the character is in the next
            raw = raw[:-1]
        try:
            found = raw.decode().encode("latin1")
        except UnicodeError:
            raise self._broken("its content is no bytes") from None
        place, count = place + len(raw), self.counts[number] + len(found)
        if (count == self.nbytes) != (place == self.text.nbytes) or count > self.nbytes:
            raise self._broken("its bytes do not fill its shape")
        if number + 1 == len(self.places):
            self.places.append(place)
            self.counts.append(count)
        self.last = number, found
        return found

    def _broken(self, problem: str) -> FormatError:
        return FormatError(
            self.text.source.name,
            f"an array in the pickle is not as NumPy writes it: {problem}",
            hint="load it with NumPy and save it again",
        )
