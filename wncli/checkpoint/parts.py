"""A distributed checkpoint as it is stored: boxes of tensors, and values, each an item of a file.

Source: PyTorch `torch/distributed/checkpoint/metadata.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wncli.checkpoint.tensors import DType

#: The keys that lead from the top of the nested state dict to a value: of mappings and of lists.
Path = tuple[str | int, ...]


class Item(NamedTuple):
    """A run of bytes in a file: `file` is its number, `offset` and `nbytes` are in bytes."""

    file: int
    offset: int
    nbytes: int


class Chunk(NamedTuple):
    """A box of a tensor: where it begins and how large it is, in elements, and its item."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    item: Item


class PartedTensor(NamedTuple):
    """A tensor that its chunks cover, each element once; the empty ones cover nothing.

    `path` is where it is in the nested state dict; None where nothing says so, and its name does.
    `properties` are the node of the metadata that has the dtype.
    """

    name: str
    path: Path | None
    dtype: DType
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    properties: object = None


class PartedValue(NamedTuple):
    """Something that is no tensor: an item that `torch.save` wrote."""

    name: str
    path: Path | None
    item: Item


class Parts(NamedTuple):
    """What a distributed checkpoint consists of.

    Attributes:
        files: the names of the files of items, by their numbers.
        entries: the tensors and values by their names, in the order of the metadata.
        raw: where each file, as it is, begins in the one source that all is read from, in bytes.
        is_safetensors: the items are the tensors of safetensors files, not whole torch zips.
    """

    files: tuple[str, ...]
    entries: Mapping[str, PartedTensor | PartedValue]
    raw: tuple[int, ...]
    is_safetensors: bool = False

    def place_of(self, item: Item) -> int:
        """Where an item, as it is stored, begins in the source."""
        return self.raw[item.file] + item.offset
