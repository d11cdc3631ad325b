"""Writes inert nodes as a pickle, with the opcodes that PyTorch's `weights_only` reader knows.

The order of opcodes and of the memo is that of CPython's pickler (`Modules/_pickle.c`), so that a
pickle that was read comes out as it went in. No recursion: depth costs memory, not stack.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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

#: An opcode with a place in the memo that takes more than a byte.
_LONG_PLACE = struct.Struct("<cI").pack
#: Small integers, and the first places of the memo, as they are written.
_BYTES = [pickle.BININT1 + bytes([value]) for value in range(256)]
_GETS = [pickle.BINGET + bytes([place]) for place in range(256)]
_PUTS = [pickle.BINPUT + bytes([place]) for place in range(256)]
#: Items per MARK … SETITEMS, as CPython's pickler batches them.
_BATCH = 1000
_PAIRS = (pickle.SETITEM, pickle.SETITEMS)

#: How often a call has been begun when it is met inside itself.
_WITHIN_ITSELF = 2

#: Nodes inside one another that are written in one go: a tensor and all that it is made of.
_DEEPEST = 8

#: Nodes to be written, and what else is to be done, in this order.
Tasks = list[Node | Callable[[], "Tasks | None"]]
Entries = list[tuple[Node, Node]]
#: By the `id` of a mapping or list, the items that it is to have.
Edits = Mapping[int, Sequence[Node]]


def write_pickle(
    root: Node,
    protocol: int,
    edits: Edits,
    persistent: Callable[[PersistentId], Node],
) -> bytes:
    """Return the pickle of `root`.

    Args:
        root: what to write.
        protocol: the number to declare; names are looked up by its rules when the file is loaded.
        edits: by the `id` of a mapping (`Dict`, or a `Call` with items) or list, the items that it
            is to have instead.
        persistent: the pid to write for each persistent id, or the class in its place.
    """
    return _Writer(edits, persistent).run(root, protocol)


class _Writer:
    """One writing. What writes a node returns what is left to do after it, if anything is."""

    def __init__(self, edits: Edits, persistent: Callable[[PersistentId], Node]) -> None:
        self.edits = edits
        self.persistent = persistent
        self.out = bytearray()
        self.memo: dict[int, int] = {}
        self.kept_alive: list[Node] = []
        #: How often each call has been begun, by its id.
        self.begun: dict[int, int] = {}

    def run(self, root: Node, protocol: int) -> bytes:
        self.out += pickle.PROTO + bytes([max(protocol, 2)])
        #: What is to be written, the last first; and what to do once all above it has been.
        work: Tasks = [root]
        while work:
            task = work.pop()
            rest = task() if type(task) is partial else self.in_turn((task,), _DEEPEST)
            if rest:
                work.extend(reversed(rest))
        return bytes(self.out + pickle.STOP)

    def in_turn(
        self,
        nodes: Sequence[Node],
        deeper: int,
        end: Callable[[Node], Tasks | None] | None = None,
        node: Node = None,
    ) -> Tasks | None:
        """Write nodes, and call `end` with `node` behind them.

        Nearly always that is all: what is below `deeper` further nodes, or an item of something
        that is filled only once it stands there, is left to do, with all that follows it.
        """
        memo, emit = self.memo, _EMIT
        for place, part in enumerate(nodes):
            if id(part) in memo:
                self.get(memo[id(part)])
                continue
            rest = emit[type(part)](self, part, deeper - 1) if deeper else [part]
            if rest:
                return [*rest, *nodes[place + 1 :], *([partial(end, node)] if end else ())]
        return end(node) if end else None

    def raw(self, data: bytes) -> None:
        self.out += data

    def put(self, node: Node, data: bytes) -> None:
        """Write what makes a node, and have it remembered."""
        place = len(self.memo)
        self.memo[id(node)] = place
        self.kept_alive.append(node)
        self.out += data
        self.out += _PUTS[place] if place < 256 else _LONG_PLACE(pickle.LONG_BINPUT, place)  # noqa: PLR2004

    def get(self, place: int) -> None:
        self.out += _GETS[place] if place < 256 else _LONG_PLACE(pickle.LONG_BINGET, place)  # noqa: PLR2004

    def emit_none(self, _node: None, _deeper: int) -> None:
        self.out += pickle.NONE

    def emit_bool(self, node: bool, _deeper: int) -> None:  # noqa: FBT001
        self.out += pickle.NEWTRUE if node else pickle.NEWFALSE

    def emit_int(self, node: int, _deeper: int) -> None:
        if 0 <= node < 1 << 8:
            self.out += _BYTES[node]
        elif 0 <= node < 1 << 16:
            self.out += pickle.BININT2 + struct.pack("<H", node)
        elif -(1 << 31) <= node < 1 << 31:
            self.out += pickle.BININT + struct.pack("<i", node)
        else:
            bits = (node if node >= 0 else ~node).bit_length()
            data = node.to_bytes(bits // 8 + 1, "little", signed=True)
            if len(data) < 256:  # noqa: PLR2004
                self.out += pickle.LONG1 + bytes([len(data)]) + data
            else:
                self.out += pickle.LONG4 + struct.pack("<i", len(data)) + data

    def emit_float(self, node: float, _deeper: int) -> None:
        self.out += pickle.BINFLOAT + struct.pack(">d", node)

    def emit_text(self, node: str, _deeper: int) -> None:
        self.put(node, _literal(node))

    def emit_bytes(self, node: bytes | bytearray, _deeper: int) -> None:
        self.put(node, _literal(node))

    def emit_unread(self, node: Unread, _deeper: int) -> None:
        self.put(node, _literal(node.read()))

    def emit_byte_text(self, node: ByteText, _deeper: int) -> None:
        sized = _sized(node.raw, pickle.SHORT_BINSTRING, pickle.BINSTRING, pickle.BINSTRING)
        self.put(node, sized)

    def emit_name(self, node: Global, _deeper: int) -> None:
        self.put(node, pickle.GLOBAL + f"{node.module}\n{node.name}\n".encode())

    def emit_tuple(self, node: tuple[Node, ...], deeper: int) -> Tasks | None:
        if not node:
            self.out += pickle.EMPTY_TUPLE
            return None
        if len(node) not in _TUPLES:
            self.out += pickle.MARK
        return self.in_turn(node, deeper, self.end_tuple, node)

    def end_tuple(self, node: tuple[Node, ...]) -> None:
        short = _TUPLES.get(len(node))
        if id(node) in self.memo:  # the tuple stands inside itself, and was written there
            self.out += pickle.POP * len(node) if short else pickle.POP_MARK
            self.get(self.memo[id(node)])
        else:
            self.put(node, short or pickle.TUPLE)

    def emit_list(self, node: list[Node], _deeper: int) -> Tasks:
        self.put(node, pickle.EMPTY_LIST)
        items = self.edits.get(id(node), node)
        single = pickle.APPEND if len(items) == 1 else None
        return self.batches(items, single, pickle.APPENDS)

    def emit_dict(self, node: Dict, _deeper: int) -> Tasks:
        self.put(node, pickle.EMPTY_DICT)
        items = self.edits.get(id(node), node.entries)
        single = pickle.SETITEM if len(items) == 1 else None
        # The pickler stops behind a batch that is not full, which may be one without items.
        return self.batches(items, single, pickle.SETITEMS, until_short=True)

    def emit_set(self, node: Set, deeper: int) -> Tasks | None:
        if node.frozen:
            self.out += pickle.MARK
            return self.in_turn(node.items, deeper, self.end_frozenset, node)
        self.put(node, pickle.EMPTY_SET)
        return self.batches(node.items, None, pickle.ADDITEMS, until_short=True)

    def end_frozenset(self, node: Set) -> None:
        if id(node) in self.memo:
            self.out += pickle.POP_MARK
            self.get(self.memo[id(node)])
        else:
            self.put(node, pickle.FROZENSET)

    def emit_persistent_id(self, node: PersistentId, deeper: int) -> Tasks | None:
        found = self.persistent(node)
        if isinstance(found, Global):
            return self.in_turn((found,), deeper)
        return self.in_turn((found,), deeper, self.raw, pickle.BINPERSID)

    def emit_call(self, node: Call, deeper: int) -> Tasks | None:
        begun = self.begun[id(node)] = self.begun.get(id(node), 0) + 1
        args = node.args
        if begun == _WITHIN_ITSELF:
            # It stands inside its own arguments, whose lists are not filled yet: give it others.
            args = tuple(
                list(part) if isinstance(part, list)
                else Dict(list(part.entries)) if isinstance(part, Dict)
                else part
                for part in args
            )  # fmt: skip
            self.kept_alive += [args, *args]
        keywords = () if node.keywords is None else (node.keywords,)
        return self.in_turn((node.function, args, *keywords), deeper, self.end_call, node)

    def end_call(self, node: Call) -> Tasks | None:
        if id(node) in self.memo:  # it stands inside its own arguments, and was written there
            self.out += pickle.POP * (2 if node.keywords is None else 3)
            self.get(self.memo[id(node)])
            return None
        self.put(node, _CALLS[node.opcode])
        tasks: Tasks = []
        edit = self.edits.get(id(node))
        for effect in node.effects:
            if isinstance(effect, SetItems) and edit is not None:
                tasks += self.effect(SetItems(list(edit)))
                edit = []
            else:
                tasks += self.effect(effect)
        return tasks

    def effect(self, effect: Effect) -> Tasks:
        match effect:
            case SetItems(entries):
                return self.batches(entries, pickle.SETITEM, pickle.SETITEMS)
            case Appended(items):
                return self.batches(items, pickle.APPEND, pickle.APPENDS)
            case Added(items):
                return self.batches(items, None, pickle.ADDITEMS)
            case Built(state):
                return [state, partial(self.raw, pickle.BUILD)]

    def batches(
        self,
        items: Sequence[Node],
        single: bytes | None,
        several: bytes,
        *,
        until_short: bool = False,
    ) -> Tasks:
        """Items, or pairs of key and value, in batches; `single` ends a batch of just one."""
        tasks: Tasks = []
        for start in range(0, len(items) + until_short, _BATCH):
            batch = items[start : start + _BATCH]
            flat = [part for pair in batch for part in pair] if several in _PAIRS else batch
            if len(batch) == 1 and single:
                tasks += [*flat, partial(self.raw, single)]
            elif batch or start:
                tasks += [partial(self.raw, pickle.MARK), *flat, partial(self.raw, several)]
        return tasks


def _literal(value: str | bytes | bytearray) -> bytes:
    if isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        return _sized(raw, None, pickle.BINUNICODE, pickle.BINUNICODE8)
    if isinstance(value, bytearray):
        return pickle.BYTEARRAY8 + struct.pack("<Q", len(value)) + value
    return _sized(value, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8)


def _sized(raw: bytes, short: bytes | None, normal: bytes, long: bytes) -> bytes:
    if short and len(raw) < 256:  # noqa: PLR2004
        return short + bytes([len(raw)]) + raw
    if len(raw) < 1 << 32:
        return normal + struct.pack("<I", len(raw)) + raw
    return long + struct.pack("<Q", len(raw)) + raw


_TUPLES = {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}
_CALLS = {
    "REDUCE": pickle.REDUCE,
    "OBJ": pickle.NEWOBJ,
    "NEWOBJ": pickle.NEWOBJ,
    "NEWOBJ_EX": pickle.NEWOBJ_EX,
}
_EMIT: dict[type, Callable[[_Writer, Node, int], Tasks | None]] = {
    type(None): _Writer.emit_none,
    bool: _Writer.emit_bool,
    int: _Writer.emit_int,
    float: _Writer.emit_float,
    str: _Writer.emit_text,
    bytes: _Writer.emit_bytes,
    bytearray: _Writer.emit_bytes,
    Unread: _Writer.emit_unread,
    ByteText: _Writer.emit_byte_text,
    Global: _Writer.emit_name,
    tuple: _Writer.emit_tuple,
    list: _Writer.emit_list,
    Dict: _Writer.emit_dict,
    Set: _Writer.emit_set,
    PersistentId: _Writer.emit_persistent_id,
    Call: _Writer.emit_call,
}
