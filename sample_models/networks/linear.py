"""The linear layer of the walk-through, with the numbers that the documents print."""

from __future__ import annotations

import torch
from torch import nn

WEIGHT = torch.tensor(
    [
        [0.2782, 0.1382, -0.0764, -0.0963, 0.3820],
        [0.0089, -0.2772, 0.0862, -0.3995, -0.0354],
        [0.2126, 0.4394, -0.0193, 0.2077, -0.2931],
    ]
)
BIAS = torch.tensor([0.1204, -0.3157, 0.0489])


def linear() -> nn.Linear:
    """Build the layer: (…, 5) to (…, 3)."""
    layer = nn.Linear(5, 3)
    layer.weight, layer.bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(BIAS.clone())
    return layer
