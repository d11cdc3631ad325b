"""The files that the how-to pages work on: checkpoints as the projects save them, and stand-ins."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import wncli
from sample_models.networks.hifigan import MultiScaleDiscriminator
from sample_models.weight_norm import convolutions, normalize_convolutions
from tests.support import stand_ins
from tests.support.families import DAC, ENCODEC, SPEECH_ENCODER
from tests.support.networks import under
from tests.support.stand_ins import dac as dac_project
from tests.support.stand_ins import dino as dino_project
from tests.support.stand_ins import hifi_gan as hifi_gan_project
from tests.support.stand_ins import kokoro as kokoro_project
from tests.support.stand_ins import vits as vits_project

#: The arguments of RVC's synthesizer, by position.
RVC = [
    1025, 32, 192, 192, 768, 2, 6, 3, 0, "1", [3, 7, 11], [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    [10, 10, 2, 2], 512, [16, 16, 4, 4], 109, 256, 40000,
]  # fmt: skip
#: What a `config.json` of HiFi-GAN has, as far as the stand-ins need it.
HIFI_GAN = {"num_mels": 16, "upsample_initial_channel": 32, "sampling_rate": 22050}


def _copy(module: str, target: Path) -> None:
    shutil.copyfile(Path(stand_ins.__file__).with_name(module), target)


def _trained(module: Any, seed: int) -> Any:  # noqa: ANN401 - of many kinds
    """Give each g a factor of its own, so that no weight is its direction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, g in module.named_parameters():
            if name.endswith(("_g", ".original0")):
                g.mul_(torch.rand(g.shape, generator=generator) + 0.5)
    return module


def _optimizer(*modules: nn.Module) -> dict[str, object]:
    """The state of AdamW after a step."""
    parameters = [each for module in modules for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 2e-4)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def hifi_gan(folder: Path) -> None:
    """`g_02500000`, `do_02500000`, `config.json`, `bigvgan_generator.pt`; `models`, `bigvgan`."""
    torch.manual_seed(0)
    generator = _trained(hifi_gan_project.Generator(HIFI_GAN), 1)
    torch.save({"generator": generator.state_dict()}, folder / "g_02500000")
    period = nn.ModuleDict({"convs": nn.ModuleList([nn.Conv1d(1, 4, 5)])})
    periods = nn.ModuleDict({"discriminators": nn.ModuleList([period])})
    scales = MultiScaleDiscriminator()
    for discriminator in (periods, scales):
        normalize_convolutions(_trained(discriminator, 2))
    state = {
        "mpd": periods.state_dict(), "msd": scales.state_dict(), "optim_g": _optimizer(generator),
        "optim_d": _optimizer(periods, scales), "steps": 2500000, "epoch": 1800,
    }  # fmt: skip
    torch.save(state, folder / "do_02500000")
    big = _trained(hifi_gan_project.BigVGAN(HIFI_GAN), 3)
    torch.save({"generator": big.state_dict()}, folder / "bigvgan_generator.pt")
    (folder / "config.json").write_text(json.dumps(HIFI_GAN))
    for name in ("models.py", "bigvgan.py"):
        _copy("hifi_gan.py", folder / name)


def voice_conversion(folder: Path) -> None:
    """`voice.pth` of RVC, `logs/44k/G_37600.pth` of so-vits-svc, and `models`."""
    torch.manual_seed(0)
    net = _trained(vits_project.Synthesizer(), 1)
    state = {
        "model": net.state_dict(), "iteration": 37600, "optimizer": _optimizer(net),
        "learning_rate": 1e-4,
    }  # fmt: skip
    (folder / "logs" / "44k").mkdir(parents=True)
    torch.save(state, folder / "logs" / "44k" / "G_37600.pth")
    small = {name: each.half() for name, each in net.state_dict().items() if "enc_q" not in name}
    voice = {
        "weight": small, "config": RVC, "info": "200epoch", "sr": "40k",
        "f0": 1, "version": "v2",
    }  # fmt: skip
    torch.save(voice, folder / "voice.pth")
    _copy("vits.py", folder / "models.py")


def dac(folder: Path) -> None:
    """`weights.pth` of DAC, and `dac`."""
    torch.manual_seed(0)
    model = _trained(dac_project.DAC(), 1)
    kwargs = {"encoder_dim": 8, "rates": [2, 2], "books": 2}
    state = {"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}
    torch.save(state, folder / "weights.pth")
    _copy("dac.py", folder / "dac.py")


def encodec(folder: Path) -> None:
    """`encodec_24khz-d7cc33bc.th`, and `encodec_24khz`, `dac_finetuned` of transformers."""
    import transformers as hf  # it takes seconds

    torch.manual_seed(0)
    model = _trained(hf.EncodecModel(hf.EncodecConfig(**ENCODEC)), 6)
    model.save_pretrained(folder / "encodec_24khz")
    transposed = [name for name, each in model.named_modules() if _is_transposed(each)]
    state = {_encodec_name(name, transposed): each for name, each in model.state_dict().items()}
    torch.save(_hooked(state), folder / "encodec_24khz-d7cc33bc.th")
    model = hf.DacModel(hf.DacConfig(**DAC))
    model.apply_weight_norm()
    _trained(model, 5).save_pretrained(folder / "dac_finetuned")


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, nn.ConvTranspose1d)


def _encodec_name(name: str, transposed: list[str]) -> str:
    """What a tensor of transformers' EnCodec is called in the project's own."""
    name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
    name = re.sub(r"^quantizer\.layers\.(\d+)\.", r"quantizer.vq.layers.\1._", name)
    is_transposed = name.replace(".model.", ".layers.").startswith(tuple(transposed))
    return name.replace(".conv.", ".convtr.convtr." if is_transposed else ".conv.conv.")


def wav2vec2(folder: Path) -> None:
    """`wav2vec2-base` of transformers, and `wav2vec_small.pt` of fairseq."""
    import transformers as hf  # it takes seconds

    torch.manual_seed(0)
    model = _trained(hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SPEECH_ENCODER)), 7)
    model.save_pretrained(folder / "wav2vec2-base")
    state = {
        name.replace("pos_conv_embed.conv", "pos_conv.0"): tensor
        for name, tensor in _hooked(model.state_dict()).items()
        if name.startswith("encoder.pos_conv_embed")
    }
    saved: dict[str, object] = {
        "args": argparse.Namespace(arch="wav2vec2"), "cfg": None, "model": state,
        "criterion": {}, "optimizer_history": [], "task_state": {}, "extra_state": {},
        "last_optimizer_state": None,
    }  # fmt: skip
    torch.save(saved, folder / "wav2vec_small.pt")


def dino(folder: Path) -> None:
    """`checkpoint.pth` of DINO, `model_final.rank_0.pth` of DINOv2, and `vision_transformer`."""
    torch.manual_seed(0)
    student, teacher = (
        dino_project.MultiCropWrapper(dino_project.vit_small(), dino_project.DINOHead(12, 32))
        for _ in range(2)
    )
    arguments = argparse.Namespace(arch="vit_small", patch_size=16, out_dim=65536)
    state = {
        "student": under("module", student.state_dict()), "teacher": teacher.state_dict(),
        "optimizer": _optimizer(student), "epoch": 100, "args": arguments,
        "dino_loss": {"center": torch.zeros(1, 32)},
    }  # fmt: skip
    torch.save(state, folder / "checkpoint.pth")
    both: dict[str, Tensor] = {}
    for name, net in (("student", student), ("teacher", teacher)):
        both |= under(f"{name}.backbone", net.backbone.state_dict())
        both |= under(f"{name}.dino_head", net.head.state_dict())
    torch.save({"model": both, "iteration": 124999}, folder / "model_final.rank_0.pth")
    _copy("dino.py", folder / "vision_transformer.py")


def kokoro(folder: Path) -> None:
    """`kokoro-v1_0.pth`, `epochs_2nd_00020.pth` of StyleTTS 2, and `kokoro`."""
    torch.manual_seed(0)
    states = {}
    for seed in (1, 2):
        model = _trained(kokoro_project.KModel(), seed)
        states[seed] = {
            part: under("module", _hooked(getattr(model, part).state_dict()))
            for part in kokoro_project.PARTS
        }
    torch.save(states[1], folder / "kokoro-v1_0.pth")
    discriminator = nn.ModuleDict({"discriminators": nn.ModuleList([nn.Conv1d(1, 4, 5)])})
    for layer in convolutions(discriminator):
        nn.utils.parametrizations.weight_norm(layer)
    net = states[2] | {"msd": under("module", _hooked(discriminator.state_dict()))}
    training = {
        "net": net,
        "optimizer": [("msd", _optimizer(discriminator))],
        "iters": 90000,
        "val_loss": 0.4,
        "epoch": 20,
    }
    torch.save(training, folder / "epochs_2nd_00020.pth")
    _copy("kokoro.py", folder / "kokoro.py")


def _hooked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that the older function gives to g and v."""
    return {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }


def many(folder: Path) -> None:
    """`checkpoints`: five generators of one training, of which the last did not arrive whole."""
    torch.manual_seed(0)
    generator = hifi_gan_project.Generator(HIFI_GAN)
    (folder / "checkpoints").mkdir()
    for seed in range(1, 6):
        path = folder / "checkpoints" / f"generator_{seed:03}.pt"
        torch.save({"generator": _trained(generator, seed).state_dict()}, path)
    path.write_bytes(path.read_bytes()[:50_000])


def released(folder: Path) -> None:
    """`release/generator.pt`, a folded one beside it, and one that another hand has changed."""
    torch.manual_seed(0)
    (folder / "release").mkdir()
    generator = _trained(hifi_gan_project.Generator(HIFI_GAN), 1)
    torch.save({"generator": generator.state_dict()}, folder / "training.pt")
    wncli.remove(folder / "training.pt", folder / "release" / "generator.safetensors")
    torch.save({"generator": _trained(generator, 2).state_dict()}, folder / "later.pt")
