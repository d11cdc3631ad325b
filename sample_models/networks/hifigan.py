"""HiFi-GAN's generator and discriminators (Kong et al. 2020, arXiv:2010.05646)."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sample_models.weight_norm import convolutions


class HiFiGanGenerator(nn.Module):
    """HiFi-GAN's generator under its own names (Kong et al. 2020, arXiv:2010.05646)."""

    def __init__(self, mels: int = 16, channels: int = 32) -> None:
        super().__init__()
        widths = (channels // 2, channels // 4)
        self.conv_pre = nn.Conv1d(mels, channels, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, 8, stride=4, padding=2) for width in widths
        )
        self.resblocks = nn.ModuleList(
            HiFiGanResBlock(width, kernel) for width in widths for kernel in (3, 7)
        )
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """`mel`: (batch, mels, frames); returns the wave (batch, 1, 16 * frames)."""
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = (self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


class HiFiGanResBlock(nn.Module):
    """Three residual steps of a dilated and a plain convolution."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        conv = partial(nn.Conv1d, channels, channels, kernel, padding="same")
        self.convs1 = nn.ModuleList(conv(dilation=dilation) for dilation in (1, 3, 5))
        self.convs2 = nn.ModuleList(conv() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, channels, time), kept."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class MultiScaleDiscriminator(nn.Module):
    """HiFi-GAN's three scales: spectral norm on the first, no norm yet on the two others."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(scale_discriminator() for _ in range(3))
        self.pool = nn.AvgPool1d(4, 2, padding=2)
        for conv in convolutions(self.discriminators[0]):
            nn.utils.spectral_norm(conv)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """`wave`: (batch, 1, time); returns one score (batch, 1, frames) per scale."""
        scores = []
        for discriminator in self.discriminators:
            scores.append(discriminator(wave))
            wave = self.pool(wave)
        return scores


def scale_discriminator() -> nn.Sequential:
    """Build one scale: (batch, 1, time) to (batch, 1, time / 4)."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 15, padding=7),
        nn.LeakyReLU(0.1),
        nn.Conv1d(8, 16, 41, stride=4, groups=4, padding=20),
        nn.LeakyReLU(0.1),
        nn.Conv1d(16, 1, 3, padding=1),
    )
