"""HiFi-GAN's and BigVGAN's generators in small, normalized by the hook, with their own removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sample_models.networks.hifigan import HiFiGanGenerator, HiFiGanResBlock
from sample_models.weight_norm import convolutions, hook_weight_norm


def shorten(generator: HiFiGanGenerator) -> None:
    """Leave one step in each residual block, so that a list of the layers is short."""
    for block in generator.resblocks:
        assert isinstance(block, HiFiGanResBlock)
        block.convs1, block.convs2 = block.convs1[:1], block.convs2[:1]


class Generator(HiFiGanGenerator):
    """Every convolution has weight norm as soon as the generator is built."""

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__(h["num_mels"], h["upsample_initial_channel"])
        shorten(self)
        for layer in convolutions(self):
            hook_weight_norm(layer, "weight")

    def remove_weight_norm(self) -> None:
        """Fold with PyTorch's function for hooks, which raises where there is none."""
        inner = [*convolutions(self.ups), *convolutions(self.resblocks)]
        for layer in (*inner, self.conv_pre, self.conv_post):
            torch.nn.utils.remove_weight_norm(layer)


class BigVGAN(Generator):
    """The same, each upsampling layer in a list of its own, with a last activation that learns."""

    def __init__(self, h: Mapping[str, Any]) -> None:
        super().__init__(h)
        self.ups = nn.ModuleList(nn.Sequential(layer) for layer in self.ups)
        self.activation_post = nn.Module()
        self.activation_post.act = nn.ParameterDict(
            {name: torch.zeros(self.conv_post.in_channels) for name in ("alpha", "beta")}
        )
