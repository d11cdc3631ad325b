"""Writes zips whose records lie, field by field, and torch pickles that nobody would pickle.

Layout of the records: PKWARE APPNOTE.TXT 4.3; members and flags as PyTorch 2.13 writes them.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tests.corpus.hostile import Hostile, holding

#: The fields of each record, in order, with their formats.
RECORDS: dict[bytes, dict[str, str]] = {
    b"PK\x03\x04": {
        "needs": "H", "flags": "H", "method": "H", "time": "H", "date": "H", "crc": "L",
        "packed": "L", "nbytes": "L", "name_size": "H", "extra_size": "H",
    },
    b"PK\x01\x02": {
        "made_by": "H", "needs": "H", "flags": "H", "method": "H", "time": "H", "date": "H",
        "crc": "L", "packed": "L", "nbytes": "L", "name_size": "H", "extra_size": "H",
        "comment_size": "H", "disk": "H", "internal": "H", "external": "L", "header": "L",
    },
    b"PK\x06\x06": {
        "record_size": "Q", "made_by": "H", "needs": "H", "disk": "L", "directory_disk": "L",
        "count_here": "Q", "count": "Q", "size": "Q", "offset": "Q",
    },
    b"PK\x06\x07": {"disk": "L", "end64": "Q", "disks": "L"},
    b"PK\x05\x06": {
        "disk": "H", "directory_disk": "H", "count_here": "H", "count": "H", "size": "L",
        "offset": "L", "comment_size": "H",
    },
}  # fmt: skip
LOCAL, CENTRAL, END64, LOCATOR, END = RECORDS
_MOST = {"H": 0xFFFF, "L": 0xFFFFFFFF}

#: What the fields of a record are to say instead of the truth.
Lies = Mapping[str, int]
#: Fields of a `Member` that are to be others.
Records = Mapping[str, Any]


@dataclass(frozen=True)
class Lie:
    """A file with one defect, the same file without it, and what the refusal has to say.

    `torch_loads` where `torch.load(weights_only=True)` reads it all the same, and `wn` does not:
    what it holds is not plain, or is not what was saved.
    """

    told: bytes
    says: str
    truth: bytes
    torch_loads: bool = False


def corpus(lies: Mapping[str, Lie]) -> dict[str, Hostile]:
    """The files that lie."""
    return {name: holding(lie.told, lie.says) for name, lie in lies.items()}


def record(magic: bytes, truth: Lies, lies: Lies) -> bytes:
    """One record; fields that neither tells are 0."""
    fields = RECORDS[magic]
    told = {**truth, **lies}
    assert told.keys() <= fields.keys(), told.keys() - fields.keys()
    values = [told.get(name, 0) for name in fields]
    return magic + struct.pack("<" + "".join(fields.values()), *values)


@dataclass(frozen=True)
class Member:
    """A member of an archive, and what its records say that is not so.

    `stored` is what stands in the file where that is not `data`; `local_name` the name in the
    local header where it is another.
    """

    name: bytes
    data: bytes
    stored: bytes | None = None
    local_name: bytes | None = None
    local: Lies = field(default_factory=dict)
    central: Lies = field(default_factory=dict)
    local_extra: bytes = b""
    central_extra: bytes = b""

    def truth(self) -> dict[str, int]:
        """What both records have in common."""
        packed = self.data if self.stored is None else self.stored
        return {
            "flags": 0x800, "crc": zlib.crc32(self.data), "packed": len(packed),
            "nbytes": len(self.data), "method": 0 if self.stored is None else 8,
        }  # fmt: skip

    def head(self) -> bytes:
        """The local header."""
        name = self.name if self.local_name is None else self.local_name
        sizes = {"name_size": len(name), "extra_size": len(self.local_extra)}
        return record(LOCAL, self.truth() | sizes, self.local) + name + self.local_extra

    def entry(self, header: int) -> bytes:
        """The entry of the central directory, for a local header at this place."""
        sizes = {"name_size": len(self.name), "extra_size": len(self.central_extra)}
        truth = self.truth() | sizes | {"header": header}
        return record(CENTRAL, truth, self.central) + self.name + self.central_extra


@dataclass(frozen=True)
class Ends:
    """What the records at an archive's end say that is not so, and what stands around them."""

    end: Lies = field(default_factory=dict)
    end64: Lies = field(default_factory=dict)
    locator: Lies = field(default_factory=dict)
    is_zip64: bool = True
    comment: bytes = b""


def zip_of(members: Sequence[Member], ends: Ends | None = None) -> bytes:
    """An archive of these members, laid out as `torch.save` does."""
    ends = ends or Ends()
    out = bytearray()
    directory = bytearray()
    for member in members:
        directory += member.entry(len(out))
        out += member.head() + (member.data if member.stored is None else member.stored)
    count = len(members)
    whole = {
        "count_here": count, "count": count, "size": len(directory), "offset": len(out)
    }  # fmt: skip
    out += directory
    if ends.is_zip64:
        place = len(out)
        out += record(END64, whole | {"record_size": 44}, ends.end64)
        out += record(LOCATOR, {"end64": place, "disks": 1}, ends.locator)
    short = {field: min(value, _MOST[RECORDS[END][field]]) for field, value in whole.items()}
    out += record(END, short | {"comment_size": len(ends.comment)}, ends.end) + ends.comment
    return bytes(out)


def changed(members: Sequence[Member], name: str, **changes: Any) -> list[Member]:  # noqa: ANN401
    """These members, one of them with other fields."""
    assert any(member.name == name.encode() for member in members)
    return [
        replace(member, **changes) if member.name == name.encode() else member for member in members
    ]


def without(members: Sequence[Member], name: str) -> list[Member]:
    """These members but one."""
    left = [member for member in members if member.name != name.encode()]
    assert len(left) < len(members)
    return left


def deflated(data: bytes) -> bytes:
    """What a compressed member holds."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def raw_zip64(*values: int, size: int | None = None, kind: int = 1) -> bytes:
    """The extra field for values that 32 bits do not hold; `size` is what it claims to take."""
    data = struct.pack(f"<{len(values)}Q", *values)
    return struct.pack("<2H", kind, len(data) if size is None else size) + data


# -- pickles ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pid:
    """Stands for a storage: its persistent id, part by part."""

    parts: tuple[object, ...]


@dataclass(frozen=True)
class Rebuild:
    """Stands for a tensor: the arguments of `_rebuild_tensor_v2`, or of its like."""

    args: tuple[object, ...]
    function: Any = torch._utils._rebuild_tensor_v2


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.parts if isinstance(value, Pid) else None

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401
        return (value.function, value.args) if isinstance(value, Rebuild) else NotImplemented


def pickled(value: object) -> bytes:
    """A pickle as `torch.save` writes it, of tensors and storages that need not exist."""
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


def storage(
    key: object = "0", numel: object = 12, kind: object = torch.FloatStorage, *view: object
) -> Pid:
    """A storage; `view` is the sixth part that legacy files have."""
    return Pid(("storage", kind, key, "cpu", numel, *view))


def tensor(
    inside: Pid | None = None,
    offset: object = 0,
    size: object = (3, 4),
    stride: object = (4, 1),
) -> Rebuild:
    """A float32 tensor in a storage."""
    hooks: collections.OrderedDict[str, int] = collections.OrderedDict()
    return Rebuild((inside or storage(), offset, size, stride, False, hooks))


def beside(opcodes: bytes, protocol: int = 2) -> bytes:
    """A pickle `{"w": tensor, "x": …}` in which opcodes make the last item.

    They may use memo places from 100 on, and 99, which is the dict itself.
    """
    weight = pickled(tensor())[2:-1]
    head = pickle.PROTO + bytes([protocol])
    return head + b"}q\x63(" + _key("w") + weight + _key("x") + opcodes + b"u."


def _key(name: str) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode()


# -- a sound checkpoint -----------------------------------------------------------------------

#: The elements 0 to 11 as float32.
DATA = struct.pack("<12f", *range(12))


def archive(pickle_of_it: bytes, first: bytes = DATA) -> list[Member]:
    """The members of a checkpoint with two storages, the second of four elements."""
    contents = {
        "data.pkl": pickle_of_it, ".format_version": b"1", ".storage_alignment": b"64",
        "byteorder": b"little", "data/0": first, "data/1": DATA[:16], "version": b"3\n",
    }  # fmt: skip
    return [Member(b"m/" + name.encode(), data) for name, data in contents.items()]


def zip_of_pickle(pickle_of_it: bytes, first: bytes = DATA) -> bytes:
    """A checkpoint whose archive is sound."""
    return zip_of(archive(pickle_of_it, first))


def state_dict(weight: Rebuild) -> dict[str, Rebuild]:
    """A weight, and a bias that fills the second storage."""
    return {"w": weight, "b": tensor(storage("1", 4), 0, (4,), (1,))}


MEMBERS = archive(pickled(state_dict(tensor())))
SOUND = zip_of(MEMBERS)
