"""The part of wav2vec 2.0 that has weight norm: the convolution of its positions."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn


class Wav2Vec2Encoder(nn.Module):
    """The positional convolution of wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, 128, padding=64, groups=16)
        self.pos_conv_embed = nn.Sequential(OrderedDict(conv=conv))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, time, width), kept; the even kernel's one surplus frame is cut off."""
        positions = F.gelu(self.pos_conv_embed(x.transpose(1, 2))[..., :-1])
        normed: Tensor = self.layer_norm(x + positions.transpose(1, 2))
        return normed


def encoder() -> nn.Module:
    """Build the encoder below the name that it has in whole models: `encoder`."""
    return nn.Sequential(OrderedDict(encoder=Wav2Vec2Encoder()))
