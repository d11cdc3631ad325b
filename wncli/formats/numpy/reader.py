"""Reads .npz files: a zip with a member NAME.npy for each array, stored or deflated.

Source: NumPy `numpy/lib/format.py` (versions 1.0 to 3.0), `numpy/lib/_npyio_impl.py` (`NpzFile`);
MLX `mlx/io/load.cpp`, which goes by places in the header and so takes its members in one order.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, count_elements, row_major
from wncli.errors import FormatError
from wncli.formats.numpy.dtypes import CODES
from wncli.formats.torch.zip_archive import Member, ZipArchive
from wncli.formats.torch.zip_end import broken_zip
from wncli.formats.torch.zip_records import NPY
from wncli.storage.crc32 import crc32, moved_on
from wncli.storage.source import FileSource, Source, truncated

MAGIC = b"\x93NUMPY"
_VERSIONS = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
#: NumPy's own limit for a file that it does not trust, in bytes.
_LONGEST_HEADER = 10_000
#: Bytes that are read of a member at first, and at most of a deflated one.
_HEADER = 256
_DEFLATED_HEADER = 16 << 10
#: How much deflated members may come to: hardly any weights deflate to a half.
_UNPACKED_TIMES = 16
_UNPACKED_MORE = 64 << 20
#: As many deflated members are kept in memory, once they are unpacked: more than are read at once.
_MOST_KEPT = 16
#: Names are UTF-8; sizes follow the data; how hard it was deflated.
_KNOWN_FLAGS = 0x800 | 0x8 | 0x6
_UTF8 = 0x800
_N = r"(?:0|[1-9][0-9]*)L?"  # Python 2 had long numbers
#: As NumPy, MLX and what else writes such files spell it.
_HEADER_TEXT = re.compile(
    r"\{'descr': '(?P<descr>[^'\\]*)', 'fortran_order': (?P<order>True|False), "
    rf"'shape': \((?P<shape>|{_N},|{_N}(?:, {_N})+,?)\),? ?\}} *\n?"
)
#: Of text and of times: no tensors.
_OTHERS = re.compile(r"[<|=]?[SUaMm].*")
_MOST_DIMS = 64
_LONGEST_SIZE = 18
_MOST_BYTES = 1 << 62


class _Header(NamedTuple):
    dtype: DType | None
    shape: tuple[int, ...]
    is_fortran: bool
    #: All that stands before the elements.
    raw: bytes


def read_npz(source: Source) -> Checkpoint:
    """Open an .npz file.

    Raises:
        FormatError: no sound zip, or an array that NumPy and MLX would not read alike.
    """
    archive = ZipArchive(source)
    unpacked = sum(m.nbytes for m in archive.members.values() if not m.is_stored)
    if unpacked > _UNPACKED_TIMES * source.nbytes + _UNPACKED_MORE:
        raise FormatError(
            source.name,
            f"the deflated arrays would take {unpacked:,} bytes",
            expected=f"no more than {_UNPACKED_TIMES} times the file and {_UNPACKED_MORE:,} bytes",
            hint="load it with NumPy and save it again with numpy.savez",
        )
    unpack = lru_cache(_MOST_KEPT)(archive.unpack)
    tensors: list[TensorSpec] = []
    others: list[str] = []
    for name, member in archive.members.items():
        _refuse_foreign(source, name, member)
        if name.removesuffix(NPY) in archive.members:  # NumPy looks for members first
            inner = name.removesuffix(NPY)
            raise FormatError(
                source.name,
                f"NumPy finds the array {inner.removesuffix(NPY)!r} under the name {inner!r} too",
                expected=f"no array that is called as another and {NPY}",
                hint="save the arrays under other names",
            )
        spec = _tensor(archive, name.removesuffix(NPY), member, unpack)
        if spec:
            tensors.append(spec)
        else:
            others.append(name.removesuffix(NPY))
    state_dicts = (StateDict("", tuple(tensors), tuple(others)),) if tensors else ()
    return Checkpoint(source.name, "npz", source.nbytes, state_dicts)


def _broken(source: Source, name: str, problem: str, found: str = "") -> FormatError:
    return FormatError(
        source.name,
        f"array {name!r} is not as NumPy writes it: {problem}",
        found=found,
        hint="load it with NumPy and save it again",
    )


def _no_numbers(source: Source, name: str, what: str, found: str) -> FormatError:
    return FormatError(
        source.name,
        f"array {name!r} is no tensor: {what}",
        expected="numbers of a dtype that tensors have",
        found=found,
        hint="load it with NumPy and save it again without this array, or as another dtype",
    )


def _refuse_foreign(source: Source, name: str, member: Member) -> None:
    """Refuse a member that is no array, or that Python's zipfile reads under another name."""
    if not name.endswith(NPY):
        raise FormatError(
            source.name,
            f"member {name!r} is no array",
            expected=f"members whose names end with {NPY}",
            hint="load it with NumPy and save it again",
        )
    if not (member.is_stored or member.is_deflated) or member.flags & ~_KNOWN_FLAGS:
        raise FormatError(
            source.name,
            f"member {name!r} is packed in another way",
            expected="stored or deflated members",
            found=f"method {member.method}, flags {member.flags:#x}",
            hint="load it with NumPy and save it again",
        )
    if not name.isascii() and not member.flags & _UTF8:
        raise FormatError(
            source.name,
            f"the encoding of the name {name!r} is not told",
            expected="UTF-8, marked as such",
            hint="load it with NumPy and save it again",
        )


def _tensor(
    archive: ZipArchive, name: str, member: Member, unpack: Callable[[str], bytes]
) -> TensorSpec | None:
    """Read where an array is; None where it is none of numbers."""
    source = archive.source
    place = archive.data_offset(member)
    if place + member.packed > source.nbytes:
        raise truncated(source, f"member {member.name}", place + member.packed)
    start = _start(archive, member, place, _HEADER)
    header = _header(source, name, start) or _header(
        source, name, _start(archive, member, place, _LONGEST_HEADER + 12)
    )
    if header is None:
        raise _broken(source, name, "it ends inside its header")
    if header.dtype is None:
        return None
    numel = count_elements(header.shape)
    nbytes = _MOST_BYTES if numel is None else numel * header.dtype.itemsize
    if nbytes != member.nbytes - len(header.raw):
        raise _broken(
            source,
            name,
            "its bytes do not fill its shape",
            f"{member.nbytes - len(header.raw):,} bytes for {header.shape} of {header.dtype.label}",
        )
    storage = _storage(archive, member, header, place, unpack)
    shape = header.shape
    strides = row_major(shape[::-1])[::-1] if header.is_fortran else row_major(shape)
    return TensorSpec(name, header.dtype, shape, storage, 0, strides)


def _storage(
    archive: ZipArchive,
    member: Member,
    header: _Header,
    place: int,
    unpack: Callable[[str], bytes],
) -> Storage:
    """Return where the elements are, behind the end of the file if they are deflated."""
    source, name = archive.source, member.name.removesuffix(NPY)
    nbytes = member.nbytes - len(header.raw)
    if member.is_stored:
        # The zip's checksum is of the header too, whose part in it is known.
        crc = member.crc ^ moved_on(crc32(header.raw), nbytes)
        if not nbytes and crc:
            raise broken_zip(source, f"member {member.name!r} is damaged", "its checksum", "")
        return Storage(name, place + len(header.raw), nbytes, crc, "cpu", source.number)
    if not isinstance(source, FileSource):
        raise broken_zip(source, f"member {member.name!r} is deflated", "stored members", "")
    begin = len(header.raw)

    def read(start: int, count: int) -> bytes:
        return unpack(member.name)[begin + start : begin + start + count]

    return Storage(name, source.append(nbytes, read), nbytes, None, "cpu", source.number)


def _start(archive: ZipArchive, member: Member, place: int, most: int) -> bytes:
    """Return the first bytes of a member's content."""
    source, what = archive.source, f"member {member.name}"
    count = min(most, member.nbytes)
    if member.is_stored:
        return source.read_at(place, count, what)
    raw = source.read_at(place, min(member.packed, _DEFLATED_HEADER), what)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(count, 1))[:count]
    except zlib.error as error:
        raise broken_zip(source, f"{what} cannot be unpacked", "", str(error)) from None


def _header(source: Source, name: str, start: bytes) -> _Header | None:
    """Read a header; None where there are not enough bytes."""
    if not start.startswith(MAGIC):
        raise _broken(source, name, "it does not begin as one", repr(start[:8]))
    version = (start[6], start[7]) if len(start) > 7 else (0, 0)  # noqa: PLR2004
    if version not in _VERSIONS:
        raise _broken(source, name, "its version is unknown", f"{version[0]}.{version[1]}")
    begin = len(MAGIC) + 2 + _VERSIONS[version]
    length = int.from_bytes(start[len(MAGIC) + 2 : begin], "little")
    if length > _LONGEST_HEADER:
        raise _broken(source, name, "its header is too long", f"{length:,} bytes")
    if begin + length > len(start):
        return None
    raw = start[: begin + length]
    text = raw[begin:].decode("latin1")
    found = _HEADER_TEXT.fullmatch(text)
    if not found and text.startswith("{'descr': ["):
        raise _no_numbers(source, name, "it holds records", text[:100])
    if not found:
        raise _broken(source, name, "its header is spelled otherwise", repr(raw[begin:][:100]))
    sizes = [size.rstrip("L") for size in re.findall(_N, found["shape"])]
    if len(sizes) > _MOST_DIMS or any(len(size) > _LONGEST_SIZE for size in sizes):
        raise _broken(source, name, "its shape is impossible")
    dtype = _dtype(source, name, found["descr"])
    return _Header(dtype, tuple(map(int, sizes)), found["order"] == "True", raw)


def _dtype(source: Source, name: str, descr: str) -> DType | None:
    """Read a dtype of numbers; None for text and times.

    bfloat16 is written as bytes without a meaning, `<V2`, by MLX and by ml_dtypes.
    """
    order, code = descr[:1], descr[1:]
    if code == "O" or code.startswith("O"):
        what = "it holds objects, a pickle that np.load runs with allow_pickle=True alone"
        raise _no_numbers(source, name, what, descr[:60])
    dtype = DType.BF16 if code == "V2" else CODES.get(code)
    if dtype and order == ">":
        raise FormatError(
            source.name,
            f"array {name!r} is stored big-endian",
            expected="byte order <",
            found=descr,
            hint="load it with NumPy and save it again with astype(dtype.newbyteorder('<'))",
        )
    if dtype and (order == "<" or (order == "|" and (dtype.itemsize == 1 or code == "V2"))):
        return dtype
    if _OTHERS.fullmatch(descr):
        return None
    raise _no_numbers(source, name, "its dtype is none of numbers", descr[:60])
