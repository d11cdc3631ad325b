"""The checksum of a run of bytes that are read in any order, by any thread, and perhaps twice."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator

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
        """Add the bytes from `place` on, unless one of them is known; whether these were the last.

        What is read twice counts once: a run that has known bytes in it is passed over.
        """
        end = place + len(data)
        if not self.left or place == end or not self._is_new(place, end):
            return False
        found = moved_on(crc32(data), self.nbytes - end)
        with self.lock:
            if not self._is_new(place, end):
                return False
            self._cover(place, end)
            self.crc ^= found
            self.left -= len(data)
            return not self.left

    def missing(self) -> Iterator[tuple[int, int]]:
        """Give the runs that have not been read, each with where it begins and ends."""
        place = 0
        for begin, end in zip([*self.begins, self.nbytes], [*self.ends, self.nbytes], strict=True):
            if place < begin:
                yield place, begin
            place = end

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
