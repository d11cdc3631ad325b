"""The head of self-supervised learners."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def projection_head() -> nn.Module:
    """Build a head like DINO's (Caron et al. 2021, arXiv:2104.14294): (batch, 24) to 64 logits."""
    mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
    return nn.Sequential(OrderedDict(mlp=mlp, last_layer=nn.Linear(24, 64, bias=False)))
