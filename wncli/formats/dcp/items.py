"""Opens the items of a distributed checkpoint: whole torch zips, one behind the other in a file."""

from __future__ import annotations

from typing import NamedTuple

from wncli.checkpoint.tensors import DType, Storage
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import PersistentId
from wncli.formats.pickles.reader import LONGEST_HELD, Pickle, read_pickle
from wncli.formats.torch.archive import TorchArchive
from wncli.formats.torch.tensors import StorageId, class_of, read_storage_id, read_tensor
from wncli.storage.source import Source

_ZIP = b"PK\x03\x04"


class Run(NamedTuple):
    """Bytes of a file that are a tensor's, and the checksum that is recorded for them, if any."""

    offset: int
    nbytes: int
    crc: int | None


class Value(NamedTuple):
    """A value item: what `torch.save` wrote, and its storages by the persistent ids in it."""

    pickled: Pickle
    storages: dict[PersistentId, tuple[StorageId, Storage]]


def find_tensor(source: Source, begin: int, dtype: DType, shape: tuple[int, ...]) -> Run:
    """Find where in a file the numbers of a tensor stand, as its item says.

    Args:
        source: the item, as a file of its own.
        begin: where the item begins in the file.
        dtype: what the metadata says of the tensor.
        shape: the sizes of the chunk.

    Raises:
        FormatError: the item is no tensor, or another than the metadata says.
    """
    value = read_item(source)
    spec = read_tensor(value.pickled.root, value.storages, "", source.name)
    if spec is None or (spec.dtype, spec.shape) != (dtype, shape):
        found = f"{spec.dtype.label} {list(spec.shape)}" if spec else "no tensor"
        raise _disagreeing(source, f"{dtype.label} {list(shape)}", found)
    if not spec.is_contiguous:
        raise FormatError(
            source.name,
            "the numbers of this tensor are stored in another order than its shape says",
            expected="a tensor in row-major order",
            found=f"strides {list(spec.strides)}",
            hint="load it with torch.distributed.checkpoint, make its tensors contiguous, and save"
            " it again",
        )
    storage = spec.storage
    whole = storage.nbytes == spec.nbytes
    place = begin + storage.offset + spec.offset * dtype.itemsize
    return Run(place, spec.nbytes, storage.crc if whole else None)


def read_item(source: Source) -> Value:
    """Read the pickle of an item, and find its storages; their data is not read.

    Raises:
        FormatError: it is no zip as `torch.save` writes it.
    """
    if source.read_at(0, min(len(_ZIP), source.nbytes), "an item") != _ZIP:
        raise FormatError(
            source.name,
            "this item is not as torch.save writes it",
            expected="a torch zip",
            found="safetensors, or something that is compressed or damaged",
            hint="save it again without serialization_format and extensions, or copy the directory"
            " again",
        )
    archive = TorchArchive(source)
    for member in archive.members.values():
        archive.refuse_packed(member)
    archive.refuse_version()
    archive.refuse_big_endian()
    if not archive.has("data.pkl"):
        raise _disagreeing(source, "a member data.pkl", "none")
    member = archive.members["data.pkl"]
    where = f"{source.name}: data.pkl"
    if member.nbytes <= LONGEST_HELD:
        pickled = read_pickle(archive.read("data.pkl"), where)
    else:
        begin = archive.look_over("data.pkl")
        pickled = read_pickle(source, where, begin, member.nbytes)
    if archive.damaged:
        raise FormatError(
            source.name,
            "this item is damaged: its bytes have changed since the file was written",
            hint="copy or download the file again",
        )
    storages: dict[PersistentId, tuple[StorageId, Storage]] = {}
    for node in pickled.persistent_ids:
        if not class_of(node):
            identity = read_storage_id(node, source.name)
            storages[node] = identity, archive.locate(identity)
    return Value(pickled, storages)


def _disagreeing(source: Source, expected: str, found: str) -> FormatError:
    return FormatError(
        source.name,
        "this item is not what the metadata of the distributed checkpoint says",
        expected=expected,
        found=found,
        hint="copy or download the whole directory again",
    )
