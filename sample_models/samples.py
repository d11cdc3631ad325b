"""The list of the samples: what each is for, and how its module and its content are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sample_models.networks.codec import codec_encoder
from sample_models.networks.hifigan import HiFiGanGenerator, MultiScaleDiscriminator
from sample_models.networks.linear import linear
from sample_models.networks.projection_head import projection_head
from sample_models.networks.wav2vec2 import encoder
from sample_models.networks.wavenet import CONFIG, WaveNet
from sample_models.training import synthetic_waveform, train_head, train_wavenet
from sample_models.weight_norm import (
    hook_weight_norm,
    normalize_convolutions,
    normalize_parametrized,
)


def rescaled_state(sample: Sample) -> dict[str, Any]:
    """Return the state dict of a sample's rescaled module."""
    return sample.rescaled().state_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One checkpoint.

    Attributes:
        file: its name in this folder, which says its format too.
        format: what the file is, as README.md has it.
        holds: what is in it, as README.md has it.
        purpose: what it is for, as README.md has it.
        build: builds its module without weight norm.
        normalize: puts weight norm on that module.
        content: makes what the file holds, from the random numbers of the moment.
    """

    file: str
    format: str
    holds: str
    purpose: str
    build: Callable[[], nn.Module]
    normalize: Callable[[nn.Module], None]
    content: Callable[[Sample], dict[str, Any]] = rescaled_state

    def normalized(self) -> nn.Module:
        """Build the module with weight norm, g still the norm of v."""
        module = self.build()
        self.normalize(module)
        return module

    def rescaled(self) -> nn.Module:
        """Build the normalized module, each g times a factor of its own, so that w is not v."""
        module = self.normalized()
        with torch.no_grad():
            for name, g in module.named_parameters():
                if name.endswith(("_g", ".original0")):
                    g.mul_(torch.empty_like(g).uniform_(0.5, 1.5))
        return module


def passed_through(sample: Sample) -> dict[str, Any]:
    """Return the state of the discriminator after ten passes: u and v of spectral norm settle."""
    discriminator = sample.rescaled()
    for _ in range(10):
        discriminator(synthetic_waveform().view(1, 1, -1))
    return discriminator.state_dict()


SAMPLES = (
    Sample(
        file="linear.pt",
        format="torch zip",
        holds="state dict of `Linear(5, 3)`, stored without weight norm",
        purpose="the first `wn apply`, by hand: g is 0.5075, 0.4952, 0.6064",
        build=linear,
        normalize=lambda layer: hook_weight_norm(layer, "weight"),
        content=lambda sample: sample.build().state_dict(),
    ),
    Sample(
        file="wavenet.pt",
        format="torch zip",
        holds="`model`, `config`, `loss`: a trained WaveNet, 27 convolutions",
        purpose="folding keeps the loss of a trained model; 1×1 convolutions; hook spelling",
        build=partial(WaveNet, **CONFIG),
        normalize=normalize_convolutions,
        content=lambda sample: train_wavenet(sample.rescaled()),
    ),
    Sample(
        file="hifigan_generator",
        format="torch legacy",
        holds="`generator`: HiFi-GAN's generator, 28 convolutions",
        purpose="the vocoder that most people fold: no suffix, transposed convolutions",
        build=HiFiGanGenerator,
        normalize=normalize_convolutions,
        content=lambda sample: {"generator": rescaled_state(sample)},
    ),
    Sample(
        file="wav2vec2_pos_conv.safetensors",
        format="safetensors",
        holds="wav2vec 2.0's positional convolution, a layer norm",
        purpose="weight norm along dim 2, in groups; parametrized spelling",
        build=encoder,
        normalize=partial(normalize_parametrized, layer="encoder.pos_conv_embed.conv", dim=2),
    ),
    Sample(
        file="lstm.pt",
        format="torch zip",
        holds="state dict of an LSTM",
        purpose="parameters that are not named `weight`: `weight_hh_l0_g`",
        build=partial(nn.LSTM, 16, 32, batch_first=True),
        normalize=lambda lstm: hook_weight_norm(lstm, "weight_hh_l0", "weight_ih_l0"),
    ),
    Sample(
        file="discriminator.pt",
        format="torch zip",
        holds="state dict of three scales: one spectral norm (buffers counted), two weight norm",
        purpose="a `weight_v` that is no direction and must be left alone",
        build=MultiScaleDiscriminator,
        normalize=normalize_convolutions,
        content=passed_through,
    ),
    Sample(
        file="bfloat16.safetensors",
        format="safetensors",
        holds="an audio codec's encoder, 7 convolutions",
        purpose="rounding in bfloat16",
        build=codec_encoder,
        normalize=normalize_convolutions,
    ),
    Sample(
        file="training.pt",
        format="torch zip",
        holds="`model`, `ema`, `optimizer` (AdamW), `scheduler`, `args`, `epoch`, `steps` of a"
        " trained head",
        purpose="what a training saves: two state dicts, an optimizer, an `argparse.Namespace`"
        " that `weights_only` refuses",
        build=projection_head,
        normalize=partial(normalize_parametrized, layer="last_layer", dim=0),
        content=lambda sample: train_head(sample.rescaled()),
    ),
)
