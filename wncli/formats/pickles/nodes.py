"""What a pickle says, as data: a class is a name, a call is a record of its arguments.

None, bool, int, float, complex-free text, bytes, `list` and `tuple` are themselves; the
rest are the classes here. Nodes are compared by identity, as the objects they describe would be
shared: one node met twice is one object after loading. None has a `repr`, which could be endless.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wncli.errors import FormatError
from wncli.storage.source import Source, read_stored

#: Any of the plain values above, or one of the classes below.
Node = Any


@dataclass(eq=False, repr=False, slots=True)
class Global:
    """A name that an unpickler would import: `torch._utils`, `_rebuild_tensor_v2`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class PersistentId:
    """A reference to something outside the pickle; in torch files, a storage."""

    pid: Node


@dataclass(eq=False, repr=False, slots=True)
class Dict:
    """A plain dict: its items in the order they were set, repeated keys included.

    One without items has no list of them: files can have millions of such.
    """

    entries: Sequence[tuple[Node, Node]] = ()


@dataclass(eq=False, repr=False, slots=True)
class Set:
    """A set (`frozen=False`) or frozenset, as protocol 4 writes them."""

    items: Sequence[Node] = ()
    frozen: bool = False


@dataclass(eq=False, repr=False, slots=True)
class ByteText:
    """A Python 2 `str` that is no UTF-8."""

    raw: bytes


@dataclass(eq=False, repr=False, slots=True)
class Unread:
    """Bytes or text (`bytes`, `bytearray`, `str`) that were left in the file: too many to hold."""

    kind: type[bytes | bytearray | str]
    source: Source
    offset: int
    nbytes: int

    def start(self, most: int) -> bytes | bytearray | str:
        """Return about its first `most` bytes, to show them."""
        raw = self.source.read_at(self.offset, min(most, self.nbytes), "a pickle")
        return self.kind(raw, "utf-8", "replace") if self.kind is str else self.kind(raw)

    def read(self) -> bytes | bytearray | str:
        """Return the value.

        Raises:
            FormatError: the text is none.
        """
        raw = read_stored(self.source, self.offset, self.nbytes, "a pickle")
        if self.kind is bytes:
            return raw
        try:
            return raw.decode("utf-8", "surrogatepass") if self.kind is str else bytearray(raw)
        except UnicodeDecodeError:
            raise FormatError(
                self.source.name,
                f"a text in the pickle is none (at byte {self.offset})",
                expected="UTF-8",
                hint="check that the file is complete, or save it again with torch.save",
            ) from None


@dataclass(eq=False, repr=False, slots=True)
class Appended:
    """Items that were appended to a called object, as to a list."""

    items: list[Node]


@dataclass(eq=False, repr=False, slots=True)
class Added:
    """Items that were added to a called object, as to a set."""

    items: list[Node]


@dataclass(eq=False, repr=False, slots=True)
class SetItems:
    """Items that were set on a called object, as on a dict."""

    entries: list[tuple[Node, Node]]


@dataclass(eq=False, repr=False, slots=True)
class Built:
    """State that was handed to a called object: `__setstate__`, or its attributes."""

    state: Node


Effect = Appended | Added | SetItems | Built


@dataclass(eq=False, repr=False, slots=True)
class Call:
    """A call that an unpickler would make, and what it would then do to the result.

    `opcode` says how: `REDUCE` calls `function(*args)`, `NEWOBJ` `cls.__new__(cls, *args)`,
    `NEWOBJ_EX` the same with keywords; `OBJ` is `NEWOBJ` of a class, and calls anything else.
    """

    opcode: str
    function: Node
    args: Node
    keywords: Node = None
    effects: Sequence[Effect] = ()


def entries_of(node: Node) -> Sequence[tuple[Node, Node]] | None:
    """Return the items of a mapping, whether dict, OrderedDict, defaultdict or the like; else None.

    Keys that are one to Python are one here, with the last value; those that calls make are each
    their own. None as well for a mapping that is not made empty, or is made another by its state.
    """
    entries = set_entries_of(node)
    return None if entries is None else _merged(entries)


def set_entries_of(node: Node) -> Sequence[tuple[Node, Node]] | None:
    """Return the items of a mapping as they were set, also those that others took the place of."""
    if isinstance(node, Dict):
        return node.entries
    if isinstance(node, Call):
        parts = [effect.entries for effect in node.effects if isinstance(effect, SetItems)]
        is_known = is_called(node, "collections", "OrderedDict", "defaultdict")
        if (parts or is_known) and _is_made_empty(node):
            return parts[0] if len(parts) == 1 else [entry for part in parts for entry in part]
    return None


#: How many arguments the standard library's mappings are made empty with.
_MAPPINGS = {
    ("collections", "OrderedDict"): 0,
    ("collections", "defaultdict"): 1,
    ("collections", "Counter"): 0,
    ("builtins", "dict"): 0,
    ("__builtin__", "dict"): 0,
}
#: Packages of which all classes are known: there are no other mappings in them.
_KNOWN_PACKAGES = sys.stdlib_module_names | {"__builtin__", "copy_reg", "numpy", "torch"}


def _is_made_empty(node: Call) -> bool:
    """Whether all that is in a mapping has been set on it; other packages' classes are not known.

    `cls.__new__` takes no items. State becomes attributes, of which some are what gives the items.
    """
    function = node.function
    if not isinstance(function, Global):
        return False
    most = _MAPPINGS.get((function.module, function.name))
    if most is None:
        return function.module.partition(".")[0] not in _KNOWN_PACKAGES
    if node.opcode == "REDUCE" and len(node.args) > most:
        return False
    states = [effect.state for effect in node.effects if isinstance(effect, Built)]
    return all(
        isinstance(state, Dict)
        and all(isinstance(key, str) and not hasattr(OrderedDict, key) for key, _ in state.entries)
        for state in states
    )


def _merged(entries: Sequence[tuple[Node, Node]]) -> Sequence[tuple[Node, Node]]:
    """Items with each key once: where it was set first, with the value that was set last."""
    merged: dict[object, tuple[Node, Node]] = {}
    for entry in entries:
        key = entry[0]
        own = key if type(key) is str else _identity(key)
        merged[own] = (merged[own][0], entry[1]) if own in merged else entry
    return entries if len(merged) == len(entries) else list(merged.values())


#: Bits of integers that Python tells apart fast: longer ones can be made to collide in a dict.
_SHORT = 60


def _identity(key: Node) -> object:
    """Return what is equal for keys that are one to Python, and for no others."""
    if isinstance(key, (bool, int)):
        return int(key) if key.bit_length() <= _SHORT else ("int", hex(key))
    if isinstance(key, float):
        return _identity(int(key)) if key.is_integer() else key
    if isinstance(key, tuple):
        return "tuple", tuple(part if type(part) is str else _leaf(part) for part in key)
    return _leaf(key)


def _leaf(key: Node) -> object:
    if isinstance(key, (bool, int, float)):
        return _identity(key)
    return key if isinstance(key, (str, bytes, type(None))) else ("node", id(key))


def is_called(node: Node, module: str, *names: str) -> bool:
    """Whether `node` is a call of one of these names of `module`."""
    return (
        isinstance(node, Call)
        and isinstance(node.function, Global)
        and node.function.module == module
        and node.function.name in names
    )


def brief(node: Node) -> str:
    """Return a few words about a node for a message, however large or deep it is."""
    if isinstance(node, tuple):
        return f"({', '.join(_word(part) for part in node[:8])})"
    return _word(node)


def _word(node: Node) -> str:
    if isinstance(node, (str, bytes)):
        return repr(node[:40])
    if isinstance(node, int) and node.bit_length() > 64:  # noqa: PLR2004 - longer ones say nothing
        return f"an int of {node.bit_length()} bits"
    if isinstance(node, (int, float, Global, type(None))):
        return str(node)
    return type(node).__name__.lower()
