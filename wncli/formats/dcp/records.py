"""Makes `.metadata`: the pickle of a `Metadata`, with the opcodes of CPython's pickler.

There can be 100,000 chunks, each a few objects of dataclasses: their opcodes are written at once,
without nodes, and so that readers know them at a glance (`glance`). Source: PyTorch
`torch/distributed/checkpoint/metadata.py` and `filesystem.py`; CPython `Modules/_pickle.c`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from wncli.checkpoint.parts import Path
from wncli.checkpoint.tensors import DType
from wncli.formats.dcp.packing import Stored

#: The file, and the version of it that PyTorch has written since 2.7.
METADATA = ".metadata"
_VERSION = "1.0.0"
_PROTOCOL = 4
_MODULE = "torch.distributed.checkpoint.metadata"
_STORAGE_MODULE = "torch.distributed.checkpoint.filesystem"
#: Items per MARK … SETITEMS, as CPython's pickler batches them.
_BATCH = 1000
_TUPLES = {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}
_NEW = pickle.EMPTY_TUPLE + pickle.NEWOBJ + pickle.MEMOIZE
_ATTRIBUTES = pickle.EMPTY_DICT + pickle.MEMOIZE + pickle.MARK
_BUILT = pickle.SETITEMS + pickle.BUILD

Item = TypeVar("Item")


class Piece(NamedTuple):
    """A chunk of a tensor: where it begins and how large it is, in elements, and its item."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    item: Stored


class TensorRecord(NamedTuple):
    """What is said of a tensor."""

    name: str
    path: Path
    dtype: DType
    shape: tuple[int, ...]
    requires_grad: bool
    pieces: tuple[Piece, ...]


class ValueRecord(NamedTuple):
    """What is said of what is no tensor."""

    name: str
    path: Path
    item: Stored


Record = TensorRecord | ValueRecord


class _Index(NamedTuple):
    """What an item holds: the chunk of a tensor, or a value."""

    name: str
    offsets: tuple[int, ...] | None
    number: int | None


def make_metadata(records: Sequence[Record], items: Iterable[Stored], folder: str) -> bytes:
    """Return the content of `.metadata`.

    Args:
        records: the tensors and values, in the order of the state dict.
        items: all items, in the order in which they are stored.
        folder: what the directory is called.
    """
    indexes: dict[Stored, _Index] = {}
    for record in records:
        if isinstance(record, ValueRecord):
            indexes[record.item] = _Index(record.name, None, None)
        else:
            for number, piece in enumerate(record.pieces):
                indexes[piece.item] = _Index(record.name, piece.offsets, number)
    return _Pickle().metadata(records, [(indexes[item], item) for item in items], folder)


class _Pickle:
    """The opcodes so far. What is equal is written once, and referred to by its place."""

    def __init__(self) -> None:
        self.out = bytearray(pickle.PROTO + bytes([_PROTOCOL]))
        self.count = 0
        #: The opcodes that recall what has been written.
        self.known: dict[object, bytes] = {}

    def metadata(
        self, records: Sequence[Record], items: Sequence[tuple[_Index, Stored]], folder: str
    ) -> bytes:
        self.begin(_MODULE, "Metadata")
        self.text("state_dict_metadata")
        self.mapping(records, self.entry)
        self.text("planner_data")
        self.mapping(records, self.path)
        self.text("storage_data")
        self.mapping(items, self.stored)
        self.text("storage_meta")
        self.begin(_MODULE, "StorageMeta")
        self.text("checkpoint_id")
        self.text(folder)
        for name in ("save_id", "load_id"):
            self.text(name)
            self.out += pickle.NONE
        self.text("modules")
        self.out += pickle.EMPTY_LIST
        self.memoize()
        self.out += _BUILT
        self.text("version")
        self.text(_VERSION)
        return bytes(self.out + _BUILT + pickle.STOP)

    # -- what is said of tensors and values -------------------------------------------------------

    def entry(self, record: Record) -> None:
        """Write a name, and what there is."""
        self.text(record.name)
        if isinstance(record, ValueRecord):
            self.named(_MODULE, "BytesStorageMetadata")
            self.out += _NEW
            self.count += 1
            return
        self.begin(_MODULE, "TensorStorageMetadata")
        self.text("properties")
        self.properties(record)
        self.text("size")
        self.size(record.shape)
        self.text("chunks")
        self.out += pickle.EMPTY_LIST
        self.memoize()
        pieces = record.pieces
        self.batches(pieces, self.chunk, pickle.APPEND, pickle.APPENDS)
        self.out += _BUILT

    def properties(self, record: TensorRecord) -> None:
        self.named(_MODULE, "TensorProperties")
        self.out += _NEW + pickle.MARK
        self.count += 1
        self.named("torch", record.dtype.torch or "")
        self.called("torch.serialization", "_get_layout", "torch.strided")
        self.out += pickle.NEWTRUE if record.requires_grad else pickle.NEWFALSE
        self.called(_MODULE, "_MEM_FORMAT_ENCODING", 0)
        self.out += pickle.NEWFALSE + pickle.TUPLE
        self.memoize()
        self.out += pickle.BUILD

    def chunk(self, piece: Piece) -> None:
        self.begin(_MODULE, "ChunkStorageMetadata")
        self.text("offsets")
        self.size(piece.offsets)
        self.text("sizes")
        self.size(piece.sizes)
        self.out += _BUILT

    def path(self, record: Record) -> None:
        """Write a name, and the keys that it is made of."""
        self.text(record.name)
        self.keys(record.path)

    def stored(self, entry: tuple[_Index, Stored]) -> None:
        """Write what an item holds, and where it is."""
        index, item = entry
        self.begin(_MODULE, "MetadataIndex")
        self.text("fqn")
        self.text(index.name)
        self.text("index")
        if index.number is None:
            self.out += pickle.NONE
        else:
            self.number(index.number)
        if index.offsets is not None:
            self.text("offset")
            self.size(index.offsets)
        self.out += _BUILT
        self.begin(_STORAGE_MODULE, "_StorageInfo")
        self.text("relative_path")
        self.text(item.file)
        self.text("offset")
        self.number(item.offset)
        self.text("length")
        self.number(item.nbytes)
        self.out += _BUILT

    # -- opcodes ----------------------------------------------------------------------------------

    def memoize(self, key: object = None) -> None:
        """Remember what has just been written."""
        self.out += pickle.MEMOIZE
        if key is not None:
            place = self.count
            self.known[key] = (
                pickle.BINGET + bytes([place])
                if place < 256  # noqa: PLR2004
                else pickle.LONG_BINGET + struct.pack("<I", place)
            )
        self.count += 1

    def text(self, value: str) -> None:
        known = self.known.get(value)
        if known:
            self.out += known
            return
        raw = value.encode("utf-8", "surrogatepass")
        if len(raw) < 256:  # noqa: PLR2004
            self.out += pickle.SHORT_BINUNICODE + bytes([len(raw)]) + raw
        else:
            self.out += pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
        self.memoize(value)

    def number(self, value: int) -> None:
        if value < 1 << 8:
            self.out += pickle.BININT1 + bytes([value])
        elif value < 1 << 16:
            self.out += pickle.BININT2 + struct.pack("<H", value)
        elif value < 1 << 31:
            self.out += pickle.BININT + struct.pack("<i", value)
        else:
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.out += pickle.LONG1 + bytes([len(raw)]) + raw

    def keys(self, values: Path) -> None:
        if not values:
            self.out += pickle.EMPTY_TUPLE
            return
        short = _TUPLES.get(len(values))
        if not short:
            self.out += pickle.MARK
        for value in values:
            if isinstance(value, str):
                self.text(value)
            else:
                self.number(value)
        self.out += short or pickle.TUPLE
        self.memoize()

    def size(self, shape: tuple[int, ...]) -> None:
        known = self.known.get(shape)
        if known:
            self.out += known
            return
        self.named("torch", "Size")
        self.keys(shape)
        self.out += pickle.TUPLE1
        self.memoize()
        self.out += pickle.REDUCE
        self.memoize(shape)

    def named(self, module: str, name: str) -> None:
        """Write a class or function."""
        known = self.known.get((module, name))
        if known:
            self.out += known
            return
        self.text(module)
        self.text(name)
        self.out += pickle.STACK_GLOBAL
        self.memoize((module, name))

    def called(self, module: str, name: str, argument: str | int) -> None:
        """Write what a function returns for an argument."""
        key = module, name, argument
        known = self.known.get(key)
        if known:
            self.out += known
            return
        self.named(module, name)
        if isinstance(argument, str):
            self.text(argument)
        else:
            self.number(argument)
        self.out += pickle.TUPLE1
        self.memoize()
        self.out += pickle.REDUCE
        self.memoize(key)

    def begin(self, module: str, name: str) -> None:
        """Begin an object whose attributes follow."""
        self.named(module, name)
        self.out += _NEW + _ATTRIBUTES
        self.count += 2

    def mapping(self, items: Sequence[Item], write: Callable[[Item], None]) -> None:
        """Write a dict of which `write` writes each key and value."""
        self.out += pickle.EMPTY_DICT
        self.memoize()
        self.batches(items, write, pickle.SETITEM, pickle.SETITEMS)

    def batches(
        self, items: Sequence[Item], write: Callable[[Item], None], single: bytes, several: bytes
    ) -> None:
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            if len(batch) == 1:
                write(batch[0])
                self.out += single
                continue
            self.out += pickle.MARK
            for item in batch:
                write(item)
            self.out += several
