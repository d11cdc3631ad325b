"""The tensors of an opened checkpoint: views of the mapped file, or memory that torch owns."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from wncli.arithmetic.torch_tensors import bytes_of
from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.keys import Keys, shown
from wncli.checkpoint.naming import join
from wncli.checkpoint.tensors import Storage, TensorSpec
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Built, Call, Dict, Node, entries_of
from wncli.parallel import Advance, run_tasks
from wncli.pytorch.tensors import TORCH_DTYPES
from wncli.storage.checked_source import damaged
from wncli.storage.crc32 import crc32
from wncli.storage.source import (
    BLOCK,
    LocalSource,
    Source,
    Sources,
    expect,
    is_remote,
    truncated,
)

#: Plain values, as they are in a pickle.
_PLAIN = (str, bytes, bool, int, float, type(None))
#: Values that are inside each other, and no more.
_DEEPEST = 64


class InFiles:
    """The tensors of a checkpoint's files.

    Args:
        checkpoint: what opening them gave.
        sources: the files.
        owned: read what is used as it is into memory of its own, so that the files can go.
    """

    def __init__(self, checkpoint: Checkpoint, sources: Sources, *, owned: bool) -> None:
        self.checkpoint = checkpoint
        self.sources = sources
        self.owned = owned
        self.maps: dict[int, memoryview] = {}
        self.storages: dict[tuple[int, str], Tensor] = {}

    def tensor(self, _keys: Keys, spec: TensorSpec) -> Tensor:
        """Return a tensor; those of one storage share it.

        Raises:
            FormatError: this version of PyTorch has no such dtype, or no plain tensor of it.
        """
        dtype = TORCH_DTYPES.get(spec.dtype)
        if dtype is None or dtype in _QUANTIZED or not spec.dtype.itemsize:
            raise FormatError(
                f"{self.checkpoint.name}: {spec.name}",
                f"a {spec.dtype.label} tensor cannot be loaded here",
                expected="a dtype of PyTorch's that is not quantized",
            )
        if not spec.numel:
            return torch.empty(spec.shape, dtype=dtype, device="cpu")
        whole = self.storages.get(spec.storage.identity)
        if whole is None:
            if self._is_mapped(spec.storage):
                whole = torch.frombuffer(self._mapped(spec.storage), dtype=torch.uint8)
            else:
                whole = self._read(spec.storage)
            self.storages[spec.storage.identity] = whole
        count = whole.numel() // spec.dtype.itemsize * spec.dtype.itemsize
        if whole.data_ptr() % spec.dtype.itemsize:  # as no writer does it
            whole = whole.clone()
        flat = whole[:count].view(dtype)
        return flat.as_strided(spec.shape, spec.strides, spec.offset)

    def prepare(self, as_they_are: Iterable[TensorSpec], read: Iterable[TensorSpec]) -> None:
        """Hold what is used against the checksums, and read what is to be owned; on all cores.

        Args:
            as_they_are: tensors that become the model's own.
            read: those that something is computed from.

        Raises:
            FormatError: the bytes are not those that were written.
        """
        kept = [spec.storage for spec in as_they_are]
        checked = {storage.identity: storage for storage in kept}
        checked.update({spec.storage.identity: spec.storage for spec in read})
        storages = [storage for storage in checked.values() if storage.nbytes]
        expect(self.sources, storages)
        if any(map(is_remote, self.sources)):
            storages.sort(key=lambda storage: (storage.file, storage.offset))
            held = set(checked)
        else:
            storages.sort(key=lambda storage: -storage.nbytes)
            held = {storage.identity for storage in kept} if self.owned else set()

        def use(batch: Sequence[Storage], advance: Advance) -> None:
            for storage in batch:
                if storage.identity in held or not self._is_mapped(storage):
                    self.storages[storage.identity] = self._read(storage)
                    found = bytes_of(self.storages[storage.identity])
                elif storage.crc is not None:
                    found = self._mapped(storage)
                else:
                    continue
                _check(self.sources[storage.file], storage, found)
                advance(storage.nbytes)

        total = sum(storage.nbytes for storage in storages)
        run_tasks(use, _batches(storages), nbytes=total, jobs=None, progress=lambda _: None)

    def _is_mapped(self, storage: Storage) -> bool:
        """Whether the bytes are in the file as they are, neither packed nor empty."""
        source = self.sources[storage.file]
        end = storage.offset + storage.nbytes
        return isinstance(source, LocalSource) and end <= source.nbytes and storage.nbytes > 0

    def _mapped(self, storage: Storage) -> memoryview:
        """Return bytes of a mapped file.

        Raises:
            FormatError: it ends before them by now.
        """
        source = self.sources[storage.file]
        assert isinstance(source, LocalSource)  # noqa: S101 - it is mapped
        if storage.file not in self.maps:
            # Copied on writing, so that the file stays what it is; as `torch.load(mmap=True)` does.
            mapped = mmap.mmap(source.file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.maps[storage.file] = memoryview(mapped)
        begin = source.begin + storage.offset
        found = self.maps[storage.file][begin : begin + storage.nbytes]
        if len(found) < storage.nbytes:  # it was longer when it was opened
            raise truncated(source, "the tensors", storage.offset + storage.nbytes)
        return found

    def _read(self, storage: Storage) -> Tensor:
        whole = torch.empty(storage.nbytes, dtype=torch.uint8, device="cpu")
        target = bytes_of(whole)
        for place in range(0, storage.nbytes, BLOCK):
            piece = target[place : place + BLOCK]
            self.sources[storage.file].read_into(storage.offset + place, piece, "the tensors")
        return whole

    def value(self, keys: Keys, name: str) -> object:
        """Return something that is no tensor, where it is plain data.

        Raises:
            FormatError: it is an object of a class, which is not loaded.
        """
        tree = self.checkpoint.tree
        node = dict(entries_of(tree.mappings[keys]) or ())[name] if tree else None
        try:
            return plain_value(node)
        except ValueError:
            raise FormatError(
                f"{self.checkpoint.name}: {join(shown(keys), name)}",
                "this extra state is no plain data, and nothing that a file has is run",
                expected="numbers, texts, None, and lists, tuples and dicts of these",
                hint="load it with torch.load, and give the state dict",
            ) from None

    def metadata(self, keys: Keys) -> Mapping[str, object] | None:
        """Return the versions of modules that `torch.save` keeps of a state dict."""
        tree = self.checkpoint.tree
        node = tree.mappings.get(keys) if tree else None
        for effect in node.effects if isinstance(node, Call) else ():
            if isinstance(effect, Built) and isinstance(effect.state, Dict):
                found = dict(effect.state.entries).get("_metadata")
                if entries_of(found) is not None:
                    return _versions(found)
        return None


#: Bytes that are worth a thread's asking for more.
_BATCH = 4 << 20
#: What a view of bytes is not enough for.
_QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}


def _check(source: Source, storage: Storage, data: memoryview) -> None:
    if storage.crc is not None and (found := crc32(data)) != storage.crc:
        raise damaged(source, f"storage {storage.key!r}", storage.crc, found)


def _batches(storages: Sequence[Storage]) -> list[list[Storage]]:
    """Put small storages together, so that a thread takes as many at once as are worth it."""
    batches: list[list[Storage]] = []
    left = 0
    for storage in storages:
        if left <= 0:
            batches.append([])
            left = _BATCH
        batches[-1].append(storage)
        left -= storage.nbytes
    return batches


def _versions(node: Node) -> dict[str, object]:
    found = {}
    for prefix, about in entries_of(node) or ():
        try:
            found[prefix] = plain_value(about)
        except ValueError:
            continue
    return {prefix: about for prefix, about in found.items() if isinstance(about, dict)}


def plain_value(node: Node, depth: int = 0) -> object:
    """Return the plain data that a node is.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(node, _PLAIN):
        return node
    entries = entries_of(node)
    if depth > _DEEPEST or (entries is None and not isinstance(node, (list, tuple))):
        raise ValueError
    if entries is None:
        items = [plain_value(item, depth + 1) for item in node]
        return tuple(items) if isinstance(node, tuple) else items
    if isinstance(node, Call) and str(node.function) != "collections.OrderedDict":
        raise ValueError
    made = OrderedDict[object, object]() if isinstance(node, Call) else {}
    for key, value in entries:
        if not isinstance(key, _PLAIN):
            raise ValueError  # noqa: TRY004 - one reason for all
        made[key] = plain_value(value, depth + 1)
    return made
