"""Holds what is read from a file against the checksums that it records, on the way.

Only a run of bytes that is read from its beginning on, in order, costs no reading of its own: the
tensors of nearly all files. What is left of others in the end is read then.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from wncli.checkpoint.layout import Elements, Magnitude, Product, Whole
from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.hints import inspecting, phrase
from wncli.storage.source import BLOCK, Finishing, Source, Sources


def checking(
    storages: Iterable[Storage], sources: Sources
) -> tuple[Sources, tuple[Finishing, ...]]:
    """Return the sources, and those of them which check these storages, each of which is once."""
    by_file: dict[int, list[Storage]] = {}
    for storage in storages:
        known = by_file.setdefault(storage.file, [])
        if storage.crc is not None and storage.nbytes:
            known.append(storage)
    every = list(sources)
    for file, known in by_file.items():
        if known:
            every[file] = CheckedSource(sources[file], known)
    used = [every[file] for file in by_file]
    return every, tuple(source for source in used if isinstance(source, Finishing))


def storages_in(content: Whole | Elements | Magnitude | Product) -> Sequence[Storage]:
    """Return the storages of the input that a slot is made from."""
    match content:
        case Whole(storage):
            return (storage,)
        case Elements(tensor):
            return (tensor.storage,)
        case Magnitude():
            return () if content.of_output else (content.weight.storage,)
        case Product(pair):
            return [tensor.storage for tensor in pair.tensors]


class _Run:
    """A storage, how far it has been summed up, and whether any of it has been read."""

    __slots__ = ("crc", "end", "lock", "place", "storage", "touched")

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.place = storage.offset
        self.end = storage.offset + storage.nbytes
        self.crc = 0
        self.touched = False
        self.lock = threading.Lock()


class CheckedSource(Finishing):
    """A source that sums up the bytes of `storages` as they are read.

    Every reading method raises FormatError where a storage is not what was written once.
    """

    def __init__(self, source: Source, storages: Iterable[Storage]) -> None:
        self.source = source
        self.name, self.nbytes, self.number = source.name, source.nbytes, source.number
        self.runs = [_Run(storage) for storage in sorted(storages, key=lambda found: found.offset)]
        self.starts = [run.storage.offset for run in self.runs]

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        data = self.source.read_at(offset, nbytes, what)
        self._sum_up(offset, memoryview(data))
        return data

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        self.source.read_into(offset, buffer, what)
        self._sum_up(offset, buffer)

    def close(self) -> None:
        """Close what it reads from."""
        self.source.close()

    def finish(self) -> None:
        """Read what is left of the storages of which a part has been read."""
        left = [run for run in self.runs if run.touched and run.place < run.end]
        buffer = memoryview(bytearray(BLOCK if left else 0))
        for run in left:
            while run.place < run.end:
                step = buffer[: min(BLOCK, run.end - run.place)]
                self.read_into(run.place, step, f"storage {run.storage.key!r}")

    def _sum_up(self, offset: int, buffer: memoryview) -> None:
        place = bisect_right(self.starts, offset) - 1
        if place < 0 or offset >= self.runs[place].end:
            return
        from wncli.storage.crc32 import crc32

        run = self.runs[place]
        run.touched = True
        if run.place != offset or not run.lock.acquire(blocking=False):
            return  # it is another thread's turn, or nobody's
        try:
            if run.place == offset and offset + len(buffer) <= run.end:
                run.crc = crc32(buffer, run.crc)
                run.place += len(buffer)
        finally:
            run.lock.release()
        self._judge(run)

    def _judge(self, run: _Run) -> None:
        if run.place == run.end and run.crc != run.storage.crc:
            raise damaged(self, f"storage {run.storage.key!r}", run.storage.crc or 0, run.crc)


def damaged(source: Source, what: str, recorded: int, found: int) -> FormatError:
    """Make the refusal of bytes that have changed since they were written."""
    return FormatError(
        source.name,
        f"{what} is damaged: its bytes have changed since the file was written",
        expected=f"checksum {recorded:08x}, as the zip records it",
        found=f"checksum {found:08x}",
        hint=phrase(
            "copy or download the file again; {} lists all that is damaged",
            inspecting(source.name, check=True),
        ),
    )
