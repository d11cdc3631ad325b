"""Puts weight norm on modules, in either spelling of PyTorch."""

from __future__ import annotations

import warnings

from torch import nn


def convolutions(module: nn.Module) -> list[nn.Module]:
    """Return all 1-d convolutions in `module`, transposed ones included."""
    return [
        layer for layer in module.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    ]


def hook_weight_norm(layer: nn.Module, *names: str) -> None:
    """Put hook weight norm, dim 0, on these parameters without its deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in names:
            nn.utils.weight_norm(layer, name)


def normalize_convolutions(module: nn.Module) -> None:
    """Put hook weight norm on every convolution that has no spectral norm."""
    for layer in convolutions(module):
        if isinstance(layer.weight, nn.Parameter):  # not under spectral norm
            hook_weight_norm(layer, "weight")


def normalize_parametrized(module: nn.Module, layer: str, dim: int) -> None:
    """Put weight norm in the parametrized spelling on the layer of that name."""
    nn.utils.parametrizations.weight_norm(module.get_submodule(layer), dim=dim)
