"""The keys of a pickle's mappings and lists: how they are told apart, and how they are shown."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from wncli.checkpoint.keys import Key, OtherKey, Position
from wncli.formats.pickles.nodes import (
    Built,
    ByteText,
    Call,
    Global,
    Node,
    Unread,
    entries_of,
    is_called,
)
from wncli.formats.torch.safe_globals import use_of
from wncli.formats.torch.tensors import class_of
from wncli.formats.torch.weights_only import accepts

#: Bits of the longest integer that is shown in full.
_LONGEST_INT = 64
#: Of what is spelled: the items of a call or tuple, the characters of each, calls inside calls.
_ITEMS = 4
_LONGEST = 60
_DEEPEST = 4
#: A key is a word in a path: this deep it is looked into, and as many characters are shown.
_KEY_DEPTH = 2
_KEY_LENGTH = 80


#: Keys that are what they show; a tuple can hold others.
_PLAIN = (str, bytes, int, float, type(None), tuple)
#: What makes things that are equal to no text and to no number.
_UNEQUAL = (
    "torch.device", "torch.serialization._get_layout", "builtins.frozenset",
    "__builtin__.frozenset",
)  # fmt: skip
_FLOATS = {"f2": "<e", "f4": "<f", "f8": "<d"}


def key_of(node: Node, number: int) -> Key:
    """Return the key at a node, the `number`th of its mapping."""
    if isinstance(node, str) or (type(node) is int and node.bit_length() <= _LONGEST_INT):
        return node
    text = spelled(node, _DEEPEST - _KEY_DEPTH)
    return OtherKey(number, text if len(text) <= _KEY_LENGTH else f"{text[:_KEY_LENGTH]}…")


def items_of(node: Node) -> Iterator[tuple[Key, Node]]:
    """Return the items of a mapping, list or tuple with their keys; nothing of anything else."""
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield Position(number, len(node), isinstance(node, tuple)), item
        return
    for number, (key, value) in enumerate(entries_of(node) or []):
        yield key_of(key, number), value


def find_ambiguous(node: Node) -> Node:
    """Return a key of a mapping that a call makes, and that can be equal to another; else None.

    One of them would take the other's place (`'w'` and `str('w')`).
    """
    keys = [] if isinstance(node, (list, tuple)) else [key for key, _ in entries_of(node) or []]
    made = [key for key in keys if not isinstance(key, _PLAIN)]
    if not made:
        return None
    taken: set[object] = {key for key in keys if isinstance(key, (str, bytes, int, float))}
    for key in made:
        if isinstance(key, Call) and _would_run(key):  # which is listed, and keeps all from it
            continue
        value = _made_value(key)
        if value is None or value in taken:
            return key
        taken.add(value)
    return None


def _made_value(node: Node) -> object:
    """Return what a call makes: text, bytes, a number, something of its own; or None."""
    if isinstance(node, Global):
        return ("name", str(node)) if accepts(str(node)) else None
    if any(is_called(node, *name.rsplit(".", 1)) for name in _UNEQUAL):
        return "node", id(node)
    if is_called(node, "_codecs", "encode"):  # bytes, as protocol 2 has them
        return _encoded(node)
    if any(is_called(node, f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")):
        match node.args:
            case (Call(args=(str() as code, *_)) as dtype, data) if _is_little(dtype):
                return _numpy_value(code, data if isinstance(data, bytes) else _encoded(data))
    return None


def _would_run(call: Call) -> bool:
    function = class_of(call.function)
    return function is None or use_of(function) is None


def _is_little(dtype: Call) -> bool:
    """Whether a NumPy dtype is one that is little-endian, or has no byte order."""
    states = [effect.state for effect in dtype.effects if isinstance(effect, Built)]
    return is_called(dtype, "numpy", "dtype") and all(
        isinstance(state, tuple) and state[1:2] in {("<",), ("|",)} for state in states
    )


def _numpy_value(code: str, raw: bytes | None) -> object:
    """Return the value of a NumPy scalar of this type code (`U10`, `i8`, `f4`); None for others."""
    if not raw:
        return None
    if code[:1] == "U":
        return raw.decode("utf-32-le", "replace").rstrip("\0")
    if code[:1] in {"i", "u", "b"}:
        return int.from_bytes(raw, "little", signed=code[:1] == "i")
    if code in _FLOATS and len(raw) == struct.calcsize(_FLOATS[code]):
        return float(struct.unpack(_FLOATS[code], raw)[0])
    return None


def _encoded(node: Node) -> bytes | None:
    match node:
        case Call(args=(str() as text, "latin1")) if is_called(node, "_codecs", "encode"):
            return text.encode("latin1", "replace")
    return None


def spelled(node: Node, depth: int = 0) -> str:
    """Write a call, name or value as Python would, shortened; `depth` is that so far."""
    callee = class_of(node)
    if callee:
        return str(callee)
    if isinstance(node, Unread):
        node = node.start(_LONGEST + 1)
    if is_called(node, "_codecs", "encode"):  # bytes, as protocol 2 has them
        match node.args:
            case (str() as text, "latin1"):
                node = text[: _LONGEST + 1].encode("latin1", "replace")
    if isinstance(node, Call) and depth < _DEEPEST:
        args = node.args if isinstance(node.args, tuple) else ()
        shown = [spelled(arg, depth + 1) for arg in args[:_ITEMS]]
        shown += ["…"] * (len(args) > _ITEMS or node.keywords is not None)
        return f"{spelled(node.function, depth + 1)}({', '.join(shown)})"
    if isinstance(node, (list, tuple)) and depth < _DEEPEST:
        parts = [spelled(item, depth + 1) for item in node[:_ITEMS]]
        inner = ", ".join([*parts, *(["…"] * (len(node) > _ITEMS))])
        return f"[{inner}]" if isinstance(node, list) else f"({inner}{',' * (len(node) == 1)})"
    if isinstance(node, ByteText):
        node = node.raw
    if isinstance(node, (str, bytes)):
        text = repr(node[:_LONGEST])
        return text if len(node) <= _LONGEST else f"{text[:-1]}…{text[-1]}"
    if isinstance(node, int) and node.bit_length() > _LONGEST_INT:
        return f"an int of {node.bit_length()} bits"
    return repr(node) if isinstance(node, (int, float, type(None))) else "…"
