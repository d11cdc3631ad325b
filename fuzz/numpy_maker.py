"""Makes files of NumPy arrays, and archives that checkpoints are put into: sound and odd ones."""

from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
import zipfile
from random import Random
from typing import Any

import ml_dtypes
import numpy as np

from tests.support.mutations import BYTES, Mutation, pickle_opcodes, pickle_texts
from tests.support.opcodes import RECALLED, Op, build, call, memoized, name, put
from tests.support.zip_mutations import ZIP, unzipped, zipped

_CODES = ("f4", "f4", "f2", "f8", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "b1", "c8", "c16")
_NAMES = ("a.bias", "a.weight_g", "b.weight", "c.scale", "é", "", "a/b", "..", "a.npy", "x" * 90)
WEIGHTS = "model_weights.ckpt"
#: What the elements of bfloat16 are called in an npz file.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def chance(random: Random, likelihood: float) -> bool:
    """Whether something happens that does so this often."""
    return random.random() < likelihood


def array(random: Random, code: str | None = None) -> Any:  # noqa: ANN401
    """Return an array of a few elements, in some order."""
    dtype = np.dtype(code or random.choice(_CODES))
    shape = [random.randint(1, 3) for _ in range(random.choice((0, 1, 1, 2, 2, 3)))]
    if shape and chance(random, 0.05):
        shape[0] = 0
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = bytearray(random.randbytes(count))
    if dtype.kind == "b":
        raw = bytearray(byte & 1 for byte in raw)
    made = np.frombuffer(bytes(raw), dtype).reshape(shape)
    return random.choice((
        np.copy, np.asfortranarray, np.transpose, lambda one: one.copy().T, lambda one: one[::-1]
        if one.ndim else one,
    ))(made)  # fmt: skip


def arrays(random: Random) -> dict[str, Any]:
    """Return names and arrays, one of which could be a weight."""
    made = {"a.weight": np.frombuffer(random.randbytes(24), "f4").reshape(2, 3)}
    for key in random.sample(_NAMES, 3):
        is_tied = chance(random, 0.15)
        made[key] = random.choice(list(made.values())) if is_tied else array(random)
    return made


# -- npz ----------------------------------------------------------------------------------------


def saved_npz(random: Random) -> bytes:
    """Return what NumPy writes."""
    buffer = io.BytesIO()
    made = arrays(random)
    if chance(random, 0.2):
        made["bf16"] = array(random, "u2").view(BFLOAT16)
    random.choice((np.savez, np.savez_compressed))(buffer, **made)
    return buffer.getvalue()


_DESCRS = (
    b"<f4", b"|u1", b"<i4", b">f4", b"<V2", b"|V2", b"|V4", b"<u2", b"|S4", b"<U1", b"=f4", b"f4",
    b"|b1", b"|O", b"<M8[s]", b"<f16", b"<c8", b"|i1", b"<i1",
)  # fmt: skip
_SHAPES = (
    b"(2, 3)", b"(3, 2)", b"(6,)", b"(1, 6)", b"(6, 1, 1)", b"()", b"(1,)", b"(0,)", b"(2L, 3L)",
    b"(2,3)", b"(6)", b"[2, 3]", b"(2, 3,)", b"(True, 6)", b"(-1, 6)", b"(2, 3.0)",
    b"(99999999999, 99999999999)",
)  # fmt: skip
#: What in the text of a header is exchanged for what.
_EXCHANGED = (
    (rb"(?<='descr': ')[^']*", _DESCRS),
    (rb"\(.*\)", _SHAPES),
    (b"False|True", (b"True", b"False", b"0", b"None")),
    (rb"\s*$", (b"", b"\n", b" " * 50 + b"\n", b"#\n", b"\0\n")),
    (b"'", (b'"', b"u'", b" '", b"b'")),
    (b" ", (b"", b"  ", b"\t", b"\n")),
    (rb"\{", (b"{'x': 1, ", b"{ ", b"{'shape': (1,), ")),
)


def npz_headers(data: bytes, random: Random) -> bytes:
    """Say other things in the headers of arrays, in an archive that is sound."""
    members = _members(data)
    if not members:
        return data
    place = random.randrange(len(members))
    key, content = members[place]
    length = int.from_bytes(content[8:10], "little")
    text, elements = content[10 : 10 + length], content[10 + length :]
    pattern, texts = random.choice(_EXCHANGED)
    chosen = random.choice(texts)
    text = re.sub(pattern, lambda _: chosen, text, count=random.choice((0, 1, 1)))
    head = b"\x93NUMPY" + random.choice((b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\4\0"))
    head += struct.pack("<H" if head.endswith(b"\1\0") else "<I", len(text))
    if chance(random, 0.2):
        elements = random.choice((elements + b"\0", elements[:-1]))
    members[place] = key, head + text + elements
    return zipped(members)


def _members(data: bytes) -> list[tuple[str, bytes]]:
    """Return the members of an archive; none where it cannot be read."""
    try:
        return unzipped(data)
    except ValueError:
        return []


def npz_names(data: bytes, random: Random) -> bytes:
    """Call members otherwise."""
    members = _members(data)
    if members:
        place = random.randrange(len(members))
        key, content = members[place]
        others = (key.removesuffix(".npy"), key + ".npy", key.upper(), "/" + key, "../" + key,
                  "a\\b.npy", members[0][0], ".npy", "npy", key + "/", "é.npy")  # fmt: skip
        members[place] = random.choice(others), content
    return zipped(members)


def npz_rewritten(data: bytes, random: Random) -> bytes:
    """Pack members by Python's zipfile, in any of its ways."""
    members = _members(data)
    if not members:
        return data
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, content in members:
            method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
            info = zipfile.ZipInfo(key)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=chance(random, 0.5)) as file:
                file.write(content)
        archive.comment = random.choice((b"", b"", b"x", b"PK\5\6"))
    return buffer.getvalue()


NPZ: dict[str, Mutation] = ZIP | {
    made.__name__: made for made in (npz_headers, npz_names, npz_rewritten)
}

# -- pickles ------------------------------------------------------------------------------------


class Pair:
    """As Paddle pickles its tensors below the top."""

    def __init__(self, key: str, value: Any) -> None:  # noqa: ANN401
        self.key, self.value = key, value

    def __reduce__(self) -> Any:  # noqa: ANN401
        return tuple, ((self.key, self.value),)


def tree(random: Random) -> Any:  # noqa: ANN401
    """Return what people pickle of arrays."""
    made: Any = arrays(random)
    match random.randrange(5):
        case 0:
            made["StructuredToParameterName@@"] = {key: f"p_{key}" for key in made}
        case 1:
            made = {"model": made, "epoch": 3, "mean": np.float32(0.5), "step": np.int64(3)}
        case 2:
            made = {"main_params": {key: Pair(key, value) for key, value in made.items()}}
        case 3:
            made["text"] = np.array(["a", "b"])
            made["objects"] = np.array([1, "a"], object)
    return made


def saved_pickle(random: Random) -> bytes:
    """Return what `pickle.dump` writes, as NumPy 1 or 2 names it."""
    return old_names(pickle.dumps(tree(random), random.choice((2, 2, 3, 4, 4, 5))), random)


def old_names(made: bytes, random: Random) -> bytes:
    """Have NumPy's modules go by the names of NumPy 1."""
    if made.startswith(b"\x80\2") and chance(random, 0.5):  # no length stands before a name there
        return made.replace(b"cnumpy._core.", b"cnumpy.core.")
    return made


_ND = name("numpy.ndarray")
_SIZES = {"f4": 4, "i4": 4, "u1": 1, "f2": 2, "b1": 1, "c8": 8}
_CODES_OF_OTHERS = (
    ">f4", "<f4", "float32", "V2", "S4", "O", "O8", "?", "f", "i", 4, "f16", "U1", "M8[s]", "l",
    "<i8", "=f4", "|u1", "float64",
)  # fmt: skip
_ORDERS = ("=", "|", ">", "<", "<f4", "", None, "native", "L", "B")
_STATES: tuple[tuple[object, ...], ...] = (
    (None, None, None, 8, 4, 0), (None, None, None, -1, -1, 63), (None, None, None, 4, 1, 0),
    (None, ("a",), {"a": ()}, 4, 1, 0), (None, None, None, -1, -1, 0, {}), (None,) * 3,
    ((call("numpy.dtype", "f4", 0, 1), (2,)), None, None, 4, 4, 0),
)  # fmt: skip
_MADE_BY: tuple[tuple[object, ...], ...] = (
    (name("numpy.recarray"), (0,), b"b"), (name("numpy.matrix"), (0,), b"b"), (_ND, (1,), b"b"),
    (_ND, (0,), "b"), (_ND, (0,)), (_ND, 0, b"b"), (_ND, (0,), b"f"),
)  # fmt: skip


class ArrayPickleMaker:
    """One pickle of arrays, written by hand.

    Args:
        random: decides everything.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.oddness = random.choice((0.05, 0.2, 0.6))
        self.moves: list[str] = []

    def odd(self, move: str, weight: float = 0.3) -> bool:
        """Whether to make an odd move here."""
        taken = chance(self.random, self.oddness * weight)
        if taken:
            self.moves.append(move)
        return taken

    def pickle(self) -> bytes:
        """Return a whole pickle."""
        random = self.random
        keys = random.sample(("a.weight", "b.weight", "c.bias", "d"), 3)
        made = put({key: self.array() for key in keys})
        for key in ("late", "a.weight"):
            if self.odd(f"{key} set behind the others", 0.2):
                made = Op(made + put(key) + self.array() + pickle.SETITEM)
        return b"\x80" + bytes([random.choice((2, 3, 4))]) + made + pickle.STOP

    def dtype(self, code: object) -> Op:
        """Return a dtype."""
        order: object = "|" if code in {"u1", "b1"} else "<"
        more: tuple[object, ...] = (None, None, None, -1, -1, 0)
        pick = self.random.choice
        if self.odd("a code"):
            code = pick(_CODES_OF_OTHERS)
        if self.odd("an order"):
            order = pick(_ORDERS)
        if self.odd("a dtype's state"):
            more = pick(_STATES)
        number = pick((1, 2, 4, 3, 0)) if self.odd("a dtype's version") else 3
        args: tuple[object, ...] = (code, 0, 1)
        if self.odd("a dtype's arguments"):
            args = pick((
                (code,), (code, 1, 1), (code, False, True), (code, 1, 0), (code, 0, 0),
                (name("numpy.float32"), 0, 1), (name("builtins.float"), 0, 1),
            ))  # fmt: skip
        made = call("numpy.dtype", *args)
        if self.odd("a dtype without state", 0.2):
            return made
        made = build(made, (number, order, *more))
        second = (3, ">", None, None, None, -1, -1, 0)
        return build(made, second) if self.odd("two states", 0.2) else made

    def raw(self, count: int) -> Op:
        """Return the bytes of an array."""
        data = self.random.randbytes(count)
        text = data.decode("latin1")
        if self.odd("shared bytes", 0.2):
            return RECALLED
        if self.odd("other bytes"):
            return self.random.choice((
                put(text), put(data + b"\0"), call("_codecs.encode", text, "latin1"),
                call("_codecs.encode", text, "utf8"), call("builtins.bytes", text, "latin1"),
                call("builtins.bytes"), call("builtins.bytearray", data), put([1] * count),
                Op(pickle.BYTEARRAY8 + struct.pack("<Q", count) + data), put(None),
                call("_codecs.encode", data, "latin1"),
                Op(pickle.SHORT_BINSTRING + bytes([count & 255]) + data[: count & 255]),
            ))  # fmt: skip
        return memoized(put(data)) if chance(self.random, 0.3) else put(data)

    def array(self) -> Op:
        """Return an array, in one of the two ways."""
        random = self.random
        shape: Any = tuple(random.randint(1, 3) for _ in range(random.choice((1, 2, 2, 3))))
        code = random.choice(list(_SIZES))
        content = self.raw(int(np.prod(shape)) * _SIZES[code])
        kind = self.dtype(code)
        if self.odd("a shape"):
            shape = random.choice((
                (6,), 6, [2, 3], (2, True), (-1,), ("2", 3), (1 << 30, 1 << 30), (), None,
            ))  # fmt: skip
        core = random.choice(("numpy.core", "numpy._core"))
        if chance(random, 0.3):
            return self.of_a_buffer(f"{core}.numeric._frombuffer", content, kind, shape)
        return self.reconstructed(f"{core}.multiarray._reconstruct", content, kind, shape)

    def of_a_buffer(self, maker: str, content: Op, kind: Op, shape: object) -> Op:
        """Return an array as protocol 5 has it."""
        order: object = "C"
        if self.odd("an order of elements", 1):
            order = self.random.choice(("F", "A", "K", "c", None))
        args: tuple[object, ...] = (content, kind, shape, order)
        if self.odd("axes", 1):
            args = (*args[:3], "K", self.random.choice(((0, 1), (1, 0), (0,), (0, 2, 1), (1, 1))))
        made = call(maker, *args)
        is_changed = self.odd("a state for a buffer", 0.2)
        return build(made, (1, shape, kind, False, content)) if is_changed else made

    def reconstructed(self, maker: str, content: Op, kind: Op, shape: object) -> Op:
        """Return an array as protocols up to 4 have it."""
        pick = self.random.choice
        made_by: tuple[object, ...] = (_ND, (0,), b"b")
        if self.odd("arguments"):
            made_by = pick(_MADE_BY)
        is_fortran: object = pick((False, False, True, 0, 1))
        if self.odd("an odd order"):
            is_fortran = pick((2, None, -1, "F"))
        state: tuple[object, ...] = (1, shape, kind, is_fortran, content)
        if self.odd("a state"):
            state = pick((
                (0, *state[1:]), (2, *state[1:]), state[1:], (True, *state[1:]), (*state, 1),
                state[:-1],
            ))  # fmt: skip
        made = build(call(maker, *made_by), state)
        if self.odd("a second state", 0.2):
            made = build(made, (1, (1,), kind, False, self.random.randbytes(4)))
        if self.odd("items", 0.1):
            made = Op(made + put(0) + put(1) + pickle.SETITEM)
        return made


PICKLE: dict[str, Mutation] = BYTES | {
    made.__name__: made for made in (pickle_opcodes, pickle_texts)
}

# -- tar ----------------------------------------------------------------------------------------

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def nemo(random: Random, content: bytes) -> bytes:
    """Return an archive as NeMo packs it, and as tar would."""
    kind = random.choice(_FORMATS)
    before = random.choice(("", "./"))
    members = [
        (f"{before}model_config.yaml", b"target: x\n"), (f"{before}{WEIGHTS}", content),
        (f"{before}tokenizer.model", b"x" * 700),
    ]  # fmt: skip
    if chance(random, 0.3) and kind != tarfile.USTAR_FORMAT:
        members.insert(0, ("a" * 150 + "/é.txt", b"long"))
    random.shuffle(members)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        if before:
            folder = tarfile.TarInfo(".")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for key, data in members:
            info = tarfile.TarInfo(key)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_headers(data: bytes, random: Random) -> bytes:
    """Say other things in a header, and give the checksum that it then has."""
    raw = bytearray(data)
    places = [at for at in range(0, len(raw), 512) if raw[at + 257 : at + 262] == b"ustar"]
    if not places:
        return data
    at = random.choice(places)
    match random.randrange(7):
        case 0:
            raw[at + 156] = random.choice(b"012345678LKxgSVDMNX\0\xff")
        case 1:
            size = random.choice(
                (b"0", b"1", b"777", b"7777777777", b"77777777777", b"-1", b"", b" 12 ")
            )
            raw[at + 124 : at + 136] = size.ljust(12, random.choice((b"\0", b" ")))
        case 2:
            raw[at + 124 : at + 136] = (
                random.choice((b"\x80", b"\xff")) + bytes(8) + random.randbytes(3)
            )
        case 3:
            keys = (WEIGHTS, f"./{WEIGHTS}", f"/{WEIGHTS}", f"../{WEIGHTS}", f"a/../{WEIGHTS}", "",
                    f"{WEIGHTS}/", f".//{WEIGHTS}", f"a/{WEIGHTS}", WEIGHTS.upper())  # fmt: skip
            raw[at : at + 100] = random.choice(keys).encode().ljust(100, b"\0")
        case 4:
            raw[at + 157 : at + 257] = (
                random.choice((WEIGHTS, "model_config.yaml")).encode().ljust(100, b"\0")
            )
        case 5:
            raw[at + 345 : at + 500] = random.choice((b"a", b".", b"")).ljust(155, b"\0")
        case _:
            raw[at + 257 : at + 265] = random.choice(
                (b"ustar\00000", b"ustar  \0", b"ustar\0\0\0", bytes(8))
            )
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return bytes(raw)


def tar_members(data: bytes, random: Random) -> bytes:
    """Put another member before or behind the others."""
    info = tarfile.TarInfo(random.choice((WEIGHTS, f"./{WEIGHTS}", "x")))
    info.type = random.choice((b"0", b"1", b"2", b"5", b"S", b"x", b"g", b"L", b"7", b"X"))
    info.linkname = random.choice((WEIGHTS, "model_config.yaml", "/etc/hostname", ""))
    content = random.choice((
        b"", b"x" * 10, b"30 path=" + WEIGHTS.encode() + b"\n", b"9 size=7\n",
        b"22 GNU.sparse.major=1\n", b"20 GNU.sparse.size=9\n22 GNU.sparse.map=0,5\n",
        WEIGHTS.encode() + b"\0", b"12 path=a/b\n",
        b"27 path=" + WEIGHTS.encode() + b"\n", b"20 GNU.sparse.realsize=9\n",
    ))  # fmt: skip
    info.size = len(content)
    block = info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    at = random.choice(
        [0, *(p for p in range(0, len(data), 512) if data[p + 257 : p + 262] == b"ustar")]
    )
    return data[:at] + block + data[at:]


TAR: dict[str, Mutation] = BYTES | {made.__name__: made for made in (tar_headers, tar_members)}


def marked(content: bytes, random: Random) -> bytes:
    """Return a zip with a version mark of GPT-SoVITS."""
    return b"%02d" % random.choice((3, 4, 5, 6, 7)) + content[2:]
