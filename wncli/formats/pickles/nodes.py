"""What a pickle says, as data: a class is a name, a call is a record of its arguments.

None, bool, int, float, complex-free text, bytes, `list` and `tuple` stand for themselves; the
rest are the classes here. Nodes are compared by identity, as the objects they describe would be
shared: one node met twice is one object after loading.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Any of the plain values above, or one of the classes below.
Node = Any


@dataclass(eq=False, slots=True)
class Global:
    """A name that an unpickler would import: `torch._utils`, `_rebuild_tensor_v2`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class PersistentId:
    """A reference to something outside the pickle; in torch files, a storage."""

    pid: Node


@dataclass(eq=False, slots=True)
class Dict:
    """A plain dict: its items in the order they were set, repeated keys included."""

    entries: list[tuple[Node, Node]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Set:
    """A set (`frozen=False`) or frozenset, as protocol 4 writes them."""

    items: list[Node]
    frozen: bool = False


@dataclass(eq=False, slots=True)
class ByteText:
    """A Python 2 `str` that is no UTF-8."""

    raw: bytes


@dataclass(eq=False, slots=True)
class Appended:
    """Items that were appended to a called object, as to a list."""

    items: list[Node]


@dataclass(eq=False, slots=True)
class Added:
    """Items that were added to a called object, as to a set."""

    items: list[Node]


@dataclass(eq=False, slots=True)
class SetItems:
    """Items that were set on a called object, as on a dict."""

    entries: list[tuple[Node, Node]]


@dataclass(eq=False, slots=True)
class Built:
    """State that was handed to a called object: `__setstate__`, or its attributes."""

    state: Node


Effect = Appended | Added | SetItems | Built


@dataclass(eq=False, slots=True)
class Call:
    """A call that an unpickler would make, and what it would then do to the result.

    `opcode` says how: `REDUCE` calls `function(*args)`, `NEWOBJ` `cls.__new__(cls, *args)`,
    `NEWOBJ_EX` the same with keywords; `OBJ` is `NEWOBJ` of a class, and calls anything else.
    """

    opcode: str
    function: Node
    args: Node
    keywords: Node = None
    effects: list[Effect] = field(default_factory=list)


def entries_of(node: Node) -> list[tuple[Node, Node]] | None:
    """The items of a mapping, whether dict, OrderedDict, defaultdict or the like; else None.

    Where a key was set twice, both are listed: `dict()` of the list keeps the last, as Python does.
    """
    if isinstance(node, Dict):
        return node.entries
    if isinstance(node, Call):
        parts = [effect.entries for effect in node.effects if isinstance(effect, SetItems)]
        if len(parts) == 1:
            return parts[0]
        if parts:
            return [entry for part in parts for entry in part]
        if is_called(node, "collections", "OrderedDict"):
            return []
    return None


def is_called(node: Node, module: str, *names: str) -> bool:
    """Whether `node` is a call of one of these names of `module`."""
    return (
        isinstance(node, Call)
        and isinstance(node.function, Global)
        and node.function.module == module
        and node.function.name in names
    )


def brief(node: Node) -> str:
    """A few words about a node for a message, however large or deep it is."""
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
