"""Writes safetensors by hand: as its own writer does, and with odd moves."""

from __future__ import annotations

import json
import math
import struct
from random import Random

_CODES = {
    "F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8, "F8_E8M0": 1,
}  # fmt: skip
_ODD_CODES = ("F4", "F6_E2M3", "I4", "", " F32", "FLOAT", "f32", "F8_E4M3FNUZ")
_FIELDS = ('"more":1', '"shape":[1]', '"dtype":"U8"', '"data_offsets":[0,1]')
_METADATA = ('"a":1', '"a":null', '"a":"1","a":"2"', '"a":{}', '"w":"w"', '"__metadata__":"w"')
_SPACES = (" ", "\n", "\t", "\r", "\v", "\N{NO-BREAK SPACE}")


class SafetensorsMaker:
    """One file.

    Args:
        random: decides everything.
        oddness: how likely each chance of an odd move is taken.
    """

    def __init__(self, random: Random, oddness: float) -> None:
        self.random = random
        self.oddness = oddness
        self.moves: list[str] = []

    def odd(self, move: str, weight: float) -> bool:
        """Whether to make an odd move here."""
        taken = self.random.random() < self.oddness * weight
        if taken:
            self.moves.append(move)
        return taken

    def number(self, value: int) -> str:
        """Return a whole number."""
        if not self.odd("an odd number", 0.05):
            return str(value)
        return self.random.choice((
            f"{value}.0", f"{value}e0", f"-{value}", f"0{value}", f"+{value}", f"{value}E+0",
            "1e3", f'"{value}"', "true", "null", f"[{value}]", f"{value + 2**64}", f"0x{value}",
            "-0", "NaN",
        ))  # fmt: skip

    def text(self, value: str) -> str:
        """Return a text."""
        if not self.odd("an odd text", 0.05):
            return json.dumps(value)
        escaped = "".join(f"\\u{ord(letter):04x}" for letter in value)
        return self.random.choice((
            f'"{escaped}"', f'"{value}\\ud800"', f'"{value}\\/"', f'"{value}\t"', f'"{value}\0"',
            f"'{value}'", f'"{value}\\u0000"', f'"\\x61{value}"', f'"{value}\N{SNOWMAN}"',
            f'"{value}\x7f"', f'"{value}\\ud83d\\ude00"',
        ))  # fmt: skip

    def file(self) -> bytes:
        """Return a whole file."""
        random, data = self.random, bytearray()
        names = random.sample(("a.weight", "a.weight_g", "a.weight_v", "b.bias", "w", "x", ""), 3)
        if self.odd("a name twice", 0.1):
            names.append(names[0])
        entries = [self.entry(name, data) for name in names]
        if random.choice((True, False)):
            entries.append(f'"__metadata__":{{{self.metadata(names)}}}')
            if self.odd("metadata twice or none", 0.08):
                entries.append(random.choice(('"__metadata__":{}', '"__metadata__":null')))
        random.shuffle(entries)
        space = random.choice(_SPACES) if self.odd("space", 0.1) else ""
        header = f"{{{f',{space}'.join(entries)}}}".encode("utf-8", "surrogatepass")
        header += b" " * (-len(header) % 8)
        if self.odd("bytes around the header", 0.08):
            header = random.choice((
                b" " + header, header + b"\0", b"\xef\xbb\xbf" + header, header + b"x",
                header.replace(b"}", b",}", 1), b"[" + header + b"]", header + b"\n",
                header.rstrip(), header.upper(),
            ))  # fmt: skip
        made = struct.pack("<Q", len(header)) + header + data
        if self.odd("bytes behind the tensors", 0.05):
            made = random.choice((made + b"\0", made[:-1], made + b"PK\5\6" + bytes(18)))
        return made

    def entry(self, name: str, data: bytearray) -> str:
        """Return a tensor: what the header says, and its bytes behind the others."""
        random = self.random
        code, itemsize = random.choice([*_CODES.items()])
        shape = [random.choice((0, 1, 2, 3, 3)) for _ in range(random.randrange(4))]
        begin, end = len(data), len(data) + math.prod(shape) * itemsize
        data += random.randbytes(end - begin)
        if self.odd("odd offsets", 0.06):
            begin, end = random.choice(((begin + 1, end + 1), (0, end), (end, begin)))
        if self.odd("an odd dtype", 0.05):
            code = random.choice((code.lower(), *_ODD_CODES))
        fields = [
            f"{self.text('dtype')}:{self.text(code)}",
            f"{self.text('shape')}:[{','.join(map(self.number, shape))}]",
            f"{self.text('data_offsets')}:[{self.number(begin)},{self.number(end)}]",
        ]
        random.shuffle(fields)
        if self.odd("a field added", 0.04):
            fields.append(random.choice((fields[0], *_FIELDS)))
        if self.odd("a field missing", 0.02):
            fields.pop()
        return f"{self.text(name)}:{{{','.join(fields)}}}"

    def metadata(self, names: list[str]) -> str:
        """Return what stands in the metadata: ties among it."""
        if self.odd("odd metadata", 0.15):
            return self.random.choice(_METADATA)
        keys = self.random.sample(("format", "tied", "x", "note"), 2)
        told = {key: self.random.choice(("pt", "w", names[0])) for key in keys}
        return ",".join(f"{self.text(key)}:{self.text(value)}" for key, value in told.items())
