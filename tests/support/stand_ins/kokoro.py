"""Kokoro's model in small, with its loading, which tries again without `module.`, not strictly."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

PARTS = ("bert", "bert_encoder", "predictor", "decoder", "text_encoder")


class KModel(nn.Module):
    """Five networks; the newer weight norm."""

    def __init__(self, model: str | None = None, width: int = 8) -> None:
        super().__init__()
        self.bert = nn.ModuleDict({"embeddings": nn.Embedding(10, width)})
        self.bert_encoder = nn.Linear(width, width)
        self.predictor = nn.ModuleDict({
            "F0": nn.ModuleList([nn.ModuleDict({"conv1": conv(width)})]),
            "N_proj": nn.Conv1d(width, 1, 1),
        })  # fmt: skip
        self.decoder = nn.ModuleDict({
            "F0_conv": conv(1),
            "asr_res": nn.Sequential(conv(width)),
            "generator": nn.ModuleDict(
                {"ups": nn.ModuleList([conv(width)]), "conv_post": conv(width)}
            ),
        })  # fmt: skip
        self.text_encoder = nn.ModuleDict({"cnn": nn.ModuleList([nn.Sequential(conv(width))])})
        for part, state in torch.load(model, weights_only=True).items() if model else ():
            try:
                getattr(self, part).load_state_dict(state)
            except RuntimeError:
                shorter = {name[len("module.") :]: tensor for name, tensor in state.items()}
                getattr(self, part).load_state_dict(shorter, strict=False)


def conv(width: int) -> nn.Module:
    layer = nn.Conv1d(width, width, 3, padding=1)
    weight_norm(layer)
    return layer
