"""Distributed checkpoints as PyTorch reads and writes them in one process."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultSavePlanner,
    _EmptyStateDictLoadPlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.distributed.checkpoint.state_dict_saver import _save_state_dict

from tests.support.oracles import bits

Tree = dict[str, Any]

#: As many chunks does a tensor have that `Rows` writes.
RANKS = 4


def save_dcp(
    tree: Mapping[str, Any],
    folder: Path,
    planner: DefaultSavePlanner | None = None,
    **options: Any,  # noqa: ANN401
) -> Path:
    """Write a distributed checkpoint from one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = FileSystemWriter(folder, **options)
        _save_state_dict(dict(tree), storage_writer=writer, planner=planner, no_dist=True)
    return folder


def load_dcp(folder: Path) -> Tree:
    """Read all of a distributed checkpoint, as `dcp_to_torch_save` does."""
    found: Tree = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _load_state_dict(
            found,
            storage_reader=FileSystemReader(folder),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
    return found


def load_into(tree: Tree, folder: Path) -> None:
    """Fill what is in a state dict, as `dcp.load` does."""
    _load_state_dict(tree, storage_reader=FileSystemReader(folder), no_dist=True)


def metadata_of(folder: Path) -> Metadata:
    """What PyTorch reads of `.metadata`."""
    return FileSystemReader(folder).read_metadata()


def items_of(folder: Path) -> dict[MetadataIndex, bytes]:
    """Every item as it is stored, in the order of the metadata."""
    return {
        index: (folder / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
        for index, info in metadata_of(folder).storage_data.items()
    }


def hold_sound(folder: Path) -> None:
    """Hold every item a sound zip that PyTorch loads, and the files to be nothing but items."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for index, info in metadata_of(folder).storage_data.items():
        item = (folder / info.relative_path).read_bytes()[info.offset : info.offset + info.length]
        with zipfile.ZipFile(io.BytesIO(item)) as archive:
            assert archive.testzip() is None, index
        runs.setdefault(info.relative_path, []).append((info.offset, info.length))
    for name, found in runs.items():
        place = 0
        for offset, length in sorted(found):
            assert offset == place
            place += length
        assert place == (folder / name).stat().st_size
    assert {path.name for path in folder.glob("*.distcp")} == set(runs)


def leaves(value: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], Any]]:  # noqa: ANN401
    """All that is in dicts and lists, tensors as their bits, anything else as it is shown."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        yield (*path, type(value).__name__), len(value)
        for number, inner in enumerate(value):
            yield from leaves(inner, (*path, number))
    else:
        yield path, bits(value) if isinstance(value, Tensor) else repr(value)


def hold_same(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Hold two trees equal, in their order, tensors bit for bit; keys may have become text."""
    assert list(leaves(found)) == list(leaves(expected))


def hold_same_structure(folder: Path, reference: Path) -> None:
    """Hold two checkpoints to say the same of what they hold, and of its order."""
    found, expected = metadata_of(folder), metadata_of(reference)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert list(found.state_dict_metadata) == list(expected.state_dict_metadata)
    assert found.planner_data == expected.planner_data
    assert list(found.planner_data) == list(expected.planner_data)
    assert list(found.storage_data) == list(expected.storage_data)
    hints = [index.index for index in expected.storage_data]
    assert [index.index for index in found.storage_data] == hints
    if hasattr(expected, "version"):  # older versions of PyTorch write none
        assert found.version == expected.version


class Rows(DefaultSavePlanner):
    """Writes tensors in chunks of rows, as each of several ranks writes its own."""

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        items = [part for item in plan.items for part in _cut(item)]
        self.plan = SavePlan(items, planner_data=plan.planner_data)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        whole: Tensor = self.state_dict[index.fqn]
        if index.offset is None or not whole.ndim or whole.shape[0] < RANKS:
            return whole
        rows = -(-whole.shape[0] // RANKS)
        return whole[index.offset[0] : index.offset[0] + rows].clone()


def _cut(item: WriteItem) -> list[WriteItem]:
    data = item.tensor_data
    if data is None or not data.size or data.size[0] < RANKS:
        return [item]
    rows = -(-data.size[0] // RANKS)
    found = []
    for begin in range(0, data.size[0], rows):
        offsets = torch.Size((begin, *[0] * (len(data.size) - 1)))
        sizes = torch.Size((min(rows, data.size[0] - begin), *data.size[1:]))
        chunk = ChunkStorageMetadata(offsets, sizes)
        written = TensorWriteData(chunk, data.properties, data.size)
        index = MetadataIndex(item.index.fqn, offsets)
        found.append(WriteItem(index, WriteItemType.SHARD, tensor_data=written))
    return found
