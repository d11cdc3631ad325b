"""Puts pickles into files as PyTorch does, and oddly; and writes safetensors by hand."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from fuzz.pickle_maker import PickleMaker
from fuzz.safetensors_maker import SafetensorsMaker
from fuzz.tensor_maker import itemsize_of

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


_NAMES = (
    "byteorder", "version", "data.pkl", "data/0", ".data/version", ".format_version",
    ".storage_alignment", "constants.pkl", "code/__torch__.py", "model.json", "data/1",
    "DATA.PKL", "BYTEORDER", "ByteOrder", "Version", "Data/0", "dAtA/1",
)  # fmt: skip
_CONTENTS = (
    b"little", b"big", b"BIG", b"little\n", b"", b"3", b"1\n", b"0", b"10", b"11", b"-1", b"64",
    b"6_4", b" 3", b"0x3", b"\xd9\xa3", b"3\0", b"2 3",
)  # fmt: skip


class Member(NamedTuple):
    """A member of a zip archive: `is_zip64` gives its sizes in 64 bits."""

    name: str
    content: bytes
    is_zip64: bool = False
    is_deflated: bool = False
    crc: int | None = None
    attributes: int = 0


def zipped(members: list[Member], comment: bytes = b"", *, is_zip64: bool = False) -> bytes:
    """Make an archive of these members in order, and its end as 32 or 64 bits have it."""
    out, directory = bytearray(), bytearray()
    for member in members:
        raw = member.name.encode("utf-8", "surrogatepass")
        packed, method = member.content, 0
        if member.is_deflated:
            packed, method = zlib.compress(packed, wbits=-15), 8
        crc = zlib.crc32(member.content) if member.crc is None else member.crc
        sizes, where, extra, wide = (len(packed), len(member.content)), len(out), b"", b""
        if member.is_zip64:
            extra = struct.pack("<2H2Q", 1, 16, sizes[1], sizes[0])
            wide = struct.pack("<2H3Q", 1, 24, sizes[1], sizes[0], where)
            sizes, where = (2**32 - 1,) * 2, 2**32 - 1
        head = (0x800, method, 0, 0, crc, *sizes, len(raw))
        directory += struct.pack("<4s6H3L", b"PK\1\2", 0, 0, *head[:7])
        directory += struct.pack("<5H2L", len(raw), len(wide), 0, 0, 0, member.attributes, where)
        directory += raw + wide
        out += struct.pack("<4s5H3L2H", b"PK\3\4", 0, *head, len(extra)) + raw + extra + packed
    start, count = len(out), len(members)
    out += directory
    if is_zip64:
        end = len(out)
        out += struct.pack(
            "<4sQ2H2L4Q", b"PK\6\6", 44, 0, 0, 0, 0, count, count, len(directory), start
        )
        out += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    out += struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, len(comment)
    )
    return bytes(out + comment)


def torch_zip(maker: PickleMaker) -> bytes:
    """Return the archive of a pickle and its storages."""
    content = maker.pickle()
    pick, odd = maker.random.choice, maker.odd
    members = [Member("data.pkl", content)]
    if pick((True, False)):
        members += [Member(".format_version", b"1"), Member(".storage_alignment", b"64")]
    if pick((True, True, False)):
        members.append(Member("byteorder", b"little"))
    members += [Member(f"data/{key}", raw) for key, (_, raw) in maker.storages.items()]
    members.append(Member("version", b"3\n"))
    if pick((True, False)):
        members.append(Member(".data/serialization_id", b"0" * 40))
    if odd("an odd archive", 0.35):
        for _ in range(pick((1, 1, 2))):
            change_members(members, maker)
    folder = pick(("archive/", "archive/", "model/", "a b/"))
    if odd("an odd folder", 0.03):
        folder = pick(("", "/", "a/b/", "./", "archive//", "../", "é/"))
    placed = [member._replace(name=folder + member.name) for member in members]
    comment = b"a comment" if odd("a comment", 0.03) else b""
    made = zipped(placed, comment, is_zip64=pick((True, False)))
    return surrounded(made, maker) if odd("bytes around the archive", 0.05) else made


def change_members(members: list[Member], maker: PickleMaker) -> None:
    """Rename, repeat, drop, exchange members, or say other things about them."""
    random = maker.random
    name = random.choice(list(_CHANGES))
    maker.moves.append(f"members: {name}")
    _CHANGES[name](members, random.randrange(len(members)), random)


def _drop(members: list[Member], place: int, _random: Random) -> None:
    del members[place]


def _repeat(members: list[Member], place: int, random: Random) -> None:
    members.insert(random.randrange(len(members)), members[place])


def _repeat_changed(members: list[Member], place: int, random: Random) -> None:
    name, content, *_ = members[place]
    other = bytes(byte ^ 1 for byte in content)
    name = random.choice((name, name.upper(), name.swapcase()))
    members.insert(random.randrange(len(members) + 1), Member(name, other))


def _change_case(members: list[Member], place: int, random: Random) -> None:
    name = members[place].name
    other = random.choice((name.upper(), name.capitalize(), name.swapcase()))
    members[place] = members[place]._replace(name=other)


def _rename(members: list[Member], place: int, random: Random) -> None:
    members[place] = members[place]._replace(name=random.choice(_NAMES))


def _exchange(members: list[Member], _place: int, random: Random) -> None:
    small = [at for at, found in enumerate(members) if not found.name.startswith("data")]
    if small:
        place = random.choice(small)
        members[place] = members[place]._replace(content=random.choice(_CONTENTS))


def _add(members: list[Member], place: int, random: Random) -> None:
    members.insert(place, Member(random.choice(_NAMES), random.choice(_CONTENTS)))


def _say_big(members: list[Member], _place: int, random: Random) -> None:
    members[:] = [found for found in members if found.name != "byteorder"]
    name = random.choice(("byteorder", "BYTEORDER", "Byteorder", "byteOrder"))
    members.append(Member(name, b"big"))


def _reorder(members: list[Member], _place: int, random: Random) -> None:
    random.shuffle(members)


def _describe(members: list[Member], place: int, random: Random) -> None:
    members[place] = random.choice((
        members[place]._replace(is_zip64=True), members[place]._replace(is_deflated=True),
        members[place]._replace(crc=0), members[place]._replace(crc=1),
        members[place]._replace(attributes=0x10),
    ))  # fmt: skip


def _resize(members: list[Member], place: int, random: Random) -> None:
    content = members[place].content
    other = random.choice((content[:-1], content + b"\0", b""))
    members[place] = members[place]._replace(content=other)


_CHANGES: dict[str, Callable[[list[Member], int, Random], None]] = {
    "drop": _drop, "twice": _repeat, "twice, changed": _repeat_changed, "case": _change_case,
    "name": _rename, "content": _exchange, "add": _add, "big": _say_big, "order": _reorder,
    "described otherwise": _describe, "size": _resize,
}  # fmt: skip


def surrounded(made: bytes, maker: PickleMaker) -> bytes:
    """Return an archive with others, or with other bytes, before and behind it."""
    other = PickleMaker(maker.random, 0.0)
    content = other.pickle()
    second = zipped(
        [Member("archive/data.pkl", content), Member("archive/version", b"3\n")]
        + [Member(f"archive/data/{key}", raw) for key, (_, raw) in other.storages.items()]
    )
    return maker.random.choice((
        made + second, second + made, made + b"\0" * 9, b"\0" * 9 + made, made + made[-22:],
        SafetensorsMaker(maker.random, 0.0).file() + made, made + b"PK\5\6" + bytes(18),
        legacy(PickleMaker(maker.random, 0.0, is_legacy=True)) + made,
    ))  # fmt: skip


def legacy(maker: PickleMaker) -> bytes:
    """Return what `torch.save` wrote before PyTorch 1.6: five pickles, then the storages."""
    content = maker.pickle()
    protocol = maker.random.choice((2, 2, 2, 3, 4))
    heads: list[object] = [_MAGIC_NUMBER, 1001, dict(_SYSTEM)]
    if maker.odd("an odd head of a legacy file", 0.1):
        change_heads(heads, maker.random)
    stored = [
        Stored(key, len(raw) // itemsize_of(kind), raw)
        for key, (kind, raw) in maker.storages.items()
    ]
    if stored and maker.odd("odd storages of a legacy file", 0.1):
        change_storages(stored, maker.random)
    keys: object = [one.key for one in stored]
    if maker.odd("keys in a tuple", 0.02):
        keys = tuple(one.key for one in stored)
    made = b"".join(pickle.dumps(head, protocol) for head in heads) + content
    made += pickle.dumps(keys, protocol)
    made += b"".join(struct.pack("<q", one.numel) + one.raw for one in stored)
    if maker.odd("a legacy file that is something else as well", 0.05):
        made = maker.random.choice((as_a_tar, as_a_zip))(made)
    return made


def change_heads(heads: list[object], random: Random) -> None:
    """Say other things in the first three pickles."""
    system = dict(_SYSTEM)
    match random.randrange(5):
        case 0:
            heads[2] = system | {"little_endian": random.choice((False, 1, 0, None, "True"))}
        case 1:
            del system[random.choice(list(system))]
            heads[2] = system
        case 2:
            heads[1] = random.choice((1001.0, 1002, True, "1001"))
        case 3:
            heads[2] = random.choice(([], None, [*system.items()]))
        case _:
            heads[0] = random.choice((float(_MAGIC_NUMBER), _MAGIC_NUMBER + 1))


class Stored(NamedTuple):
    """A storage at the end of a legacy file: `numel` is the number of elements that it claims."""

    key: object
    numel: int
    raw: bytes


def change_storages(stored: list[Stored], random: Random) -> None:
    """Repeat, drop, rename, exchange or resize what stands at the end of a legacy file."""
    place = random.randrange(len(stored))
    one = stored[place]
    match random.randrange(6):
        case 0:
            stored.append(one._replace(raw=random.randbytes(len(one.raw))))
        case 1:
            stored[place] = one._replace(numel=one.numel + random.choice((-1, 1)))
        case 2:
            del stored[place]
        case 3:
            random.shuffle(stored)
        case 4:
            stored[place] = one._replace(key=random.choice((b"0", place, "other")))
        case _:
            stored[place] = one._replace(raw=random.choice((one.raw[:-1], one.raw + b"\0")))


def as_a_zip(made: bytes) -> bytes:
    """With a zip archive at its end."""
    buffer = io.BytesIO(made)
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def as_a_tar(made: bytes) -> bytes:
    """Return a legacy file that is a tar archive as well, as PyTorch wrote them at the very first.

    The fields of the first member's header stand in a text that the third pickle throws away.
    """
    start = 0
    for _ in range(2):
        *_, (_, _, last) = pickletools.genops(made[start:])
        start += (last or 0) + 1
    behind = made[start + 2 :] if made[start : start + 1] == pickle.PROTO else made[start:]
    before = made[:start] + pickle.PROTO + b"\2" + pickle.BINBYTES
    before += struct.pack("<I", tarfile.BLOCKSIZE - len(before) - 4)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for name, content in (
            ("storages", pickle.dumps(0, 2) + pickle.dumps([], 2)),
            ("tensors", pickle.dumps(0, 2)),
            ("pickle", pickle.dumps({}, 2)),
        ):
            found = tarfile.TarInfo(name)
            found.size = len(content)
            writer.addfile(found, io.BytesIO(content))
    body = pickle.POP + behind
    first = tarfile.TarInfo("x")
    first.size = len(body)
    fields = first.tobuf(tarfile.USTAR_FORMAT)
    header = bytearray(before.ljust(100, b"\0")[:100] + fields[100:])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + body + bytes(-len(body) % tarfile.BLOCKSIZE) + archive.getvalue()
