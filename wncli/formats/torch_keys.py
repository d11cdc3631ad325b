"""The keys of a pickle's mappings and lists: how they are told apart, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator

from wncli.formats.pickles.nodes import Built, ByteText, Call, Node, entries_of, is_called
from wncli.formats.torch_tensor import class_of
from wncli.keys import Key, OtherKey, Position

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
_NUMBER = object()


def key_of(node: Node, number: int) -> Key:
    """The key at a node, the `number`th of its mapping."""
    if isinstance(node, str) or (type(node) is int and node.bit_length() <= _LONGEST_INT):
        return node
    text = spelled(node, _DEEPEST - _KEY_DEPTH)
    return OtherKey(number, text if len(text) <= _KEY_LENGTH else f"{text[:_KEY_LENGTH]}…")


def items_of(node: Node) -> Iterator[tuple[Key, Node]]:
    """The items of a mapping, list or tuple with their keys; nothing of anything else."""
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield Position(number, len(node), isinstance(node, tuple)), item
        return
    for number, (key, value) in enumerate(entries_of(node) or []):
        yield key_of(key, number), value


def find_ambiguous(node: Node) -> Node:
    """A key of a mapping that a call makes, and that can be equal to another; else None.

    One of them would take the other's place (`'w'` and `str('w')`).
    """
    keys = [] if isinstance(node, (list, tuple)) else [key for key, _ in entries_of(node) or []]
    made = [key for key in keys if not isinstance(key, _PLAIN)]
    if not made or len(keys) == 1:
        return None
    taken: set[object] = {key for key in keys if isinstance(key, (str, bytes))}
    has_numbers = any(isinstance(key, (int, float)) for key in keys)
    for key in made:
        value = _made_value(key)
        if value is None or value in taken or (value is _NUMBER and has_numbers):
            return key
        taken.add(value)
    return None


def _made_value(node: Node) -> object:
    """What a call makes: text or bytes, `_NUMBER` for NumPy's numbers; None where it is unknown."""
    if is_called(node, "_codecs", "encode"):  # bytes, as protocol 2 has them
        return _encoded(node)
    if not (is_called(node, "numpy._core.multiarray", "scalar")
            or is_called(node, "numpy.core.multiarray", "scalar")):  # fmt: skip
        return None
    match node.args:
        case (Call(args=(str() as code, *_)) as dtype, data) if is_called(dtype, "numpy", "dtype"):
            if code[:1] in {"i", "u", "f", "b"}:
                return _NUMBER
            raw = data if isinstance(data, bytes) else _encoded(data)
            states = [effect.state for effect in dtype.effects if isinstance(effect, Built)]
            is_little = [s[1:2] for s in states if isinstance(s, tuple)] == [("<",)]
            if code[:1] == "U" and is_little and raw:
                return raw.decode("utf-32-le", "replace").rstrip("\0")
    return None


def _encoded(node: Node) -> bytes | None:
    match node:
        case Call(args=(str() as text, "latin1")) if is_called(node, "_codecs", "encode"):
            return text.encode("latin1", "replace")
    return None


def spelled(node: Node, depth: int = 0) -> str:
    """A call, a name or a value as Python would write it, shortened; `depth` is that so far."""
    callee = class_of(node)
    if callee:
        return str(callee)
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
