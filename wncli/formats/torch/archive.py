"""The zip archives that PyTorch writes: members below one folder, storages never compressed.

Layout: APPNOTE.TXT (PKWARE) 4.3, PyTorch `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.formats.torch.tensors import StorageId
from wncli.formats.torch.zip_end import broken_zip, read_end
from wncli.formats.torch.zip_records import (
    CENTRAL,
    CENTRAL_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    begins_npz,
    read_mark,
)
from wncli.notes import Note
from wncli.storage.source import BLOCK, Source, read_stored, truncated

_ZIP64 = 0xFFFFFFFF
_ZIP64_FIELD = 1
#: Bytes from which an .npz file is known.
_FIRST = 512
#: Info-ZIP's Unicode path (APPNOTE.TXT 4.6.9).
_OTHER_NAME = 0x7075
_STORED = 0
_DEFLATED = 8
_ENCRYPTED = 1
#: `kMaxSupportedFileFormatVersion` of caffe2/serialize/versions.h.
_LATEST_VERSION = 10
#: Bytes of the members that say the byte order and the version.
_LONGEST_WORD = 1000
#: The MS-DOS attribute of folders, in the external attributes.
_FOLDER = 0x10


#: What PyTorch looks for by name (`inline_container.cc`, `torch/serialization.py`).
_KNOWN = frozenset(
    {"data.pkl", "byteorder", "version", ".data/version", ".format_version", ".storage_alignment",
     ".data/serialization_id", "constants.pkl", "model.json", ".data/extern_modules"}
)  # fmt: skip


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


def no_checkpoint(source: Source, members: list[str]) -> FormatError:
    """Make the refusal of a zip that PyTorch did not write, which has these members."""
    return FormatError(
        source.name,
        "this zip is not a torch checkpoint",
        expected="a folder with a member data.pkl, as torch.save writes",
        found=", ".join(members[:5]) or "an empty archive",
    )


class ZipArchive:
    """The central directory of a zip archive: its members by their names."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.mark = read_mark(source.read_at(0, len(LOCAL_MAGIC), "the first bytes"))
        self.members: dict[str, Member] = {}
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

    def is_damaged(self, member: Member) -> bool:
        """Whether a member's bytes do not have its checksum; 0 is none."""
        if not member.is_stored:
            return False
        from wncli.storage.crc32 import crc32

        start, found = self.data_offset(member), 0
        for place in range(0, member.nbytes, BLOCK):
            count = min(BLOCK, member.nbytes - place)
            step = self.source.read_at(start + place, count, f"member {member.name}")
            found = crc32(step, found)
        return member.crc not in {0, found}

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

        Raises:
            FormatError: that is another member's header, or they overlap what follows.
        """
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


class TorchArchive(ZipArchive):
    """An archive of PyTorch's: its members by their names below the one folder."""

    def __init__(self, source: Source) -> None:
        self.storages: dict[str, Storage] = {}
        self.folder: str | None = None
        self.folded: set[str] = set()
        super().__init__(source)

    def inner_name(self, name: str) -> str:
        """Return a member's name below the folder."""
        top, slash, inner = name.partition("/")
        if self.folder is None:
            if not slash:
                raise no_checkpoint(self.source, [name])
            self.folder = top
        if not slash or top != self.folder:
            raise self.broken(
                f"member {name!r} stands outside the archive's folder", f"{self.folder}/…", name
            )
        lower = inner.lower()  # PyTorch's own reader does not tell upper case from lower
        if lower in self.folded:
            raise self.broken(f"member {name!r} stands there twice", "one of each name", "two")
        self.folded.add(lower)
        if inner != lower and lower in _KNOWN:  # it would be found there, and not here
            raise self.broken(f"member {name!r} is spelled otherwise", lower, inner)
        return inner

    def read_short(self, name: str) -> bytes:
        """Return the content of a member that is a word or a number.

        Raises:
            FormatError: it is longer.
        """
        if self.members[name].nbytes > _LONGEST_WORD:
            raise self.broken(
                f"member {name!r} is too long",
                f"up to {_LONGEST_WORD} bytes",
                f"{self.members[name].nbytes:,}",
            )
        return self.read(name)

    def refuse_big_endian(self) -> None:
        """Hold the byte order against this machine's; older archives without one are little-endian.

        Raises:
            FormatError: the tensors are stored in another order.
        """
        byteorder = self.read_short("byteorder") if self.has("byteorder") else b"little"
        if byteorder not in {b"little", b"big"}:
            raise FormatError(
                self.source.name,
                "the member byteorder names no byte order",
                expected="little",
                found=repr(byteorder[:20]),
                hint="copy or download the file again",
            )
        if byteorder != b"little":
            raise FormatError(
                self.source.name,
                "the tensors are stored big-endian",
                expected="byteorder little",
                found="byteorder big",
                hint="load it with torch.load and save it again on a little-endian machine",
            )

    def notes(self) -> tuple[Note, ...]:
        """Warn of each member that has been read and is damaged, and tell of a version mark."""
        damage = [damage_note(name) for name in self.damaged]
        if not self.mark:
            return tuple(damage)
        message = f"it begins with GPT-SoVITS' version mark {self.mark.decode()} in place of PK"
        return (*damage, Note("version-mark", f"{message}; torch.load alone does not read it"))

    def locate(self, identity: StorageId) -> Storage:
        """Return the place of a storage's bytes, which are as many as the pickle says.

        Raises:
            FormatError: there is no such member, or it has another size.
        """
        storage = self.storages.get(identity.key)
        if storage is None:
            storage = self.storages[identity.key] = self._storage(identity)
        if identity.view is not None:
            raise self.broken(
                f"storage data/{identity.key} is referred to as a view", "a whole storage", "a view"
            )
        if identity.nbytes != storage.nbytes:
            raise self.broken(
                f"storage data/{identity.key} has the wrong size",
                f"{identity.nbytes} bytes, as data.pkl says",
                f"{storage.nbytes} bytes",
            )
        return storage

    def _storage(self, identity: StorageId) -> Storage:
        member = self.members.get(f"data/{identity.key}")
        if member is None:
            raise self.broken(
                f"storage data/{identity.key} is missing", "a member for every storage", "none"
            )
        self.refuse_packed(member)
        offset = self.data_offset(member)
        if offset + member.nbytes > self.source.nbytes:
            raise truncated(self.source, f"storage data/{identity.key}", offset + member.nbytes)
        # PyTorch can be told to compute no checksums (set_crc32_options), and then records 0.
        crc = member.crc or None
        return Storage(
            identity.key, offset, member.nbytes, crc, identity.location, self.source.number
        )

    def refuse_version(self) -> None:
        """Hold the version of the layout against those that PyTorch has written (1 to 10).

        Raises:
            FormatError: there is none, or another.
        """
        member = ".data/version" if self.has(".data/version") else "version"
        version = self.read_short(member) if self.has(member) else b""
        if not (version.strip().isdigit() and 1 <= int(version[:20]) <= _LATEST_VERSION):
            raise self.broken(
                "the version is none that PyTorch knows",
                f"a member version that says 1 to {_LATEST_VERSION}",
                repr(version[:20]) if self.has(member) else "no such member",
            )


def _kinds(extra: bytes) -> Iterator[int]:
    """Give the kinds of the extra fields of a member."""
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        yield kind
        place += 4 + size


def damage_note(member: str, file: str = "") -> Note:
    """Return the warning of a damaged member; `file` is the one of several that it is in."""
    what = f"{file}: {member}" if file else member
    message = f"{what} is damaged: its bytes do not have the checksum that the zip records"
    return Note("checksum", message, member, is_warning=True)


def damaged_members(source: Source) -> list[str]:
    """Return the members that do not have the checksum recorded for them; none of what is no zip.

    Reads all of the file.
    """
    start = source.read_at(0, min(_FIRST, source.nbytes), "the first bytes")
    if not start.startswith(LOCAL_MAGIC) and not read_mark(start):
        return []
    archive = ZipArchive(source) if begins_npz(start) else TorchArchive(source)
    return [name for name, member in archive.members.items() if archive.is_damaged(member)]
