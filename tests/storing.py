"""Checkpoints as the libraries that the formats belong to write and read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import load
from safetensors.torch import load_file, save_file

FORMATS = ("torch", "legacy", "safetensors")


def save(state: Any, path: Path, stored: str = "torch") -> Path:  # noqa: ANN401
    """Write a checkpoint with the library that the format belongs to."""
    if stored == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=stored == "torch")
    return path


def read(path: Path) -> Any:  # noqa: ANN401
    """Read a checkpoint with the library that the format belongs to."""
    return load_file(path) if path.suffix == ".safetensors" else load(path)
