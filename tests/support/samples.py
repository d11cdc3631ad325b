"""The sample models: what is in each, and what it makes of an input."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.layers import forward
from tests.support.oracles import load

#: Each sample, where its first state dict stands in it, and how many layers are normalized there.
FILES = {
    "linear.pt": ("", 0),
    "wavenet.pt": ("model", 27),
    "hifigan_generator": ("generator", 28),
    "wav2vec2_pos_conv.safetensors": ("", 1),
    "lstm.pt": ("", 2),
    "discriminator.pt": ("", 6),
    "bfloat16.safetensors": ("", 7),
    "training.pt": ("model", 1),
}
#: Those that are stored with weight norm.
NORMALIZED = [file for file in FILES if file != "linear.pt"]
INPUTS: dict[str, tuple[int, ...]] = {
    "linear.pt": (4, 5),
    "wavenet.pt": (2, 1, 300),
    "hifigan_generator": (2, 16, 12),
    "wav2vec2_pos_conv.safetensors": (2, 50, 32),
    "lstm.pt": (2, 7, 16),
    "discriminator.pt": (1, 1, 512),
    "bfloat16.safetensors": (2, 1, 64),
    "training.pt": (4, 24),
}


def state_at(path: Path, root: str) -> dict[str, Tensor]:
    """The state dict at that root, read as its users read it."""
    if path.suffix == ".safetensors":
        return load_file(path)
    found = load(path, weights_only=False)
    for key in filter(None, root.split(".")):
        found = found[key]
    state: dict[str, Tensor] = found
    return state


def outputs(module: nn.Module, file: str) -> list[Tensor]:
    """What a sample's module makes of an input of its own, as evaluated."""
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(INPUTS[file], generator=generator).to(next(module.parameters()).dtype)
    found: Any = forward(module.eval(), value)
    return found if isinstance(found, list) else [found]


def hold_same_outputs(ours: nn.Module, theirs: nn.Module, file: str) -> None:
    """Hold the outputs equal but for the rounding of each dtype, which depth adds up."""
    for found, expected in zip(outputs(ours, file), outputs(theirs, file), strict=True):
        rtol = 1.6e-2 if expected.dtype == torch.bfloat16 else 1.3e-6
        atol = 1e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def loaded(make: ModuleType, table: str, file: str, state: dict[str, Tensor]) -> nn.Module:
    module: nn.Module = getattr(make, table)[file]()
    module.load_state_dict(state, strict=True)
    return module
