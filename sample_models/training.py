"""Trains the samples that are trained: on a synthetic tone, and on noisy prototypes."""

from __future__ import annotations

import argparse
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sample_models.networks.wavenet import CONFIG

SEED = 20160225


def synthetic_waveform(samples: int = 4096) -> Tensor:
    """Make a tone (samples,) in -1..1: harmonics of 110 Hz at 8 kHz, vibrato, tremolo, noise."""
    time = torch.arange(samples) / 8000
    phase = 2 * math.pi * 110 * time + 0.8 * torch.sin(2 * math.pi * 6 * time)
    tone = torch.stack([torch.sin(k * phase) / k for k in range(1, 6)]).sum(0)
    noise = torch.randn(samples, generator=torch.Generator().manual_seed(SEED))
    wave = tone * (0.75 + 0.25 * torch.sin(2 * math.pi * 3 * time)) + 0.01 * noise
    return wave / wave.abs().max()


def mu_law(wave: Tensor, levels: int) -> Tensor:
    """Quantize samples in -1..1 to 0..levels-1, finer near zero (ITU-T G.711, mu = levels - 1)."""
    mu = levels - 1
    compressed = wave.sign() * torch.log1p(mu * wave.abs()) / math.log1p(mu)
    return ((compressed + 1) / 2 * mu).round().long()


def wavenet_loss(model: nn.Module, wave: Tensor) -> Tensor:
    """Return the mean cross entropy (nats) of each next sample; `wave`: (samples,), rows of 512."""
    rows = wave.view(-1, 1, 512)
    return F.cross_entropy(model(rows[..., :-1]), mu_law(rows[:, 0, 1:], CONFIG["levels"]))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one step of gradient descent and return the loss before it."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def train_wavenet(model: nn.Module) -> dict[str, object]:
    """Train a WaveNet on `synthetic_waveform`; returns its checkpoint with the final loss."""
    wave = synthetic_waveform()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = [descend(optimizer, wavenet_loss(model, wave)) for _ in range(300)]
    with torch.no_grad():
        losses.append(wavenet_loss(model, wave).item())
    print(f"wavenet.pt: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses) - 1} steps")
    return {"model": model.state_dict(), "config": CONFIG, "loss": losses[-1]}


def train_head(model: nn.Module) -> dict[str, object]:
    """Train a projection head to tell noisy prototypes apart; returns all that training saves."""
    args = argparse.Namespace(
        lr=2e-3, gamma=0.8, decay=0.99, batch_size=32, epochs=3, steps_per_epoch=400
    )
    ema = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, args.gamma)
    prototypes, losses = torch.randn(64, 24), []
    for step in range(1, args.epochs * args.steps_per_epoch + 1):
        labels = torch.randint(64, (args.batch_size,))
        inputs = prototypes[labels] + 0.5 * torch.randn(args.batch_size, 24)
        losses.append(descend(optimizer, F.cross_entropy(model(inputs), labels)))
        with torch.no_grad():
            for mean, parameter in zip(ema.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 1 - args.decay)
        if step % args.steps_per_epoch == 0:
            scheduler.step()
    print(f"training.pt: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    return {
        "model": model.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": args,
        "epoch": args.epochs,
        "steps": len(losses),
    }
