"""Reads the chunks and items in a metadata pickle at a glance: there can be 100,000 of each.

As CPython's pickler writes them (protocol 4), each object is some thirty opcodes that are the same
every time but for its numbers. A pattern takes them at once, and remembers as many things as they
do: what can be referred to later in its place, and a mark in the place of all else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from wncli.formats.pickles.nodes import Global, Node
from wncli.formats.torch.tensors import counts

Sizes = tuple[int, ...]


class Box(NamedTuple):
    """A chunk as the metadata lists it: where in its tensor it begins, and how large it is."""

    offsets: Sizes
    sizes: Sizes


class Index(NamedTuple):
    """What an item holds: a tensor's box that begins there, or a value, which has no offsets."""

    name: str
    offsets: Sizes | None


class Stored(NamedTuple):
    """Where an item stands: the name of its file, its offset and length in bytes."""

    file: str
    offset: int
    nbytes: int


#: In the memo, for what nothing refers to: dicts of attributes, arguments of calls.
_NOTHING = object()

_GET = rb"(?:h.|j.{4})"
_INT = rb"(?:K.|M..|J.{4}|\x8a\x05.{5})"
_INTS = rb"(?:%b\x85|%b{2}\x86|%b{3}\x87|\(%b+t)" % (_INT, _INT, _INT, _INT)
#: A `torch.Size` that is made of a tuple, or of an empty one; or one that was made already.
_SIZE = rb"(?:(%b)(?:(%b)\x94|(\)))\x85\x94R\x94|(%b))" % (_GET, _INTS, _GET)
#: A text, which may be spelled; its own length says where it ends.
_TEXT = rb"(?:\x8c(.)([^\x94]{0,255})\x94|(%b))" % _GET
_BEGIN = rb"\x81\x94\}\x94\("
_CHUNK = re.compile(_BEGIN + rb"(%b)%b(%b)%bub" % (_GET, _SIZE, _GET, _SIZE), re.DOTALL)
_INDEX = re.compile(
    _BEGIN + rb"(%b)%b(%b)(?:N|%b)(?:(%b)%b)?ub" % (_GET, _TEXT, _GET, _INT, _GET, _SIZE), re.DOTALL
)
_INFO = re.compile(
    _BEGIN + rb"(%b)%b(%b)(%b)(%b)(%b)ub" % (_GET, _TEXT, _GET, _INT, _GET, _INT), re.DOTALL
)
#: What begins the next object: its class, and no arguments.
_NEXT = re.compile(rb"(%b)\)(?=\x81)" % _GET, re.DOTALL)
_ONE_INT = re.compile(_INT, re.DOTALL)

_METADATA = "torch.distributed.checkpoint.metadata"
_Groups = tuple[bytes, ...]


class MetadataGlance:
    """One reading of a metadata file. What has been seen is known by its bytes.

    That holds as long as a place in the memo keeps what it has, which the reader of pickles sees
    to.
    """

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str], tuple[re.Pattern[bytes], _Read]] = {
            (_METADATA, "ChunkStorageMetadata"): (_CHUNK, self.chunk),
            (_METADATA, "MetadataIndex"): (_INDEX, self.index),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): (_INFO, self.info),
        }
        self.gets: dict[bytes, Node] = {}
        self.sizes: dict[bytes, Sizes] = {b")": ()}
        self.texts: dict[bytes, str] = {}
        self.memo: list[Node] = []

    def begins(self, function: Global) -> bool:
        """Whether this is one of the classes."""
        return (function.module, function.name) in self.kinds

    def read(
        self, data: bytes, place: int, end: int, memo: list[Node], function: Global
    ) -> tuple[list[Node], int]:
        """Read as many objects as there are behind each other."""
        self.memo = memo
        found: list[Node] = []
        kind = self.kinds.get((function.module, function.name))
        begin = place
        while kind:
            match = kind[0].match(data, begin, end)
            made = kind[1](match.groups()) if match else None
            if match is None or made is None:
                break
            found.append(made)
            place = match.end()
            following = _NEXT.match(data, place, end)
            if following is None:
                break
            begin = following.end()
            node = self.recall(following[1])
            kind = self.kinds.get((node.module, node.name)) if type(node) is Global else None
        return found, place

    def recall(self, raw: bytes) -> Node:
        """Return what was remembered at a place; the mark where nothing was."""
        found = self.gets.get(raw)
        if found is None:
            place = int.from_bytes(raw[1:], "little")
            found = self.memo[place] if place < len(self.memo) else _NOTHING
            if found is not _NOTHING:
                self.gets[raw] = found
        return found

    def size(
        self, made: bytes | None, raw: bytes | None, empty: bytes | None, known: bytes | None
    ) -> Sizes | None:
        """Return a size, and None where it is none."""
        if known is not None:
            found = self.recall(known)
            return found if type(found) is tuple and counts(found) is not None else None
        function = self.recall(made or b"")
        if type(function) is not Global or (function.module, function.name) != ("torch", "Size"):
            return None
        key = raw or empty or b""
        sizes = self.sizes.get(key)
        if sizes is None:
            sizes = self.sizes[key] = tuple(map(_number, _ONE_INT.findall(key.lstrip(b"("))))
        return sizes if not sizes or min(sizes) >= 0 else None

    def remember_size(self, sizes: Sizes, raw: bytes | None, empty: bytes | None) -> None:
        """Remember what making a size does: its tuple, its arguments and itself."""
        if raw is not None:
            self.memo += (_NOTHING, _NOTHING, sizes)
        elif empty is not None:
            self.memo += (_NOTHING, sizes)

    def text(self, length: bytes | None, raw: bytes | None, known: bytes | None) -> str | None:
        """Return a text, and None where it is none, or longer than what was found of it."""
        if known is not None:
            found = self.recall(known)
            return found if type(found) is str else None
        if raw is None or length is None or len(raw) != length[0]:
            return None
        text = self.texts.get(raw)
        if text is None:
            try:
                text = self.texts[raw] = raw.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                return None
        return text

    def chunk(self, groups: _Groups) -> Box | None:
        """Return a `ChunkStorageMetadata`."""
        of_offsets, of_sizes = groups[1:5], groups[6:10]
        offsets, sizes = self.size(*of_offsets), self.size(*of_sizes)
        if offsets is None or sizes is None:
            return None
        if (self.recall(groups[0]), self.recall(groups[5])) != ("offsets", "sizes"):
            return None
        made = Box(offsets, sizes)
        self.memo += (made, _NOTHING)
        self.remember_size(offsets, of_offsets[1], of_offsets[2])
        self.remember_size(sizes, of_sizes[1], of_sizes[2])
        return made

    def index(self, groups: _Groups) -> Index | None:
        """Return a `MetadataIndex`; its index is but a hint."""
        name = self.text(*groups[1:4])
        if (self.recall(groups[0]), self.recall(groups[4])) != ("fqn", "index") or name is None:
            return None
        offsets = None
        if groups[5] is not None:
            offsets = self.size(*groups[6:10])
            if offsets is None or self.recall(groups[5]) != "offset":
                return None
        made = Index(name, offsets)
        self.memo += (made, _NOTHING)
        if groups[3] is None:
            self.memo.append(name)
        if offsets is not None:
            self.remember_size(offsets, groups[7], groups[8])
        return made

    def info(self, groups: _Groups) -> Stored | None:
        """Return a `_StorageInfo` without transforms."""
        file = self.text(*groups[1:4])
        names = self.recall(groups[0]), self.recall(groups[4]), self.recall(groups[6])
        offset, length = _number(groups[5]), _number(groups[7])
        if names != ("relative_path", "offset", "length") or file is None:
            return None
        if offset < 0 or length < 0:
            return None
        made = Stored(file, offset, length)
        self.memo += (made, _NOTHING)
        if groups[3] is None:
            self.memo.append(file)
        return made


_Read = Callable[[_Groups], Box | Index | Stored | None]


def _number(raw: bytes) -> int:
    """Return the number that an opcode pushes."""
    kind = raw[:1]
    if kind == b"\x8a":
        return int.from_bytes(raw[2:], "little", signed=True)
    return int.from_bytes(raw[1:], "little", signed=kind == b"J")
