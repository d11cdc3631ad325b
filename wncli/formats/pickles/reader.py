"""Reads a pickle into inert nodes: the unpickler's machine without `find_class` and without calls.

Opcodes of protocols 0 to 5 (CPython `Lib/pickletools.py`), except the extension registry and
out-of-band buffers, which mean nothing outside the process that wrote them. Memory and time grow
with the bytes that are there, never with a length that an opcode claims. Of a file only a window
is in memory, and long bytes and texts stay in it.
"""

from __future__ import annotations

import codecs
import operator
import pickle
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

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
    Unread,
)
from wncli.storage.source import Source, is_remote, read_stored

#: Bytes of a file that are read at a time; more where one opcode takes more.
_WINDOW = 1 << 20
#: The same at first, where each reading takes a request.
_FIRST_WINDOW = 64 << 10
#: Longer bytes and texts are left in the file.
LONGEST_HELD = 1 << 16
#: Characters of a global's module and name; each call of it, and each mention, spells them.
_LONGEST_NAME = 1000

#: Numbers as picklers write them in lines; Python's and C's readers take others, each as its own.
_INT_LINE = re.compile(rb"0[01]|0|-?[1-9][0-9]*")
_LONG_LINE = re.compile(rb"(0|-?[1-9][0-9]*)L?")
_FLOAT_LINE = re.compile(rb"-?([0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?|inf)|nan")
_PLACE_LINE = re.compile(rb"[0-9]+")
_FRAME = pickle.FRAME[0]

_UINT16 = struct.Struct("<H")
_INT32 = struct.Struct("<i")
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_FLOAT64 = struct.Struct(">d")


class Pickle(NamedTuple):
    """What one pickle says.

    `root` is the object, `protocol` the number that is declared (0 where none is); `globals`,
    `persistent_ids` and `calls` are all that an unpickler would import, look up and call on the
    way, also what is not part of the object in the end. It takes `nbytes` bytes.
    """

    root: Node
    protocol: int
    globals: list[Global]
    persistent_ids: list[PersistentId]
    calls: list[Call]
    nbytes: int


class _Stop(Exception):  # noqa: N818 - control flow, never seen outside
    """The STOP opcode."""


class _AtEndError(Exception):
    """The bytes that have been read so far end inside an opcode."""


class Glance(Protocol):
    """Reads objects of known classes at once, of which a pickle can have hundreds of thousands.

    Whatever it reads, the opcodes one by one would come to the same.
    """

    def begins(self, function: Global) -> bool:
        """Whether this is one of the classes."""

    def read(
        self, data: bytes, place: int, end: int, memo: list[Node], function: Global
    ) -> tuple[list[Node], int]:
        """Read as many new objects as there are behind each other.

        Args:
            data: the bytes.
            place: where the opcode is that makes the first.
            end: where they have to end.
            memo: what has been remembered in order, to which each of them adds.
            function: the class of the first.

        Returns:
            The objects, and where they end; none where the first is not as it usually is, and
            then nothing has been remembered.
        """


def read_pickle(
    source: bytes | Source,
    where: str,
    start: int = 0,
    nbytes: int | None = None,
    glance: Glance | None = None,
) -> Pickle:
    """Read one pickle to its end.

    Args:
        source: the pickle, or a file that it is in.
        where: what to call it in a refusal.
        start: where in the file it begins.
        nbytes: where it has to end, that many bytes behind; the file's end if not given.
        glance: reads what there is very much of.

    Raises:
        FormatError: no pickle, a truncated one, or one that no unpickler would take.
    """
    if isinstance(source, bytes):
        return _Machine(source, where, None, 0, len(source), glance).run()
    size = source.nbytes - start if nbytes is None else nbytes
    return _Machine(b"", where, source, start, size, glance).run()


class _Machine:
    """One reading: the bytes and the place in them, the stack, the memo, and a method per opcode.

    The bytes are those from `base` on, and `place` can be behind them. A method that raises for
    want of bytes has changed nothing but `place`, so that it can be tried again with more of them.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what is read, and how
        self,
        data: bytes,
        where: str,
        source: Source | None,
        start: int,
        size: int,
        glance: Glance | None = None,
    ) -> None:
        self.glance = glance
        self.data = data
        self.place = 0
        self.where = where
        self.source = source
        self.start = start
        self.size = size
        self.base = 0
        self.step = _FIRST_WINDOW if source and is_remote(source) else _WINDOW
        self.has_unread = False
        #: Where the frame ends that is being read; None between frames.
        self.frame_end: int | None = None
        #: What was read after all, by the ids of the nodes.
        self.read: dict[int, tuple[Unread, Node]] = {}
        self.protocol = 0
        self.stack: list[Node] = []
        #: The stacks below each mark.
        self.marks: list[list[Node]] = []
        #: What has been remembered, by its place; and what was, at places far ahead of all others.
        self.memo: list[Node] = []
        self.ahead: dict[int, Node] = {}
        self.globals: list[Global] = []
        self.persistent_ids: list[PersistentId] = []
        self.calls: list[Call] = []
        #: Items of Python 2's OrderedDicts that may still be copied: each takes more than a byte.
        self.items_left = self.size

    def run(self) -> Pickle:
        try:
            while True:
                self.go_on()
                self.read_on()
        except _Stop:
            root = self.pop()
            nbytes = self.base + self.place
            return Pickle(
                root, self.protocol, self.globals, self.persistent_ids, self.calls, nbytes
            )
        except FormatError:
            raise
        except (ValueError, OverflowError) as error:
            raise self.broken(str(error)) from None

    def go_on(self) -> None:
        """Carry out opcodes as far as the bytes go."""
        begin, data, steps = self.place, self.data, _STEPS
        try:
            while True:
                begin = self.place
                self.place += 1
                steps[data[begin]](self)
        except (_AtEndError, IndexError, struct.error):
            self.place = begin

    def read_on(self) -> None:
        """Get more bytes behind those that are not used up, where there are any."""
        rest = self.data[self.place :]
        self.base += self.place
        self.place = 0
        known = self.base + len(rest)
        if self.source is None or known >= self.size:
            self.place = len(rest)
            raise self.broken("it ends early")
        begin = self.start + known
        # To where the parts end that a source at a distance has at hand; soon more at a time.
        end = (begin + self.step) // _FIRST_WINDOW * _FIRST_WINDOW
        count = min(max(len(rest), end - begin), self.size - known)
        self.step = min(2 * self.step, _WINDOW)
        self.data = rest + read_stored(self.source, begin, count, "a pickle")

    def broken(self, why: str) -> FormatError:
        return FormatError(
            self.where,
            f"the pickle cannot be read: {why} (near byte {self.start + self.base + self.place})",
            hint="check that the file is complete, or save it again with torch.save",
        )

    def unknown(self) -> None:
        opcode = self.data[self.place - 1 : self.place]
        raise self.broken(f"opcode {opcode!r} is unknown")

    def take(self, count: int) -> bytes:
        end = self.place + count
        if end > len(self.data):
            self.refuse_beyond(count)
            raise _AtEndError
        data = self.data[self.place : end]
        self.place = end
        return data

    def refuse_beyond(self, count: int) -> None:
        if self.base + self.place + count > self.size:
            claimed = f"an item claims {count} bytes, more than there are"
            raise self.broken(claimed if count > _WINDOW else "it ends early")

    def leave(self, kind: type[bytes | bytearray | str], count: int) -> bool:
        """Leave bytes or a text in the file, if they are long and there is one."""
        if self.source is None or count <= LONGEST_HELD:
            return False
        self.refuse_beyond(count)
        offset = self.start + self.base + self.place
        self.stack.append(Unread(kind, self.source, offset, count))
        self.has_unread = True
        self.place += count
        return True

    def byte_string(self, count: int) -> None:
        if not self.leave(bytes, count):
            self.stack.append(self.take(count))

    def byte_array(self) -> None:
        count = self.uint64()
        if not self.leave(bytearray, count):
            self.stack.append(bytearray(self.take(count)))

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise _AtEndError
        data = self.data[self.place : end]
        self.place = end + 1
        return data

    def uint8(self) -> int:
        found = self.data[self.place]
        self.place += 1
        return found

    def uint16(self) -> int:
        (found,) = _UINT16.unpack_from(self.data, self.place)
        self.place += 2
        return int(found)

    def int32(self) -> int:
        (found,) = _INT32.unpack_from(self.data, self.place)
        self.place += 4
        return int(found)

    def uint32(self) -> int:
        (found,) = _UINT32.unpack_from(self.data, self.place)
        self.place += 4
        return int(found)

    def uint64(self) -> int:
        (found,) = _UINT64.unpack_from(self.data, self.place)
        self.place += 8
        return int(found)

    def pop(self) -> Node:
        if not self.stack:
            raise self.broken("its stack is empty")
        return self.stack.pop()

    def top(self) -> Node:
        if not self.stack:
            raise self.broken("its stack is empty")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Node]:
        if not self.marks:
            raise self.broken("a mark is missing")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def push(self, node: Node) -> None:
        self.stack.append(node)

    def binunicode(self) -> None:
        (count,) = _UINT32.unpack_from(self.data, self.place)
        self.place += 4
        if count <= LONGEST_HELD or not self.leave(str, count):
            self.stack.append(self.take(count).decode("utf-8", "surrogatepass"))

    def binunicode8(self) -> None:
        count = self.uint64()
        if not self.leave(str, count):
            self.text(self.take(count))

    def remember(self, place: int) -> None:
        node = self.top()
        if place == len(self.memo):  # as picklers count, which takes a tenth of a dict's memory
            self.memo.append(node)
            if self.ahead:
                self.ahead.pop(place, None)
        elif place > len(self.memo):
            self.ahead[place] = node
            self.glance = None  # which counts as picklers do
        elif place >= 0:
            self.memo[place] = node
            self.glance = None
        else:
            raise self.broken("a memo place is negative")

    def recall(self, place: int) -> None:
        if 0 <= place < len(self.memo):
            self.stack.append(self.memo[place])
        elif place in self.ahead:
            self.stack.append(self.ahead[place])
        else:
            raise self.broken(f"memo {place} is read before it is written")

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

    def number(self, form: re.Pattern[bytes]) -> bytes:
        """Read a number as picklers write it; other lines mean one thing to C, one to Python."""
        raw = self.line()
        if not form.fullmatch(raw):
            raise self.broken(f"{raw[:40]!r} is not a number as picklers write it")
        return raw

    def integer_line(self) -> None:
        raw = self.number(_INT_LINE)
        self.push({b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else int(raw))

    def name(self, module: Node, name: Node) -> None:
        self.stack.append(self.named(module, name))

    def named(self, module: Node, name: Node) -> Global:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self.broken("a global's name is no text")
        if len(module) + len(name) > _LONGEST_NAME:
            raise self.broken("a global's name is too long")
        if "\n" in module or "\n" in name:
            raise self.broken("a global's name has a line break")
        if not (module + name).isascii():
            try:
                (module + name).encode()
            except UnicodeEncodeError:
                raise self.broken("a global's name is no text") from None
        node = Global(module, name)
        self.globals.append(node)
        return node

    def name_from_stack(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def call(self, opcode: str, function: Node, args: Node, keywords: Node = None) -> None:
        if not isinstance(args, tuple):
            raise self.broken("the arguments of a call are no tuple")
        node = Call(opcode, function, args, keywords)
        self.calls.append(node)
        self.stack.append(node)

    def reduce(self) -> None:
        args = self.pop()
        function = self.pop()
        if isinstance(function, Global):
            pairs = None
            if function.name == "OrderedDict" and function.module == "collections":
                pairs = self.python2_items(args)
            elif function.name.startswith("_rebuild_") and function.module.startswith("torch."):
                args = self.as_they_are(args, inner=function.name == "_rebuild_from_type_v2")
            if pairs is not None:
                self.call("REDUCE", function, ())
                if pairs:
                    self.effect(SetItems, pairs)
                return
        self.call("REDUCE", function, args)

    def new_object(self) -> None:
        args, function = self.pop(), self.pop()
        if self.glance and args == () and isinstance(function, Global):
            end = len(self.data) if self.frame_end is None else self.frame_end
            if self.glance.begins(function):
                place = self.place - 1
                found, place = self.glance.read(self.data, place, end, self.memo, function)
                if found:
                    self.stack += found
                    self.place = place
                    return
        self.call("NEWOBJ", function, args)

    def python2_items(self, args: Node) -> list[tuple[Node, Node]] | None:
        """Return the items of an OrderedDict of Python 2: its argument is a list of pairs.

        They are copied, so that one list for many such calls is no file's that Python wrote.
        """
        match args:
            case ([*pairs],):
                self.items_left -= len(pairs)
            case _:
                return None
        if self.items_left < 0:
            raise self.broken("its items would unfold without bound")
        if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):  # noqa: PLR2004
            return [(key, value) for key, value in pairs]
        return None

    def as_they_are(self, args: Node, *, inner: bool) -> Node:
        """Copy the dicts among the arguments of a tensor, which may grow behind the call.

        What is set on them then does not reach the tensor. `inner` tells whether one of them are
        the arguments that another function is called with.
        """
        dicts = [part for part in args if type(part) is Dict] if isinstance(args, tuple) else []
        if not isinstance(args, tuple) or not (inner or dicts):
            return args
        self.items_left -= sum(len(part.entries) for part in dicts)
        if self.items_left < 0:
            raise self.broken("its items would unfold without bound")
        return tuple(
            Dict(list(part.entries)) if type(part) is Dict
            else self.as_they_are(part, inner=False) if inner
            else part
            for part in args
        )  # fmt: skip

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
        self.instantiate(self.named(module, name), args)

    def instantiate(self, function: Node, args: tuple[Node, ...]) -> None:
        """Make an object of protocol 0: of a class without arguments no `__init__` is called.

        A function is, which a name does not tell.
        """
        self.call("REDUCE" if args else "OBJ", function, args)

    def effect(self, kind: type[Effect], items: list[Any]) -> None:
        target = self.top()
        if kind is Appended and isinstance(target, list):
            target.extend(items)
        elif kind is SetItems and isinstance(target, Dict):
            target.entries = _with(target.entries, items)
        elif kind is Added and isinstance(target, Set) and not target.frozen:
            target.items = _with(target.items, items)
        elif isinstance(target, Call):
            last = target.effects[-1] if target.effects else None
            if isinstance(last, SetItems) and kind is SetItems:
                last.entries.extend(items)
            elif isinstance(last, (Appended, Added)) and type(last) is kind:
                last.items.extend(items)
            else:
                target.effects = _with(target.effects, [kind(items)])
        else:
            raise self.broken("items are put into something that takes none")

    def set_item(self) -> None:
        value = self.pop()
        key = self.pop()
        self.effect(SetItems, self.pairs([key, value]))

    def set_items(self) -> None:
        self.effect(SetItems, self.pairs(self.since_mark()))

    def dict_from_mark(self) -> None:
        self.push(Dict(self.pairs(self.since_mark())))

    def pairs(self, items: list[Node]) -> list[tuple[Node, Node]]:
        """Return keys, which are compared and so are read, and their values."""
        if len(items) % 2:
            raise self.broken("a key has no value")
        keys = [self.key(key) for key in items[::2]] if self.has_unread else items[::2]
        return list(zip(keys, items[1::2], strict=True))

    def key(self, node: Node) -> Node:
        if type(node) is not tuple:
            return self.part_of_key(node)
        parts = tuple(map(self.part_of_key, node))
        return node if all(map(operator.is_, parts, node)) else parts

    def part_of_key(self, node: Node) -> Node:
        if isinstance(node, Call) and type(node.args) is tuple:  # bytes, as protocol 2 has them
            node.args = tuple(map(self.value, node.args))
        return self.value(node)

    def value(self, node: Node) -> Node:
        if type(node) is not Unread:
            return node
        if id(node) not in self.read:
            self.read[id(node)] = node, node.read()
        return self.read[id(node)][1]

    def append(self) -> None:
        item = self.pop()
        self.effect(Appended, [item])

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if not isinstance(target, Call):
            raise self.broken("state is given to something that takes none")
        target.effects = _with(target.effects, [Built(state)])

    def tuple_of(self, count: int) -> None:
        stack = self.stack
        if len(stack) < count:
            raise self.broken("its stack is empty")
        stack[-count:] = [tuple(stack[-count:])]

    def persistent(self, pid: Node) -> None:
        node = PersistentId(pid)
        self.persistent_ids.append(node)
        self.stack.append(node)

    def frame(self) -> None:
        """Read the opcodes of a frame, which has to end where one of them does.

        C's reader forgets what is left of a frame when an argument is longer, and reads on behind.
        """
        count = self.uint64()
        end = self.place + count
        if self.base + end > self.size:
            raise self.broken(f"an item claims {count} bytes, more than there are")
        if end > len(self.data):
            raise _AtEndError
        begin = self.place
        self.frame_end = end
        try:
            while self.place < end:
                begin = self.place
                self.place += 1
                if self.data[begin] == _FRAME:
                    raise self.broken("a frame begins inside a frame")
                _STEPS[self.data[begin]](self)
        except _Stop:
            if self.place == end:
                raise
            raise self.broken("a frame goes on behind its end") from None
        except (_AtEndError, IndexError, struct.error):
            self.place = end + 1
        self.frame_end = None
        if self.place != end:
            self.place = begin
            raise self.broken("an item is longer than its frame")

    def drop_to_mark(self) -> None:
        self.since_mark()

    def pop_top(self) -> None:
        if self.stack:
            self.stack.pop()
        elif self.marks:
            self.since_mark()
        else:
            raise self.broken("its stack is empty")

    def declare(self) -> None:
        self.protocol = self.uint8()
        if self.protocol > pickle.HIGHEST_PROTOCOL:
            raise self.broken(f"protocol {self.protocol} is unknown")

    def stop(self) -> None:
        raise _Stop

    def refuse(self, what: str) -> None:
        raise self.broken(f"it uses {what}, which means nothing outside the process that wrote it")


def _with(known: Sequence[Any], items: list[Any]) -> Sequence[Any]:
    """Both together, in the list that holds one of them."""
    if not known:
        return items
    assert isinstance(known, list)  # noqa: S101 - whatever has items here has a list of them
    known.extend(items)
    return known


_METHODS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: _Machine.declare,
    pickle.STOP: _Machine.stop,
    pickle.FRAME: _Machine.frame,
    pickle.MARK: _Machine.mark,
    pickle.POP: _Machine.pop_top,
    pickle.POP_MARK: _Machine.drop_to_mark,
    pickle.DUP: lambda m: m.push(m.top()),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),  # noqa: FBT003
    pickle.NEWFALSE: lambda m: m.push(False),  # noqa: FBT003
    pickle.INT: _Machine.integer_line,
    pickle.BININT: lambda m: m.push(m.int32()),
    pickle.BININT1: lambda m: m.push(m.uint8()),
    pickle.BININT2: lambda m: m.push(m.uint16()),
    pickle.LONG: lambda m: m.push(int(m.number(_LONG_LINE).rstrip(b"L"))),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.uint8()), "little", signed=True)),
    pickle.LONG4: lambda m: m.push(int.from_bytes(m.take(m.uint32()), "little", signed=True)),
    pickle.FLOAT: lambda m: m.push(float(m.number(_FLOAT_LINE))),
    pickle.BINFLOAT: lambda m: m.push(_FLOAT64.unpack(m.take(8))[0]),
    pickle.STRING: _Machine.quoted,
    pickle.BINSTRING: lambda m: m.old_text(m.take(m.uint32())),
    pickle.SHORT_BINSTRING: lambda m: m.old_text(m.take(m.uint8())),
    pickle.UNICODE: lambda m: m.push(m.line().decode("raw-unicode-escape")),
    pickle.BINUNICODE: _Machine.binunicode,
    pickle.SHORT_BINUNICODE: lambda m: m.text(m.take(m.uint8())),
    pickle.BINUNICODE8: _Machine.binunicode8,
    pickle.BINBYTES: lambda m: m.byte_string(m.uint32()),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.take(m.uint8())),
    pickle.BINBYTES8: lambda m: m.byte_string(m.uint64()),
    pickle.BYTEARRAY8: _Machine.byte_array,
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
    pickle.EMPTY_SET: lambda m: m.push(Set()),
    pickle.ADDITEMS: lambda m: m.effect(Added, m.since_mark()),
    pickle.FROZENSET: lambda m: m.push(Set(m.since_mark(), frozen=True)),
    pickle.GET: lambda m: m.recall(int(m.number(_PLACE_LINE))),
    pickle.BINGET: lambda m: m.recall(m.uint8()),
    pickle.LONG_BINGET: lambda m: m.recall(m.uint32()),
    pickle.PUT: lambda m: m.remember(int(m.number(_PLACE_LINE))),
    pickle.BINPUT: lambda m: m.remember(m.uint8()),
    pickle.LONG_BINPUT: lambda m: m.remember(m.uint32()),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo) + len(m.ahead)),
    pickle.GLOBAL: lambda m: m.name(m.line().decode("utf-8"), m.line().decode("utf-8")),
    pickle.STACK_GLOBAL: _Machine.name_from_stack,
    pickle.REDUCE: _Machine.reduce,
    pickle.NEWOBJ: _Machine.new_object,
    pickle.NEWOBJ_EX: _Machine.new_with_keywords,
    pickle.OBJ: _Machine.old_object,
    pickle.INST: _Machine.old_instance,
    pickle.BUILD: _Machine.build,
    pickle.PERSID: lambda m: m.persistent(m.line().decode("ascii")),
    pickle.BINPERSID: lambda m: m.persistent(m.pop()),
    pickle.EXT1: lambda m: m.refuse("the extension registry"),
    pickle.EXT2: lambda m: m.refuse("the extension registry"),
    pickle.EXT4: lambda m: m.refuse("the extension registry"),
    pickle.NEXT_BUFFER: lambda m: m.refuse("out-of-band buffers"),
    pickle.READONLY_BUFFER: lambda m: m.refuse("out-of-band buffers"),
}
_STEPS = [_METHODS.get(bytes([code]), _Machine.unknown) for code in range(256)]
