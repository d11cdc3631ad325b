"""The checkpoints to measure on: what shape they have, and how they are written and compared.

PyTorch is imported only inside the functions that need it, which run in a process of their own:
what a child is charged for as peak memory starts at the size of the process that starts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    import torch

P = ParamSpec("P")
T = TypeVar("T")
Format = Literal["torch", "safetensors", "legacy"]
DTypeName = Literal["float32", "bfloat16", "float16", "float64"]

ITEMSIZES: dict[DTypeName, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
SUFFIXES: dict[Format, str] = {"torch": ".pt", "safetensors": ".safetensors", "legacy": ".pt"}

#: Relative difference up to which two ways to compute a g or a weight agree. PyTorch sums the
#: squares in the dtype itself: over the 2 million elements of a whole float32 tensor its norm is
#: off by 3e-5.
AGREEMENT: dict[DTypeName, float] = {
    "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3, "float64": 1e-12
}  # fmt: skip

# HiFi-GAN V1 (Kong et al. 2020, arXiv:2010.05646; `config_v1.json`).
_MELS = 80
_UPSAMPLE_KERNELS = (16, 16, 4, 4)
_RESBLOCK_KERNELS = (3, 7, 11)
_DILATIONS = 3
_OUTER_KERNEL = 7


class DisagreementError(Exception):
    """`wn` and the script have not written the same tensors."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution: its weight's shape, `(out, in, k)` or transposed `(in, out, k)`, and bias."""

    module: str
    shape: tuple[int, int, int]
    bias: int

    @property
    def numel(self) -> int:
        """Parameters of the plain layer."""
        return math.prod(self.shape) + self.bias


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint of HiFi-GAN generators.

    Args:
        nbytes: the size to come near to: as many generators as fit best, at least one.
        format: of the file.
        dtype: of every tensor.
        dim: of every weight norm; None for the norm of the whole tensor.
        every: one layer in so many is normalized; 1 for all.
        channels: the generators' `upsample_initial_channel`.
    """

    nbytes: int
    format: Format
    dtype: DTypeName = "float32"
    dim: int | None = 0
    every: int = 1
    channels: int = 512

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in the order of the state dict."""
        one = tuple(_generator(self.channels))
        size = sum(layer.numel for layer in one) * ITEMSIZES[self.dtype]
        copies = max(1, round(self.nbytes / size))
        if copies == 1:
            return one
        return tuple(
            Layer(f"{number}.{layer.module}", layer.shape, layer.bias)
            for number in range(copies)
            for layer in one
        )

    @property
    def normalized(self) -> tuple[Layer, ...]:
        """The layers with weight norm."""
        return self.layers[:: self.every]

    @property
    def share(self) -> str:
        """How many layers have weight norm, in words."""
        return "all layers" if self.every == 1 else f"1 layer in {self.every}"

    @property
    def dim_name(self) -> str:
        """The dim as `wn apply --dim` takes it."""
        return "none" if self.dim is None else str(self.dim)

    def path(self, folder: Path, *, plain: bool) -> Path:
        """Where the checkpoint is kept; `plain` is the one before weight norm was applied."""
        kind = "plain" if plain else f"dim-{self.dim_name}-1-in-{self.every}"
        size = f"{self.nbytes // 10**6}MB-{self.channels}"
        return folder / f"{self.format}-{self.dtype}-{size}-{kind}{SUFFIXES[self.format]}"


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a fresh interpreter, whose memory is gone afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def write(checkpoint: Checkpoint, path: Path, *, plain: bool) -> None:
    """Write the checkpoint: random data, no g the norm of its v, so that folding computes."""
    import torch
    from safetensors.torch import save_file

    state = _random_state(checkpoint, plain=plain)
    partial = path.with_name(path.name + ".partial")
    if checkpoint.format == "safetensors":
        save_file(state, partial, metadata={"format": "pt"})
    else:
        zipped = checkpoint.format == "torch"
        torch.save(state, partial, _use_new_zipfile_serialization=zipped)
    partial.rename(path)


def check_agreement(ours: Path, theirs: Path, rtol: float) -> None:
    """Hold two results against each other: the same names, values that differ by rounding only.

    Args:
        ours: a file, or a folder with `model.safetensors`.
        theirs: the same from elsewhere.
        rtol: how much the values may differ, as a part of theirs.

    Raises:
        DisagreementError: they differ.
    """
    import torch
    from safetensors.torch import load_file

    def load(path: Path) -> dict[str, torch.Tensor]:
        if path.is_dir():
            return load_file(path / "model.safetensors")
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, torch.Tensor] = torch.load(path, mmap=True, weights_only=True)
        return state

    try:
        torch.testing.assert_close(load(ours), load(theirs), rtol=rtol, atol=0)
    except AssertionError as error:
        message = f"{ours.name} and {theirs.name} differ: {error}"
        raise DisagreementError(message) from None


def _generator(channels: int) -> Iterator[Layer]:
    yield Layer("conv_pre", (channels, _MELS, _OUTER_KERNEL), channels)
    widths = [channels >> step for step in range(len(_UPSAMPLE_KERNELS) + 1)]
    for number, kernel in enumerate(_UPSAMPLE_KERNELS):
        width = widths[number + 1]
        yield Layer(f"ups.{number}", (widths[number], width, kernel), width)
    resblock = 0
    for width in widths[1:]:
        for kernel in _RESBLOCK_KERNELS:
            for part in ("convs1", "convs2"):
                for number in range(_DILATIONS):
                    module = f"resblocks.{resblock}.{part}.{number}"
                    yield Layer(module, (width, width, kernel), width)
            resblock += 1
    yield Layer("conv_post", (1, widths[-1], _OUTER_KERNEL), 1)


def _random_state(checkpoint: Checkpoint, *, plain: bool) -> dict[str, torch.Tensor]:
    """Return the state dict, in the order and the spelling of `torch.nn.utils.weight_norm`."""
    import torch

    generator = torch.Generator().manual_seed(2020)
    dtype = getattr(torch, checkpoint.dtype)
    normalized = set() if plain else {layer.module for layer in checkpoint.normalized}
    state: dict[str, torch.Tensor] = {}
    for layer in checkpoint.layers:
        weight = (torch.randn(layer.shape, generator=generator) / 16).to(dtype)
        bias = torch.randn(layer.bias, generator=generator).to(dtype)
        if layer.module in normalized:
            state[f"{layer.module}.bias"] = bias
            shape = _magnitude_shape(layer.shape, checkpoint.dim)
            g = torch.rand(shape, generator=generator) + 0.5
            state[f"{layer.module}.weight_g"] = g.to(dtype)
            state[f"{layer.module}.weight_v"] = weight
        else:
            state[f"{layer.module}.weight"] = weight
            state[f"{layer.module}.bias"] = bias
    return state


def _magnitude_shape(shape: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    if dim is None:
        return ()
    return tuple(size if axis == dim else 1 for axis, size in enumerate(shape))
