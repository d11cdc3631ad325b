"""Distributed checkpoints that grow: chunks, items, values, and what some of them share."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)

from tests.corpus.growing import Make, commanded
from tests.support.parted import Cut, Edit, along, put_parts


def chunks(folder: Path, n: int, axis: int = 0) -> Path:
    """A tensor in as many chunks along an axis."""
    tensor = torch.zeros((n, 3) if axis == 0 else (3, n), dtype=torch.uint8)
    return fresh(folder, {"m.w": tensor}, {"m.w": along(tensor, axis, [1] * n)})


def columns(folder: Path, n: int) -> Path:
    """As many columns of a byte."""
    return chunks(folder, n, 1)


def spelled_out(folder: Path, n: int) -> Path:
    """The same chunks in protocol 2, as nothing writes it: opcode for opcode."""
    made = chunks(folder, n) / ".metadata"
    made.write_bytes(pickle.dumps(pickle.loads(made.read_bytes()), protocol=2))  # noqa: S301
    return made.parent


def tensors(folder: Path, n: int) -> Path:
    """As many tensors."""
    return fresh(folder, {f"m.{number}.weight": torch.zeros(2) for number in range(n)})


def values(folder: Path, n: int) -> Path:
    """As many values of all kinds, none equal to another."""
    return fresh(folder, {"m.w": torch.zeros(2)} | {f"x.{i}": (i, [i]) for i in range(n)})


def lists_of_chunks(folder: Path, n: int) -> Path:
    """As many tensors that share a list of as many chunks."""

    def edit(made: Metadata) -> None:
        about = made.state_dict_metadata["m.w"]
        assert isinstance(about, TensorStorageMetadata)
        listed = [ChunkStorageMetadata(torch.Size([i]), torch.Size([1])) for i in range(n)]
        made.state_dict_metadata.update({
            f"m.{i}": TensorStorageMetadata(about.properties, torch.Size([n]), listed)
            for i in range(n)
        })  # fmt: skip

    return fresh(folder, {"m.w": torch.zeros(3)}, edit=edit)


def fresh(
    folder: Path,
    state: Mapping[str, object],
    cuts: dict[str, list[Cut]] | None = None,
    edit: Edit | None = None,
) -> Path:
    shutil.rmtree(folder / "dcp", ignore_errors=True)
    return put_parts(folder / "dcp", state, cuts, edit=edit)


_TO_SAFETENSORS = ("out.safetensors", "--force")

#: As the families of `growing`.
FAMILIES: dict[str, tuple[Make, int]] = {
    "chunks": (commanded(chunks, "inspect"), 5000),
    "chunks, converted": (commanded(chunks, "convert", *_TO_SAFETENSORS), 500),
    "chunks, checked": (commanded(chunks, "inspect", "--check"), 500),
    "chunks, spelled out": (commanded(spelled_out, "inspect"), 1000),
    "chunks of columns, converted": (commanded(columns, "convert", *_TO_SAFETENSORS), 500),
    "tensors in parts": (commanded(tensors, "inspect"), 1000),
    "values in parts": (commanded(values, "inspect"), 500),
    "tensors that share their chunks": (commanded(lists_of_chunks, "inspect"), 1000),
}
