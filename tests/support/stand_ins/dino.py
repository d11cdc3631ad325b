"""A vision transformer with DINO's head, in small."""

from __future__ import annotations

from torch import Tensor, nn

from sample_models.weight_norm import hook_weight_norm


class DINOHead(nn.Module):
    """An MLP and a last layer, normalized by the hook with a g of ones that may not train."""

    def __init__(self, in_dim: int, out_dim: int, *, norm_last_layer: bool = True) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_dim, 16), nn.GELU(), nn.Linear(16, 8))
        self.last_layer = nn.Linear(8, out_dim, bias=False)
        hook_weight_norm(self.last_layer, "weight")
        g = self.last_layer.get_parameter("weight_g")
        g.data.fill_(1)
        g.requires_grad = not norm_last_layer

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, in_dim); returns the logits (batch, out_dim)."""
        logits: Tensor = self.last_layer(nn.functional.normalize(self.mlp(x), dim=-1))
        return logits


class MultiCropWrapper(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """`x`: a batch; returns its logits."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def vit_small(width: int = 12) -> nn.Module:
    """Build the backbone; nothing in it has weight norm."""
    return nn.ModuleDict({
        "patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, width, 4, 4)}),
        "norm": nn.LayerNorm(width),
    })  # fmt: skip
