"""Makes `.metadata`: the nodes of a pickle that PyTorch unpickles as `Metadata`.

Source: PyTorch `torch/distributed/checkpoint/metadata.py` and `filesystem.py`: dataclasses are
pickled as a new object and the dict of its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wncli.checkpoint.parts import Path
from wncli.checkpoint.tensors import DType
from wncli.errors import FormatError
from wncli.formats.dcp.packing import Stored
from wncli.formats.pickles.nodes import Built, Call, Dict, Global, Node, PersistentId
from wncli.formats.pickles.writer import write_pickle

#: The file, and the version of it that PyTorch has written since 2.7.
METADATA = ".metadata"
_VERSION = "1.0.0"
_PROTOCOL = 2
_METADATA_MODULE = "torch.distributed.checkpoint.metadata"


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


def make_metadata(records: Sequence[Record], items: Iterable[Stored], folder: str) -> bytes:
    """Return the content of `.metadata`.

    Args:
        records: the tensors and values, in the order of the state dict.
        items: all items, in the order in which they are stored.
        folder: what the directory is called.
    """
    return _Maker().make(records, items, folder)


def _no_storage(node: PersistentId) -> Node:
    raise FormatError("", "there is a storage in the metadata", found=str(node.pid))


class _Maker:
    """Nodes as they come up; names and sizes are made once and shared."""

    def __init__(self) -> None:
        self.classes: dict[str, Global] = {}
        self.sizes: dict[tuple[int, ...], Call] = {}
        self.dtypes: dict[DType, Global] = {}
        self.size = Global("torch", "Size")
        layout = Global("torch.serialization", "_get_layout")
        self.layout = Call("REDUCE", layout, ("torch.strided",))
        self.memory_format = Call("REDUCE", self.named("_MEM_FORMAT_ENCODING"), (0,))
        self.info = Global("torch.distributed.checkpoint.filesystem", "_StorageInfo")

    def make(self, records: Sequence[Record], items: Iterable[Stored], folder: str) -> bytes:
        indexes: dict[Stored, Call] = {}
        for record in records:
            if isinstance(record, ValueRecord):
                indexes[record.item] = self.index(record.name, None, None)
                continue
            for number, piece in enumerate(record.pieces):
                indexes[piece.item] = self.index(record.name, piece.offsets, number)
        storage_meta = self.object(
            self.named("StorageMeta"), checkpoint_id=folder, save_id=None, load_id=None, modules=[]
        )
        root = self.object(
            self.named("Metadata"),
            state_dict_metadata=Dict([(record.name, self.entry(record)) for record in records]),
            planner_data=Dict([(record.name, record.path) for record in records]),
            storage_data=Dict([(indexes[item], self.stored(item)) for item in items]),
            storage_meta=storage_meta,
            version=_VERSION,
        )
        return write_pickle(root, _PROTOCOL, {}, _no_storage)

    def entry(self, record: Record) -> Call:
        if isinstance(record, ValueRecord):
            return Call("NEWOBJ", self.named("BytesStorageMetadata"), ())
        return self.object(
            self.named("TensorStorageMetadata"),
            properties=self.properties(record),
            size=self.sized(record.shape),
            chunks=[
                self.object(
                    self.named("ChunkStorageMetadata"),
                    offsets=self.sized(piece.offsets),
                    sizes=self.sized(piece.sizes),
                )
                for piece in record.pieces
            ],
        )

    def properties(self, record: TensorRecord) -> Call:
        if record.dtype not in self.dtypes:
            self.dtypes[record.dtype] = Global("torch", record.dtype.torch or "")
        dtype = self.dtypes[record.dtype]
        state = (dtype, self.layout, record.requires_grad, self.memory_format, False)
        return Call("NEWOBJ", self.named("TensorProperties"), (), effects=[Built(state)])

    def index(self, name: str, offsets: tuple[int, ...] | None, number: int | None) -> Call:
        place = {} if offsets is None else {"offset": self.sized(offsets)}
        return self.object(self.named("MetadataIndex"), fqn=name, index=number, **place)

    def stored(self, item: Stored) -> Call:
        return self.object(
            self.info, relative_path=item.file, offset=item.offset, length=item.nbytes
        )

    def named(self, name: str) -> Global:
        if name not in self.classes:
            self.classes[name] = Global(_METADATA_MODULE, name)
        return self.classes[name]

    def sized(self, shape: tuple[int, ...]) -> Call:
        if shape not in self.sizes:
            self.sizes[shape] = Call("REDUCE", self.size, (shape,))
        return self.sizes[shape]

    @staticmethod
    def object(kind: Global, **attributes: Node) -> Call:
        """Make an object of a dataclass."""
        return Call("NEWOBJ", kind, (), effects=[Built(Dict(list(attributes.items())))])
