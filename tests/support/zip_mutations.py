"""Breaks zip archives: the members, what is in them, and the records that lead to them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from random import Random

from tests.support.mutations import (
    BYTES,
    INTERESTING,
    TEXTS,
    Mutation,
    any_bytes,
    pickle_opcodes,
    pickle_texts,
)

Members = list[tuple[str, bytes]]


def unzipped(data: bytes) -> Members:
    """The members of an archive.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception as error:  # zipfile raises many kinds
        raise ValueError("no archive") from error


def zipped(members: Members) -> bytes:
    """An archive of stored members, with the sizes and checksums that they have; twice is fine."""
    out, directory = bytearray(), bytearray()
    for name, content in members:
        raw = name.encode("utf-8", "replace")
        size, checksum = len(content), zlib.crc32(content)
        fields = (0x800, 0, 0, 0, checksum, size, size, len(raw), 0)
        directory += (
            struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, *fields, 0, 0, 0, 0, len(out)) + raw
        )
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 0, *fields) + raw + content
    count, start = len(members), len(out)
    end = (b"PK\5\6", 0, 0, count % 65536, count % 65536, len(directory), start, 0)
    return bytes(out + directory + struct.pack("<4s4H2LH", *end))


def zip_pickle(data: bytes, random: Random) -> bytes:
    """Change the opcodes of data.pkl, in an archive that is sound."""
    return _in_member(data, random, "data.pkl", pickle_opcodes)


def zip_texts(data: bytes, random: Random) -> bytes:
    """Exchange texts of data.pkl, in an archive that is sound."""
    return _in_member(data, random, "data.pkl", pickle_texts)


def zip_pickle_bytes(data: bytes, random: Random) -> bytes:
    """Change the bytes of data.pkl, in an archive that is sound."""
    return _in_member(data, random, "data.pkl", any_bytes)


def zip_code(data: bytes, random: Random) -> bytes:
    """Change the code of a TorchScript archive; another member where there is none."""
    return _in_member(data, random, ".py", any_bytes)


def _in_member(data: bytes, random: Random, suffix: str, mutate: Mutation) -> bytes:
    try:
        members = unzipped(data)
    except ValueError:
        return any_bytes(data, random)
    if not members:
        return data
    chosen = [at for at, (name, _) in enumerate(members) if name.endswith(suffix)]
    place = random.choice(chosen or range(len(members)))
    name, content = members[place]
    members[place] = name, mutate(content, random)
    return zipped(members)


def zip_members(data: bytes, random: Random) -> bytes:
    """Take members out, repeat, rename, reorder or exchange them, make them longer or shorter."""
    try:
        members = unzipped(data)
    except ValueError:
        return any_bytes(data, random)
    for _ in range(random.randint(1, 2) if members else 0):
        _change_member(members, random)
        if not members:
            break
    return zipped(members)


def _change_member(members: Members, random: Random) -> None:
    place, other = random.randrange(len(members)), random.randrange(len(members))
    name, content = members[place]
    folder = name.partition("/")[0]
    match random.randrange(7):
        case 0:
            del members[place]
        case 1:
            members.insert(other, members[place])
        case 2:
            inner = ("data/0", "data.pkl", "constants.pkl", "code/a.py", "byteorder", "model.json")
            members[place] = f"{folder}/{random.choice((*inner, *TEXTS))}", content
        case 3:
            members[place] = random.choice(("", "other/", "/")) + name, content
        case 4:
            members[place], members[other] = members[other], members[place]
        case 5:
            members[place] = name, members[other][1]
        case _:
            members[place] = name, random.choice((content[:-1], content + b"\0", content * 2, b""))


#: Magic numbers of records, and where the fields that count stand behind them, with their sizes.
_RECORDS = {
    b"PK\5\6": ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    b"PK\6\6": ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8)),
    b"PK\6\7": ((4, 4), (8, 8), (16, 4)),
    b"PK\1\2": ((6, 2), (8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)),
    b"PK\3\4": ((6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
}


def zip_records(data: bytes, random: Random) -> bytes:
    """Put interesting numbers into the archive's own records."""
    found = bytearray(data)
    for _ in range(random.randint(1, 2)):
        magic = random.choice(tuple(_RECORDS))
        places = [at for at in range(len(found)) if found.startswith(magic, at)]
        if not places:
            continue
        offset, size = random.choice(_RECORDS[magic])
        start = random.choice(places) + offset
        old = int.from_bytes(found[start : start + size], "little")
        new = random.choice((*INTERESTING, old + 1, old - 1, len(data), len(data) - 1))
        found[start : start + size] = (new % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(found)


ZIP: dict[str, Mutation] = BYTES | {
    made.__name__: made
    for made in (zip_pickle, zip_texts, zip_pickle_bytes, zip_code, zip_members, zip_records)
}
