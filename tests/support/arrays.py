"""What arrays are stored of a small normalized network, and what has to come of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.layers import normalize
from tests.support.oracles import load

EVERY = ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "c8", "c16"]
ORDERS: dict[str, Callable[[Any], Any]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "transposed": lambda array: np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1),
    "strided": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "scalar": lambda array: np.array(array[0, 0, 0]),
    "empty": lambda array: array[:, :0],
}


def network(spelling: str = "hook") -> nn.Module:
    torch.manual_seed(3)
    made = nn.Sequential(OrderedDict(pre=nn.Conv1d(4, 6, 3), post=nn.ConvTranspose1d(6, 2, 4)))
    for name in ("pre", "post"):
        normalize(made.get_submodule(name), "weight", 0, spelling)  # type: ignore[arg-type]
    return made


def arrays(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def hold_folded(path: Path) -> None:
    """What was written loads strictly, and computes what PyTorch computes in float64."""
    found = load_file(path) if path.suffix == ".safetensors" else load(path)
    plain = nn.Sequential(OrderedDict(pre=nn.Conv1d(4, 6, 3), post=nn.ConvTranspose1d(6, 2, 4)))
    plain.load_state_dict(found, strict=True)
    value = torch.randn(2, 4, 9, dtype=torch.float64)
    torch.testing.assert_close(
        plain.double()(value), network().double()(value), rtol=1e-5, atol=1e-6
    )
