"""Reads what `torch.save` wrote before PyTorch 1.6: five pickles, then the raw storages.

Source: PyTorch `torch/serialization.py` (`_legacy_save`, `_legacy_load`).
"""

from __future__ import annotations

import struct
from functools import partial

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Node, brief, entries_of
from wncli.formats.pickles.reader import Pickle, read_pickle
from wncli.formats.torch.calls import find_calls
from wncli.formats.torch.state_dicts import read_tree
from wncli.formats.torch.tensors import StorageId, class_of, read_storage_id
from wncli.storage.source import Source, defer, truncated

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
#: LONG1 of ten bytes: the magic number, as every protocol from 2 on pickles it.
MAGIC = b"\x8a\x0a" + _MAGIC_NUMBER.to_bytes(10, "little", signed=True)
_PROTOCOL_VERSION = 1001
_COUNT = struct.Struct("<q")


def read_torch_legacy(source: Source) -> Checkpoint:
    """Open a legacy torch checkpoint.

    Raises:
        FormatError: the file is truncated, or its parts disagree.
    """
    pickles: list[Pickle] = []
    nbytes = 0
    for _ in range(5):
        pickles.append(read_pickle(source, source.name, nbytes))
        nbytes += pickles[-1].nbytes
    magic, version, system, content, keys = pickles
    if version.root != _PROTOCOL_VERSION:
        raise FormatError(
            source.name,
            "this legacy torch file has an unknown version",
            expected=str(_PROTOCOL_VERSION),
            found=brief(version.root),
        )
    facts = {key: value for key, value in entries_of(system.root) or [] if isinstance(key, str)}
    if not isinstance(facts.get("little_endian"), bool):
        raise FormatError(
            source.name,
            "the file does not say the byte order of its tensors",
            expected="little_endian: True",
            hint="copy or download the file again",
        )
    if facts["little_endian"] is not True:
        raise FormatError(
            source.name,
            "the tensors are stored big-endian",
            expected="little_endian: True",
            hint="load it with torch.load and save it again on a little-endian machine",
        )
    storages = _locate_all(source, content, keys.root, nbytes)

    def locate(identity: StorageId) -> Storage:
        whole = storages[identity.key]
        if identity.view is None:
            return whole
        key, offset, numel = identity.view
        itemsize = identity.dtype.itemsize if identity.dtype else 1
        if (offset + numel) * itemsize > whole.nbytes:
            raise FormatError(source.name, f"view {key!r} reaches beyond storage {identity.key!r}")
        return Storage(
            f"{len(identity.key)}:{identity.key}/{key}",
            whole.offset + offset * itemsize,
            numel * itemsize,
            None,
            identity.location,
            source.number,
        )

    found = read_tree(content, nbytes, locate, source, is_legacy=True)
    return Checkpoint(
        source.name,
        "torch legacy",
        source.nbytes,
        found.state_dicts,
        found.entries,
        tree=found.tree,
        refused_names=found.refused_names,
        would_run=find_calls([content, magic, version, system, keys], found.tree, found.entries),
        notes=found.notes,
    )


def _check_count(source: Source, place: int, key: str, expected: int) -> None:
    """Compare the number that stands before a storage with that which the tensors have."""
    (numel,) = _COUNT.unpack(source.read_at(place, _COUNT.size, f"storage {key!r}"))
    if numel != expected:
        raise FormatError(
            source.name,
            f"storage {key!r} has the wrong size",
            expected=f"{expected} elements",
            found=f"{numel}",
            hint="copy or download the file again",
        )


def _locate_all(source: Source, content: Pickle, keys: Node, place: int) -> dict[str, Storage]:
    """Return the storages in the order in which the file lists them, which begin at `place`."""
    identities: dict[str, StorageId] = {}
    for node in content.persistent_ids:
        if not class_of(node):
            identity = read_storage_id(node, source.name, is_legacy=True)
            known = identities.setdefault(identity.key, identity)
            if known.nbytes != identity.nbytes:
                raise FormatError(source.name, f"storage {identity.key!r} has two sizes")
    listed = {key for key in keys if isinstance(key, str)} if isinstance(keys, list) else None
    if listed is None or listed != set(identities) or len(listed) != len(keys):
        raise FormatError(
            source.name,
            "the list of storages does not fit the tensors",
            expected=f"{len(identities)} storages",
            found=f"{len(keys)}" if isinstance(keys, list) else brief(keys),
        )
    found: dict[str, Storage] = {}
    for key in keys:
        identity = identities[key]
        check = partial(_check_count, source, place, key, identity.numel)
        place += _COUNT.size
        if not identity.nbytes or not defer(source, place, identity.nbytes, check):
            check()
        if place + identity.nbytes > source.nbytes:
            raise truncated(source, f"storage {key!r}", place + identity.nbytes)
        # "=" tells a whole storage from a view, whatever the keys of both are.
        found[key] = Storage(
            f"={key}", place, identity.nbytes, None, identity.location, source.number
        )
        place += identity.nbytes
    return found
