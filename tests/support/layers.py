"""Layers of every kind that weight norm is put on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

Spelling = Literal["hook", "parametrized"]


@dataclass(frozen=True)
class Kind:
    """A kind of layer: how one is made, what it is fed, and its parameter that is normalized."""

    make: Callable[[], nn.Module]
    feed: Callable[[], Tensor]
    parameter: str = "weight"


KINDS: dict[str, Kind] = {
    "Linear": Kind(partial(nn.Linear, 5, 3), lambda: torch.randn(4, 5)),
    "Conv1d": Kind(partial(nn.Conv1d, 4, 6, 3), lambda: torch.randn(2, 4, 9)),
    "Conv2d": Kind(partial(nn.Conv2d, 4, 6, (3, 2), groups=2), lambda: torch.randn(2, 4, 7, 8)),
    "Conv3d": Kind(partial(nn.Conv3d, 2, 3, (3, 2, 2)), lambda: torch.randn(1, 2, 5, 4, 4)),
    "ConvTranspose1d": Kind(
        partial(nn.ConvTranspose1d, 4, 3, 4, stride=2), lambda: torch.randn(2, 4, 5)
    ),
    "ConvTranspose2d": Kind(
        partial(nn.ConvTranspose2d, 4, 3, (2, 3)), lambda: torch.randn(2, 4, 5, 4)
    ),
    "ConvTranspose3d": Kind(
        partial(nn.ConvTranspose3d, 3, 2, (2, 1, 3)), lambda: torch.randn(1, 3, 3, 3, 3)
    ),
    "Embedding": Kind(partial(nn.Embedding, 7, 4), lambda: torch.tensor([[0, 3, 6], [1, 1, 5]])),
    "LSTM": Kind(
        partial(nn.LSTM, 3, 4, batch_first=True), lambda: torch.randn(2, 5, 3), "weight_hh_l0"
    ),
}

#: Each kind with each dim that is in use: the first, the second, the last, and the whole tensor.
KINDS_AND_DIMS = [
    (kind, dim)
    for kind, made in KINDS.items()
    for dim in sorted({0, 1, getattr(made.make(), made.parameter).dim() - 1})
] + [(kind, None) for kind in KINDS]


def normalize(module: nn.Module, parameter: str, dim: int | None, spelling: Spelling) -> None:
    """Put PyTorch's own weight norm on a parameter."""
    whole = -1 if dim is None else dim
    if spelling == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(module, parameter, whole)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(module, parameter, whole)


def forward(module: nn.Module, value: Tensor) -> Tensor:
    """What a module makes of its input."""
    if isinstance(module, nn.LSTM):  # it keeps a list of its weights that parametrize forgets
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    with torch.no_grad():
        output = module(value)
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def pair_of(parameter: str, spelling: Spelling) -> tuple[str, str]:
    """The names that PyTorch gives to g and v."""
    if spelling == "hook":
        return f"{parameter}_g", f"{parameter}_v"
    return f"parametrizations.{parameter}.original0", f"parametrizations.{parameter}.original1"
