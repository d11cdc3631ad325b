"""Small networks with the names of public models, and what PyTorch computes of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.layers import Spelling, normalize, pair_of

Tensors = dict[str, Tensor]
#: What the layers of a network are normalized as; None is plain.
As = Spelling | None


def randomize(module: nn.Module, seed: int) -> None:
    """Give every tensor numbers of its own, so that no g is the norm of its v."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def normalized(layer: nn.Module, spelled: As, dim: int | None = 0) -> nn.Module:
    """The layer with PyTorch's weight norm on its weight, if any."""
    if spelled:
        normalize(layer, "weight", dim, spelled)
    return layer


def generator(spelled: As = "hook", seed: int = 0) -> nn.Module:
    """A HiFi-GAN generator in small, as in VITS' `dec`: its square convolutions included."""
    made = nn.ModuleDict({
        "conv_pre": nn.Conv1d(5, 4, 3),
        "ups": nn.ModuleList([normalized(nn.ConvTranspose1d(4, 6, 4), spelled)]),
        "resblocks": nn.ModuleList([nn.ModuleDict({
            "convs1": nn.ModuleList([normalized(nn.Conv1d(6, 6, 3), spelled) for _ in range(2)]),
        })]),
        "conv_post": nn.Conv1d(6, 1, 3, bias=False),
    })  # fmt: skip
    randomize(made, seed)
    return made


def discriminator(spelled: As = "hook", seed: int = 50) -> nn.Module:
    """A multi-period discriminator in small."""
    inner = nn.ModuleDict({
        "convs": nn.ModuleList([normalized(nn.Conv2d(1, 4, (5, 1)), spelled)]),
        "conv_post": normalized(nn.Conv2d(4, 1, (3, 1)), spelled),
    })  # fmt: skip
    made = nn.ModuleDict({"discriminators": nn.ModuleList([inner])})
    randomize(made, seed)
    return made


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The same tensors, a prefix before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def weights(state: Mapping[str, Any], dims: Mapping[str, int] | None = None) -> Tensors:
    """All tensors by plain name in float64, each g and v as the product that PyTorch computes."""
    found = {name: tensor.double() for name, tensor in state.items()}
    spellings: tuple[Spelling, ...] = ("hook", "parametrized")
    for spelling in spellings:
        ends = pair_of("weight", spelling)
        for name in [name for name in found if name.endswith(ends[0])]:
            module = name.removesuffix(ends[0])
            g, v = (found.pop(module + end) for end in ends)
            kept = (dims or {}).get(f"{module}weight", 0)
            shape = [-1 if axis == kept else 1 for axis in range(v.ndim)]
            found[f"{module}weight"] = torch._weight_norm(v, g.reshape(shape), kept)
    return found


def check_same_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Each weight is within two float32 ulps of the other's product, and there are no others."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2**-22, atol=0, msg=name)
