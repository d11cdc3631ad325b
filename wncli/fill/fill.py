"""Carries out a layout: fills every byte range of the output, in parallel, from the input.

Memory is a few blocks per thread, whatever the tensors' sizes. What is unchanged is copied, and
checksums that the input records for such bytes are passed on; where none will be recorded, the
bytes are held against them on the way, as is what is computed with.

Copying is reading and writing: two threads do that in half the time of copy_file_range or sendfile,
which move one page after the other, and take half as long again where the two places stand
differently in their pages. Only whole files can share their blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from wncli.arithmetic.tiles import memory
from wncli.checkpoint.layout import Elements, Layout, Magnitude, Slot, Whole, Written
from wncli.checkpoint.tensors import Storage
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks
from wncli.storage.checked_source import checking, storages_in, storages_of
from wncli.storage.reflink import clone
from wncli.storage.source import BLOCK, Source, expect, is_remote

if TYPE_CHECKING:
    from wncli.fill.contents import Patches
    from wncli.storage.source import Sink, Sources


#: Bytes that one thread copies before it takes up something else.
_PART = 8 << 20
#: Bytes that are copied in the time that it takes to begin.
_SMALL = 64 << 10


class _Task(NamedTuple):
    """Something that can be done beside other such things: the bytes that it reads, and how.

    `place` is where it begins to read: the file's number, and the byte.
    """

    nbytes: int
    run: Callable[[Advance], None]
    place: tuple[int, int]


class _Copying(NamedTuple):
    """Bytes of an input file that go to the output as they are."""

    file: int
    offset: int
    target: int
    nbytes: int

    def parts(self) -> Iterator[_Copying]:
        """Pieces that threads can copy side by side."""
        for start in range(0, self.nbytes, _PART):
            count = min(_PART, self.nbytes - start)
            yield _Copying(self.file, self.offset + start, self.target + start, count)

    def leads_to(self, other: _Copying) -> bool:
        """Whether `other` goes on where this ends, in both files."""
        ends = self.file, self.offset + self.nbytes, self.target + self.nbytes
        return ends == (other.file, other.offset, other.target)


def fill(
    layout: Layout, sources: Sources, sink: Sink, progress: Callable[[int], None], jobs: int | None
) -> tuple[Note, ...]:
    """Write all of `layout` to `sink`, on `jobs` threads at most.

    Returns:
        What the data showed: all-zero slices, NaN and Inf, stale weights that differed.

    Raises:
        WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
        FormatError: the input ends early, or has not the checksums that it records.
    """
    return _Filling(layout, sources, sink).run(progress, jobs)


class _Filling:
    """An output that is being written, and what comes of it."""

    def __init__(self, layout: Layout, sources: Sources, sink: Sink) -> None:
        self.layout = layout
        self.checked, self.checks = checking(layout, sources)
        self.sources = sources
        self.is_remote = any(map(is_remote, sources))
        self.sink = sink
        #: Of the slots that are done, by their numbers.
        self.checksums: dict[int, int] = {}
        self.notes: list[tuple[int, Note]] = []
        self.patches: list[Patches] = []

    def run(self, progress: Callable[[int], None], jobs: int | None) -> tuple[Note, ...]:
        if self.is_clone():
            return ()
        expect(self.sources, storages_of(self.layout))
        for tasks in self.divide():
            if self.is_remote:
                # In the order of the files, so that what is near is fetched together, and once.
                tasks.sort(key=lambda task: task.place)
            else:
                # The largest first, so that no thread is left alone with one in the end.
                tasks.sort(key=lambda task: -(task.nbytes // _PART))
            nbytes = sum(task.nbytes for task in tasks)
            run_tasks(_run, tasks, nbytes=nbytes, jobs=jobs, progress=progress)
        for source in self.checks:
            source.finish()
        self.apply_patches()
        written = [*self.layout.fixed]
        if self.layout.seal:
            written += self.layout.seal([self.checksums[n] for n in range(len(self.layout.slots))])
        for offset, data in _joined(written):
            self.write(offset, memoryview(data))
        return tuple(note for _, note in sorted(self.notes, key=lambda item: item[0]))

    def is_clone(self) -> bool:
        """Whether the output is a whole file of the input, and shares its blocks on the disk."""
        match self.layout.slots:
            case (Slot(0, nbytes, Whole(storage)),) if nbytes == self.layout.nbytes:
                source = self.sources[storage.file]
                whole = (storage.offset, nbytes) == (0, source.nbytes)
                return whole and clone(source, self.sink)
        return False

    def divide(self) -> tuple[list[_Task], list[_Task]]:
        """Return what threads can share, and what they can once that is there."""
        tasks: list[_Task] = []
        afterwards: list[_Task] = []
        copies: list[_Copying] = []
        for index, slot in enumerate(self.layout.slots):
            run = self.plain_run(slot)
            if run is None:
                waits = isinstance(slot.content, Magnitude) and slot.content.of_output
                task = _Task(_read_for(slot), partial(self.compute, index, slot), _place_of(slot))
                (afterwards if waits else tasks).append(task)
                continue
            storage, offset, checksum = run
            if checksum is None if self.layout.seal else storage.crc is not None:
                source = self.checked[storage.file]
                copy = partial(self.copy_summed, index, source, offset, slot)
                tasks.append(_Task(slot.nbytes, copy, (storage.file, offset)))
                continue
            self.checksums[index] = checksum or 0
            copying = _Copying(storage.file, offset, slot.offset, slot.nbytes)
            if copies and copies[-1].leads_to(copying):
                copies[-1] = copies[-1]._replace(nbytes=copies[-1].nbytes + slot.nbytes)
            else:
                copies.append(copying)
        parts = [part for copying in copies for part in copying.parts()]
        # At a distance, small parts far from each other are no task: each waits for its own place.
        for group in [[part] for part in parts] if self.is_remote else _grouped(parts):
            nbytes = sum(part.nbytes for part in group)
            place = group[0].file, group[0].offset
            tasks.append(_Task(nbytes, partial(self.copy, group), place))
        return tasks, afterwards

    @staticmethod
    def plain_run(slot: Slot) -> tuple[Storage, int, int | None] | None:
        """Find the run that fills the slot as it is: storage, place, and known checksum."""
        match slot.content:
            case Whole(storage):
                return storage, storage.offset, storage.crc
            case Elements(tensor) if tensor.is_contiguous:
                storage = tensor.storage
                place = storage.offset + tensor.offset * tensor.dtype.itemsize
                known = storage.crc if tensor.nbytes == storage.nbytes else None
                return storage, place, known
        return None

    def compute(self, index: int, slot: Slot, advance: Advance) -> None:
        from wncli.fill.contents import computed

        assert not isinstance(slot.content, Whole)  # noqa: S101 - for the type checker
        self.checksums[index] = 0
        notes: list[Note] = []
        runs = computed(slot.content, self.checked, self.sink, notes, self.patches)
        for place, data in runs:
            self.write_summed(index, slot.offset + place, data)
            advance(len(data))
        self.notes += [(index, note) for note in notes]

    # -- moving bytes ---------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        self.sink.write_at(offset, data)

    def write_summed(self, index: int, offset: int, data: memoryview) -> None:
        """Write bytes of a slot, taking them into its checksum."""
        self.write(offset, data)
        if self.layout.seal:
            from wncli.storage.crc32 import crc32

            self.checksums[index] = crc32(data, self.checksums[index])

    def copy(self, parts: Sequence[_Copying], advance: Advance) -> None:
        for part in parts:
            for place, data in self.read(self.sources[part.file], part.offset, part.nbytes):
                self.write(part.target + place, data)
                advance(len(data))

    def copy_summed(
        self, index: int, source: Source, offset: int, slot: Slot, advance: Advance
    ) -> None:
        self.checksums[index] = 0
        for place, data in self.read(source, offset, slot.nbytes):
            self.write_summed(index, slot.offset + place, data)
            advance(len(data))

    def read(self, source: Source, offset: int, nbytes: int) -> Iterator[tuple[int, memoryview]]:
        """Read a run of the input in pieces, each with its place, in a thread's one buffer."""
        buffer = memory("copied", min(nbytes, BLOCK))
        for place in range(0, nbytes, BLOCK):
            piece = buffer[: min(BLOCK, nbytes - place)]
            source.read_into(offset + place, piece, "the tensors")
            yield place, piece

    def apply_patches(self) -> None:
        """Give all-zero slices of v their direction, now that what it replaces is written."""
        if not self.patches:
            return
        import numpy as np

        from wncli.streaming.reference import windows

        for all_places, elements in self.patches:
            for part in windows(all_places, elements.itemsize):
                offset, last = int(all_places[part.start]), int(all_places[part.stop - 1])
                run = bytearray(self.sink.read_at(offset, last - offset + elements.itemsize))
                inside = (all_places[part] - offset) // elements.itemsize
                np.frombuffer(run, elements.dtype)[inside] = elements[part]
                self.write(offset, memoryview(run))
        if not self.layout.seal:
            return
        places = np.sort(np.concatenate([patches.places for patches in self.patches]))
        for index, slot in enumerate(self.layout.slots):
            nearest = bisect_left(places, slot.offset)
            if nearest < len(places) and places[nearest] < slot.offset + slot.nbytes:
                self.checksums[index] = self.checksum(slot)

    def checksum(self, slot: Slot) -> int:
        """Return the checksum of what stands in a slot of the output."""
        from wncli.storage.crc32 import crc32

        found = 0
        for place in range(0, slot.nbytes, BLOCK):
            count = min(BLOCK, slot.nbytes - place)
            found = crc32(self.sink.read_at(slot.offset + place, count), found)
        return found


def _run(task: _Task, advance: Advance) -> None:
    task.run(advance)


def _grouped(parts: Iterable[_Copying]) -> list[list[_Copying]]:
    """Parts in groups that take a thread a while."""
    groups: list[list[_Copying]] = []
    taken = _PART
    for part in parts:
        if taken + part.nbytes > _PART:
            groups.append([])
            taken = 0
        groups[-1].append(part)
        taken += max(part.nbytes, _SMALL)
    return groups


def _joined(written: Iterable[Written]) -> Iterator[Written]:
    """Join what follows each other: a zip has two such beside each tensor."""
    start, joined = 0, bytearray()
    for offset, data in sorted(written):
        if joined and offset != start + len(joined):
            yield start, bytes(joined)
            joined = bytearray()
        start = start if joined else offset
        joined += data
    yield start, bytes(joined)


def _place_of(slot: Slot) -> tuple[int, int]:
    """Return where the first of what is read to compute a slot stands."""
    places = ((storage.file, storage.offset) for storage in storages_in(slot.content))
    return min(places, default=(0, 0))


def _read_for(slot: Slot) -> int:
    """Bytes that are read to compute a slot."""
    return slot.content.weight.nbytes if isinstance(slot.content, Magnitude) else slot.nbytes
