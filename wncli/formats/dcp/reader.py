"""Opens a folder that `torch.distributed.checkpoint` wrote, as `dcp_to_torch_save` would give it.

Nothing is read but the metadata and the values that are no tensors. Source: PyTorch
`torch/distributed/checkpoint/format_utils.py`, `default_planner.py`, `filesystem.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from itertools import pairwise
from pathlib import Path

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import natural
from wncli.checkpoint.parts import Chunk, PartedTensor, PartedValue, Parts
from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.formats.dcp.files import Files, ItemSource
from wncli.formats.dcp.glance import MetadataGlance
from wncli.formats.dcp.items import Run, find_tensor, read_item
from wncli.formats.dcp.metadata import Metadata, Placed, broken, place, read_metadata, union
from wncli.formats.dcp.source import PartedSource
from wncli.formats.dcp.tree import nest
from wncli.formats.huggingface.shard_files import resolve
from wncli.formats.pickles.nodes import Call, Node, PersistentId
from wncli.formats.pickles.reader import Pickle, read_pickle
from wncli.formats.torch.calls import find_calls
from wncli.formats.torch.state_dicts import read_tree
from wncli.formats.torch.tensors import NewStorage, StorageId, make_tensor, storage_pid
from wncli.notes import Note
from wncli.storage.file_limit import raise_file_limit
from wncli.storage.source import LocalSource

#: Values of which one node serves all that are equal.
_SHARED = (str, int, float, type(None))


def open_distributed(
    folder: Path,
    names: Sequence[str],
    stack: ExitStack,
    open_file: Callable[[Path], FileIO],
) -> tuple[Checkpoint, tuple[PartedSource]]:
    """Open a distributed checkpoint; `stack` closes its files.

    Args:
        folder: where it is.
        names: of its metadata files: one, or one of each rank.
        stack: keeps what is read open.
        open_file: opens a regular file for reading.

    Raises:
        FileError: a file is missing, or cannot be read.
        FormatError: it contradicts itself, or is none that is read.
    """
    raise_file_limit(len(names))
    read = [_read_metadata(folder / name, stack, open_file) for name in sorted(names, key=natural)]
    placed = place(union([metadata for _, metadata in read]))
    files = Files(folder, placed.files, open_file)
    stack.callback(files.close)
    _refuse_places(placed, files)
    content = _Content(str(folder), placed, files)
    return content.read([pickled for pickled, _ in read]), (content.source,)


def _read_metadata(
    path: Path, stack: ExitStack, open_file: Callable[[Path], FileIO]
) -> tuple[Pickle, Metadata]:
    """Read a metadata file, which is to be of this folder, too.

    Raises:
        FormatError: it is none, or says what cannot be.
    """
    resolve(path)
    source = LocalSource(str(path), stack.enter_context(open_file(path)))
    try:
        pickled = read_pickle(source, source.name, glance=MetadataGlance())
    except FormatError as error:
        raise broken(error.where, error.problem) from None  # nobody makes this file by torch.save
    if pickled.nbytes != source.nbytes:
        raise broken(
            source.name,
            "bytes follow its metadata",
            f"{pickled.nbytes:,} bytes",
            f"{source.nbytes:,} bytes",
        )
    return pickled, read_metadata(pickled, source.name)


def _refuse_places(placed: Placed, files: Files) -> None:
    """Refuse items that reach beyond their files or overlap, or are too short for what they hold.

    Raises:
        FormatError: one does.
    """
    found: list[tuple[int, int, int, str]] = []
    for entry in placed.entries.values():
        if isinstance(entry, PartedValue):
            found.append((*entry.item, entry.name))
            continue
        for chunk in entry.chunks:
            found.append((*chunk.item, entry.name))
            _refuse_short(entry, chunk, files)
    found.sort()
    for number, offset, nbytes, name in found:
        if offset + nbytes > files.sizes[number]:
            raise FormatError(
                str(files.folder / files.names[number]),
                f"the file ends before the item of {name!r} does",
                expected=f"at least {offset + nbytes:,} bytes",
                found=f"{files.sizes[number]:,} bytes",
                hint="copy or download it again: it is truncated",
            )
    for (number, offset, nbytes, name), (following, begin, _, other) in pairwise(found):
        if number == following and begin < offset + nbytes:
            raise broken(
                str(files.folder / files.names[number]),
                f"the items of {name!r} and {other!r} overlap",
                f"the second from byte {offset + nbytes:,} on",
                f"from byte {begin:,} on",
            )


def _refuse_short(tensor: PartedTensor, chunk: Chunk, files: Files) -> None:
    nbytes = tensor.dtype.itemsize
    for size in chunk.sizes:
        nbytes *= size
    if chunk.item.nbytes > nbytes:
        return
    where = str(files.folder / files.names[chunk.item.file])
    if chunk.item.nbytes == nbytes:  # a zip has more
        raise FormatError(
            where,
            "the items of this distributed checkpoint are safetensors, which PyTorch itself cannot"
            " read back",
            expected="items as torch.save writes them",
            found=f"the bare {nbytes:,} bytes of {tensor.name!r}",
            hint="save it again without serialization_format, or with HuggingFaceStorageWriter",
        )
    raise broken(
        where,
        f"the item of {tensor.name!r} is too short for it",
        f"more than {nbytes:,} bytes",
        f"{chunk.item.nbytes:,} bytes",
    )


@dataclass(slots=True)
class _Content:
    """What is in a checkpoint, as nodes: those of one big torch file that would have the same."""

    where: str
    placed: Placed
    files: Files
    source: PartedSource = field(init=False)
    #: The storages by the keys that stand in the persistent ids.
    storages: dict[str, Storage] = field(default_factory=dict)
    gathered: Pickle = field(init=False)
    #: Values by the bytes of their items, where one node serves all.
    known: dict[bytes, Node] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.source = PartedSource(self.where, self.files, self.find)
        self.gathered = Pickle(None, 2, [], [], [], 0)

    def find(self, tensor: PartedTensor, chunk: Chunk) -> Run:
        """Open the item of a chunk."""
        item = ItemSource(self.files, chunk.item, tensor.name)
        item.hold()
        return find_tensor(item, chunk.item.offset, tensor.dtype, chunk.sizes)

    def read(self, pickles: Sequence[Pickle]) -> Checkpoint:
        """Return the checkpoint; `pickles` are those of the metadata."""
        nbytes = sum(pickled.nbytes for pickled in pickles)
        entries = self.placed.entries
        nodes: dict[str, Node] = {
            name: self.tensor(entry)
            for name, entry in entries.items()
            if isinstance(entry, PartedTensor)
        }
        for name, entry in entries.items():
            if isinstance(entry, PartedValue):
                nodes[name] = self.value(entry)
                nbytes += entry.item.nbytes
        parts = Parts(self.files.names, entries, self.source.append_files())
        paths = ((entry.path or (name,), nodes[name]) for name, entry in entries.items())
        gathered = self.gathered._replace(root=nest(paths, self.where))
        found = read_tree(gathered, nbytes, self.locate, self.source)
        return Checkpoint(
            self.where,
            "torch, distributed",
            sum(self.files.sizes),
            found.state_dicts,
            found.entries,
            tree=found.tree,
            refused_names=found.refused_names,
            would_run=find_calls([gathered, *pickles], found.tree, found.entries),
            notes=(*self.notes, *found.notes),
            parts=parts,
        )

    def locate(self, identity: StorageId) -> Storage:
        return self.storages[identity.key]

    def tensor(self, entry: PartedTensor) -> Call:
        """Make the node of a tensor whose bytes stand in the source."""
        numel = 1
        for size in entry.shape:
            numel *= size
        nbytes = numel * entry.dtype.itemsize
        key = self.new_key(entry.name)
        start = self.source.append(entry, nbytes)
        self.storages[key] = Storage(key, start, nbytes)
        storage = NewStorage(0, entry.dtype, numel, "cpu")
        node = make_tensor(storage, entry.shape)
        reference: PersistentId = node.args[0]
        reference.pid = storage_pid(storage, key)
        self.gathered.persistent_ids.append(reference)
        return node

    def value(self, entry: PartedValue) -> Node:
        """Return what a value item holds; its storages stand in the source from now on."""
        item = ItemSource(self.files, entry.item, entry.name)
        start = item.hold()
        held = start if len(start) == item.nbytes else b""
        if held in self.known:
            return self.known[held]
        pickled, storages = read_item(item)
        if held and isinstance(pickled.root, _SHARED):
            self.known[held] = pickled.root
        keys: dict[str, str] = {}
        for node, (identity, storage) in storages.items():
            if identity.key not in keys:
                keys[identity.key] = self.place_storage(entry, storage)
            tag, kind, _, location, numel = node.pid
            node.pid = (tag, kind, keys[identity.key], location, numel)
        self.gathered.globals.extend(pickled.globals)
        self.gathered.persistent_ids.extend(pickled.persistent_ids)
        self.gathered.calls.extend(pickled.calls)
        return pickled.root

    def place_storage(self, entry: PartedValue, storage: Storage) -> str:
        """Have a storage of a value stand in the source, and return its key."""
        key = self.new_key(f"{entry.name}: {storage.key}")
        run = Run(entry.item.offset + storage.offset, storage.nbytes, storage.crc)
        start = self.source.append_run(entry.name, entry.item.file, run)
        self.storages[key] = storage._replace(key=key, offset=start, crc=None)
        return key

    def new_key(self, wanted: str) -> str:
        """Return a key that no other storage has."""
        key = wanted
        while key in self.storages:
            key += "'"
        return key
