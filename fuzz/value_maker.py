"""Writes the plain values of a pickle by hand, and what it remembers: as pickle does, or oddly.

Every part is written in the order in which an unpickler carries it out, so that memo places count
up. A move is something that `torch.save` never writes; its name is kept, to say what a file is.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable
from random import Random

from tests.support.opcodes import Op

#: How a number can be written in text; some are others.
_SPELLINGS = (
    "{}", "0{}", "+{}", " {}", "{} ", "{}_0", "0_{}", "0x{}", "0o{}", "-{}", "{}\r", "{}\t", "{}.0",
    "{}L", "{}e0", "00", "01", "001", "", "\N{ARABIC-INDIC DIGIT ONE}",
)  # fmt: skip
_SHORT = 256
#: The first protocol with frames, short texts and names from the stack.
FRAMED = 4


class ValueMaker:
    """The values of one pickle.

    Args:
        random: decides everything.
        oddness: how likely each chance of an odd move is taken.
        protocol: of the pickle.
    """

    def __init__(self, random: Random, oddness: float, protocol: int = 2) -> None:
        self.random = random
        self.oddness = oddness
        self.protocol = protocol
        self.moves: list[str] = []
        self.places = 0
        #: Memo places by what is there.
        self.known: dict[str, list[int]] = {}

    def chance(self, likelihood: float) -> bool:
        """Whether something happens that does so this often."""
        return self.random.random() < likelihood

    def odd(self, move: str, weight: float = 1.0) -> bool:
        """Whether to make an odd move here."""
        if not self.chance(self.oddness * weight):
            return False
        self.moves.append(move)
        return True

    def pick(self, *makers: Callable[[], Op]) -> Op:
        """Return what one of these makes."""
        return self.random.choice(makers)()

    # -- plain values ---------------------------------------------------------------------------

    def text(self, value: str) -> Op:
        """Return a text."""
        raw = value.encode("utf-8", "surrogatepass")
        short = len(raw) < _SHORT
        if self.odd("a text by another opcode", 0.015):
            quoted = b"'" + value.encode("unicode_escape") + b"'"
            found: list[bytes] = [
                pickle.UNICODE + value.encode("raw_unicode_escape") + b"\n",
                pickle.STRING + quoted + b"\n",
                pickle.BINSTRING + struct.pack("<i", len(raw)) + raw,
                pickle.BINUNICODE8 + struct.pack("<Q", len(raw)) + raw,
            ]
            if short:
                shorts = pickle.SHORT_BINSTRING, pickle.SHORT_BINUNICODE
                found += [opcode + bytes([len(raw)]) + raw for opcode in shorts]
            return Op(self.random.choice(found))
        if self.protocol >= FRAMED and short:  # the first that has it
            return Op(pickle.SHORT_BINUNICODE + bytes([len(raw)]) + raw)
        return Op(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)

    def number(self, value: int) -> Op:
        """Return a whole number."""
        if self.odd("a number by another opcode", 0.015):
            return self.odd_number(value)
        if 0 <= value < _SHORT:
            return Op(pickle.BININT1 + bytes([value]))
        if 0 <= value < _SHORT**2:
            return Op(pickle.BININT2 + struct.pack("<H", value))
        if -(2**31) <= value < 2**31:
            return Op(pickle.BININT + struct.pack("<i", value))
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return Op(pickle.LONG1 + bytes([len(raw)]) + raw)

    def odd_number(self, value: int) -> Op:
        """Return a number as hardly anything writes it: it may be another, or none."""
        spelled = self.random.choice(_SPELLINGS).format(value)
        raw = value.to_bytes(max(8, value.bit_length() // 8 + 1), "little", signed=True)
        return Op(self.random.choice((
            pickle.INT + spelled.encode() + b"\n",
            pickle.INT + spelled.encode() + b"\n",
            pickle.LONG + spelled.encode() + b"\n",
            pickle.LONG + spelled.encode() + b"L\n",
            pickle.FLOAT + spelled.encode() + b"\n",
            pickle.BINFLOAT + struct.pack(">d", value % 2**64),
            pickle.LONG1 + bytes([len(raw) % 256]) + raw,
            pickle.LONG1 + b"\x00",
            pickle.LONG4 + struct.pack("<i", len(raw)) + raw,
            pickle.NEWTRUE,
            pickle.NEWFALSE,
        )))  # fmt: skip

    def boolean(self, *, value: bool) -> Op:
        """Make True or False."""
        if self.odd("a boolean that is none", 0.05):
            return self.pick(lambda: self.number(int(value)), lambda: Op(pickle.NONE), self.value)
        return Op(pickle.NEWTRUE if value else pickle.NEWFALSE)

    def value(self) -> Op:
        """Something plain."""
        plain = (
            pickle.NONE, pickle.EMPTY_TUPLE, pickle.EMPTY_LIST, pickle.EMPTY_DICT,
            pickle.NEWTRUE, pickle.BINFLOAT + struct.pack(">d", 0.5),
        )  # fmt: skip
        return self.pick(
            lambda: self.number(self.random.randrange(9)),
            lambda: self.text("x"),
            lambda: Op(self.random.choice(plain)),
            lambda: Op(self.random.choice(plain)),
        )

    def name(self, full: str) -> Op:
        """Return a class or function."""
        module, _, inner = full.rpartition(".")
        if self.odd("a name from the stack", 0.01) or (
            self.protocol >= FRAMED and self.chance(0.9)  # as pickle does
        ):
            return Op(self.text(module) + self.text(inner) + pickle.STACK_GLOBAL)
        return Op(pickle.GLOBAL + f"{module}\n{inner}\n".encode())

    def row(self, parts: Iterable[Op]) -> Op:
        """Return a tuple of these."""
        found = list(parts)
        counted = (pickle.EMPTY_TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)
        if len(found) < len(counted) and self.chance(0.9):  # as pickle does
            return Op(b"".join(found) + counted[len(found)])
        return Op(pickle.MARK + b"".join(found) + pickle.TUPLE)

    def listed(self, parts: Iterable[Op]) -> Op:
        """Return a list of these."""
        found = list(parts)
        if self.chance(0.5):  # either
            return Op(pickle.EMPTY_LIST + b"".join(part + pickle.APPEND for part in found))
        return Op(pickle.EMPTY_LIST + pickle.MARK + b"".join(found) + pickle.APPENDS)

    def call(self, function: str | Op, *args: Op) -> Op:
        """Return a call: nearly always a REDUCE."""
        if not isinstance(function, Op) and self.odd("a call by another opcode", 0.04):
            return self.odd_call(function, *args)
        callee = function if isinstance(function, Op) else self.name(function)
        return Op(callee + self.row(args) + pickle.REDUCE)

    def odd_call(self, function: str, *args: Op) -> Op:
        """Make a call as protocols 0, 1 and 4 write those of classes, or by what calls others."""
        module, _, inner = function.rpartition(".")
        named, together = self.name(function), b"".join(args)
        return Op(self.random.choice((
            named + self.row(args) + pickle.NEWOBJ,
            named + self.row(args) + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
            pickle.MARK + named + together + pickle.OBJ,
            pickle.MARK + together + pickle.INST + f"{module}\n{inner}\n".encode(),
            named + self.listed(args) + pickle.REDUCE,
            self.name("copyreg.__newobj__") + self.row((named, *args)) + pickle.REDUCE,
            self.name("functools.partial") + self.row((named,)) + pickle.REDUCE
            + self.row(args) + pickle.REDUCE,
        )))  # fmt: skip

    def mapping(self, items: list[tuple[Op, Op]]) -> Op:
        """Return a plain dict."""
        flat = [part for item in items for part in item]
        if not flat:
            return Op(pickle.EMPTY_DICT)
        if len(items) == 1 and self.chance(0.5):  # either
            return Op(pickle.EMPTY_DICT + b"".join(flat) + pickle.SETITEM)
        return Op(pickle.EMPTY_DICT + pickle.MARK + b"".join(flat) + pickle.SETITEMS)

    # -- the memo -------------------------------------------------------------------------------

    def put(self, kind: str) -> Op:
        """Remember what is on the stack as a `kind`."""
        place = self.places
        if self.odd("another memo place", 0.01):
            place = self.random.choice((0, self.places + 3, max(0, self.places - 1), 300))
        else:
            self.places += 1
        self.known.setdefault(kind, []).append(place)
        if self.odd("a place in text", 0.02):
            return Op(pickle.PUT + f"{place}\n".encode())
        if self.protocol >= FRAMED and place == self.places - 1:  # the first that has it
            return Op(pickle.MEMOIZE)
        if place < _SHORT:
            return Op(pickle.BINPUT + bytes([place]))
        return Op(pickle.LONG_BINPUT + struct.pack("<I", place))

    def get(self, *kinds: str) -> Op | None:
        """Recall something of one of these kinds; None where there is none yet."""
        places = [place for kind in kinds for place in self.known.get(kind, ())]
        if not places:
            return None
        place = self.random.choice(places)
        if place < _SHORT:
            return Op(pickle.BINGET + bytes([place]))
        return Op(pickle.LONG_BINGET + struct.pack("<I", place))
