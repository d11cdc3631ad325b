"""The end of a zip archive, which says where its central directory is.

Layout: APPNOTE.TXT (PKWARE) 4.3.14 to 4.3.16.
"""

from __future__ import annotations

import shlex

from wncli.errors import FormatError
from wncli.formats.files import Source
from wncli.formats.zip_records import CENTRAL, CENTRAL_MAGIC, END, END64, LOCATOR64

_END_MAGIC = b"PK\x05\x06"
_LONGEST_COMMENT = 0xFFFF


def broken_zip(source: Source, what: str, expected: str, found: str) -> FormatError:
    """The refusal of an archive that contradicts itself."""
    return FormatError(
        source.where,
        f"the zip archive is damaged: {what}",
        expected=expected,
        found=found,
        hint="copy or download the file again",
    )


def _tail(source: Source) -> tuple[bytes, int, int]:
    """The file's last bytes, where they begin, and the place of the end record in them."""
    size = min(source.nbytes, END.size + _LONGEST_COMMENT)
    start = source.nbytes - size
    tail = source.read_at(start, size, "the zip's end record")
    place = tail.rfind(_END_MAGIC)
    if place < 0 or place + END.size > len(tail):
        raise source.truncated("the zip archive: its end record is missing", start + size + 1)
    return tail, start, place


def read_end(source: Source) -> tuple[int, int, int]:
    """Number of members, and size and offset of the central directory."""
    tail, start, place = _tail(source)
    _, disk, first, here, count, cd_size, cd_offset, _comment = END.unpack_from(tail, place)
    disks = {disk, first} - {0xFFFF}
    locator = start + place - LOCATOR64.size
    if locator >= 0:
        raw = source.read_at(locator, LOCATOR64.size, "the zip's end record")
        magic, where, end64, number = LOCATOR64.unpack(raw)
        if magic == b"PK\x06\x07":
            raw = source.read_at(end64, END64.size, "the zip64 end record")
            magic, _, _, _, disk, first, here, count, cd_size, cd_offset = END64.unpack(raw)
            if magic != b"PK\x06\x06":
                raise broken_zip(source, "the zip64 end record is missing", "PK 6 6", repr(magic))
            disks |= {disk, first, where} | ({1} if number > 1 else set())
    if disks - {0} or here != count:
        raise broken_zip(source, "it is one of several disks", "one file", "parts of it elsewhere")
    return count, cd_size, cd_offset


def disguise(source: Source) -> tuple[str, str] | None:
    """What a zip archive with a sound end is that does not start as one, and what to do about it.

    None where there is no such end.
    """
    try:
        tail, start, place = _tail(source)
    except FormatError:
        return None
    *_, cd_size, cd_offset, _comment = END.unpack_from(tail, place)
    file = shlex.quote(source.where)
    try:
        _, _, offset = read_end(source)
    except FormatError:  # its zip64 record is not where it was
        offset = -1
    if _starts_directory(source, offset):
        return (
            "a zip archive whose first bytes have been changed",
            f"printf 'PK\\003\\004' | dd of={file} conv=notrunc puts back what a zip starts with",
        )
    for end in (start + place, start + place - LOCATOR64.size - END64.size):
        shift = end - cd_size - cd_offset
        if shift and _starts_directory(source, cd_offset + shift):
            if shift < 0:
                missing = f"a zip archive whose first {-shift:,} bytes are missing"
                return missing, "copy or download it again"
            return (
                f"a zip archive behind {shift:,} bytes that are no part of it",
                f"tail -c +{shift + 1} {file} > {file}.pt leaves them out",
            )
    return None


def _starts_directory(source: Source, place: int) -> bool:
    if not 0 <= place <= source.nbytes - CENTRAL.size:
        return False
    magic = source.read_at(place, len(CENTRAL_MAGIC), "the zip's central directory")
    return magic == CENTRAL_MAGIC
