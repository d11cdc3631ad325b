"""Puts items back to back into files, and decides which file each goes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from wncli.checkpoint.layout import Layout, Magnitude, Slot, Written


class Packed(NamedTuple):
    """An item by itself, before it has a place.

    Attributes:
        name: of the tensor or value that it is, or is a chunk of.
        number: of the chunk.
        layout: of the item, from its first byte on.
        is_value: it is no tensor.
        file: the number of the input's file that it belongs to.
        offset: where it stands there, if it is copied.
    """

    name: str
    number: int
    layout: Layout
    is_value: bool
    file: int = 0
    offset: int | None = None

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in a file: new values, what is copied in its order, new tensors."""
        if self.offset is not None:
            return 1, self.offset
        return (0 if self.is_value else 2), 0


class Stored(NamedTuple):
    """An item of the output: the file that it is in, its offset and length in bytes."""

    file: str
    offset: int
    nbytes: int


def grouped(
    items: Iterable[Packed], directions: Mapping[str, str], limit: int | None
) -> Iterator[list[Packed]]:
    """Divide items into files.

    g stays with its v, which is computed there as well.

    Args:
        items: what to divide.
        directions: the name of v by that of each g that is computed.
        limit: how many bytes a file has at most, unless one item has more; None keeps the input's
            division.
    """
    in_order = sorted(items, key=lambda item: item.rank if limit is None else (not item.is_value,))
    together: dict[object, list[Packed]] = {}
    for item in in_order:
        owner = directions.get(item.name, item.name)
        together.setdefault((owner, item.number), []).append(item)
    if limit is None:
        files: dict[int, list[Packed]] = {}
        for own in together.values():
            files.setdefault(own[-1].file, []).extend(own)
        yield from (files[number] for number in sorted(files))
        return
    group: list[Packed] = []
    size = 0
    for own in together.values():
        nbytes = sum(item.layout.nbytes for item in own)
        if group and size + nbytes > limit:
            yield group
            group, size = [], 0
        group += own
        size += nbytes
    if group:
        yield group


class File:
    """A file as items are added to it."""

    def __init__(self, name: str, directions: Mapping[str, str]) -> None:
        self.name = name
        self.directions = directions
        self.place = 0
        self.names: list[str] = []
        self.slots: list[Slot] = []
        self.fixed: list[Written] = []
        #: Where items begin, how many slots they have, and their layouts.
        self.items: list[tuple[int, int, Layout]] = []
        #: Where the numbers of tensors stand, and the numbers of the slots of magnitudes.
        self.data: dict[str, int] = {}
        self.magnitudes: list[tuple[str, int]] = []

    def add(self, item: Packed) -> Stored:
        """Put an item behind the others."""
        base, layout, name = self.place, item.layout, item.name
        for slot in layout.slots:
            content = slot.content
            if isinstance(content, Magnitude):
                if not item.is_value:
                    self.magnitudes.append((name, len(self.slots)))
                content = content._replace(direction=base + content.direction)
            if not item.is_value:
                self.data[name] = base + slot.offset
            self.slots.append(slot._replace(offset=base + slot.offset, content=content))
        self.fixed += [(base + place, data) for place, data in layout.fixed]
        self.items.append((base, len(layout.slots), layout))
        self.place += layout.nbytes
        if not item.is_value:
            self.names.append(name)
        return Stored(self.name, base, layout.nbytes)

    def layout(self) -> Layout:
        """Lay the file out, now that every v has its place."""
        for name, number in self.magnitudes:
            slot = self.slots[number]
            assert isinstance(slot.content, Magnitude)  # noqa: S101 - for the type checker
            direction = self.data[self.directions[name]]
            self.slots[number] = slot._replace(content=slot.content._replace(direction=direction))
        names = tuple(dict.fromkeys(self.names))
        seal = partial(_seal, tuple(self.items))
        return Layout(self.place, names, tuple(self.slots), tuple(self.fixed), seal)


def _seal(items: Sequence[tuple[int, int, Layout]], checksums: Sequence[int]) -> list[Written]:
    """Return the ends of all items, from the checksums of all slots."""
    written: list[Written] = []
    done = 0
    for base, count, layout in items:
        if layout.seal:
            own = layout.seal(checksums[done : done + count])
            written += [(base + place, data) for place, data in own]
        done += count
    return written
