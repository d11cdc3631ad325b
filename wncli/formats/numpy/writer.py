"""Lays out an .npz file as `numpy.savez` and MLX do: a zip of stored members, NAME.npy."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import aliases
from wncli.checkpoint.layout import Layout, Magnitude, Slot, Written
from wncli.checkpoint.output import Output, OutputTensor, stored_nbytes
from wncli.checkpoint.tensors import DType
from wncli.errors import FormatError
from wncli.formats.numpy.dtypes import CODES
from wncli.formats.numpy.reader import MAGIC
from wncli.formats.torch.zip_records import (
    CENTRAL,
    CENTRAL_MAGIC,
    END,
    END64,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR64,
    NPY,
)
from wncli.hints import phrase, setting
from wncli.notes import Note
from wncli.storage.crc32 import crc32, moved_on

#: NumPy leaves room for the first number of the shape to grow, and ends at such places.
_ALIGNMENT = 64
_GROWTH = 21
_UTF8 = 0x800
#: 1980-01-01; Python's zipfile on Unix; readable and writable for the owner.
_DATE = 1 << 5 | 1
_MADE_BY = 3 << 8
_VERSION, _VERSION64 = 20, 45
_RIGHTS = 0o600 << 16
_BIG = 0xFFFFFFFF
_MANY = 0xFFFF
_LONGEST_NAME = 0xFFFF
_CRC = 14
#: How many bytes may be written that are written under another name already.
_TIED = 64 << 20


class _Member(NamedTuple):
    name: bytes
    place: int
    header: bytes
    nbytes: int


def lay_out_npz(output: Output) -> tuple[Layout, tuple[Note, ...]]:
    """Lay out what is one state dict by now; the notes say what the format has no place for.

    Raises:
        FormatError: a tensor's dtype does not exist in NumPy or MLX, or its name in a zip; or tied
            tensors would be written over and over.
    """
    results = [result for part in output.state_dicts for result in part.results]
    written = sum(tensor.nbytes for result in results for tensor in result.tensors)
    tied = written - stored_nbytes(results)
    where = output.checkpoint.name
    if tied > output.checkpoint.nbytes + _TIED:
        raise FormatError(
            where,
            f"tied tensors would be written over and over: {tied:,} bytes",
            expected=f"no more than the file and {_TIED:,} bytes",
            hint=phrase("{} stores them once", setting(format="safetensors")),
        )
    place = 0
    fixed: list[Written] = []
    slots: list[Slot] = []
    members: list[_Member] = []
    for result in results:
        first = len(slots)
        for tensor in result.tensors:
            name = _member_name(tensor, where)
            header = _npy_header(tensor, where)
            local = _local(name, len(header) + tensor.nbytes)
            fixed += [(place, local[:_CRC]), (place + _CRC + 4, local[_CRC + 4 :] + header)]
            members.append(_Member(name, place, header, tensor.nbytes))
            place += len(local) + len(header)
            slots.append(Slot(place, tensor.nbytes, tensor.content))
            place += tensor.nbytes
        for number in range(first, len(slots)):
            content = slots[number].content
            if isinstance(content, Magnitude):
                content = content._replace(direction=slots[-1].offset)
                slots[number] = slots[number]._replace(content=content)
    end = b"".join(_directory(members, [0] * len(members), place))
    names = tuple(tensor.name for result in results for tensor in result.tensors)
    for found in {f"{name}{NPY}" for name in names}.intersection(names):
        problem = f"NumPy would find {found.removesuffix(NPY)!r} under this name"
        hint = phrase("{} keeps both", setting(format="safetensors"))
        raise FormatError(f"{where}: {found}", problem, hint=hint)

    def seal(checksums: Sequence[int]) -> list[Written]:
        crcs = [
            moved_on(crc32(member.header), member.nbytes) ^ crc
            for member, crc in zip(members, checksums, strict=True)
        ]
        found = [
            (member.place + _CRC, struct.pack("<L", crc))
            for member, crc in zip(members, crcs, strict=True)
        ]
        return [*found, (place, b"".join(_directory(members, crcs, place)))]

    layout = Layout(place + len(end), names, tuple(slots), tuple(fixed), seal)
    return layout, tuple(_losses(output, tied))


def _member_name(tensor: OutputTensor, where: str) -> bytes:
    try:
        name = (tensor.name + NPY).encode()
    except UnicodeEncodeError:
        name = b"\0"
    if b"\0" in name or len(name) > _LONGEST_NAME:
        problem = "the name is none that a zip can hold"
        hint = phrase("{} keeps it", setting(format="torch"))
        raise FormatError(f"{where}: {tensor.name}", problem, hint=hint)
    return name


_DESCRS = {dtype: ("|" if dtype.itemsize == 1 else "<") + code for code, dtype in CODES.items()}
#: As MLX and ml_dtypes write it.
_DESCRS[DType.BF16] = "<V2"


def _npy_header(tensor: OutputTensor, where: str) -> bytes:
    """Return what stands before the elements (NumPy `numpy/lib/format.py`, version 1.0)."""
    descr = _DESCRS.get(tensor.dtype)
    if descr is None:
        problem = f"npz has no {tensor.dtype.label}"
        hint = phrase("{} keeps it", setting(format="torch"))
        raise FormatError(f"{where}: {tensor.name}", problem, hint=hint)
    shape = tuple(tensor.shape)
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    if shape:
        text += " " * (_GROWTH - len(str(shape[0])))
    start = len(MAGIC) + 4
    text += " " * (-(start + len(text) + 1) % _ALIGNMENT) + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def _flags(name: bytes) -> int:
    return 0 if name.isascii() else _UTF8


def _local(name: bytes, nbytes: int) -> bytes:
    """Return a member's own header, its checksum left open."""
    is_big = nbytes >= _BIG
    extra = struct.pack("<2H2Q", 1, 16, nbytes, nbytes) if is_big else b""
    shown = _BIG if is_big else nbytes
    return (
        LOCAL.pack(
            LOCAL_MAGIC, _VERSION64 if is_big else _VERSION, _flags(name), 0, 0, _DATE, 0, shown,
            shown, len(name), len(extra),
        )
        + name
        + extra
    )  # fmt: skip


def _directory(members: Sequence[_Member], crcs: Sequence[int], start: int) -> Iterator[bytes]:
    """Give the entries of the central directory, which begins at `start`, and the end records."""
    size = 0
    for member, crc in zip(members, crcs, strict=True):
        nbytes = len(member.header) + member.nbytes
        wide = [nbytes, nbytes] if nbytes >= _BIG else []
        wide += [member.place] if member.place >= _BIG else []
        extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = _VERSION64 if wide else _VERSION
        shown = min(nbytes, _BIG)
        entry = CENTRAL.pack(
            CENTRAL_MAGIC, _MADE_BY | version, version, _flags(member.name), 0, 0, _DATE, crc,
            shown, shown, len(member.name), len(extra), 0, 0, 0, _RIGHTS, min(member.place, _BIG),
        )  # fmt: skip
        size += len(entry) + len(member.name) + len(extra)
        yield entry + member.name + extra
    count = len(members)
    if count >= _MANY or size >= _BIG or start >= _BIG:
        yield END64.pack(
            b"PK\x06\x06", END64.size - 12, _MADE_BY | _VERSION64, _VERSION64, 0, 0, count, count,
            size, start,
        )  # fmt: skip
        yield LOCATOR64.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, _MANY)
    yield END.pack(b"PK\x05\x06", 0, 0, few, few, min(size, _BIG), min(start, _BIG), 0)


def _losses(output: Output, tied: int) -> Iterator[Note]:
    checkpoint = output.checkpoint
    if tied:
        message = f"tied tensors are written under each of their names: {tied:,} bytes more"
        yield Note("tied", message)
    recorded = {
        name for part in output.state_dicts for name in aliases(checkpoint, part.state_dict)
    }
    lost = output.left_out()
    lost += [
        f"{key} of the metadata"
        for key, value in (checkpoint.metadata or {}).items()
        if key not in recorded and (key, value) != ("format", "pt")
    ]
    if lost:
        message = f"npz holds arrays by their names; left out: {', '.join(lost)}"
        yield Note("left-out", message, checkpoint.name, is_warning=not output.alone)
