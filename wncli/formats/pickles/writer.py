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
)

#: An opcode with a place in the memo that takes more than a byte.
_LONG_PLACE = struct.Struct("<cI").pack
#: Small integers, as they are written.
_BYTES = [pickle.BININT1 + bytes([value]) for value in range(256)]
#: Items per MARK … SETITEMS, as CPython's pickler batches them.
_BATCH = 1000
_PAIRS = (pickle.SETITEM, pickle.SETITEMS)

#: How often a call has been begun when it is met inside itself.
_WITHIN_ITSELF = 2

Entries = list[tuple[Node, Node]]
#: By the `id` of a mapping or list, the items that it is to have.
Edits = Mapping[int, Sequence[Node]]


def write_pickle(
    root: Node,
    protocol: int,
    edits: Edits,
    persistent: Callable[[PersistentId], Node],
) -> bytes:
    """The pickle of `root`.

    Args:
        root: what to write.
        protocol: the number to declare; names are looked up by its rules when the file is loaded.
        edits: by the `id` of a mapping (`Dict`, or a `Call` with items) or list, the items that it
            is to have instead.
        persistent: the pid to write for each persistent id, or the class that stands in its place.
    """
    return _Writer(edits, persistent).run(root, protocol)


class _Writer:
    def __init__(self, edits: Edits, persistent: Callable[[PersistentId], Node]) -> None:
        self.edits = edits
        self.persistent = persistent
        self.out = bytearray()
        self.memo: dict[int, int] = {}
        self.kept_alive: list[Node] = []
        #: What is to be written, the last first; and what to do once all above it has been.
        self.work: list[Node | Callable[[], None]] = []
        #: How often each call has been begun, by its id.
        self.begun: dict[int, int] = {}

    def run(self, root: Node, protocol: int) -> bytes:
        self.out += pickle.PROTO + bytes([max(protocol, 2)])
        work, memo = self.work, self.memo
        work.append(root)
        while work:
            task = work.pop()
            if type(task) is partial:
                task()
            elif id(task) in memo:
                self.get(task)
            else:
                _EMIT[type(task)](self, task)
        return bytes(self.out + pickle.STOP)

    def queue(self, *tasks: Node | Callable[[], None]) -> None:
        """Have these written next, first to last."""
        self.work.extend(reversed(tasks))

    def raw(self, data: bytes) -> None:
        self.out += data

    def put(self, node: Node) -> None:
        place = len(self.memo)
        self.memo[id(node)] = place
        self.kept_alive.append(node)
        if place < 256:  # noqa: PLR2004
            self.out += pickle.BINPUT + bytes([place])
        else:
            self.out += _LONG_PLACE(pickle.LONG_BINPUT, place)

    def get(self, node: Node) -> None:
        place = self.memo[id(node)]
        if place < 256:  # noqa: PLR2004
            self.out += pickle.BINGET + bytes([place])
        else:
            self.out += _LONG_PLACE(pickle.LONG_BINGET, place)

    def atom(self, node: Node, data: bytes) -> None:
        self.out += data
        self.put(node)

    def emit_none(self, _node: None) -> None:
        self.out += pickle.NONE

    def emit_bool(self, node: bool) -> None:  # noqa: FBT001
        self.out += pickle.NEWTRUE if node else pickle.NEWFALSE

    def emit_int(self, node: int) -> None:
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

    def emit_float(self, node: float) -> None:
        self.out += pickle.BINFLOAT + struct.pack(">d", node)

    def emit_text(self, node: str) -> None:
        raw = node.encode("utf-8", "surrogatepass")
        self.atom(node, _sized(raw, None, pickle.BINUNICODE, pickle.BINUNICODE8))

    def emit_bytes(self, node: bytes) -> None:
        sized = _sized(node, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8)
        self.atom(node, sized)

    def emit_bytearray(self, node: bytearray) -> None:
        self.atom(node, pickle.BYTEARRAY8 + struct.pack("<Q", len(node)) + node)

    def emit_byte_text(self, node: ByteText) -> None:
        sized = _sized(node.raw, pickle.SHORT_BINSTRING, pickle.BINSTRING, pickle.BINSTRING)
        self.atom(node, sized)

    def emit_name(self, node: Global) -> None:
        self.atom(node, pickle.GLOBAL + f"{node.module}\n{node.name}\n".encode())

    def emit_tuple(self, node: tuple[Node, ...]) -> None:
        if not node:
            self.out += pickle.EMPTY_TUPLE
            return
        if len(node) not in _TUPLES:
            self.out += pickle.MARK
        for place, part in enumerate(node):  # as far as nothing has to wait: nearly always all
            if id(part) in self.memo:
                self.get(part)
            elif type(part) in _ATOMS:
                _EMIT[type(part)](self, part)
            else:
                self.queue(*node[place:], partial(self.end_tuple, node))
                return
        self.end_tuple(node)

    def end_tuple(self, node: tuple[Node, ...]) -> None:
        short = _TUPLES.get(len(node))
        if id(node) in self.memo:  # the tuple stands inside itself, and was written there
            self.out += pickle.POP * len(node) if short else pickle.POP_MARK
            self.get(node)
        else:
            self.atom(node, short or pickle.TUPLE)

    def emit_list(self, node: list[Node]) -> None:
        self.atom(node, pickle.EMPTY_LIST)
        items = self.edits.get(id(node), node)
        single = pickle.APPEND if len(items) == 1 else None
        self.queue(*self.batches(items, single, pickle.APPENDS))

    def emit_dict(self, node: Dict) -> None:
        self.atom(node, pickle.EMPTY_DICT)
        items = self.edits.get(id(node), node.entries)
        single = pickle.SETITEM if len(items) == 1 else None
        # The pickler stops behind a batch that is not full, which may be one without items.
        self.queue(*self.batches(items, single, pickle.SETITEMS, until_short=True))

    def emit_set(self, node: Set) -> None:
        if node.frozen:
            self.out += pickle.MARK
            self.queue(*node.items, partial(self.end_frozenset, node))
        else:
            self.atom(node, pickle.EMPTY_SET)
            self.queue(*self.batches(node.items, None, pickle.ADDITEMS, until_short=True))

    def end_frozenset(self, node: Set) -> None:
        if id(node) in self.memo:
            self.out += pickle.POP_MARK
            self.get(node)
        else:
            self.atom(node, pickle.FROZENSET)

    def emit_persistent_id(self, node: PersistentId) -> None:
        found = self.persistent(node)
        if isinstance(found, Global):
            self.queue(found)
        else:
            self.queue(found, partial(self.raw, pickle.BINPERSID))

    def emit_call(self, node: Call) -> None:
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
        parts = [node.function, args]
        if node.keywords is not None:
            parts.append(node.keywords)
        self.queue(*parts, partial(self.end_call, node))

    def end_call(self, node: Call) -> None:
        if id(node) in self.memo:  # it stands inside its own arguments, and was written there
            self.out += pickle.POP * (2 if node.keywords is None else 3)
            self.get(node)
            return
        self.atom(node, _CALLS[node.opcode])
        tasks: list[Node] = []
        edit = self.edits.get(id(node))
        for effect in node.effects:
            if isinstance(effect, SetItems) and edit is not None:
                tasks += self.effect(SetItems(list(edit)))
                edit = []
            else:
                tasks += self.effect(effect)
        self.queue(*tasks)

    def effect(self, effect: Effect) -> list[Node]:
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
    ) -> list[Node]:
        """Items, or pairs of key and value, in batches; `single` ends a batch of just one."""
        tasks: list[Node] = []
        for start in range(0, len(items) + until_short, _BATCH):
            batch = items[start : start + _BATCH]
            flat = [part for pair in batch for part in pair] if several in _PAIRS else batch
            if len(batch) == 1 and single:
                tasks += [*flat, partial(self.raw, single)]
            elif batch or start:
                tasks += [partial(self.raw, pickle.MARK), *flat, partial(self.raw, several)]
        return tasks


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
_EMIT: dict[type, Callable[[_Writer, Node], None]] = {
    type(None): _Writer.emit_none,
    bool: _Writer.emit_bool,
    int: _Writer.emit_int,
    float: _Writer.emit_float,
    str: _Writer.emit_text,
    bytes: _Writer.emit_bytes,
    bytearray: _Writer.emit_bytearray,
    ByteText: _Writer.emit_byte_text,
    Global: _Writer.emit_name,
    tuple: _Writer.emit_tuple,
    list: _Writer.emit_list,
    Dict: _Writer.emit_dict,
    Set: _Writer.emit_set,
    PersistentId: _Writer.emit_persistent_id,
    Call: _Writer.emit_call,
}
#: What is written at once, nothing of it being a node of its own.
_ATOMS = {type(None), bool, int, float, str, bytes, bytearray, ByteText, Global}
