"""Breaks checkpoints in small ways: from a file's bytes and a `Random`, other bytes.

Some mutations know the format, and put together again what holds it together: checksums, sizes,
lengths. What they cannot take apart they break byte by byte: every mutation takes any bytes.
"""

from __future__ import annotations

import json
import pickletools
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

#: Numbers at which sizes, counts and offsets tip over.
INTERESTING = (
    0, 1, -1, 2, 7, 8, 255, 256, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
TEXTS = (
    "", "weight", "a.weight", "a.weight_g", "a.weight_v", "a.bias", "w.weight", "__metadata__",
    "b.parametrizations.weight.original0", "b.parametrizations.weight.original1", "_metadata",
    "_parameters", "_buffers", "_modules", "state", "param_groups", "exp_avg", "x.y.z", "..", "/",
    "\0", "\ud800", "\N{SNOWMAN}", "a" * 300, "0", "-1", "storage", "cuda:0", "meta", "nan", "\n",
)  # fmt: skip
#: How many changes of one kind to make at a time: few, because most of them break the file.
_FEW = (1, 1, 1, 2, 4)


# -- any bytes ----------------------------------------------------------------------------------


def flip_bits(data: bytes, random: Random) -> bytes:
    """Turn over a few bits."""
    found = bytearray(data)
    for _ in range(random.choice(_FEW) if found else 0):
        found[random.randrange(len(found))] ^= 1 << random.randrange(8)
    return bytes(found)


def _span(data: bytes, random: Random, longest: int = 64) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((1, 2, 4, 8, random.randint(1, longest))))


def overwrite(data: bytes, random: Random) -> bytes:
    """Put other bytes over some."""
    start, end = _span(data, random)
    return data[:start] + random.randbytes(end - start) + data[end:]


def insert(data: bytes, random: Random) -> bytes:
    """Put bytes in between."""
    start, _ = _span(data, random)
    new = random.choice((random.randbytes(random.randint(1, 16)), bytes(random.randint(1, 64))))
    return data[:start] + new + data[start:]


def delete(data: bytes, random: Random) -> bytes:
    """Take bytes out."""
    start, end = _span(data, random)
    return data[:start] + data[end:]


def duplicate(data: bytes, random: Random) -> bytes:
    """Put a copy of some bytes behind them, or anywhere."""
    start, end = _span(data, random, 512)
    place = random.choice((end, random.randint(0, len(data))))
    return data[:place] + data[start:end] + data[place:]


def truncate(data: bytes, random: Random) -> bytes:
    """Leave out the end, or the beginning."""
    place = random.randint(0, len(data))
    return data[:place] if random.random() < 0.8 else data[place:]


def integers(data: bytes, random: Random) -> bytes:
    """Put an interesting number over one, wherever that may be."""
    size = random.choice((1, 2, 4, 8))
    start = random.randint(0, len(data))
    new = (random.choice(INTERESTING) % (1 << 8 * size)).to_bytes(size, "little")
    return data[:start] + new + data[start + size :]


def splice(other: bytes) -> Mutation:
    """The beginning of a file with the end of `other`."""

    def mutate(data: bytes, random: Random) -> bytes:
        return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]

    return mutate


BYTES: dict[str, Mutation] = {
    made.__name__: made
    for made in (flip_bits, overwrite, insert, delete, duplicate, truncate, integers)
}


def any_bytes(data: bytes, random: Random) -> bytes:
    """One of the mutations that know no format."""
    return random.choice(tuple(BYTES.values()))(data, random)


# -- pickles ------------------------------------------------------------------------------------

_SNIPPETS = (
    b"(", b"0", b"1", b"2", b"N", b"}", b"]", b")", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d",
    b"R", b"b", b"a", b"e", b"s", b"u", b"o", b"Q", b".", b"\x88", b"\x89", b"\x81", b"\x92",
    b"\x8f", b"\x90", b"\x91", b"\x93", b"\x94", b"h\x00", b"h\x01", b"h\x05", b"q\x00", b"q\x01",
    b"K\x00", b"J\xff\xff\xff\xff", b"M\xff\xff", b"G\x7f\xf8\0\0\0\0\0\0", b"I01\n", b"S'a'\n",
    b"U\x02\xff\xfe", b"C\x01a", b"Vab\n", b"Pa\n", b"L5L\n", b"F1e999\n", b"g0\n", b"p1\n",
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8b\xd0\x07\0\0" + bytes(1999) + b"\x40",
    b"\x8b\xff\xff\xff\x7f", b"\x82\x01", b"\x97", b"\x98",
    b"\x96\x01\0\0\0\0\0\0\0a", b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff", b"\x95" + bytes(8),
    b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nDoubleStorage\n", b"cposix\nsystem\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n",
    b"cbuiltins\nset\n", b"ctorch\nfloat16\n", b"ctorch.storage\nUntypedStorage\n",
    b"ccollections\nOrderedDict\n)R", b"]\x94", b"(lp0\n", b"(dp0\n", b"(icollections\nCounter\n",
)  # fmt: skip


def _opcodes(data: bytes) -> tuple[list[bytes], bytes]:
    """The first pickle's opcodes with their arguments, and what stands behind it.

    Raises:
        ValueError: there is none.
    """
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except Exception as error:  # pickletools raises whatever it meets
        raise ValueError("no pickle") from error
    end = places[-1] + 1
    parts = [data[a:b] for a, b in zip(places, [*places[1:], end], strict=True)]
    return parts, data[end:]


def _other_number(part: bytes, random: Random) -> bytes:
    """An opcode that pushes an integer, in place of one that does."""
    value = random.choice((*INTERESTING, random.randint(0, 20)))
    if part[:1] in b"hq":
        return part[:1] + bytes([value % 256])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def pickle_opcodes(data: bytes, random: Random) -> bytes:
    """Exchange, take out, repeat, move opcodes of the first pickle, or change their arguments."""
    try:
        parts, rest = _opcodes(data)
    except ValueError:
        return any_bytes(data, random)
    for _ in range(random.choice(_FEW)):
        _change_opcode(parts, random)
    return b"".join(parts) + rest


def pickle_texts(data: bytes, random: Random) -> bytes:
    """Exchange texts of the first pickle, names mostly, for others of it or for odd ones."""
    try:
        parts, rest = _opcodes(data)
    except ValueError:
        return any_bytes(data, random)
    for _ in range(random.choice(_FEW)):
        _change_text(parts, random)
    return b"".join(parts) + rest


def _change_text(parts: list[bytes], random: Random) -> None:
    texts = [at for at, part in enumerate(parts) if part[:1] in b"XU\x8c"]
    if texts:
        known = parts[random.choice(texts)]
        parts[random.choice(texts)] = random.choice((known, _text(random.choice(TEXTS))))


def _change_opcode(parts: list[bytes], random: Random) -> None:
    if not parts:
        return
    place, other = random.randrange(len(parts)), random.randrange(len(parts))
    numbers = [at for at, part in enumerate(parts) if part[:1] in b"KMJhq\x8a"]
    match random.randrange(9):
        case 0:
            del parts[place]
        case 1:
            parts[place:place] = parts[other : other + random.randint(1, 8)]
        case 2:
            parts[place], parts[other] = parts[other], parts[place]
        case 3:
            parts.insert(place, random.choice(_SNIPPETS))
        case 4:
            parts[place] = random.choice(_SNIPPETS)
        case 5 | 6 if numbers:
            chosen = random.choice(numbers)
            parts[chosen] = _other_number(parts[chosen], random)
        case 7:
            _change_text(parts, random)
        case _:
            del parts[place : place + random.randint(1, 6)]


# -- legacy files -------------------------------------------------------------------------------


#: Of a file that is one pickle.
PICKLE: dict[str, Mutation] = BYTES | {
    "pickle_opcodes": pickle_opcodes,
    "pickle_texts": pickle_texts,
}


def legacy_pickles(data: bytes, random: Random) -> bytes:
    """Change the opcodes of one of the five pickles, mostly of the content and the keys."""
    which = random.choice((0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4))
    return _in_legacy(data, random, which, pickle_opcodes)


def legacy_texts(data: bytes, random: Random) -> bytes:
    """Exchange texts of the content."""
    return _in_legacy(data, random, 3, pickle_texts)


def _in_legacy(data: bytes, random: Random, which: int, mutate: Mutation) -> bytes:
    before = b""
    rest = data
    for _ in range(which):
        try:
            parts, rest = _opcodes(rest)
        except ValueError:
            break
        before += b"".join(parts)
    return before + mutate(rest, random)


LEGACY: dict[str, Mutation] = BYTES | {
    made.__name__: made for made in (legacy_pickles, legacy_texts)
}


# -- JSON ---------------------------------------------------------------------------------------


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, whose names may stand there twice."""


_ATOMS = (*INTERESTING, *TEXTS, None, True, 0.5, -0.0, 1e400, 10**30, "F32", "f32", "F4", "BOOL")


def _dump(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, _Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{_dump(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_dump, value)) + "]"
    return json.dumps(value)


def json_text(data: bytes, random: Random) -> bytes:
    """Change values and names of a JSON text."""
    try:
        value = json.loads(data, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return any_bytes(data, random)
    for _ in range(random.choice(_FEW)):
        value = _change_value(value, random)
    return _dump(value).encode("utf-8", "surrogatepass")


def _change_value(value: Any, random: Random) -> Any:  # noqa: ANN401
    """The value with one change somewhere, as likely above as below."""
    if not isinstance(value, list) or not value or random.random() < 0.1:
        wrapped: Sequence[Any] = ([value], [], _Pairs(), _Pairs([("a", value)]))
        nearby = (value + 1, value - 1, value * 2) if type(value) is int else ()
        return random.choice(random.choice((_ATOMS, nearby or _ATOMS, wrapped)))
    place, other = random.randrange(len(value)), random.randrange(len(value))
    match random.randrange(8):
        case 0:
            del value[place]
        case 1:
            value.insert(place, value[other])
        case 2:
            value[place], value[other] = value[other], value[place]
        case 3 if isinstance(value, _Pairs):
            names = (*TEXTS, value[other][0], "dtype", "shape", "data_offsets")
            value[place] = random.choice(names), value[place][1]
        case 4 if isinstance(value, _Pairs):
            value[place] = value[place][0], value[other][1]
        case _ if isinstance(value, _Pairs):
            value[place] = value[place][0], _change_value(value[place][1], random)
        case _:
            value[place] = _change_value(value[place], random)
    return value


def safetensors_header(data: bytes, random: Random) -> bytes:
    """Change the header, and give its length as it then is."""
    length = int.from_bytes(data[:8], "little")
    header = json_text(data[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


#: Dtypes by the bits of an element: one can stand for another.
_ALIKE = (
    ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), ("I16", "U16", "F16", "BF16"),
    ("I32", "U32", "F32"), ("F64", "I64", "U64", "C64"),
)  # fmt: skip


def safetensors_tensors(data: bytes, random: Random) -> bytes:
    """Rename, reshape, retype, tie and reorder tensors, so that the file stays sound, mostly."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        metadata = dict(header.get("__metadata__", {}))
        for _ in range(random.choice(_FEW) if entries else 0):
            place = random.randrange(len(entries))
            name, entry = entries[place]
            match random.randrange(5):
                case 0:
                    entries[place] = random.choice(TEXTS), entry
                case 1:
                    random.shuffle(entry["shape"])
                    entry["shape"].insert(random.randint(0, len(entry["shape"])), 1)
                case 2:
                    alike = [kinds for kinds in _ALIKE if entry["dtype"] in kinds]
                    entry["dtype"] = random.choice(alike[0])
                case 3:
                    random.shuffle(entries)
                case _:
                    metadata[random.choice(TEXTS)] = name
        made = _Pairs([*entries, ("__metadata__", metadata)] if metadata else entries)
        text = json.dumps(dict(made)) if random.random() < 0.9 else _dump(made)
    except (ValueError, LookupError, TypeError, AttributeError):
        return any_bytes(data, random)
    return struct.pack("<Q", len(text)) + text.encode() + data[8 + length :]


SAFETENSORS: dict[str, Mutation] = BYTES | {
    made.__name__: made for made in (safetensors_header, safetensors_tensors)
}
INDEX: dict[str, Mutation] = BYTES | {"json_text": json_text}
