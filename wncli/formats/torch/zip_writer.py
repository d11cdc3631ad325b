"""Lays out a torch zip byte for byte as `torch.save` does (PyTorch `inline_container.cc`)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from wncli.checkpoint.layout import (
    Content,
    Elements,
    Layout,
    Magnitude,
    Product,
    Slot,
    Whole,
    Written,
)
from wncli.formats.torch.writer import TorchContent
from wncli.formats.torch.zip_records import CENTRAL, END, END64, LOCAL, LOCATOR64

_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR64 = struct.Struct("<4sL2Q")
_UTF8_NAMES = 0x800
_SIZES_FOLLOW = 0x8
_BIG = 0xFFFFFFFF
_ALIGNMENT = 64


def _flags(nbytes: int) -> int:
    """Return a member's flags: an empty one has nothing behind its data, as in `torch.save`."""
    return _UTF8_NAMES | (_SIZES_FOLLOW if nbytes else 0)


def content_nbytes(content: Content) -> int:
    """Bytes that a content fills."""
    match content:
        case Whole(storage):
            return storage.nbytes
        case Elements(tensor):
            return tensor.nbytes
        case Magnitude(weight, _, numel):
            return numel * weight.dtype.itemsize
        case Product(pair):
            return pair.v.numel * pair.dtype.itemsize


def lay_out_torch_zip(content: TorchContent, folder: str, mark: bytes = b"") -> Layout:
    """Lay out the archive, its members under `folder`; `mark` replaces its first bytes."""
    layout = _Archive(folder).lay_out(content)
    (place, header), *rest = layout.fixed
    return layout._replace(fixed=((place, mark + header[len(mark) :]), *rest))


class _Archive:
    """The members so far: headers with their places, and what the directory will say of them."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.place = 0
        self.fixed: list[Written] = []
        #: name, place of the local header, place behind the data, size, checksum if it is known
        self.members: list[tuple[bytes, int, int, int, int | None]] = []

    def lay_out(self, content: TorchContent) -> Layout:
        self.add("data.pkl", content.pickle)
        self.add(".format_version", b"1")
        self.add(".storage_alignment", str(_ALIGNMENT).encode())
        self.add("byteorder", b"little")
        slots: list[Slot] = []
        for number, filling in enumerate(content.contents):
            nbytes = content_nbytes(filling)
            slots.append(Slot(self.begin(f"data/{number}", nbytes, None), nbytes, filling))
        for index, slot in enumerate(slots):
            if isinstance(slot.content, Magnitude):
                place = slots[slot.content.direction].offset
                slots[index] = slot._replace(content=slot.content._replace(direction=place))
        self.add("version", b"3\n")
        directory = sum(CENTRAL.size + len(self.entry_name_and_extra(m)) for m in self.members)
        nbytes = self.place + directory + END64.size + LOCATOR64.size + END.size
        return Layout(nbytes, content.names, tuple(slots), tuple(self.fixed), self.seal)

    def add(self, name: str, data: bytes) -> None:
        place = self.begin(name, len(data), zlib.crc32(data))
        self.fixed.append((place, data))

    def begin(self, name: str, nbytes: int, crc: int | None) -> int:
        """Write a local header, padded so that the data is aligned, and return the data's place."""
        raw = f"{self.folder}/{name}".encode("utf-8", "replace")
        header = self.place
        zip64 = b""
        if nbytes >= _BIG:
            zip64 = struct.pack("<2H2Q", 1, 16, nbytes, nbytes)
        shown = _BIG if zip64 else 0
        start = header + LOCAL.size + len(raw) + len(zip64) + 4
        padding = -start % _ALIGNMENT
        extra = zip64 + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        local = LOCAL.pack(
            b"PK\x03\x04", 0, _flags(nbytes), 0, 0, 0, 0, shown, shown, len(raw), len(extra)
        )
        self.fixed.append((header, local + raw + extra))
        data = start + padding
        self.members.append((raw, header, data + nbytes, nbytes, crc))
        self.place = data + nbytes
        if nbytes:
            self.place += (_DESCRIPTOR64 if zip64 else _DESCRIPTOR).size
        return data

    @staticmethod
    def entry_name_and_extra(member: tuple[bytes, int, int, int, int | None]) -> bytes:
        name, header, _, nbytes, _ = member
        wide = ([nbytes, nbytes] if nbytes >= _BIG else []) + ([header] if header >= _BIG else [])
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        return name + extra

    def seal(self, checksums: Sequence[int]) -> list[Written]:
        """Return the descriptors behind the data, and the central directory."""
        remaining = iter(checksums)
        written: list[Written] = []
        directory = bytearray()
        for member in self.members:
            name, header, end, nbytes, known = member
            crc = next(remaining) if known is None else known
            big = nbytes >= _BIG
            descriptor = _DESCRIPTOR64 if big else _DESCRIPTOR
            if nbytes:
                written.append((end, descriptor.pack(b"PK\x07\x08", crc, nbytes, nbytes)))
            named = self.entry_name_and_extra(member)
            shown = _BIG if big else nbytes
            directory += CENTRAL.pack(
                b"PK\x01\x02", 0, 45 if len(named) > len(name) else 0, _flags(nbytes), 0, 0, 0, crc,
                shown, shown, len(name), len(named) - len(name), 0, 0, 0, 0, min(header, _BIG),
            )  # fmt: skip
            directory += named
        start, size, count = self.place, len(directory), len(self.members)
        end64 = END64.pack(
            b"PK\x06\x06", END64.size - 12, 0x031E, 45, 0, 0, count, count, size, start
        )
        locator = LOCATOR64.pack(b"PK\x06\x07", 0, start + size, 1)
        few = min(count, 0xFFFF)
        end_record = END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, _BIG), min(start, _BIG), 0)
        written.append((start, bytes(directory) + end64 + locator + end_record))
        return written
