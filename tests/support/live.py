"""Live models: what a model is in every bit, and normalized ones in small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.layers import Spelling, normalize
from tests.support.oracles import bits


def everything(model: nn.Module) -> list[Any]:
    """All that a refusal has to leave as it was: classes, tensors and their bits, hooks."""
    found: list[Any] = []
    for name, module in model.named_modules():
        tensors = [
            (key, id(value), value.requires_grad, bits(value) if value.device.type == "cpu" else "")
            for held in (module._parameters, module._buffers)
            for key, value in held.items()
            if value is not None and not nn.parameter.is_lazy(value)
        ]
        plain = [
            (key, bits(value)) for key, value in vars(module).items() if isinstance(value, Tensor)
        ]
        hooks = [
            list(getattr(module, key))
            for key in vars(module)
            if key.endswith("_hooks") and getattr(module, key) is not None
        ]
        found.append((name, type(module), tensors, plain, hooks, module.training))
    return found


def norms_of_their_own(model: nn.Module) -> None:
    """Give every g numbers that are far from the norms of the directions."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.copy_(0.3 + torch.rand(parameter.shape, generator=generator))


def vocoder(spelling: Spelling | None, seed: int = 0) -> Any:  # noqa: ANN401 - of any layers
    """Build a few layers as in a vocoder: (2, 4, 12) becomes (2, 1, 12)."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose1d(6, 5, 3, padding=1),
        nn.BatchNorm1d(5),
        nn.Conv1d(5, 1, 1, bias=False),
    )
    if spelling:
        for place in (0, 2, 4):
            normalize(made[place], "weight", 0, spelling)
        norms_of_their_own(made)
    return made.eval()


def mel() -> Tensor:
    """Make what `vocoder` takes."""
    return torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(5))


def heard(model: nn.Module) -> Tensor:
    """Return what a vocoder makes of it."""
    with torch.no_grad():
        output: Tensor = model(mel())
    return output
