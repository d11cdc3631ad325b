"""Reads a pickle into inert nodes: the unpickler's machine without `find_class` and without calls.

Opcodes of protocols 0 to 5 (CPython `Lib/pickletools.py`), except the extension registry and
out-of-band buffers, which mean nothing outside the process that wrote them. Memory and time grow
with the bytes that are there, never with a length that an opcode claims.
"""

from __future__ import annotations

import codecs
import io
import pickle
import struct
from collections.abc import Callable
from typing import IO, Any

from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    Added,
    Appended,
    Built,
    ByteText,
    Call,
    Dict,
    Effect,
    Global,
    Node,
    PersistentId,
    Set,
    SetItems,
)

#: Reads below this are cheap enough to try; longer ones are first held against what is left.
_TRUSTED_LENGTH = 1 << 16

_MARK = object()


class _Stop(Exception):  # noqa: N818 - control flow, never seen outside
    """The STOP opcode."""


def read_pickle(source: bytes | IO[bytes], where: str, size: int | None = None) -> tuple[Node, int]:
    """Read one pickle; of a file, the one that begins at its position.

    Args:
        source: the pickle, or a seekable file that stands where it begins.
        where: what to call it in a refusal.
        size: bytes of the file, needed where `source` is one.

    Returns:
        The object as nodes, and the protocol that the pickle declares (0 where it does not).

    Raises:
        FormatError: no pickle, a truncated one, or one that no unpickler would take.
    """
    if isinstance(source, bytes):
        return _Machine(io.BytesIO(source), where, len(source)).run()
    return _Machine(source, where, size or 0).run()


class _Machine:
    """One reading: the stack, the memo, and a method per opcode."""

    def __init__(self, file: IO[bytes], where: str, size: int) -> None:
        self.file = file
        self.where = where
        self.size = size
        self.protocol = 0
        self.stack: list[Node] = []
        self.memo: dict[int, Node] = {}

    def run(self) -> tuple[Node, int]:
        read = self.file.read
        try:
            while True:
                opcode = read(1)
                step = _STEPS.get(opcode)
                if step is None:
                    raise self.broken(
                        f"opcode {opcode!r} is unknown" if opcode else "it ends early"
                    )
                step(self)
        except _Stop:
            return self.pop(), self.protocol
        except (ValueError, OverflowError, struct.error) as error:
            raise self.broken(str(error)) from None

    def broken(self, why: str) -> FormatError:
        return FormatError(
            self.where,
            f"the pickle cannot be read: {why} (near byte {self.file.tell()})",
            hint="check that the file is complete, or save it again with torch.save",
        )

    def take(self, count: int) -> bytes:
        if count > _TRUSTED_LENGTH and count > self.size - self.file.tell():
            raise self.broken(f"an item claims {count} bytes, more than there are")
        data = self.file.read(count)
        if len(data) != count:
            raise self.broken("it ends early")
        return data

    def line(self) -> bytes:
        data = self.file.readline()
        if not data.endswith(b"\n"):
            raise self.broken("it ends early")
        return data[:-1]

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def pop(self) -> Node:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.broken("its stack is empty")
        return self.stack.pop()

    def top(self) -> Node:
        if not self.stack or self.stack[-1] is _MARK:
            raise self.broken("its stack is empty")
        return self.stack[-1]

    def since_mark(self) -> list[Node]:
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise self.broken("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def push(self, node: Node) -> None:
        self.stack.append(node)

    def remember(self, place: int) -> None:
        self.memo[place] = self.top()

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise self.broken(f"memo {place} is read before it is written")
        self.push(self.memo[place])

    def text(self, raw: bytes) -> None:
        self.push(raw.decode("utf-8", "surrogatepass"))

    def old_text(self, raw: bytes) -> None:
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(ByteText(raw))

    def quoted(self) -> None:
        raw = self.line().strip()
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in b"'\"":  # noqa: PLR2004
            raise self.broken("a quoted string has no quotes")
        self.old_text(codecs.escape_decode(raw[1:-1])[0])

    def integer_line(self) -> None:
        raw = self.line()
        self.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else int(raw))

    def name(self, module: Node, name: Node) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self.broken("a global's name is no text")
        if "\n" in module or "\n" in name:
            raise self.broken("a global's name has a line break")
        self.push(Global(module, name))

    def name_from_stack(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def call(self, opcode: str, function: Node, args: Node, keywords: Node = None) -> None:
        if not isinstance(args, tuple):
            raise self.broken("the arguments of a call are no tuple")
        self.push(Call(opcode, function, args, keywords))

    def reduce(self, opcode: str) -> None:
        args = self.pop()
        function = self.pop()
        ordered = isinstance(function, Global) and str(function) == "collections.OrderedDict"
        if ordered and (pairs := _python2_items(args)):
            self.call(opcode, function, ())
            self.effect(SetItems, pairs)
        else:
            self.call(opcode, function, args)

    def new_with_keywords(self) -> None:
        keywords = self.pop()
        args = self.pop()
        self.call("NEWOBJ_EX", self.pop(), args, keywords)

    def old_object(self) -> None:
        items = self.since_mark()
        if not items:
            raise self.broken("an object has no class")
        self.instantiate(items[0], tuple(items[1:]))

    def old_instance(self) -> None:
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        args = tuple(self.since_mark())
        self.instantiate(Global(module, name), args)

    def instantiate(self, function: Node, args: tuple[Node, ...]) -> None:
        """What the two protocol-0 opcodes do: without arguments no `__init__` is called."""
        self.call("REDUCE" if args else "NEWOBJ", function, args)

    def effect(self, kind: type[Effect], items: list[Any]) -> None:
        target = self.top()
        if kind is Appended and isinstance(target, list):
            target.extend(items)
        elif kind is SetItems and isinstance(target, Dict):
            target.entries.extend(items)
        elif kind is Added and isinstance(target, Set) and not target.frozen:
            target.items.extend(items)
        elif isinstance(target, Call):
            last = target.effects[-1] if target.effects else None
            if isinstance(last, SetItems) and kind is SetItems:
                last.entries.extend(items)
            elif isinstance(last, (Appended, Added)) and type(last) is kind:
                last.items.extend(items)
            else:
                target.effects.append(kind(items))
        else:
            raise self.broken("items are put into something that takes none")

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self.effect(SetItems, [(key, value)])

    def set_items(self) -> None:
        items = self.since_mark()
        if len(items) % 2:
            raise self.broken("a key has no value")
        self.effect(SetItems, list(zip(items[::2], items[1::2], strict=True)))

    def dict_from_mark(self) -> None:
        items = self.since_mark()
        if len(items) % 2:
            raise self.broken("a key has no value")
        self.push(Dict(list(zip(items[::2], items[1::2], strict=True))))

    def append(self) -> None:
        item = self.pop()
        self.effect(Appended, [item])

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Call):
            raise self.broken("state is given to something that takes none")
        target.effects.append(Built(state))

    def tuple_of(self, count: int) -> None:
        items = tuple(self.pop() for _ in range(count))
        self.push(items[::-1])

    def frame(self) -> None:
        self.take(8)  # a hint for buffering: the frame's length

    def drop_to_mark(self) -> None:
        self.since_mark()

    def pop_top(self) -> None:
        if not self.stack:
            raise self.broken("its stack is empty")
        self.stack.pop()

    def declare(self) -> None:
        self.protocol = self.number("<B")
        if self.protocol > pickle.HIGHEST_PROTOCOL:
            raise self.broken(f"protocol {self.protocol} is unknown")

    def stop(self) -> None:
        raise _Stop

    def refuse(self, what: str) -> None:
        raise self.broken(f"it uses {what}, which means nothing outside the process that wrote it")


def _python2_items(args: Node) -> list[tuple[Node, Node]] | None:
    """The items of an OrderedDict that Python 2 pickled: its one argument is a list of pairs."""
    match args:
        case ([*pairs],) if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
            return [(key, value) for key, value in pairs]
    return None


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.declare,
    pickle.STOP: _Machine.stop,
    pickle.FRAME: _Machine.frame,
    pickle.MARK: lambda m: m.push(_MARK),
    pickle.POP: _Machine.pop_top,
    pickle.POP_MARK: _Machine.drop_to_mark,
    pickle.DUP: lambda m: m.push(m.top()),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),  # noqa: FBT003
    pickle.NEWFALSE: lambda m: m.push(False),  # noqa: FBT003
    pickle.INT: _Machine.integer_line,
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG: lambda m: m.push(int(m.line().rstrip(b"L"))),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    pickle.LONG4: lambda m: m.push(int.from_bytes(m.take(m.number("<I")), "little", signed=True)),
    pickle.FLOAT: lambda m: m.push(float(m.line())),
    pickle.BINFLOAT: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    pickle.STRING: _Machine.quoted,
    pickle.BINSTRING: lambda m: m.old_text(m.take(m.number("<I"))),
    pickle.SHORT_BINSTRING: lambda m: m.old_text(m.take(m.number("<B"))),
    pickle.UNICODE: lambda m: m.push(m.line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: lambda m: m.text(m.take(m.number("<I"))),
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.take(m.number("<B"))),
    pickle.BINUNICODE8: lambda m: m.text(m.take(m.number("<Q"))),
    pickle.BINBYTES: lambda m: m.push(m.take(m.number("<I"))),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.number("<B"))),
    pickle.BINBYTES8: lambda m: m.push(m.take(m.number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(bytearray(m.take(m.number("<Q")))),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.LIST: lambda m: m.push(m.since_mark()),
    pickle.APPEND: _Machine.append,
    pickle.APPENDS: lambda m: m.effect(Appended, m.since_mark()),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.EMPTY_DICT: lambda m: m.push(Dict()),
    pickle.DICT: _Machine.dict_from_mark,
    pickle.SETITEM: _Machine.set_item,
    pickle.SETITEMS: _Machine.set_items,
    pickle.EMPTY_SET: lambda m: m.push(Set([])),
    pickle.ADDITEMS: lambda m: m.effect(Added, m.since_mark()),
    pickle.FROZENSET: lambda m: m.push(Set(m.since_mark(), frozen=True)),
    pickle.GET: lambda m: m.recall(int(m.line())),
    pickle.BINGET: lambda m: m.recall(m.number("<B")),
    pickle.LONG_BINGET: lambda m: m.recall(m.number("<I")),
    pickle.PUT: lambda m: m.remember(int(m.line())),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.GLOBAL: lambda m: m.name(m.line().decode("utf-8"), m.line().decode("utf-8")),
    pickle.STACK_GLOBAL: _Machine.name_from_stack,
    pickle.REDUCE: lambda m: m.reduce("REDUCE"),
    pickle.NEWOBJ: lambda m: m.reduce("NEWOBJ"),
    pickle.NEWOBJ_EX: _Machine.new_with_keywords,
    pickle.OBJ: _Machine.old_object,
    pickle.INST: _Machine.old_instance,
    pickle.BUILD: _Machine.build,
    pickle.PERSID: lambda m: m.push(PersistentId(m.line().decode("ascii"))),
    pickle.BINPERSID: lambda m: m.push(PersistentId(m.pop())),
    pickle.EXT1: lambda m: m.refuse("the extension registry"),
    pickle.EXT2: lambda m: m.refuse("the extension registry"),
    pickle.EXT4: lambda m: m.refuse("the extension registry"),
    pickle.NEXT_BUFFER: lambda m: m.refuse("out-of-band buffers"),
    pickle.READONLY_BUFFER: lambda m: m.refuse("out-of-band buffers"),
}
