"""The checksum of a run of bytes that are read in any order, by any thread, and perhaps twice."""

from __future__ import annotations

import threading
from bisect import bisect_right

from wncli.storage.crc32 import crc32, moved_on


class Sum:
    """What has been read of `nbytes` bytes, and what that adds to their checksum."""

    __slots__ = ("begins", "crc", "ends", "left", "lock", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.left = nbytes
        self.crc = 0
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.lock = threading.Lock()

    def add(self, place: int, data: memoryview) -> bool:
        """Add the bytes from `place` on that are not known yet; whether the last were added.

        What two threads read at once counts for one of them.
        """
        if not self.left:
            return False
        is_done = False
        for begin, end in self.missing(place, place + len(data)):
            found = moved_on(crc32(data[begin - place : end - place]), self.nbytes - end)
            with self.lock:
                if self._is_new(begin, end):
                    self._cover(begin, end)
                    self.crc ^= found
                    self.left -= end - begin
                    is_done = not self.left
        return is_done

    def missing(self, place: int, end: int) -> list[tuple[int, int]]:
        """Return the runs between two places that have not been read, each with its ends."""
        found: list[tuple[int, int]] = []
        with self.lock:
            number = max(0, bisect_right(self.begins, place) - 1)
            known = zip(self.begins[number:], self.ends[number:], strict=True)
            for begin, until in known:
                if begin >= end:
                    break
                if place < begin:
                    found.append((place, begin))
                place = max(place, until)
        return [*found, (place, end)] if place < end else found

    def _is_new(self, place: int, end: int) -> bool:
        number = bisect_right(self.begins, place)
        if number and self.ends[number - 1] > place:
            return False
        return number == len(self.begins) or end <= self.begins[number]

    def _cover(self, place: int, end: int) -> None:
        """Remember a run, joined with those that it touches."""
        number = bisect_right(self.begins, place)
        if number < len(self.begins) and self.begins[number] == end:
            end = self.ends[number]
            del self.begins[number], self.ends[number]
        if number and self.ends[number - 1] == place:
            self.ends[number - 1] = end
        else:
            self.begins.insert(number, place)
            self.ends.insert(number, end)
