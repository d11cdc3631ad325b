"""The encoder of a neural audio codec."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class ResidualUnit(nn.Module):
    """The residual unit of an audio codec (SEANet; Zeghidour et al. 2021, arXiv:2107.03312)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        dilated = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.block = nn.Sequential(nn.ELU(), dilated, nn.ELU(), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, channels, time), kept."""
        y: Tensor = x + self.block(x)
        return y


def codec_encoder() -> nn.Module:
    """Build an audio codec's encoder in bfloat16: (batch, 1, time) to (batch, 8, time / 4)."""
    block = nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3),
        ResidualUnit(16, dilation=1),
        ResidualUnit(16, dilation=3),
        nn.ELU(),
        nn.Conv1d(16, 32, 8, stride=4, padding=2),
        nn.ELU(),
        nn.Conv1d(32, 8, 3, padding=1),
    )
    return nn.Sequential(OrderedDict(block=block)).to(torch.bfloat16)
