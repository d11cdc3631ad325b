"""Distributed checkpoints made without ranks: tensors cut into any boxes, metadata changed at will.

The items are PyTorch's, and so are the classes of the metadata.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

#: Where a box begins along each axis, and how large it is.
Cut = tuple[tuple[int, ...], tuple[int, ...]]
Edit = Callable[[Metadata], object]


def whole(tensor: Tensor) -> list[Cut]:
    """One box."""
    return [((0,) * tensor.ndim, tuple(tensor.shape))]


def along(tensor: Tensor, axis: int, sizes: Sequence[int]) -> list[Cut]:
    """Boxes behind each other along an axis."""
    made: list[Cut] = []
    place = 0
    for size in sizes:
        begin = [0] * tensor.ndim
        shape = list(tensor.shape)
        begin[axis], shape[axis] = place, size
        made.append((tuple(begin), tuple(shape)))
        place += size
    return made


def at_random(tensor: Tensor, random: Random, most: int = 6) -> list[Cut]:
    """Boxes that cover a tensor: one after another is cut in two."""
    made = whole(tensor)
    for _ in range(random.randrange(most) if tensor.ndim else 0):
        begin, shape = made.pop(random.randrange(len(made)))
        axis = random.randrange(tensor.ndim)
        size = random.randrange(shape[axis] + 1)
        for place, count in ((begin[axis], size), (begin[axis] + size, shape[axis] - size)):
            made.append(
                (
                    (*begin[:axis], place, *begin[axis + 1 :]),
                    (*shape[:axis], count, *shape[axis + 1 :]),
                )
            )
    seen: dict[tuple[int, ...], Cut] = {}
    for cut in sorted(made, key=lambda cut: torch.Size(cut[1]).numel()):
        seen[cut[0]] = cut  # of two that begin in one place, one is empty
    return list(seen.values())


def item(value: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def put_parts(  # noqa: PLR0913 - what is written, and how
    folder: Path,
    state: Mapping[str, Any],
    cuts: Mapping[str, Sequence[Cut]] | None = None,
    *,
    files: int = 2,
    edit: Edit | None = None,
    items: Mapping[str, bytes] | None = None,
    checkpoint_id: str = "",
    turned: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Path:
    """Write a state dict whose names are paths.

    Args:
        folder: where to.
        state: tensors and values by names such as `model.a.weight`; the first word is the root.
        cuts: the boxes of tensors, where they are not whole.
        files: as many files have the items in turn.
        edit: changes the metadata before it is written.
        items: what to have in place of items, by name.
        checkpoint_id: what the metadata calls the folder; its own name if empty.
        turned: gives the chunk that is saved, of the same numbers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    contents = [bytearray() for _ in range(files)]

    def put(index: MetadataIndex, data: bytes) -> None:
        number = len(stored) % files
        data = (items or {}).get(index.fqn, data)
        stored[index] = _StorageInfo(f"__{number}_0.distcp", len(contents[number]), len(data))
        contents[number].extend(data)

    for name, value in state.items():
        if not isinstance(value, Tensor):
            about[name] = BytesStorageMetadata()
            put(MetadataIndex(name), item(value))
            continue
        boxes = (cuts or {}).get(name) or whole(value)
        chunks = [ChunkStorageMetadata(torch.Size(b), torch.Size(s)) for b, s in boxes]
        properties = TensorProperties(dtype=value.dtype)
        about[name] = TensorStorageMetadata(properties, value.size(), chunks)
        for number, (begin, shape) in enumerate(boxes):
            part = value
            for axis, (place, count) in enumerate(zip(begin, shape, strict=True)):
                part = part.narrow(axis, place, count)
            put(MetadataIndex(name, begin, number), item(turned(part).clone()))
    paths: dict[str, tuple[str, ...]] = {name: tuple(name.split(".", 1)) for name in state}
    made = Metadata(about, paths, stored, StorageMeta(checkpoint_id=checkpoint_id or folder))
    if hasattr(made, "version"):  # older versions of PyTorch have none
        made.version = "1.0.0"
    if edit:
        edit(made)
    (folder / ".metadata").write_bytes(pickle.dumps(made, protocol=4))
    for number, content in enumerate(contents):
        (folder / f"__{number}_0.distcp").write_bytes(content)
    return folder
