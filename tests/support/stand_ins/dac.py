"""DAC in small, with the loading of its base class: names that don't meet are no error."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sample_models.weight_norm import convolutions, hook_weight_norm


class Snake1d(nn.Module):
    """The activation, which learns its frequency."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, width, time), kept."""
        return x + torch.sin(self.alpha * x).square() / self.alpha


class Block(nn.Module):
    """Layers one after the other, below the name that DAC gives them."""

    def __init__(self, *layers: nn.Module, name: str = "block") -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, channels, time)."""
        found: Tensor = self.get_submodule(self.name)(x)
        return found


def residual_unit(width: int) -> Block:
    wide = nn.Conv1d(width, width, 7, padding=3)
    return Block(Snake1d(width), wide, Snake1d(width), nn.Conv1d(width, width, 1))


class DAC(nn.Module):
    """Encoder, quantizers and decoder; every convolution has weight norm by the hook."""

    def __init__(self, encoder_dim: int = 8, rates: Sequence[int] = (2, 2), books: int = 2) -> None:
        super().__init__()
        width = encoder_dim
        down: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
        for rate in rates:
            halved = nn.Conv1d(width, 2 * width, 2 * rate, rate, padding=rate // 2)
            down.append(Block(residual_unit(width), Snake1d(width), halved))
            width *= 2
        up: list[nn.Module] = [nn.Conv1d(width, width, 7, padding=3)]
        for rate in rates:
            doubled = nn.ConvTranspose1d(width, width // 2, 2 * rate, rate, padding=rate // 2)
            up.append(Block(Snake1d(width), doubled, residual_unit(width // 2)))
            width //= 2
        self.encoder = Block(*down)
        self.quantizer = nn.ModuleDict({
            "quantizers": nn.ModuleList(quantizer(width << len(rates)) for _ in range(books))
        })  # fmt: skip
        self.decoder = Block(*up, nn.Conv1d(width, 1, 7, padding=3), name="model")
        for layer in convolutions(self):
            hook_weight_norm(layer, "weight")

    def forward(self, wave: Tensor) -> Tensor:
        """`wave`: (batch, 1, time), kept; the choice of codes is left out."""
        found: Tensor = self.decoder(self.encoder(wave))
        return found

    @classmethod
    def load(cls, location: str | os.PathLike[str], *, strict: bool = False) -> Self:
        """Build the model that `metadata` describes and load what meets."""
        found: dict[str, Any] = torch.load(location, "cpu")
        model = cls(**found["metadata"]["kwargs"])
        model.load_state_dict(found["state_dict"], strict=strict)
        return model


def quantizer(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({
        "in_proj": nn.Conv1d(width, 4, 1),
        "out_proj": nn.Conv1d(4, width, 1),
        "codebook": nn.Embedding(16, 4),
    })  # fmt: skip
