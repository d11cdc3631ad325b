"""Carries out a layout: fills byte ranges of the output, in parallel, from the input, and seals it.

What is to be done are pieces of a layout, all of them or one rank's share; who has filled them does
not matter to what seals the file.

Memory is a few blocks per thread, whatever the tensors' sizes. What is unchanged is copied, and
checksums that the input records for such bytes are passed on; where none will be recorded, the
bytes are held against them on the way, as is what is computed with.

Copying is reading and writing: two threads do that in half the time of copy_file_range or sendfile,
which move one page after the other, and take half as long again where the two places stand
differently in their pages. Only whole files can share their blocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from wncli.arithmetic.tiles import memory
from wncli.checkpoint.layout import Layout, Magnitude, Slot, Whole, Written
from wncli.layout.shares import Piece, is_summed, plain_run, read_for
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks
from wncli.storage.checked_source import checking, damaged, storages_in
from wncli.storage.reflink import clone
from wncli.storage.source import BLOCK, Source, expect, is_remote
from wncli.team import Json, pack_note, unpack_note

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


class Filled:
    """What filling pieces of a file came to: checksums by piece, and what the data showed."""

    def __init__(self) -> None:
        self.checksums: dict[Piece, int] = {}
        self.notes: list[tuple[int, Note]] = []

    def pack(self) -> Json:
        """Turn it into JSON."""
        checksums = [[*piece, checksum] for piece, checksum in self.checksums.items()]
        return [checksums, [[number, pack_note(note)] for number, note in self.notes]]

    @classmethod
    def unpack(cls, packed: Json) -> Filled:
        """Turn it back."""
        found = cls()
        checksums, notes = packed
        found.checksums = {Piece(*piece): checksum for *piece, checksum in checksums}
        found.notes = [(number, unpack_note(note)) for number, note in notes]
        return found


def fill(  # noqa: PLR0913, PLR0917 - what, from where to where, and how
    layout: Layout,
    pieces: Sequence[Piece],
    sources: Sources,
    sink: Sink,
    progress: Callable[[int], None],
    jobs: int | None,
) -> Filled:
    """Write pieces of `layout` to `sink`, on `jobs` threads at most.

    Raises:
        WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
        FormatError: the input ends early, or has not the checksums that it records.
    """
    return _Filling(layout, pieces, sources, sink).run(progress, jobs)


def seal(layout: Layout, filled: Iterable[Filled], sources: Sources, sink: Sink) -> list[Note]:
    """Write what is left when all pieces of a file are written: headers, and recorded checksums.

    Returns:
        What the data showed, in the order of the file: all-zero slices, NaN and Inf, stale weights
        that differed.

    Raises:
        FormatError: what was copied in pieces has not the checksum that the input records.
    """
    written = [*layout.fixed]
    notes: list[tuple[int, Note]] = []
    sums: list[dict[Piece, int]] = [{} for _ in layout.slots]
    for one in filled:
        notes += one.notes
        for piece, checksum in one.checksums.items():
            sums[piece.slot][piece] = checksum
    checksums = [
        _joined_checksum(layout, number, found, sources) for number, found in enumerate(sums)
    ]
    if layout.seal:
        written += layout.seal(checksums)
    for offset, data in _joined(written):
        sink.write_at(offset, memoryview(data))
    return [note for _, note in sorted(notes, key=lambda item: item[0])]


def _joined_checksum(
    layout: Layout, number: int, sums: Mapping[Piece, int], sources: Sources
) -> int:
    """Return the checksum of a slot, of which pieces were summed up, or none as it is known."""
    run = plain_run(layout.slots[number])
    if not sums:
        return (run.crc if run else None) or 0
    from wncli.storage.crc32 import moved_on

    found = 0
    for piece, checksum in sorted(sums.items()):
        found = moved_on(found, piece.nbytes) ^ checksum if piece.start else checksum
    if len(sums) > 1 and run and run.crc not in {None, found}:
        what = f"storage {run.storage.key!r}"
        raise damaged(sources[run.storage.file], what, run.crc or 0, found)
    return found


def cloned(layout: Layout, sources: Sources, sink: Sink) -> bool:
    """Whether the output is a whole file of the input, and shares its blocks on the disk by now."""
    match layout.slots:
        case (Slot(0, nbytes, Whole(storage)),) if nbytes == layout.nbytes:
            source = sources[storage.file]
            whole = (storage.offset, nbytes) == (0, source.nbytes)
            return whole and clone(source, sink)
    return False


class _Filling:
    """Pieces of an output that are being written, and what comes of it."""

    def __init__(
        self, layout: Layout, pieces: Sequence[Piece], sources: Sources, sink: Sink
    ) -> None:
        self.layout = layout
        self.pieces = pieces
        self.sources = sources
        contents = [layout.slots[piece.slot].content for piece in pieces]
        used = {one.identity: one for content in contents for one in storages_in(content)}
        self.used = tuple(used.values())
        self.checked, self.checks = checking(self.used, sources)
        self.is_remote = any(is_remote(sources[storage.file]) for storage in self.used)
        self.sink = sink
        self.found = Filled()
        self.patches: list[Patches] = []

    def run(self, progress: Callable[[int], None], jobs: int | None) -> Filled:
        expect(self.sources, self.used)
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
        return self.found

    def divide(self) -> tuple[list[_Task], list[_Task]]:
        """Return what threads can share, and what they can once that is there."""
        tasks: list[_Task] = []
        afterwards: list[_Task] = []
        copies: list[_Copying] = []
        for piece in self.pieces:
            slot = self.layout.slots[piece.slot]
            run = plain_run(slot)
            if run is None:
                waits = isinstance(slot.content, Magnitude) and slot.content.of_output
                task = _Task(read_for(slot), partial(self.compute, piece, slot), _place_of(slot))
                (afterwards if waits else tasks).append(task)
                continue
            offset, target = run.offset + piece.start, slot.offset + piece.start
            if is_summed(self.layout, slot, run):
                # Of one that is cut, nobody here sees enough to compare its checksum.
                is_cut = piece.nbytes < slot.nbytes
                source = (self.sources if is_cut else self.checked)[run.storage.file]
                copy = partial(self.copy_summed, piece, source, offset, target)
                tasks.append(_Task(piece.nbytes, copy, (run.storage.file, offset)))
                continue
            copying = _Copying(run.storage.file, offset, target, piece.nbytes)
            if copies and copies[-1].leads_to(copying):
                copies[-1] = copies[-1]._replace(nbytes=copies[-1].nbytes + piece.nbytes)
            else:
                copies.append(copying)
        parts = [part for copying in copies for part in copying.parts()]
        # At a distance, small parts far from each other are no task: each waits for its own place.
        for group in [[part] for part in parts] if self.is_remote else _grouped(parts):
            nbytes = sum(part.nbytes for part in group)
            place = group[0].file, group[0].offset
            tasks.append(_Task(nbytes, partial(self.copy, group), place))
        return tasks, afterwards

    def compute(self, piece: Piece, slot: Slot, advance: Advance) -> None:
        from wncli.fill.contents import computed

        assert not isinstance(slot.content, Whole)  # noqa: S101 - for the type checker
        self.found.checksums[piece] = 0
        notes: list[Note] = []
        runs = computed(slot.content, self.checked, self.sink, notes, self.patches)
        for place, data in runs:
            self.write_summed(piece, slot.offset + place, data)
            advance(len(data))
        self.found.notes += [(piece.slot, note) for note in notes]

    # -- moving bytes ---------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        self.sink.write_at(offset, data)

    def write_summed(self, piece: Piece, offset: int, data: memoryview) -> None:
        """Write bytes of a piece, taking them into its checksum."""
        self.write(offset, data)
        if self.layout.seal or piece.nbytes < self.layout.slots[piece.slot].nbytes:
            from wncli.storage.crc32 import crc32

            self.found.checksums[piece] = crc32(data, self.found.checksums[piece])

    def copy(self, parts: Sequence[_Copying], advance: Advance) -> None:
        for part in parts:
            for place, data in self.read(self.sources[part.file], part.offset, part.nbytes):
                self.write(part.target + place, data)
                advance(len(data))

    def copy_summed(
        self, piece: Piece, source: Source, offset: int, target: int, advance: Advance
    ) -> None:
        self.found.checksums[piece] = 0
        for place, data in self.read(source, offset, piece.nbytes):
            self.write_summed(piece, target + place, data)
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
        for piece in self.pieces:
            slot = self.layout.slots[piece.slot]
            nearest = bisect_left(places, slot.offset)
            if nearest < len(places) and places[nearest] < slot.offset + slot.nbytes:
                self.found.checksums[piece] = self.checksum(slot)

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
