"""The files that documents work on: each function writes into the folder of a page.

A page names those it wants: `<!-- files: NAME -->`. The files have the names that people know, and
small random models in them.
"""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import save

import wncli.pytorch
from tests.support.how_to_files import (  # noqa: F401 - pages name them
    dac,
    dino,
    encodec,
    hifi_gan,
    kokoro,
    many,
    released,
    voice_conversion,
    wav2vec2,
)
from tests.support.run import SAMPLES


def plain_conv(folder: Path) -> None:
    """`plain.pt`: the plain weight and bias of one convolution."""
    torch.save(torch.nn.Conv1d(8, 16, 3).state_dict(), folder / "plain.pt")


def errors(folder: Path) -> None:
    """What is refused, each beside what would be read."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3), torch.nn.Conv1d(8, 8, 3))
    state = dict(plain.state_dict())
    hook = wncli.pytorch.split(state, naming="hook")
    new = wncli.pytorch.split(state, naming="parametrized")
    torch.save(state, folder / "plain.pt")
    torch.save(hook, folder / "old.pt")
    torch.save(new, folder / "new.pt")
    torch.save({"generator": hook, "optimizer": {}, "epoch": 3}, folder / "g_02500000")
    torch.save({"model": hook, "ema": hook}, folder / "training.pt")
    torch.save({**hook, "0.weight_g": torch.ones(8)}, folder / "vector.pt")
    torch.save({**hook, "1.weight_g": torch.ones(8)}, folder / "square.pt")
    torch.save({**hook, "0.weight_g": torch.ones(5, 1, 1)}, folder / "misfit.pt")
    torch.save({name: hook[name] for name in hook if name != "0.weight_v"}, folder / "half.pt")
    torch.save({**hook, **{n: new[n] for n in new if n.startswith("0.p")}}, folder / "both.pt")
    zero = hook["0.weight_v"].clone()
    zero[2] = 0
    torch.save({**hook, "0.weight_v": zero}, folder / "zero.pt")
    wide = {name: tensor.half() for name, tensor in state.items()}
    torch.save({**wide, "0.weight": wide["0.weight"] * 0 + 6e4}, folder / "float16.pt")
    placeholder = {name: torch.empty(0, dtype=torch.float16) for name in hook}
    torch.save({"module": placeholder, "param_shapes": []}, folder / "mp_rank_00_model_states.pt")
    flat = {"0._flat_param": torch.ones(104), "1._flat_param": torch.ones(200)}
    torch.save(flat, folder / "flat.pt")
    torch.save({"model": state, "h": Hyperparameters()}, folder / "runs.pt")
    whole = (folder / "old.pt").read_bytes()
    at = whole.index(hook["1.weight_v"].numpy().tobytes())
    (folder / "damaged.pt").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    (folder / "short.pt").write_bytes(whole[:-1000])
    (folder / "pointer.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 98765432\n"
    )
    save_file(new, folder / "new.safetensors")


class Hyperparameters:
    """An object that is made by running a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("echo hello",)


def names(folder: Path) -> None:
    """Checkpoints for rules: `model.pt`; `other.pt` has other names than `mine.pt`."""
    torch.manual_seed(0)
    shapes = {
        "encoder.pos_conv_embed.conv.weight": (8, 2, 6),
        "ups.0.weight": (8, 4, 4),
        "ups.1.weight": (4, 2, 4),
        "norm.proj.weight": (4, 4),
        "lstm.weight_hh_l0": (16, 4),
    }
    torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.pt")
    up, out = torch.randn(8, 4, 4), torch.ones(1, 4)
    other = {"decoder.upsample.0.weight": up, "decoder.out.weight": out}
    torch.save(other, folder / "other.pt")
    mine = {"dec.ups.0.weight": up, "dec.out.weight": out}
    torch.save(wncli.pytorch.split(mine), folder / "mine.pt")


def several(folder: Path) -> None:
    """`checkpoints/`, with three checkpoints; `before.pt` and `after.pt`, of one training."""
    (folder / "checkpoints").mkdir()
    for name in ("linear", "lstm", "wavenet"):
        shutil.copy(SAMPLES / f"{name}.pt", folder / "checkpoints" / f"{name}.pt")
    wncli.convert(SAMPLES / "training.pt", folder / "before.pt", only="ema")
    wncli.convert(SAMPLES / "training.pt", folder / "after.pt", only="model")


def distributed(folder: Path) -> None:
    """What `dcp.save` writes: `step_1000`, and `pytorch_model_fsdp_0` as accelerate calls it."""
    state = torch.load(SAMPLES / "training.pt", weights_only=False)["model"]
    with warnings.catch_warnings(action="ignore"):
        for name in ("step_1000", "checkpoint-100/pytorch_model_fsdp_0"):
            save({"model": state}, checkpoint_id=folder / name)
    shutil.copy(SAMPLES / "training.pt", folder / "training.pt")
