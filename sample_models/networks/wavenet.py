"""A WaveNet, which is trained on raw samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {"channels": 16, "skip_channels": 32, "blocks": 8, "kernel_size": 2, "levels": 64}


class WaveNet(nn.Module):
    """A WaveNet (van den Oord et al. 2016, arXiv:1609.03499): samples 0..t give sample t + 1."""

    def __init__(
        self, *, channels: int, skip_channels: int, blocks: int, kernel_size: int, levels: int
    ) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, channels, 1)
        self.blocks = nn.ModuleList(
            WaveNetBlock(channels, skip_channels, kernel_size, 2**i) for i in range(blocks)
        )
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_channels, skip_channels, 1),
            nn.ReLU(),
            nn.Conv1d(skip_channels, levels, 1),
        )

    def forward(self, wave: Tensor) -> Tensor:
        """`wave`: (batch, 1, time) in -1..1; returns the logits (batch, levels, time)."""
        x = self.first(wave)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        logits: Tensor = self.last(torch.stack(skips).sum(0))
        return logits


class WaveNetBlock(nn.Module):
    """A dilated causal convolution, gated, with a residual and a skip output."""

    def __init__(self, channels: int, skip_channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.padding = (kernel_size - 1) * dilation
        self.dilated = nn.Conv1d(channels, 2 * channels, kernel_size, dilation=dilation)
        self.residual = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skip_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`: (batch, channels, time); returns it for the next block, and the skip."""
        signal, gate = self.dilated(F.pad(x, (self.padding, 0))).chunk(2, dim=1)
        gated = torch.tanh(signal) * torch.sigmoid(gate)
        return x + self.residual(gated), self.skip(gated)
