"""Writes pickles by hand, opcode by opcode."""

from __future__ import annotations

import pickle
import struct


class Op(bytes):
    """Opcodes that leave one object on the stack."""

    __slots__ = ()


def text(value: str) -> Op:
    raw = value.encode()
    return Op(pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw)


def put(value: object) -> Op:
    """The opcodes of a plain value; its parts may be opcodes themselves."""
    match value:
        case Op():
            raw: bytes = value
        case None:
            raw = pickle.NONE
        case str():
            raw = text(value)
        case bytes():
            raw = pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case bool():
            raw = pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            raw = pickle.BININT + struct.pack("<i", value)
        case tuple():
            raw = pickle.MARK + b"".join(map(put, value)) + pickle.TUPLE
        case list():
            items = b"".join(map(put, value))
            raw = pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        case dict():
            items = b"".join(put(part) for item in value.items() for part in item)
            raw = pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case _:
            raise TypeError(type(value))
    return Op(raw)


def name(full: str) -> Op:
    """GLOBAL: the part behind the last dot is looked up in the module before it."""
    module, _, inner = full.rpartition(".")
    return Op(pickle.GLOBAL + f"{module}\n{inner}\n".encode())


def path_in(module: str, inner: str) -> Op:
    """STACK_GLOBAL, which follows dots from protocol 4 on."""
    return Op(text(module) + text(inner) + pickle.STACK_GLOBAL)


def call(function: str | Op, *args: object) -> Op:
    callee = function if isinstance(function, Op) else name(function)
    return Op(callee + put(args) + pickle.REDUCE)


def new(cls: str, *args: object) -> Op:
    return Op(name(cls) + put(args) + pickle.NEWOBJ)


def build(target: Op, *states: object) -> Op:
    return Op(target + b"".join(put(state) + pickle.BUILD for state in states))


def memoized(value: Op) -> Op:
    return Op(value + pickle.LONG_BINPUT + struct.pack("<I", 60_000))


RECALLED = Op(pickle.LONG_BINGET + struct.pack("<I", 60_000))
