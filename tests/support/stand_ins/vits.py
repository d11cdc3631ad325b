"""The synthesizer of RVC and so-vits-svc in small: a vocoder, a flow and a posterior encoder."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sample_models.networks.hifigan import HiFiGanGenerator
from sample_models.weight_norm import convolutions, hook_weight_norm
from tests.support.stand_ins.hifi_gan import shorten


class WN(nn.Module):
    """The stack of gated convolutions of WaveNets; all of them have weight norm."""

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        self.cond_layer = nn.Conv1d(width, 2 * width * layers, 1)
        self.in_layers = nn.ModuleList(nn.Conv1d(width, 2 * width, 3) for _ in range(layers))
        self.res_skip_layers = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))


class Coupling(nn.Module):
    """A layer of the flow, or the posterior encoder."""

    def __init__(self, width: int, layers: int = 1) -> None:
        super().__init__()
        self.pre = nn.Conv1d(width, width, 1)
        self.enc = WN(width, layers)
        self.post = nn.Conv1d(width, width, 1)


class Synthesizer(nn.Module):
    """Which convolutions have weight norm is as in RVC: those of `dec` but its ends, and of WN."""

    def __init__(self, width: int = 16, speakers: int = 3) -> None:
        super().__init__()
        self.enc_p = nn.ModuleDict({"emb_phone": nn.Linear(12, width)})
        self.dec = HiFiGanGenerator(mels=width, channels=16)
        shorten(self.dec)
        self.enc_q = Coupling(width)
        self.flow = nn.ModuleDict({"flows": nn.ModuleList([Coupling(width)])})
        self.emb_g = nn.Embedding(speakers, width)
        for layer in self._normalized():
            hook_weight_norm(layer, "weight")

    def remove_weight_norm(self) -> None:
        """Fold with PyTorch's function for hooks, which raises where there is none."""
        for layer in self._normalized():
            torch.nn.utils.remove_weight_norm(layer)

    def _normalized(self) -> Iterator[nn.Module]:
        yield from convolutions(self.dec.ups)
        yield from convolutions(self.dec.resblocks)
        for module in self.modules():
            if isinstance(module, WN):
                yield from convolutions(module)


SynthesizerTrn = SynthesizerTrnMs768NSFsid = Synthesizer
