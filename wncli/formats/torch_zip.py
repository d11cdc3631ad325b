"""Reads the zip that `torch.save` writes since PyTorch 1.6.

Every member is stored, never compressed, so each storage is one run of bytes in the file. Layout:
APPNOTE.TXT (PKWARE) 4.3, PyTorch `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from wncli.checkpoint import Checkpoint
from wncli.errors import FormatError
from wncli.formats.files import Source
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.torch_roots import read_tree
from wncli.formats.torch_tensor import StorageId
from wncli.tensors import Storage

MAGIC = b"PK\x03\x04"

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_ZIP64 = 0xFFFFFFFF
_ZIP64_FIELD = 1
_STORED = 0
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One stored member: where its data is, and the checksum that the archive records."""

    name: str
    header: int
    nbytes: int
    crc: int


def read_torch_zip(source: Source) -> Checkpoint:
    """Open a torch zip checkpoint.

    Raises:
        FormatError: no readable archive, or one that breaks the rules of the format.
    """
    archive = _Archive(source)
    _refuse_lookalikes(archive)
    if archive.unstored:
        raise archive.unstored
    byteorder = archive.read("byteorder") if archive.has("byteorder") else b"little"
    if byteorder != b"little":
        raise FormatError(
            source.where,
            "the tensors are stored big-endian",
            expected="byteorder little",
            found=f"byteorder {byteorder[:20].decode('ascii', 'replace')}",
            hint="load it with torch.load and save it again on a little-endian machine",
        )
    root, protocol = read_pickle(archive.read("data.pkl"), f"{source.where}: data.pkl")
    found: dict[str, Storage] = {}

    def locate(identity: StorageId) -> Storage:
        if identity.key not in found:
            found[identity.key] = archive.storage(identity)
        storage = found[identity.key]
        if identity.nbytes != storage.nbytes:
            raise archive.broken(
                f"storage data/{identity.key} has the wrong size",
                f"{identity.nbytes} bytes, as data.pkl says",
                f"{storage.nbytes} bytes",
            )
        return storage

    tree, state_dicts, entries, refused = read_tree(root, protocol, locate, source.where)
    return Checkpoint(
        source.path, "torch", source.nbytes, state_dicts, entries, None, tree, refused
    )


def _refuse_lookalikes(archive: _Archive) -> None:
    where = archive.source.where
    if archive.has("constants.pkl") or any(name.startswith("code/") for name in archive.members):
        raise FormatError(
            where,
            "this is a TorchScript archive, a program with its weights, not a checkpoint",
            expected="a file that torch.save wrote",
            hint="torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt') makes a checkpoint",
        )
    if any(name.startswith(".data/") for name in archive.members) and archive.has(
        ".data/extern_modules"
    ):
        raise FormatError(
            where,
            "this is a torch.package archive, code and objects, not a checkpoint",
            expected="a file that torch.save wrote",
            hint="load the object with torch.package and save its state_dict()",
        )
    if not archive.has("data.pkl"):
        raise _no_checkpoint(archive.source, list(archive.members))


def _no_checkpoint(source: Source, members: list[str]) -> FormatError:
    return FormatError(
        source.where,
        "this zip is no torch checkpoint",
        expected="a folder with a member data.pkl, as torch.save writes",
        found=", ".join(members[:5]) or "an empty archive",
    )


class _Archive:
    """The central directory: the members by their names below the archive's one folder."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.members: dict[str, Member] = {}
        #: What is wrong with a member that is compressed, as other kinds of archive may have them.
        self.unstored: FormatError | None = None
        count, size, offset = self._end_record()
        raw = source.read_at(offset, size, "the zip's central directory")
        place = 0
        folder = None
        for _ in range(count):
            name, member, place = self._entry(raw, place)
            top, slash, inner = name.partition("/")
            if folder is None:
                if not slash:
                    raise _no_checkpoint(source, [name])
                folder = top
            if not slash or top != folder:
                raise self.broken(
                    f"member {name!r} stands outside the archive's folder", f"{folder}/…", name
                )
            if inner in self.members:
                raise self.broken(f"member {name!r} stands there twice", "one of each name", "two")
            self.members[inner] = member
        if place != size:
            raise self.broken(
                "the central directory has a wrong length", f"{size} bytes", f"{place} bytes"
            )

    def broken(self, what: str, expected: str, found: str) -> FormatError:
        return FormatError(
            self.source.where,
            f"the zip archive is damaged: {what}",
            expected=expected,
            found=found,
            hint="copy or download the file again",
        )

    def has(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        member = self.members[name]
        return self.source.read_at(self._data_offset(member), member.nbytes, f"member {name}")

    def storage(self, identity: StorageId) -> Storage:
        """The place of a storage's bytes."""
        member = self.members.get(f"data/{identity.key}")
        if member is None:
            raise self.broken(
                f"storage data/{identity.key} is missing", "a member for every storage", "none"
            )
        offset = self._data_offset(member)
        if offset + member.nbytes > self.source.nbytes:
            raise self.source.truncated(f"storage data/{identity.key}", offset + member.nbytes)
        return Storage(
            identity.key, offset, member.nbytes, member.crc, identity.location, self.source.number
        )

    def _end_record(self) -> tuple[int, int, int]:
        """Number of members, and size and offset of the central directory."""
        size = min(self.source.nbytes, _END.size + _LONGEST_COMMENT)
        start = self.source.nbytes - size
        tail = self.source.read_at(start, size, "the zip's end record")
        place = tail.rfind(b"PK\x05\x06")
        if place < 0 or place + _END.size > len(tail):
            raise self.source.truncated(
                "the zip archive: its end record is missing", start + size + 1
            )
        *_, count, cd_size, cd_offset, _comment = _END.unpack_from(tail, place)
        locator = start + place - _LOCATOR64.size
        if locator >= 0:
            raw = self.source.read_at(locator, _LOCATOR64.size, "the zip's end record")
            magic, _disk, end64, _disks = _LOCATOR64.unpack(raw)
            if magic == b"PK\x06\x07":
                raw = self.source.read_at(end64, _END64.size, "the zip64 end record")
                magic, *_, count, cd_size, cd_offset = _END64.unpack(raw)
                if magic != b"PK\x06\x06":
                    raise self.broken("the zip64 end record is missing", "PK 6 6", repr(magic))
        return count, cd_size, cd_offset

    def _entry(self, raw: bytes, place: int) -> tuple[str, Member, int]:
        if place + _CENTRAL.size > len(raw):
            raise self.broken("the central directory ends early", "one more member", "its end")
        fields = _CENTRAL.unpack_from(raw, place)
        magic, _, _, flags, method, _, _, crc, packed, nbytes = fields[:10]
        name_size, extra_size, comment_size, *_, header = fields[10:]
        if magic != b"PK\x01\x02":
            raise self.broken("an entry of the central directory is broken", "PK 1 2", repr(magic))
        place += _CENTRAL.size
        end = place + name_size + extra_size + comment_size
        if end > len(raw):
            raise self.broken("the central directory ends early", f"{end} bytes", f"{len(raw)}")
        name = raw[place : place + name_size].decode("utf-8", "replace")
        extra = raw[place + name_size : place + name_size + extra_size]
        nbytes, packed, header = self._zip64(name, extra, nbytes, packed, header)
        if method != _STORED or packed != nbytes or flags & _ENCRYPTED:
            self.unstored = self.broken(
                f"member {name!r} is compressed or encrypted",
                "stored members, as torch.save writes",
                f"method {method}, {packed} of {nbytes} bytes",
            )
        return name, Member(name, header, nbytes, crc), end

    def _zip64(self, name: str, extra: bytes, *values: int) -> list[int]:
        """Put the 64-bit values in for those that the 32-bit fields leave out."""
        found = list(values)
        if _ZIP64 not in found:
            return found
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

    def _data_offset(self, member: Member) -> int:
        raw = self.source.read_at(member.header, _LOCAL.size, f"member {member.name}")
        magic, *_, name_size, extra_size = _LOCAL.unpack(raw)
        start = member.header + _LOCAL.size
        name = self.source.read_at(start, name_size, f"member {member.name}")
        if magic != MAGIC or name.decode("utf-8", "replace") != member.name:
            raise self.broken(
                f"member {member.name!r} is not where the directory says",
                f"its header at byte {member.header}",
                repr(name[:60]),
            )
        return start + int(name_size) + int(extra_size)
