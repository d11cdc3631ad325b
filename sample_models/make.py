"""Makes the sample checkpoints beside this file: `python sample_models/make.py`.

`BUILDERS[file]()` is the module of that file with weight norm, `PLAIN[file]()` the same module
without it. Importing this file writes nothing, seeds nothing and warns of nothing; running it twice
on one machine writes the same bytes.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import pickle
import pickletools
import warnings
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20160225

LINEAR_WEIGHT = torch.tensor(
    [
        [0.2782, 0.1382, -0.0764, -0.0963, 0.3820],
        [0.0089, -0.2772, 0.0862, -0.3995, -0.0354],
        [0.2126, 0.4394, -0.0193, 0.2077, -0.2931],
    ]
)
LINEAR_BIAS = torch.tensor([0.1204, -0.3157, 0.0489])

WAVENET_CONFIG = {"channels": 16, "skip_channels": 32, "blocks": 8, "kernel_size": 2, "levels": 64}


# Modules


class WaveNet(nn.Module):
    """A WaveNet (van den Oord et al. 2016, arXiv:1609.03499): samples 0..t give sample t + 1."""

    def __init__(
        self, *, channels: int, skip_channels: int, blocks: int, kernel_size: int, levels: int
    ) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, channels, 1)
        self.blocks = nn.ModuleList(
            WaveNetBlock(channels, skip_channels, kernel_size, 2**i) for i in range(blocks)
        )
        self.last = nn.Sequential(
            nn.ReLU(),
            nn.Conv1d(skip_channels, skip_channels, 1),
            nn.ReLU(),
            nn.Conv1d(skip_channels, levels, 1),
        )

    def forward(self, wave: Tensor) -> Tensor:
        """`wave`: (batch, 1, time) in -1..1; returns the logits (batch, levels, time)."""
        x = self.first(wave)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
        logits: Tensor = self.last(torch.stack(skips).sum(0))
        return logits


class WaveNetBlock(nn.Module):
    """A dilated causal convolution, gated, with a residual and a skip output."""

    def __init__(self, channels: int, skip_channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.padding = (kernel_size - 1) * dilation
        self.dilated = nn.Conv1d(channels, 2 * channels, kernel_size, dilation=dilation)
        self.residual = nn.Conv1d(channels, channels, 1)
        self.skip = nn.Conv1d(channels, skip_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`: (batch, channels, time); returns it for the next block, and the skip."""
        signal, gate = self.dilated(F.pad(x, (self.padding, 0))).chunk(2, dim=1)
        gated = torch.tanh(signal) * torch.sigmoid(gate)
        return x + self.residual(gated), self.skip(gated)


class HiFiGanGenerator(nn.Module):
    """HiFi-GAN's generator under its own names (Kong et al. 2020, arXiv:2010.05646)."""

    def __init__(self, mels: int = 16, channels: int = 32) -> None:
        super().__init__()
        widths = (channels // 2, channels // 4)
        self.conv_pre = nn.Conv1d(mels, channels, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(2 * width, width, 8, stride=4, padding=2) for width in widths
        )
        self.resblocks = nn.ModuleList(
            HiFiGanResBlock(width, kernel) for width in widths for kernel in (3, 7)
        )
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        """`mel`: (batch, mels, frames); returns the wave (batch, 1, 16 * frames)."""
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = (self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


class HiFiGanResBlock(nn.Module):
    """Three residual steps of a dilated and a plain convolution."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        conv = partial(nn.Conv1d, channels, channels, kernel, padding="same")
        self.convs1 = nn.ModuleList(conv(dilation=dilation) for dilation in (1, 3, 5))
        self.convs2 = nn.ModuleList(conv() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, channels, time), kept."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Wav2Vec2Encoder(nn.Module):
    """The positional convolution of wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, 128, padding=64, groups=16)
        self.pos_conv_embed = nn.Sequential(OrderedDict(conv=conv))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, time, width), kept; the even kernel's one surplus frame is cut off."""
        positions = F.gelu(self.pos_conv_embed(x.transpose(1, 2))[..., :-1])
        normed: Tensor = self.layer_norm(x + positions.transpose(1, 2))
        return normed


class MultiScaleDiscriminator(nn.Module):
    """HiFi-GAN's three scales: spectral norm on the first, no norm yet on the two others."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(scale_discriminator() for _ in range(3))
        self.pool = nn.AvgPool1d(4, 2, padding=2)
        for conv in convolutions(self.discriminators[0]):
            nn.utils.spectral_norm(conv)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """`wave`: (batch, 1, time); returns one score (batch, 1, frames) per scale."""
        scores = []
        for discriminator in self.discriminators:
            scores.append(discriminator(wave))
            wave = self.pool(wave)
        return scores


def scale_discriminator() -> nn.Sequential:
    """Build one scale: (batch, 1, time) to (batch, 1, time / 4)."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 15, padding=7),
        nn.LeakyReLU(0.1),
        nn.Conv1d(8, 16, 41, stride=4, groups=4, padding=20),
        nn.LeakyReLU(0.1),
        nn.Conv1d(16, 1, 3, padding=1),
    )


class ResidualUnit(nn.Module):
    """The residual unit of an audio codec (SEANet; Zeghidour et al. 2021, arXiv:2107.03312)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        dilated = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.block = nn.Sequential(nn.ELU(), dilated, nn.ELU(), nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """`x`: (batch, channels, time), kept."""
        y: Tensor = x + self.block(x)
        return y


def codec_encoder() -> nn.Module:
    """Build an audio codec's encoder in bfloat16: (batch, 1, time) to (batch, 8, time / 4)."""
    block = nn.Sequential(
        nn.Conv1d(1, 16, 7, padding=3),
        ResidualUnit(16, dilation=1),
        ResidualUnit(16, dilation=3),
        nn.ELU(),
        nn.Conv1d(16, 32, 8, stride=4, padding=2),
        nn.ELU(),
        nn.Conv1d(32, 8, 3, padding=1),
    )
    return nn.Sequential(OrderedDict(block=block)).to(torch.bfloat16)


def projection_head() -> nn.Module:
    """Build a head like DINO's (Caron et al. 2021, arXiv:2104.14294): (batch, 24) to 64 logits."""
    mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
    return nn.Sequential(OrderedDict(mlp=mlp, last_layer=nn.Linear(24, 64, bias=False)))


# Weight norm


def convolutions(module: nn.Module) -> list[nn.Module]:
    """Return all 1-d convolutions in `module`, transposed ones included."""
    return [
        layer for layer in module.modules() if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    ]


def hook_weight_norm(layer: nn.Module, *names: str) -> None:
    """Put hook weight norm, dim 0, on these parameters without its deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for name in names:
            nn.utils.weight_norm(layer, name)


def normalize_convolutions(module: nn.Module) -> None:
    """Put hook weight norm on every convolution that has no spectral norm."""
    for layer in convolutions(module):
        if isinstance(layer.weight, nn.Parameter):  # not under spectral norm
            hook_weight_norm(layer, "weight")


def normalize_parametrized(module: nn.Module, layer: str, dim: int) -> None:
    """Put weight norm in the parametrized spelling on the layer of that name."""
    nn.utils.parametrizations.weight_norm(module.get_submodule(layer), dim=dim)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear.pt": partial(nn.Linear, 5, 3),
    "wavenet.pt": partial(WaveNet, **WAVENET_CONFIG),
    "hifigan_generator": HiFiGanGenerator,
    "wav2vec2_pos_conv.safetensors": lambda: nn.Sequential(OrderedDict(encoder=Wav2Vec2Encoder())),
    "lstm.pt": partial(nn.LSTM, 16, 32, batch_first=True),
    "discriminator.pt": MultiScaleDiscriminator,
    "bfloat16.safetensors": codec_encoder,
    "training.pt": projection_head,
}

NORMALIZE: dict[str, Callable[[nn.Module], None]] = {
    "linear.pt": lambda linear: hook_weight_norm(linear, "weight"),
    "wavenet.pt": normalize_convolutions,
    "hifigan_generator": normalize_convolutions,
    "wav2vec2_pos_conv.safetensors": partial(
        normalize_parametrized, layer="encoder.pos_conv_embed.conv", dim=2
    ),
    "lstm.pt": lambda lstm: hook_weight_norm(lstm, "weight_hh_l0", "weight_ih_l0"),
    "discriminator.pt": normalize_convolutions,
    "bfloat16.safetensors": normalize_convolutions,
    "training.pt": partial(normalize_parametrized, layer="last_layer", dim=0),
}


def normalized(file: str) -> nn.Module:
    """Build that file's module with weight norm, g still the norm of v."""
    module = PLAIN[file]()
    NORMALIZE[file](module)
    return module


BUILDERS: dict[str, Callable[[], nn.Module]] = {file: partial(normalized, file) for file in PLAIN}


def rescaled(file: str) -> nn.Module:
    """Build that file's normalized module, each g times a factor of its own, so that w is not v."""
    module = BUILDERS[file]()
    with torch.no_grad():
        for name, g in module.named_parameters():
            if name.endswith(("_g", ".original0")):
                g.mul_(torch.empty_like(g).uniform_(0.5, 1.5))
    return module


# Training


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
    return F.cross_entropy(model(rows[..., :-1]), mu_law(rows[:, 0, 1:], WAVENET_CONFIG["levels"]))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one step of gradient descent and return the loss before it."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def train_wavenet() -> dict[str, object]:
    """Train a WaveNet on `synthetic_waveform`; returns its checkpoint with the final loss."""
    model, wave = rescaled("wavenet.pt"), synthetic_waveform()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = [descend(optimizer, wavenet_loss(model, wave)) for _ in range(300)]
    with torch.no_grad():
        losses.append(wavenet_loss(model, wave).item())
    print(f"wavenet.pt: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses) - 1} steps")
    return {"model": model.state_dict(), "config": WAVENET_CONFIG, "loss": losses[-1]}


def train_head() -> dict[str, object]:
    """Train a projection head to tell noisy prototypes apart; returns all that training saves."""
    args = argparse.Namespace(
        lr=2e-3, gamma=0.8, decay=0.99, batch_size=32, epochs=3, steps_per_epoch=400
    )
    model = rescaled("training.pt")
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


# Files


def content(file: str) -> dict[str, Any]:
    """Make what that file holds."""
    match file:
        case "linear.pt":
            linear = PLAIN[file]()
            linear.weight, linear.bias = nn.Parameter(LINEAR_WEIGHT), nn.Parameter(LINEAR_BIAS)
            return linear.state_dict()
        case "wavenet.pt":
            return train_wavenet()
        case "hifigan_generator":
            return {"generator": rescaled(file).state_dict()}
        case "discriminator.pt":
            discriminator = rescaled(file)
            for _ in range(10):  # each pass brings the spectral norm's u and v nearer
                discriminator(synthetic_waveform().view(1, 1, -1))
            return discriminator.state_dict()
        case "training.pt":
            return train_head()
        case _:
            return rescaled(file).state_dict()


def legacy_bytes(obj: object) -> bytes:
    """Return `obj` as `torch.save` writes the old, non-zip format, for float32 storages.

    PyTorch names each storage by its address in memory, another in every run; here they are
    numbered in the order of their use. The format: `_legacy_save` in torch/serialization.py.
    """
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    for _ in ("magic number", "protocol version", "system", "object"):
        list(pickletools.genops(file))  # reads on to where the next one begins
    head = file.getvalue()[: file.tell()]
    storages: dict[bytes, bytes] = {}
    for key in pickle.load(file):  # noqa: S301  written above
        numel = file.read(8)
        storages[pickled_string(key)] = numel + file.read(4 * int.from_bytes(numel, "little"))
    names = {str(i): key for i, key in enumerate(sorted(storages, key=head.index))}
    for name, key in names.items():
        head = head.replace(key, pickled_string(name))
    order = sorted(names)
    return (
        head + pickle.dumps(order, protocol=2) + b"".join(storages[names[name]] for name in order)
    )


def pickled_string(text: str) -> bytes:
    """Return the pickle opcode BINUNICODE with its argument."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def write(path: Path) -> None:
    """Write one file, from its own seed, in the format that its name asks for."""
    torch.manual_seed(SEED)
    made = content(path.name)
    match path.suffix:
        case ".safetensors":  # save_file would also narrow the file's mode
            path.write_bytes(safetensors.torch.save(made, metadata={"format": "pt"}))
        case ".pt":
            torch.save(made, path)
        case _:
            path.write_bytes(legacy_bytes(made))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Write every file beside this one."""
    torch.set_num_threads(1)
    for file in BUILDERS:
        write(Path(__file__).with_name(file))


if __name__ == "__main__":
    main()
