"""Zip archives as they are read here: their directory, and members that are stored or deflated.

Layout: APPNOTE.TXT (PKWARE) 4.3.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from wncli.errors import FormatError
from wncli.formats.torch.zip_end import broken_zip, read_end
from wncli.formats.torch.zip_records import (
    CENTRAL,
    CENTRAL_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    read_mark,
)
from wncli.storage.source import BLOCK, Source, defer, is_remote, read_stored, refuse_holes

_ZIP64 = 0xFFFFFFFF
_ZIP64_FIELD = 1
#: Info-ZIP's Unicode path (APPNOTE.TXT 4.6.9).
_OTHER_NAME = 0x7075
_STORED = 0
_DEFLATED = 8
_ENCRYPTED = 1
#: Sizes and checksum follow the bytes: 16 bytes, or 24 where sizes have 64 bits.
_DESCRIBED = 8
#: Bytes of extra fields with which torch.save has storages begin at multiples of 64, and more.
_LONGEST_EXTRA = 4096
#: The MS-DOS attribute of folders, in the external attributes.
_FOLDER = 0x10


class Member(NamedTuple):
    """One member: where its data is, how it is packed, and the checksum that is recorded for it.

    `nbytes` is the size of its content, `packed` what it takes in the file; both in bytes.
    """

    name: str
    header: int
    nbytes: int
    crc: int
    packed: int
    method: int
    flags: int

    @property
    def is_stored(self) -> bool:
        """Whether the file holds the content as it is."""
        return self.method == _STORED and self.packed == self.nbytes and not self.is_encrypted

    @property
    def is_encrypted(self) -> bool:
        """Whether the content can only be read with a password."""
        return bool(self.flags & _ENCRYPTED)

    @property
    def is_deflated(self) -> bool:
        """Whether it is compressed in the one way that is read."""
        return self.method == _DEFLATED and not self.is_encrypted


class ZipArchive:
    """The central directory of a zip archive: its members by their names."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.is_remote = is_remote(source)
        self.mark = read_mark(source.read_at(0, len(LOCAL_MAGIC), "the first bytes"))
        self.members: dict[str, Member] = {}
        #: Where members' bytes begin whose headers are compared later, by their headers' places.
        self.places: dict[int, int] = {}
        #: The members that have been read and are not what was written.
        self.damaged: list[str] = []
        count, size, offset, end = read_end(source)
        raw = read_stored(source, offset, size, "the zip's central directory")
        place = 0
        for _ in range(count):
            name, member, place = self._entry(raw, place)
            inner = self.inner_name(name)
            if inner in self.members:
                raise self.broken(f"member {name!r} stands there twice", "one of each name", "two")
            self.members[inner] = member
        if place != size:
            raise self.broken(
                "the central directory has a wrong length", f"{size} bytes", f"{place} bytes"
            )
        if offset + size != end:
            raise self.broken(
                "the central directory is not in front of its end record",
                f"its end at byte {end}",
                f"byte {offset + size}",
            )

        starts = sorted({member.header for member in self.members.values()} | {offset})
        #: Where the next record begins behind each member's header.
        self.ends = dict(pairwise(starts))

    def inner_name(self, name: str) -> str:
        """Return what a member is called here.

        Raises:
            FormatError: there can be no such member.
        """
        return name

    def broken(self, what: str, expected: str, found: str) -> FormatError:
        """Make the refusal of an archive that contradicts itself."""
        return broken_zip(self.source, what, expected, found)

    def has(self, name: str) -> bool:
        """Whether there is a member of this name below the folder."""
        return name in self.members

    def read(self, name: str) -> bytes:
        """Return the content of a member that is stored."""
        member = self.members[name]
        self.refuse_packed(member)
        place = self.data_offset(member)
        content = read_stored(self.source, place, member.nbytes, f"member {name}")
        if member.crc not in (0, zlib.crc32(content)):
            self.damaged.append(name)
        return content

    def look_over(self, name: str) -> int:
        """Return where a member that is stored begins, of which not all is to be in memory."""
        member = self.members[name]
        self.refuse_packed(member)
        refuse_holes(self.source, self.data_offset(member), member.nbytes, f"member {name}")
        if self.is_damaged(member):
            self.damaged.append(name)
        return self.data_offset(member)

    def is_damaged(self, member: Member) -> bool:
        """Whether a member's content does not have its checksum; 0 is none where it is stored."""
        from wncli.storage.crc32 import crc32

        if not (member.is_stored or member.is_deflated):
            return False
        found = nbytes = 0
        try:
            for block in self._contents(member):
                nbytes += len(block)
                if nbytes > member.nbytes:
                    break
                found = crc32(block, found)
        except zlib.error:
            return True
        is_told = bool(member.crc) or member.is_deflated
        return nbytes != member.nbytes or (is_told and member.crc != found)

    def _contents(self, member: Member) -> Iterator[bytes]:
        """Give the content of a member, in blocks."""
        start = self.data_offset(member)
        inflater = zlib.decompressobj(-zlib.MAX_WBITS) if member.is_deflated else None
        for place in range(0, member.packed, BLOCK):
            count = min(BLOCK, member.packed - place)
            block = self.source.read_at(start + place, count, f"member {member.name}")
            if inflater is None:
                yield block
                continue
            while block and not inflater.eof:
                yield inflater.decompress(block, BLOCK)
                block = inflater.unconsumed_tail
        if inflater:
            yield inflater.flush()

    def unpack(self, name: str) -> bytes:
        """Return the content of a member that may be deflated; never more than it claims to be."""
        member = self.members[name]
        if member.is_stored or not member.is_deflated:
            return self.read(name)
        # Deflating makes nothing longer than this; what follows is no part of it.
        most = member.nbytes + (member.nbytes >> 8) + 64
        packed = min(member.packed, most)
        raw = read_stored(self.source, self.data_offset(member), packed, f"member {name}")
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.nbytes + 1)
        except zlib.error as error:
            raise self.broken(f"member {name!r} cannot be unpacked", "", str(error)) from None
        if len(content) != member.nbytes or zlib.crc32(content) != member.crc:
            raise self.broken(
                f"member {name!r} is not what the directory says",
                f"{member.nbytes} bytes with checksum {member.crc:08x}",
                f"{len(content)} bytes with checksum {zlib.crc32(content):08x}",
            )
        return content

    def refuse_packed(self, member: Member) -> None:
        """Hold a member whose bytes are used where they are against how it is packed.

        Raises:
            FormatError: it is compressed or encrypted.
        """
        if not member.is_stored:
            raise self.broken(
                f"member {member.name!r} is compressed or encrypted",
                "stored members, as torch.save writes",
                f"method {member.method}, {member.packed} of {member.nbytes} bytes",
            )

    def _entry(self, raw: bytes, place: int) -> tuple[str, Member, int]:
        if place + CENTRAL.size > len(raw):
            raise self.broken("the central directory ends early", "one more member", "its end")
        (
            magic, _, _, flags, method, _, _, crc, packed, nbytes,
            name_size, extra_size, comment_size, _, _, attributes, header,
        ) = CENTRAL.unpack_from(raw, place)  # fmt: skip
        if magic != CENTRAL_MAGIC:
            raise self.broken("an entry of the central directory is broken", "PK 1 2", repr(magic))
        place += CENTRAL.size
        end = place + name_size + extra_size + comment_size
        if end > len(raw):
            raise self.broken("the central directory ends early", f"{end} bytes", f"{len(raw)}")
        name = self._text(raw[place : place + name_size])
        extra = raw[place + name_size : place + name_size + extra_size]
        if extra and _OTHER_NAME in _kinds(extra):  # some readers go by it, and others do not
            raise self.broken(f"member {name!r} has another name beside it", "one name", "two")
        if _ZIP64 in (nbytes, packed, header):
            nbytes, packed, header = self._zip64(name, extra, nbytes, packed, header)
        if nbytes and (attributes & _FOLDER or name.endswith("/")):
            raise self.broken(f"member {name!r} is a folder with content", "a file", "a folder")
        return name, Member(name, header, nbytes, crc, packed, method, flags), end

    def _text(self, raw: bytes) -> str:
        """Return the name of a member."""
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError:
            name = "\0"
        if "\0" in name:
            raise self.broken("a member's name is no text", "UTF-8 without NUL", repr(raw[:60]))
        return name

    def _zip64(self, name: str, extra: bytes, *values: int) -> list[int]:
        """Put the 64-bit values in for those that the 32-bit fields leave out."""
        found = list(values)
        place = 0
        while place + 4 <= len(extra):
            kind, size = struct.unpack_from("<2H", extra, place)
            if kind == _ZIP64_FIELD:
                wanted = [index for index, value in enumerate(found) if value == _ZIP64]
                if size < 8 * len(wanted) or place + 4 + size > len(extra):
                    break
                for step, index in enumerate(wanted):
                    (found[index],) = struct.unpack_from("<Q", extra, place + 4 + 8 * step)
                return found
            place += 4 + size
        raise self.broken(f"member {name!r} has no zip64 sizes", "a zip64 field", "none")

    def data_offset(self, member: Member) -> int:
        """Return where a member's bytes begin, as its own header says.

        Where to read that takes a request, it follows from where the next record begins, and the
        header is compared with it before the bytes are read.

        Raises:
            FormatError: that is another member's header, or they overlap what follows.
        """
        if not self.is_remote:
            return self._by_header(member)
        expected = self.places.get(member.header)
        if expected is None and (expected := self._by_directory(member)) is not None:

            def check() -> None:
                found = self._by_header(member)
                if found != expected:
                    raise self.broken(
                        f"member {member.name!r} is not where the directory says",
                        f"its bytes at byte {expected}",
                        f"byte {found}, as its own header says",
                    )

            if defer(self.source, expected, member.packed, check):
                self.places[member.header] = expected
            else:
                expected = None
        return self._by_header(member) if expected is None else expected

    def _by_directory(self, member: Member) -> int | None:
        """Return where a member's bytes should begin, as what follows them does not overlap.

        None where the header would be of an odd length.
        """
        descriptor = 0
        if member.flags & _DESCRIBED:
            descriptor = 24 if max(member.nbytes, member.packed) >= _ZIP64 else 16
        data = self.ends.get(member.header, -1) - descriptor - member.packed
        shortest = member.header + LOCAL.size + len(member.name.encode("utf-8", "replace"))
        return data if shortest <= data <= shortest + _LONGEST_EXTRA else None

    def _by_header(self, member: Member) -> int:
        expected = member.name.encode("utf-8", "replace")
        what = f"member {member.name}"
        raw = self.source.read_at(member.header, LOCAL.size + len(expected), what)
        magic, _, _, _, _, _, _, _, _, name_size, extra_size = LOCAL.unpack_from(raw)
        if self.mark and not member.header:
            magic = LOCAL_MAGIC[:2] + magic[2:]
        start = member.header + LOCAL.size
        name = raw[LOCAL.size :]
        if name_size != len(expected):  # it is another, or was not to be decoded
            name = self.source.read_at(start, name_size, what)
        if magic != LOCAL_MAGIC or (
            name != expected and name.decode("utf-8", "replace") != member.name
        ):
            raise self.broken(
                f"member {member.name!r} is not where the directory says",
                f"its header at byte {member.header}",
                repr(name[:60]),
            )
        data: int = start + name_size + extra_size
        end = self.ends.get(member.header, -1)
        if end < data + member.packed <= self.source.nbytes:
            raise self.broken(
                f"member {member.name!r} overlaps what follows it",
                f"its bytes before byte {end}",
                f"{member.packed} bytes from byte {data} on",
            )
        return data


def _kinds(extra: bytes) -> Iterator[int]:
    """Give the kinds of the extra fields of a member."""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        yield kind
        place += 4 + size
