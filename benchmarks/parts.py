"""Writes distributed checkpoints without ranks, with PyTorch's own classes and `torch.save`.

`python -m benchmarks.parts holes FOLDER TENSORS RANKS`, or `parts FOLDER TENSORS SIZE AXIS`.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

#: Bytes of an item whose file is a hole.
_ITEM = 1577
#: Where a part begins and how large it is, and its rank and place in the file.
_Box = tuple[tuple[int, ...], tuple[int, ...], int, int]


def main() -> None:
    """Write what the arguments say."""
    kind, folder, *numbers = sys.argv[1:]
    if kind == "holes":
        write_holes(Path(folder), *map(int, numbers))
    else:
        write_parts(Path(folder), *map(int, numbers))


def write_holes(folder: Path, tensors: int, ranks: int) -> None:
    """Write metadata of so many tensors, of which each rank has two rows; the files are holes."""
    folder.mkdir()
    names = [f"model.layers.{number // 9}.part.{number % 9}.weight" for number in range(tensors)]
    boxes: dict[str, list[_Box]] = {
        name: [((2 * rank, 0), (2, 3), rank, number * _ITEM) for rank in range(ranks)]
        for number, name in enumerate(names)
    }
    _write_metadata(folder, boxes, (2 * ranks, 3), dict.fromkeys(names, [_ITEM] * ranks))
    for rank in range(ranks):
        with (folder / f"__{rank}_0.distcp").open("wb") as file:
            file.truncate(tensors * _ITEM)


def write_parts(folder: Path, tensors: int, size: int, axis: int, ranks: int = 4) -> None:
    """Write square matrices in equal parts along an axis, a file for each rank."""
    folder.mkdir()
    torch.manual_seed(0)
    step = size // ranks
    boxes: dict[str, list[_Box]] = {}
    lengths: dict[str, list[int]] = {}
    files = [(folder / f"__{rank}_0.distcp").open("wb") for rank in range(ranks)]
    for number in range(tensors):
        parts = torch.randn(size, size).chunk(ranks, axis)
        name = f"model.layers.{number}.weight"
        boxes[name], lengths[name] = [], []
        for rank, (part, file) in enumerate(zip(parts, files, strict=True)):
            place = (step * rank, 0) if axis == 0 else (0, step * rank)
            boxes[name].append((place, tuple(part.shape), rank, file.tell()))
            lengths[name].append(file.write(_item(part)))
    for file in files:
        file.close()
    _write_metadata(folder, boxes, (size, size), lengths)


def _item(part: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(part.contiguous().clone(), buffer)
    return buffer.getvalue()


def _write_metadata(
    folder: Path,
    boxes: dict[str, list[_Box]],
    shape: tuple[int, ...],
    lengths: dict[str, list[int]],
) -> None:
    """Write it as PyTorch leaves it: what the ranks have sent has been unpickled."""

    def stored() -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
        for name, parts in boxes.items():
            for number, (place, _, rank, offset) in enumerate(parts):
                info = _StorageInfo(f"__{rank}_0.distcp", offset, lengths[name][number])
                yield MetadataIndex(name, place, number), info

    properties = TensorProperties(dtype=torch.float32)
    listed = {
        name: TensorStorageMetadata(
            properties,
            torch.Size(shape),
            [ChunkStorageMetadata(torch.Size(p), torch.Size(s)) for p, s, _, _ in parts],
        )
        for name, parts in boxes.items()
    }
    by_rank = sorted(stored(), key=lambda item: item[1].relative_path)
    sent = pickle.loads(pickle.dumps(by_rank))  # noqa: S301 - our own
    paths = {name: ("model", name.removeprefix("model.")) for name in boxes}
    made = Metadata(dict(listed), paths, dict(sent), StorageMeta(checkpoint_id=folder), "1.0.0")
    (folder / ".metadata").write_bytes(pickle.dumps(made, protocol=4))


if __name__ == "__main__":
    main()
