"""npz files that each break one rule, with NumPy's verdict on them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DATA = bytes(range(24))


def npy(  # noqa: PLR0913 - every part of it can be another
    data: bytes = DATA,
    shape: str = "(2, 3)",
    descr: str = "'<f4'",
    order: str = "False",
    *,
    version: bytes = b"\x01\x00",
    text: str | None = None,
    claimed: int | None = None,
) -> bytes:
    """An array as NumPy writes it; `text` is the whole header, `claimed` its length."""
    if text is None:
        text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    header = text.encode("latin1").ljust(117) + b"\n"
    size = struct.pack(
        "<H" if version[0] == 1 else "<I", len(header) if claimed is None else claimed
    )
    return b"\x93NUMPY" + version + size + header + data


def npz(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def one(content: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    return npz({"a.weight.npy": content}, method)


def patched(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    raw = bytearray(content)
    change(raw)
    return bytes(raw)


def _at_directory(place: int, value: bytes) -> bytes:
    """The sound file, with something else in the one entry of its directory."""

    def change(raw: bytearray) -> None:
        start = raw.index(b"PK\x01\x02") + place
        raw[start : start + len(value)] = value

    return patched(SOUND, change)


def _at_both(local: int, central: int, value: bytes) -> bytes:
    def change(raw: bytearray) -> None:
        start = raw.index(b"PK\x01\x02") + central
        raw[local : local + len(value)] = value
        raw[start : start + len(value)] = value

    return patched(SOUND, change)


def twice() -> bytes:
    """Two members of one name, of which the last is read by NumPy."""
    content = npz({"a.npy": npy(), "b.npy": npy(DATA[::-1])})
    return content.replace(b"b.npy", b"a.npy")


def renamed_by_an_extra_field() -> bytes:
    """A Unicode path, by which newer readers call the member otherwise."""
    name, other = b"a.weight.npy", b"b.weight.npy"
    field = struct.pack("<BL", 1, zlib.crc32(name)) + other
    info = zipfile.ZipInfo(name.decode())
    info.extra = struct.pack("<HH", 0x7075, len(field)) + field
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, npy())
    return buffer.getvalue()


SOUND = one(npy())
DEFLATED = one(npy(), zipfile.ZIP_DEFLATED)
#: 80 MB of zeros in 80 kB, as NumPy itself could have written it.
BOMB = one(npy(bytes(80 << 20), f"({20 << 20},)"), zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Wrong:
    """A file, what the refusal says, and whether NumPy takes it all the same."""

    content: bytes
    says: str
    numpy_loads: bool = False


_FILL = "bytes do not fill"
_SPELLED = "header is spelled otherwise"
FILES = {
    "too few bytes": Wrong(one(npy(DATA[:-1])), _FILL),
    "too many bytes": Wrong(one(npy(DATA + b"x")), _FILL, numpy_loads=True),
    "a vast shape": Wrong(one(npy(DATA, "(999999999, 999999999, 9)")), _FILL),
    "a shape beyond 64 bits": Wrong(one(npy(DATA, f"({'9' * 30},)")), "shape is impossible"),
    "a number of 5000 digits": Wrong(one(npy(DATA, f"({'9' * 5000},)")), "shape is impossible"),
    "65 dims": Wrong(one(npy(DATA[:4], f"({'1, ' * 64}1)")), "shape is impossible"),
    "a negative size": Wrong(one(npy(DATA, "(-2, -3)")), _SPELLED),
    "a size with a leading zero": Wrong(one(npy(DATA, "(02, 3)")), _SPELLED),
    "a number for a shape": Wrong(one(npy(DATA[:12], "(3)")), _SPELLED),
    "a list for a shape": Wrong(one(npy(DATA, "[2, 3]")), _SPELLED),
    "a sum in the shape": Wrong(one(npy(DATA, "(1+1, 3)")), _SPELLED),
    "code in the shape": Wrong(one(npy(DATA, "(__import__('os').getpid(), 3)")), _SPELLED),
    "a member too many": Wrong(
        one(npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}")),
        _SPELLED,
    ),
    "a member missing": Wrong(one(npy(text="{'descr': '<f4', 'shape': (2, 3), }")), _SPELLED),
    "a member twice": Wrong(
        one(npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), 'shape': (2, 3)}")),
        _SPELLED,
        numpy_loads=True,
    ),
    "members in another order": Wrong(  # which MLX reads by their places
        one(npy(text="{'descr': '<f4', 'shape': (2, 3), 'fortran_order': False, }")),
        _SPELLED,
        numpy_loads=True,
    ),
    "a comment behind the header": Wrong(
        one(npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } # (3, 2)")),
        _SPELLED,
        numpy_loads=True,
    ),
    "an order that is a number": Wrong(one(npy(order="0")), _SPELLED),
    "big-endian": Wrong(one(npy(descr="'>f4'")), "big-endian", numpy_loads=True),
    "no byte order": Wrong(one(npy(descr="'f4'")), "none of numbers", numpy_loads=True),
    "objects": Wrong(one(npy(descr="'|O'")), "allow_pickle"),
    "bytes without a meaning": Wrong(one(npy(descr="'|V4'")), "none of numbers", numpy_loads=True),
    "float8 of ml_dtypes": Wrong(
        one(npy(DATA, "(4, 6)", "'<V1'")), "none of numbers", numpy_loads=True
    ),
    "a structure": Wrong(one(npy(descr="[('x', '<f4')]")), "holds records", numpy_loads=True),
    "a dtype that is none": Wrong(one(npy(descr="'<q9'")), "none of numbers"),
    "a version that is none": Wrong(one(npy(version=b"\x04\x00")), "version is unknown"),
    "a header beyond the file": Wrong(one(npy(claimed=9000)), "ends inside its header"),
    "a header of gigabytes": Wrong(
        one(npy(version=b"\x02\x00", claimed=1 << 31)), "header is too long"
    ),
    "nothing": Wrong(one(b""), "does not begin as one", numpy_loads=True),
    "the magic alone": Wrong(one(b"\x93NUMPY"), "version is unknown"),
    "a member that is no array": Wrong(
        npz({"a.npy": npy(), "b.txt": b"text"}), "is no array", numpy_loads=True
    ),
    "a member that only is called so": Wrong(npz({"a.npy": b"text"}), "begin as one", True),  # noqa: FBT003
    "two members of one name": Wrong(twice(), "stands there twice", numpy_loads=True),
    "a name that NumPy takes for another's": Wrong(
        npz({"a.npy": npy(), "a.npy.npy": npy()}), "under the name 'a.npy' too", numpy_loads=True
    ),
    "a name beside the name": Wrong(
        renamed_by_an_extra_field(), "another name beside it", numpy_loads=True
    ),
    "a name in no encoding": Wrong(
        _at_both(30, 46, b"\xc3\xa9"), "encoding of the name", numpy_loads=True
    ),
    "bzip2": Wrong(one(npy(), zipfile.ZIP_BZIP2), "packed in another way", numpy_loads=True),
    "encrypted": Wrong(_at_both(6, 8, b"\x01\x00"), "packed in another way"),
    "a size that is none of the member": Wrong(
        _at_directory(24, b"\xff\0\0\0"), "packed|fill", numpy_loads=True
    ),
    "a header elsewhere": Wrong(_at_directory(42, b"\x01\0\0\0"), "not where the directory says"),
    "an end that is missing": Wrong(SOUND[:-1], "end record is missing"),
    "deflated, and broken": Wrong(
        patched(DEFLATED, lambda raw: raw.__setitem__(slice(42, 60), b"\xff" * 18)),
        "cannot be unpacked",
    ),
    "a bomb": Wrong(BOMB, "deflated arrays would take", numpy_loads=True),
    "as a torch zip": Wrong(
        npz({"x/data.pkl": b"\x80\x02}.", "a.npy": npy()}),
        "outside the archive's folder",
        True,  # noqa: FBT003
    ),
}
