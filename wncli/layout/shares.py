"""Divides files that are laid out among ranks: which bytes of which slots each of them writes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from wncli.checkpoint.layout import Elements, Layout, Magnitude, Slot, Whole
from wncli.checkpoint.tensors import Storage
from wncli.team import shared_out

#: Where a slot is cut, in bytes of the output file: not within a block of any file system.
_EDGE = 1 << 20
#: How much more than the mean the busiest rank may get before files are divided.
_UNEVEN = 1.125


class Piece(NamedTuple):
    """A slot, by its number, or `nbytes` of one from `start` on, which are copied as they are."""

    slot: int
    start: int
    nbytes: int


#: What one rank writes: pieces of files, by the files' numbers.
Share = Mapping[int, Sequence[Piece]]


class Run(NamedTuple):
    """The run of the input that fills a slot as it is, and its checksum if that is known."""

    storage: Storage
    offset: int
    crc: int | None

    def is_read_whole(self, nbytes: int) -> bool:
        """Whether it is all of its storage."""
        return nbytes == self.storage.nbytes


def plain_run(slot: Slot) -> Run | None:
    """Find the run that fills a slot as it is, if there is one."""
    match slot.content:
        case Whole(storage):
            return Run(storage, storage.offset, storage.crc)
        case Elements(tensor) if tensor.is_contiguous:
            storage = tensor.storage
            place = storage.offset + tensor.offset * tensor.dtype.itemsize
            return Run(storage, place, storage.crc if tensor.nbytes == storage.nbytes else None)
    return None


def is_summed(layout: Layout, slot: Slot, run: Run) -> bool:
    """Whether the run of a slot is summed up on the way.

    That is to record its checksum, or to compare it with the one that is not recorded any more.
    """
    is_recorded = layout.seal and slot.is_summed
    return run.crc is None if is_recorded else run.storage.crc is not None


def read_for(slot: Slot) -> int:
    """Count the bytes that are read to fill a slot."""
    return slot.content.weight.nbytes if isinstance(slot.content, Magnitude) else slot.nbytes


def whole(layout: Layout) -> list[Piece]:
    """All of a file."""
    return [Piece(number, 0, slot.nbytes) for number, slot in enumerate(layout.slots)]


def is_whole(layout: Layout, pieces: Sequence[Piece]) -> bool:
    """Whether these are all pieces of a file."""
    return len(pieces) == len(layout.slots) and all(
        piece.nbytes == layout.slots[piece.slot].nbytes for piece in pieces
    )


def divide(layouts: Sequence[Layout], ranks: int) -> list[Share]:
    """Give each rank about as many bytes to write.

    That is whole files where there are as many as ranks and that is even, and else ranges of them:
    a magnitude stays with its direction, which may have to be changed for it or be read for it, and
    what is computed, or compared with a checksum of more than itself, stays in one piece.
    """
    sizes = [layout.nbytes for layout in layouts]
    shares = shared_out(sizes, ranks)
    busiest = max(sum(sizes[number] for number in share) for share in shares)
    if ranks == 1 or (len(layouts) >= ranks and busiest * ranks <= _UNEVEN * sum(sizes)):
        return [{number: whole(layouts[number]) for number in share} for share in shares]
    units = [(number, unit) for number, layout in enumerate(layouts) for unit in _units(layout)]
    total = sum(unit.cost for _, unit in units)
    edges = [total * rank // ranks for rank in range(ranks + 1)]
    found: list[dict[int, list[Piece]]] = [{} for _ in range(ranks)]
    begin = 0
    for number, unit in units:
        for rank, piece in _cut(layouts[number], unit, begin, edges):
            found[rank].setdefault(number, []).append(piece)
        begin += unit.cost
    return [{number: sorted(pieces) for number, pieces in share.items()} for share in found]


class _Unit(NamedTuple):
    """Slots that stay together, and the bytes that are read to fill them."""

    slots: tuple[int, ...]
    cost: int


def _units(layout: Layout) -> Iterator[_Unit]:
    order = sorted(range(len(layout.slots)), key=lambda number: layout.slots[number].offset)
    offsets = [layout.slots[number].offset for number in order]
    together: dict[int, list[int]] = {number: [] for number in order}
    for number in order:
        content = layout.slots[number].content
        home = number
        if isinstance(content, Magnitude):
            home = order[bisect_right(offsets, content.direction) - 1]
        together[home].append(number)
    for numbers in together.values():
        if numbers:
            yield _Unit(tuple(numbers), sum(read_for(layout.slots[n]) for n in numbers))


def _cut(
    layout: Layout, unit: _Unit, begin: int, edges: Sequence[int]
) -> Iterator[tuple[int, Piece]]:
    """Give the pieces of a unit that begins at `begin` of all bytes, each with its rank."""
    slots = [layout.slots[number] for number in unit.slots]
    if len(slots) == 1 and _can_be_cut(layout, slots[0]):
        offset, end = slots[0].offset, slots[0].nbytes
        inside = [_on_an_edge(offset, edge - begin) for edge in edges if 0 < edge - begin < end]
        cuts = [0, *sorted({cut for cut in inside if 0 < cut < end}), end]
        for start, stop in pairwise(cuts):
            rank = _rank_at(edges, begin + (start + stop) // 2)
            yield rank, Piece(unit.slots[0], start, stop - start)
        return
    rank = _rank_at(edges, begin + unit.cost // 2)
    for number, slot in zip(unit.slots, slots, strict=True):
        yield rank, Piece(number, 0, slot.nbytes)


def _can_be_cut(layout: Layout, slot: Slot) -> bool:
    run = plain_run(slot)
    if run is None:
        return False
    alone = run.storage.crc is None or run.is_read_whole(slot.nbytes)
    return alone or not is_summed(layout, slot, run)


def _on_an_edge(offset: int, place: int) -> int:
    """Move a place in a slot to where a block of the file begins."""
    return (offset + place) // _EDGE * _EDGE - offset


def _rank_at(edges: Sequence[int], place: int) -> int:
    return min(bisect_right(edges, place), len(edges) - 1) - 1
