"""The containers that training code writes: found, kept, converted, folded as PyTorch does."""

from __future__ import annotations

import argparse
import copy
import io
import pickle
import random
import shlex
import tarfile
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wncli
from tests.support.layers import Spelling, normalize
from tests.support.oracles import bits
from tests.support.run import SAMPLES, Ran
from tests.support.samples import FILES, NORMALIZED, hold_same_outputs, loaded, state_at
from tests.support.zips import edited, zip_members

pytestmark = pytest.mark.thinned(5)

Wn = Callable[..., Ran]


def plain_net() -> nn.Module:
    """A generator in little: (batch, 2, time) to (batch, 2, 2 * time)."""
    return nn.Sequential(
        OrderedDict(
            pre=nn.Conv1d(2, 4, 3, padding=1), up=nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
            norm=nn.BatchNorm1d(3), post=nn.Conv1d(3, 2, 1),
        )
    )  # fmt: skip


def net(spelling: Spelling = "hook") -> nn.Module:
    """The same with weight norm on all but the last layer, g not the norm of v."""
    made = plain_net()
    for layer in ("pre", "up"):
        normalize(made.get_submodule(layer), "weight", 0, spelling)
    with torch.no_grad():
        for name, g in made.named_parameters():
            if name.endswith(("_g", ".original0")):
                g.mul_(torch.empty_like(g).uniform_(0.5, 1.5))
    return made.eval()


def stepped(module: nn.Module) -> dict[str, Any]:
    """What an optimizer keeps after a step."""
    optimizer = torch.optim.AdamW(module.parameters())
    torch.autograd.backward(module(torch.randn(1, 2, 8)).square().mean())
    optimizer.step()
    return optimizer.state_dict()


def scaler() -> dict[str, Any]:
    """The state of a GradScaler."""
    names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    return dict(zip(names, (65536.0, 2.0, 0.5, 2000, 0), strict=True))


def generators() -> dict[str, Any]:
    """The states of all random generators."""
    return {
        "python": random.getstate(), "numpy": np.random.RandomState(0).get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": [torch.get_rng_state()],
    }  # fmt: skip


@dataclass
class Made:
    """What a training saves, under its file's name, and the modules whose states are in it."""

    name: str
    content: Any
    modules: Mapping[str, nn.Module]
    optimizers: set[str] = field(default_factory=set)
    prefix: str = ""
    others: set[str] = field(default_factory=set)
    """State dicts of something without weight norm."""


def hifi_gan_generator() -> Made:
    generator = net()
    return Made("g_02500000", {"generator": generator.state_dict()}, {"generator": generator})


def hifi_gan_discriminators() -> Made:
    mpd, msd = net(), net()
    content = {"optim_g": stepped(net()), "optim_d": stepped(mpd), "steps": 2500000, "epoch": 9}
    states = {"mpd": mpd.state_dict(), "msd": msd.state_dict()}
    return Made("do_02500000", states | content, {"mpd": mpd, "msd": msd}, {"optim_g", "optim_d"})


def vits() -> Made:
    model = net()
    content = {"iteration": 3, "optimizer": stepped(model), "learning_rate": 2e-4}
    return Made("G_3.pth", {"model": model.state_dict()} | content, {"model": model}, {"optimizer"})


def parallel_wavegan() -> Made:
    parts = {"generator": net(), "discriminator": net()}
    content = {
        "optimizer": {name: stepped(part) for name, part in parts.items()},
        "scheduler": {name: {"step_size": 5, "base_lrs": [1e-4]} for name in parts},
        "steps": 7, "epochs": 1,
        "model": {name: part.state_dict() for name, part in parts.items()},
    }  # fmt: skip
    modules = {f"model.{name}": part for name, part in parts.items()}
    return Made("checkpoint-7steps.pkl", content, modules, {"optimizer"})


def rvc() -> Made:
    model = net().half()
    state = OrderedDict((name, tensor.half()) for name, tensor in model.state_dict().items())
    rest = {"config": [1025, 32, "1", [3, 7]], "info": "200epoch", "sr": "40k", "f0": 1}
    return Made("voice.pth", {"weight": state, **rest, "version": "v2"}, {"weight": model})


def dac() -> Made:
    model = net()
    metadata = {"kwargs": {"rates": [2, 4], "sample_rate": 44100}, "best": {"loss": 0.5}}
    content = {"state_dict": model.state_dict(), "metadata": metadata}
    return Made("weights.pth", content, {"state_dict": model})


def lightning() -> Made:
    model = nn.ModuleDict({"generator": net("parametrized"), "loss": nn.Linear(2, 2)})
    content = {
        "epoch": 2, "global_step": 10, "pytorch-lightning_version": "2.4.0",
        "state_dict": model.state_dict(), "loops": {"fit_loop": {"state_dict": {}, "done": 2}},
        "callbacks": {"ModelCheckpoint{'monitor': 'a.b'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [stepped(net()), stepped(net())],
        "lr_schedulers": [{"gamma": 0.9, "last_epoch": 2}], "MixedPrecision": scaler(),
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-4, "betas": (0.8, 0.99)},
    }  # fmt: skip
    return Made("last.ckpt", content, {"state_dict": model}, {"optimizer_states"})


def encodec() -> Made:
    model = net()
    content = {"xp.cfg": "sample_rate: 24000\n", "version": "1.0", "exported": True}
    return Made("state.th", {"best_state": model.state_dict()} | content, {"best_state": model})


def audiocraft() -> Made:
    model, best = net("parametrized"), net("parametrized")
    content = {
        "model": model.state_dict(), "best_state": {"model": best.state_dict()},
        "optimizer": stepped(net()), "history": [{"train": {"loss": 1.0}}, {}], "xp.sig": "ab12",
    }  # fmt: skip
    modules = {"model": model, "best_state.model": best}
    return Made("checkpoint.th", content, modules, {"optimizer"})


def dino() -> Made:
    student, teacher = net(), net()
    content = {
        "student": nn.DataParallel(student).state_dict(),
        "teacher": nn.DataParallel(teacher).state_dict(),
        "optimizer": stepped(student), "epoch": 3, "fp16_scaler": scaler(),
        "args": argparse.Namespace(arch="vit_small", out_dim=65536, lr=5e-4),
        "dino_loss": {"center": torch.randn(1, 8)},
    }  # fmt: skip
    modules = {"student": student, "teacher": teacher}
    return Made("checkpoint.pth", content, modules, {"optimizer"}, "module.", {"dino_loss"})


def fairseq() -> Made:
    model = net()
    content = {
        "args": argparse.Namespace(arch="hubert"), "cfg": defaultdict(dict, model={"w": 1}),
        "model": model.state_dict(), "criterion": OrderedDict(), "task_state": {},
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "num_updates": 5}],
        "extra_state": {"metrics": OrderedDict(), "train_iterator": {"epoch": 1}, "val_loss": 2.5},
        "last_optimizer_state": stepped(model) | {"loss_scale": 128.0},
    }  # fmt: skip
    return Made("checkpoint_last.pt", content, {"model": model}, {"last_optimizer_state"})


def fcpe() -> Made:
    model = net()
    return Made(
        "model_1.pt",
        {"global_step": 1, "model": model.state_dict(), "config_dict": {"a": [1]}},
        {"model": model},
    )


def compiled() -> Made:
    model = net("parametrized")
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"model": state, "rng": generators(), "scaler": scaler()}
    return Made("a.pt", content, {"model": model}, prefix="_orig_mod.")


def numbered() -> Made:
    models = [net(), net("parametrized")]
    content = {
        "members": {n: model.state_dict() for n, model in enumerate(models)},
        "rng": generators(),
    }
    return Made("a.pt", content, {f"members.{n}": model for n, model in enumerate(models)})


def listed_with_ema() -> Made:
    models = [net(), net()]
    state = models[0].state_dict()
    content = {
        "stages": [state, models[1].state_dict()],
        "best": state,
        "ema": {"decay": 0.9, "shadow": state},
    }
    modules = {
        "stages.0": models[0],
        "stages.1": models[1],
        "best": models[0],
        "ema.shadow": models[0],
    }
    return Made("a.tar", content, modules)


def parallel(module: nn.Module) -> dict[str, Any]:
    """Its state as DataParallel has it, under `module.`."""
    state: dict[str, Any] = nn.DataParallel(module).state_dict()
    return state


def styletts2_training() -> Made:
    decoder, predictor, bert = net(), net("parametrized"), plain_net()
    parts = {"bert": bert, "decoder": decoder, "predictor": predictor}
    content = {
        "net": {name: parallel(part) for name, part in parts.items()},
        "iters": 1200, "val_loss": 0.25, "epoch": 9,
    }  # fmt: skip
    modules = {"net.decoder": decoder, "net.predictor": predictor}
    return Made("epoch_2nd_00009.pth", content, modules, prefix="module.", others={"net.bert"})


def styletts2_released() -> Made:
    decoder, predictor, bert = net(), net("parametrized"), plain_net()
    parts = {"bert": bert, "decoder": decoder, "predictor": predictor}
    content = {name: parallel(part) for name, part in parts.items()}
    modules = {"decoder": decoder, "predictor": predictor}
    return Made("kokoro-v1_0.pth", content, modules, prefix="module.", others={"bert"})


def audiocraft_with_ema() -> Made:
    model, best, ema = net(), net(), net()
    content = {
        "best_state": {"model": best.state_dict()}, "model": model.state_dict(),
        "ema": {"model": {"state": {"model": ema.state_dict()}, "ids": {}, "count": 3.0}},
        "optimizer": stepped(net()), "history": [{"train": {"loss": 1.0}}], "xp.sig": "ab12",
    }  # fmt: skip
    modules = {"best_state.model": best, "model": model, "ema.model.state.model": ema}
    return Made("checkpoint.th", content, modules, {"optimizer"})


def torch_ema() -> Made:
    model = net()
    shadow = [parameter.detach().clone() for parameter in model.parameters()]
    ema = {"decay": 0.995, "num_updates": 7, "shadow_params": shadow, "collected_params": None}
    return Made("last.pt", {"model": model.state_dict(), "ema": ema}, {"model": model})


CONTAINERS = (
    hifi_gan_generator, hifi_gan_discriminators, vits, parallel_wavegan, rvc, dac, lightning,
    encodec, audiocraft, dino, fairseq, fcpe, compiled, numbered, listed_with_ema,
    styletts2_training, styletts2_released, audiocraft_with_ema, torch_ema,
)  # fmt: skip
containers = pytest.mark.parametrize("make_one", CONTAINERS, ids=lambda make: make.__name__)
#: What plain PyTorch cannot load without trusting the file.
UNTRUSTED = {"dino", "fairseq", "numbered", "compiled"}


def saved(made: Made, folder: Path) -> Path:
    """The file, in the older layout where its name has no suffix; FCPE's tensors are on a GPU."""
    path = folder / made.name
    torch.save(made.content, path, _use_new_zipfile_serialization=bool(path.suffix))
    if "config_dict" in made.content:
        edited(path, b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    return path


def load(path: Path, make_one: Callable[[], Made] | None = None) -> Any:  # noqa: ANN401
    untrusted = make_one is not None and make_one.__name__ in UNTRUSTED
    return torch.load(path, map_location="cpu", weights_only=not untrusted)


def at(content: Any, root: str) -> Any:  # noqa: ANN401
    for key in root.split("."):
        content = content[int(key) if key.isdigit() else key]
    return content


def same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two trees are equal, tensors bit for bit and with their layout in memory."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        how = one.stride(), one.requires_grad
        return bits(one) == bits(other) and how == (other.stride(), other.requires_grad)
    if isinstance(one, argparse.Namespace):
        return same(vars(one), vars(other))
    if isinstance(one, dict):
        named = list(one), getattr(one, "_metadata", None)
        if named != (list(other), getattr(other, "_metadata", None)):
            return False
        one, other = list(one.values()), list(other.values())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def removed_by_torch(module: nn.Module) -> nn.Module:
    """A copy of the module, its weight norm removed by PyTorch."""
    with torch.no_grad():
        for layer in module.modules():  # so that `weight` is no result of autograd, and is copied
            for hook in layer._forward_pre_hooks.values():
                hook(layer, ())
    plain = copy.deepcopy(module)
    for layer in plain.modules():
        if hasattr(layer, "parametrizations"):
            nn.utils.parametrize.remove_parametrizations(layer, "weight")
        elif hasattr(layer, "weight_g"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                nn.utils.remove_weight_norm(layer)
    return plain.eval()


def hold_folded(module: nn.Module, state: dict[str, Tensor], prefix: str = "") -> None:
    """Load `state` strictly into what PyTorch's removal leaves, and hold the outputs equal."""
    expected = removed_by_torch(module)
    ours = copy.deepcopy(expected)
    ours.load_state_dict({name.removeprefix(prefix): t for name, t in state.items()}, strict=True)
    dtype = next(ours.parameters()).dtype
    value = torch.randn(2, 2, 9, dtype=dtype)
    inner = "generator" if isinstance(module, nn.ModuleDict) else ""
    with torch.no_grad():
        found, wanted = (m.get_submodule(inner)(value) for m in (ours, expected))
    torch.testing.assert_close(found, wanted)


@containers
def test_its_state_dicts_and_optimizers_are_told_from_all_else(
    make_one: Callable[[], Made], tmp_path: Path
) -> None:
    made = make_one()
    report = wncli.inspect(saved(made, tmp_path))
    expected = dict.fromkeys(made.modules, 2) | dict.fromkeys(made.others, 0)
    assert {root.root: root.normalized for root in report.roots} == expected
    for root in report.roots:
        state = at(made.content, root.root)
        assert root.parameters == sum(tensor.numel() for tensor in state.values())
    assert {e.path for e in report.entries if e.kind == "optimizer"} == made.optimizers
    listed = {e.path for e in report.entries} | {root.root for root in report.roots}
    for key in made.content:
        assert any(path == key or path.startswith(f"{key}.") for path in listed), key


@containers
def test_converting_it_to_torch_keeps_everything(
    make_one: Callable[[], Made], tmp_path: Path
) -> None:
    made = make_one()
    source, out = saved(made, tmp_path), tmp_path / "out.pt"
    report = wncli.convert(source, out)
    assert report.parameters.change == 0
    assert same(load(out, make_one), load(source, make_one))
    wncli.convert(source, out, naming="parametrized", force=True)
    wncli.convert(out, out, naming="hook", force=True)
    there = load(out, make_one)
    assert list(there) == list(made.content)
    for root in made.modules:
        assert not [name for name in at(there, root) if ".original" in name]
        before = at(load(source, make_one), root)
        assert sorted(map(bits, at(there, root).values())) == sorted(map(bits, before.values()))


@containers
def test_removal_folds_every_model_as_pytorch_does_and_keeps_all_else(
    make_one: Callable[[], Made], tmp_path: Path
) -> None:
    made = make_one()
    source = saved(made, tmp_path)
    report = wncli.remove(source, tmp_path / "out.pt")
    assert {note.where for note in report.notes if note.code == "optimizer"} == made.optimizers
    found, before = load(tmp_path / "out.pt", make_one), load(source, make_one)
    for root, module in made.modules.items():
        hold_folded(module, at(found, root), made.prefix)
    for content in (found, before):
        for root in made.modules:
            at(content, root).clear()
    assert same(found, before)


@containers
def test_each_model_by_itself_becomes_safetensors_or_a_flat_torch_file(
    make_one: Callable[[], Made], tmp_path: Path
) -> None:
    made = make_one()
    source = saved(made, tmp_path)
    roots = [*made.modules, *made.others]
    if len(roots) > 1:
        with pytest.raises(wncli.UsageError) as refusal:
            wncli.convert(source, tmp_path / "out.safetensors")
        assert all(root in refusal.value.found for root in roots)
        assert sum(f"only={root!r}" in refusal.value.hint for root in roots) == min(3, len(roots))
    for root in roots:
        out = tmp_path / f"{root}.safetensors"
        only = root if len(roots) > 1 else None
        report = wncli.convert(source, out, only=only)
        said = " ".join(note.message for note in report.notes if note.code == "left-out")
        state = at(load(source, make_one), root)
        assert {k: bits(t) for k, t in load_file(out).items()} == {
            k: bits(t) for k, t in state.items()
        }
        left = [key for key in made.content if key != root.split(".")[0]]
        assert all(key in said for key in left)
        wncli.convert(source, tmp_path / f"{root}.pt", only=root)
        flat = torch.load(tmp_path / f"{root}.pt", map_location="cpu", weights_only=True)
        assert same(flat, state)
        if root in made.modules:
            wncli.remove(source, tmp_path / "folded.safetensors", only=root, force=True)
            hold_folded(made.modules[root], load_file(tmp_path / "folded.safetensors"), made.prefix)


@pytest.mark.parametrize(
    "prefixes",
    [("student.backbone.", "teacher.backbone."), ("autoencoder.", "autoencoder_ema.ema_model.")],
)
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_two_models_in_one_flat_state_dict_are_both_folded(
    name: str, prefixes: tuple[str, str], tmp_path: Path
) -> None:
    """As DINOv2 and stable-audio-tools have them."""
    models = [net(), net("parametrized")]
    state = {
        prefix + key: tensor
        for prefix, model in zip(prefixes, models, strict=True)
        for key, tensor in model.state_dict().items()
    }
    if name.endswith(".ckpt"):
        torch.save({"state_dict": state, "global_step": 3}, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    wncli.remove(tmp_path / name, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    for prefix, model in zip(prefixes, models, strict=True):
        hold_folded(model, {k: t for k, t in found.items() if k.startswith(prefix)}, prefix)


def stored(content: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """The state dict in a box of this kind, as its own code makes it."""
    raw = io.BytesIO()
    arrays = {name: tensor.numpy() for name, tensor in content.items()}
    match kind:
        case "GPT-SoVITS":
            torch.save({"weight": dict(content), "config": {}, "info": "8epoch"}, raw)
            path.write_bytes(b"06" + raw.getvalue()[2:])
        case "NeMo":
            torch.save(content, raw)
            config = b"target: nemo.collections.tts.models.HifiGanModel"
            with tarfile.open(path, "w") as archive:
                for name, data in {"config.yaml": config, "weights.ckpt": raw.getvalue()}.items():
                    info = tarfile.TarInfo(f"./model_{name}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        case "Paddle":
            names = {name: f"conv1d_{n}.w_0" for n, name in enumerate(arrays)}
            path.write_bytes(pickle.dumps(arrays | {"StructuredToParameterName@@": names}, 4))
        case "torch.save of arrays":
            torch.save(arrays, path)
        case "MLX":
            np.savez(path, allow_pickle=False, **arrays)


BOXES = {"GPT-SoVITS": "a.pth", "NeMo": "a.nemo", "Paddle": "a.pdparams",
         "torch.save of arrays": "a.pkl", "MLX": "a.npz"}  # fmt: skip


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize("kind", BOXES)
def test_what_other_boxes_hold_is_folded_as_pytorch_does(
    kind: str, spelling: Spelling, tmp_path: Path
) -> None:
    model = net(spelling)
    path = tmp_path / BOXES[kind]
    stored(model.state_dict(), path, kind)
    only = "weight" if kind == "GPT-SoVITS" else None
    assert [root.normalized for root in wncli.inspect(path).roots] == [2]
    for target in ("a.safetensors", "a.pt", "b.npz"):
        wncli.remove(path, tmp_path / f"out-{target}", only=only, verify=True)
    folded = load_file(tmp_path / "out-a.safetensors")
    hold_folded(model, folded)
    with np.load(tmp_path / "out-b.npz") as arrays:
        in_npz = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for state in (load(tmp_path / "out-a.pt"), in_npz):
        assert {k: bits(t) for k, t in state.items()} == {k: bits(t) for k, t in folded.items()}
    wncli.convert(tmp_path / "out-a.pt", tmp_path / "again.pt", like=path)
    again = wncli.compare(tmp_path / "again.pt", path)
    assert again.equal
    assert not again.only_in_b


def test_tensors_on_a_gpu_stay_there(tmp_path: Path) -> None:
    wncli.remove(saved(fcpe(), tmp_path), tmp_path / "out.pt")
    assert b"cuda:0" in zip_members(tmp_path / "out.pt")["out/data.pkl"]
    assert b"cpu" not in zip_members(tmp_path / "out.pt")["out/data.pkl"]


def test_one_dict_under_several_keys_stays_one(tmp_path: Path) -> None:
    source, out = saved(listed_with_ema(), tmp_path), tmp_path / "out.pt"
    for command in ("remove", "apply", "convert"):
        options = {"naming": "parametrized"} if command == "convert" else {}
        getattr(wncli, command)(source, out, force=True, **options)
        found = load(out)
        assert found["stages"][0] is found["best"] is found["ema"]["shadow"]
        source = out


@pytest.mark.parametrize(
    ("make_one", "entry"),
    [
        (parallel_wavegan, "optimizer.generator"), (parallel_wavegan, "model.discriminator"),
        (lightning, "callbacks"), (lightning, "optimizer_states"), (encodec, "xp.cfg"),
        (lightning, "callbacks.ModelCheckpoint{'monitor': 'a.b'}"), (lightning, "loops.fit_loop"),
        (numbered, "members.1"), (listed_with_ema, "best"),
        (listed_with_ema, "ema"), (vits, "model.post.bias"), (dino, "dino_loss"), (dino, "args"),
    ],
)  # fmt: skip
def test_any_entry_that_is_listed_can_be_dropped(
    make_one: Callable[[], Made], entry: str, tmp_path: Path
) -> None:
    source = saved(make_one(), tmp_path)
    wncli.remove(source, tmp_path / "all.pt")
    wncli.remove(source, tmp_path / "out.pt", drop=[entry])
    found, expected = (load(tmp_path / name, make_one) for name in ("out.pt", "all.pt"))
    holder, key = expected, entry
    while key not in holder:
        first, _, key = key.partition(".")
        holder = holder[int(first) if first.isdigit() else first]
        if key.isdigit() and key not in holder:
            break
    del holder[int(key) if key.isdigit() else key]
    assert same(found, expected)


def test_a_member_of_a_list_is_dropped_or_not_said_to_be_droppable(
    tmp_path: Path, wn_here: Wn
) -> None:
    source = saved(listed_with_ema(), tmp_path)
    ran = wn_here("remove", source, tmp_path / "out.pt", "--drop", "stages.1")
    if ran.code == 0:
        assert len(load(tmp_path / "out.pt")["stages"]) == 1
    else:
        assert "stages.1" not in ran.stderr.partition("\n")[2]  # in what could be dropped


# -- modules as a whole ------------------------------------------------------------------------


def waveglow(module: nn.Module) -> dict[str, Any]:
    return {"model": module, "iteration": 4, "optimizer": {"state": {}, "param_groups": []}}


def written_whole(how: str, module: nn.Module, path: Path) -> str:
    """Save a module as a whole; the root that it is found at."""
    if how in {"script", "trace"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.13 calls TorchScript deprecated
            made = (
                torch.jit.script(module)
                if how == "script"
                else torch.jit.trace(module, torch.ones(1, 2, 4))
            )
            torch.jit.save(made, str(path))
        return ""
    content = waveglow(module) if "waveglow" in how else module
    torch.save(content, path, _use_new_zipfile_serialization="legacy" not in how)
    return "model" if "waveglow" in how else ""


@pytest.mark.parametrize("how", ["zip", "legacy", "waveglow", "waveglow legacy", "script", "trace"])
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_a_whole_module_is_written_as_its_state_dict(
    how: str, spelling: Spelling, tmp_path: Path, wn_here: Wn
) -> None:
    module = net(spelling)
    source, out = tmp_path / "in.pt", tmp_path / "out.pt"
    if spelling == "parametrized" and how not in {"script", "trace"}:
        module = net("hook")  # PyTorch pickles no parametrized module
        how = f"{how} legacy"
    elif how == "script":
        module = removed_by_torch(module)  # nor scripts PyTorch one of either spelling
    root = written_whole(how, module, source)
    only = "--only ''" if not root else f"--only {root}"
    state = module.state_dict()
    commands = ["convert"] if how == "script" else ["convert", "remove"]
    for command in commands:
        ran = wn_here(command, source, tmp_path / f"{command}.safetensors")
        assert ran.code == 0, ran.stderr
        ran = wn_here(command, source, out, "--force")
        assert ran.code == 2
        assert ran.stderr.endswith(f"  try:      {only} writes that\n")
        ran = wn_here(command, source, out, "--force", *shlex.split(only))
        assert ran.code == 0, ran.stderr
        flat = load(out)
        if command == "convert":
            assert [(k, bits(t)) for k, t in flat.items()] == [
                (k, bits(t)) for k, t in state.items()
            ]
            module.load_state_dict(flat, strict=True)
        else:
            hold_folded(module, flat)
        written = load_file(tmp_path / f"{command}.safetensors")
        assert {k: bits(t) for k, t in written.items()} == {k: bits(t) for k, t in flat.items()}
    assert not list(tmp_path.glob("*.wn-partial"))


def test_a_whole_module_beside_state_dicts_survives(tmp_path: Path) -> None:
    model = net()
    backbone = plain_net()
    content = {"model": model.state_dict(), "backbone": backbone, "epoch": 3}
    torch.save(content, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    assert list(found) == list(content)
    hold_folded(model, found["model"])
    value = torch.randn(1, 2, 5)
    expected = backbone.eval()(value)
    assert torch.equal(found["backbone"].eval()(value), expected)


# -- the samples -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("file", NORMALIZED)
def test_a_respelled_sample_loads_into_modules_of_that_spelling(
    file: str, suffix: str, make: ModuleType, tmp_path: Path
) -> None:
    root, _ = FILES[file]
    out = tmp_path / f"out{suffix}"
    old = wncli.inspect(SAMPLES / file, only=root).layers
    new: Spelling = "parametrized" if old[0].naming == "hook" else "hook"
    wncli.convert(SAMPLES / file, out, naming=new, only=root if suffix == ".safetensors" else None)
    module = make.PLAIN[file]()
    for layer in old:
        normalize(module.get_submodule(layer.module), layer.parameter, layer.dim, new)
    state = state_at(out, root)
    assert set(state) == set(module.state_dict())  # torch would rename the hook's names by itself
    module.load_state_dict(state, strict=True)
    theirs = loaded(make, "BUILDERS", file, state_at(SAMPLES / file, root))
    hold_same_outputs(module, theirs, file)


@pytest.mark.parametrize("file", FILES)
def test_a_sample_in_the_other_format_and_back_is_the_same(file: str, tmp_path: Path) -> None:
    root, _ = FILES[file]
    suffixes = [".pt", ".safetensors"] if file.endswith("safetensors") else [".safetensors", ".pt"]
    there, back = (tmp_path / f"a{suffix}" for suffix in suffixes)
    wncli.convert(SAMPLES / file, there, only=root)
    wncli.convert(there, back)
    before = {name: bits(tensor) for name, tensor in state_at(SAMPLES / file, root).items()}
    for path in (there, back):
        assert {name: bits(tensor) for name, tensor in state_at(path, "").items()} == before
