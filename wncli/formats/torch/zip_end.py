"""The end of a zip archive, which says where its central directory is.

Layout: APPNOTE.TXT (PKWARE) 4.3.14 to 4.3.16.
"""

from __future__ import annotations

from wncli.errors import FormatError
from wncli.formats.distributed import distributed_file
from wncli.formats.torch.zip_records import (
    CENTRAL,
    CENTRAL_MAGIC,
    END,
    END64,
    LOCAL_MAGIC,
    LOCATOR64,
)
from wncli.storage.source import Source, truncated

_END_MAGIC = b"PK\x05\x06"
_LONGEST_COMMENT = 0xFFFF
#: Bytes at the end of a file that have its end record, unless there is a comment.
_FEW = 1 << 10
#: Bytes of a zip64 end record that its own size does not count.
_END64_HEAD = 12


def broken_zip(source: Source, what: str, expected: str, found: str) -> FormatError:
    """Make the refusal of an archive that contradicts itself."""
    return FormatError(
        source.name,
        f"the zip archive is damaged: {what}",
        expected=expected,
        found=found,
        hint="copy or download the file again",
    )


def _tail(source: Source) -> tuple[bytes, int, int]:
    """Return the file's last bytes, where they begin, and the place of the end record in them.

    Nearly always they are the file's very last, and few are read.
    """
    for most in (_FEW, END.size + _LONGEST_COMMENT):
        size = min(source.nbytes, most)
        start = source.nbytes - size
        tail = source.read_at(start, size, "the zip's end record")
        place = tail.rfind(_END_MAGIC)
        if place >= 0:
            break
    if place < 0 or place + END.size > len(tail):
        raise truncated(source, "the zip archive: its end record is missing", start + size + 1)
    return tail, start, place


def read_end(source: Source) -> tuple[int, int, int, int]:
    """Return the number of members, and size, offset and end of the central directory.

    Raises:
        FormatError: there is no such end, or it is that of an archive behind others.
    """
    try:
        count, size, offset, end = _read_end(source)
    except FormatError:
        _refuse_several(source)
        raise
    if offset + size < end:
        _refuse_several(source)
    return count, size, offset, end


def _read_end(source: Source) -> tuple[int, int, int, int]:
    tail, start, place = _tail(source)
    _, disk, first, here, count, cd_size, cd_offset, _comment = END.unpack_from(tail, place)
    disks = {disk, first} - {0xFFFF}
    locator = start + place - LOCATOR64.size
    end = start + place
    if locator >= 0:
        raw = source.read_at(locator, LOCATOR64.size, "the zip's end record")
        magic, where, end64, number = LOCATOR64.unpack(raw)
        if magic == b"PK\x06\x07":
            raw = source.read_at(end64, END64.size, "the zip64 end record")
            magic, rest, _, _, disk, first, here, count, cd_size, cd_offset = END64.unpack(raw)
            if magic != b"PK\x06\x06":
                raise broken_zip(source, "the zip64 end record is missing", "PK 6 6", repr(magic))
            if end64 + _END64_HEAD + rest != locator:  # it is another archive's
                raise broken_zip(
                    source,
                    "its zip64 end record does not stand before the end record",
                    f"its end at byte {locator}",
                    f"byte {end64 + _END64_HEAD + rest}",
                )
            disks |= {disk, first, where} | ({1} if number > 1 else set())
            end = end64
    if disks - {0} or here != count:
        raise broken_zip(source, "it is one of several disks", "one file", "parts of it elsewhere")
    return count, cd_size, cd_offset, end


def has_directory(source: Source) -> bool:
    """Whether the file ends as a zip archive does, with a directory where its end record says."""
    try:
        _, size, offset, end = _read_end(source)
    except FormatError:
        return False
    return offset + size == end and _starts_directory(source, offset)


def find_shift(source: Source) -> int | None:
    """How many bytes an archive stands further behind than its end record says.

    Negative where so many are missing in front of it; None where there is no such archive.
    """
    try:
        tail, start, place = _tail(source)
    except FormatError:
        return None
    *_, cd_size, cd_offset, _comment = END.unpack_from(tail, place)
    for end in (start + place, start + place - LOCATOR64.size - END64.size):
        shift: int = end - cd_size - cd_offset
        if shift and _starts_directory(source, cd_offset + shift):
            return shift
    return None


def _refuse_several(source: Source) -> None:
    shift = find_shift(source) or 0
    if shift > 0 and source.read_at(shift, len(LOCAL_MAGIC), "a zip archive") == LOCAL_MAGIC:
        what = "a file of several zip archives, as the parts of a distributed checkpoint are"
        raise distributed_file(source.name, what)


def _starts_directory(source: Source, place: int) -> bool:
    if not 0 <= place <= source.nbytes - CENTRAL.size:
        return False
    magic = source.read_at(place, len(CENTRAL_MAGIC), "the zip's central directory")
    return magic == CENTRAL_MAGIC
