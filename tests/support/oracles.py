"""Checkpoints as the libraries that the formats belong to write and read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMATS = ("torch", "legacy", "safetensors")


def bits(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """All that must be equal where tensors are to be equal bit for bit."""
    flat = tensor.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return str(tensor.dtype), tuple(tensor.shape), raw


def load(path: Path, *, weights_only: bool = True) -> Any:  # noqa: ANN401
    """Read a torch file the way users do."""
    return torch.load(path, weights_only=weights_only)


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
