"""Names as in public files: roots, prefixes, wrappers. What is made of them loads strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import wncli
from tests.support.networks import (
    As,
    Tensors,
    check_same_weights,
    normalized,
    randomize,
    under,
    weights,
)
from tests.support.oracles import bits, load, read, save
from tests.support.run import Ran
from wncli.checkpoint.prefixes import Names, Tops, best_fit

RunHere = Callable[..., Ran]


# -- dotted prefixes: two copies in one state dict -------------------------------------------------


def dino(spelled: As = None, seed: int = 0) -> nn.Module:
    """DINO's backbone and head, whose last layer alone is normalized."""
    made = nn.ModuleDict({
        "backbone": nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 4, 2)})}),
        "dino_head": nn.ModuleDict({
            "mlp": nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)),
            "last_layer": normalized(nn.Linear(4, 9, bias=False), spelled),
        }),
    })  # fmt: skip
    randomize(made, seed)
    return made


def dinov2() -> tuple[Tensors, Tensors, Tensors]:
    """What DINOv2 writes: student and teacher in one flat state dict; then both by themselves."""
    student, teacher = (dict(dino("hook", seed).state_dict()) for seed in (1, 2))
    return under("student", student) | under("teacher", teacher), student, teacher


def save_dinov2(folder: Path) -> Tensors:
    both, _, teacher = dinov2()
    content = {"model": both, "optimizer": {"state": {}, "param_groups": []}, "iteration": 9}
    save(content, folder / "model_final.rank_0.pth")
    save(dino(None, 7).state_dict(), folder / "teacher.pth")
    return teacher


def test_a_prefix_takes_one_of_two_copies_and_is_taken_off(
    wn_here: RunHere, tmp_path: Path
) -> None:
    teacher = save_dinov2(tmp_path)
    source = tmp_path / "model_final.rank_0.pth"
    for output in ("out.pth", "out.safetensors"):
        ran = wn_here("remove", source, tmp_path / output, "--only", "model.teacher", "--verify")
        assert ran.code == 0, ran.stderr
        found = read(tmp_path / output)
        dino().load_state_dict(found, strict=True)
        check_same_weights(weights(found), weights(teacher))
        ran = wn_here(
            "convert", source, tmp_path / output, "--force", "--only", "model.teacher", "--naming",
            "parametrized",
        )  # fmt: skip
        assert ran.code == 0, ran.stderr
        dino("parametrized").load_state_dict(read(tmp_path / output), strict=True)
        check_same_weights(weights(read(tmp_path / output)), weights(teacher))
    wncli.apply(source, tmp_path / "a.pth", only="model.student.backbone", naming="hook")
    assert set(load(tmp_path / "a.pth")) == {
        "patch_embed.proj.weight_g", "patch_embed.proj.weight_v", "patch_embed.proj.bias"
    }  # fmt: skip


def test_rules_and_what_is_listed_speak_of_names_without_the_prefix(tmp_path: Path) -> None:
    save_dinov2(tmp_path)
    source = tmp_path / "model_final.rank_0.pth"
    report = wncli.inspect(
        source, only="model.teacher", layers=["dino_head.last_layer"], tensors=True
    )
    assert [root.root for root in report.roots] == ["model.teacher"]
    assert {tensor.name for tensor in report.tensors or ()} == set(dino("hook").state_dict())


def test_a_prefix_that_is_dropped_leaves_the_rest_in_place(tmp_path: Path) -> None:
    teacher = save_dinov2(tmp_path)
    source = tmp_path / "model_final.rank_0.pth"
    wncli.convert(source, tmp_path / "out.pth", drop=["model.student", "optimizer"])
    found = load(tmp_path / "out.pth")
    assert list(found) == ["model", "iteration"]
    assert {name: bits(tensor) for name, tensor in found["model"].items()} == {
        f"teacher.{name}": bits(tensor) for name, tensor in teacher.items()
    }
    flat = save(found["model"] | {"student.x": torch.ones(2)}, tmp_path / "flat", "safetensors")
    wncli.remove(flat, tmp_path / "rest.safetensors", drop=["teacher.backbone", "student"])
    left = {"mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias", "last_layer.weight"}
    assert set(read(tmp_path / "rest.safetensors")) == {f"teacher.dino_head.{n}" for n in left}


@pytest.mark.parametrize("only", ["model.teacher", "model.teacher=", "model.teacher=net"])
def test_a_prefix_chooses_what_a_reference_means(
    only: str, wn_here: RunHere, tmp_path: Path
) -> None:
    teacher = save_dinov2(tmp_path)
    reference = tmp_path / "teacher.pth"
    if only.endswith("net"):
        save({"net": dino().state_dict()}, reference)
    command = ("convert", tmp_path / "model_final.rank_0.pth", tmp_path / "out.pth")
    ran = wn_here(*command, "--like", reference)
    assert ran.code == 2
    assert "model.student, model.teacher" in ran.stderr
    assert "--only model.student or --only model.teacher" in ran.stderr
    assert wn_here(*command, "--like", reference, "--only", only).code == 0
    found = load(tmp_path / "out.pth")
    found = found["net"] if only.endswith("net") else found
    dino().load_state_dict(found, strict=True)
    check_same_weights(weights(found), weights(teacher))
    compared = wn_here("compare", command[1], tmp_path / "out.pth", "--only", only)
    assert compared.code == 0, compared.stdout
    assert wn_here("compare", command[1], tmp_path / "out.pth").code == 2


def test_of_two_prefixes_of_a_reference_one_is_chosen_and_its_names_are_kept_to(
    wn_here: RunHere, tmp_path: Path
) -> None:
    """stable-audio-tools keeps an autoencoder and its EMA in one flat state dict."""
    plain = dict(dino(None, 3).state_dict())
    reference = under("autoencoder", dino("hook").state_dict())
    reference |= under("autoencoder_ema.ema_model", dino("hook").state_dict())
    save({"state_dict": reference}, tmp_path / "ref.ckpt")
    save(plain, tmp_path / "in.pt")
    command = (
        "convert",
        tmp_path / "in.pt",
        tmp_path / "out.ckpt",
        "--like",
        tmp_path / "ref.ckpt",
    )
    ran = wn_here(*command)
    assert ran.code == 2
    prefixes = ("state_dict.autoencoder", "state_dict.autoencoder_ema.ema_model")
    assert " or ".join(f"--only ={prefix}" for prefix in prefixes) in ran.stderr
    ran = wn_here(*command, "--only", f"={prefixes[1]}")
    assert ran.code == 0, ran.stderr
    found = load(tmp_path / "out.ckpt")["state_dict"]
    assert set(found) == {name for name in reference if name.startswith("autoencoder_ema")}
    check_same_weights(weights(found), under("autoencoder_ema.ema_model", weights(plain)))


def test_a_root_comes_before_a_prefix_and_what_is_neither_is_named(
    wn_here: RunHere, tmp_path: Path
) -> None:
    state = {"teacher.a.weight": torch.ones(2, 2), "teacher.b.weight": torch.zeros(2, 2)}
    save({"model": state, "model.teacher": {"c": torch.ones(3)}}, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", only="model.teacher")
    assert set(load(tmp_path / "out.pt")) == {"c"}
    for option in ("--only", "--drop"):
        ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "o.pt", option, "teacher")
        assert ran.code == 2
        assert f"{option} model.teacher" in ran.stderr
        ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "o.pt", option, "model.teach")
        assert ran.code == 2
    with pytest.raises(wncli.UsageError, match="leaves this state dict out"):
        wncli.convert(
            tmp_path / "in.pt", tmp_path / "o.pt", only="model.teacher", drop=["model.teacher"]
        )


def test_a_prefix_with_which_most_meets_is_found_though_some_are_missing() -> None:
    ours = ["model.generator.a", "model.generator.b", "model.generator.c", "model.other.a"]
    fit = best_fit(Names(ours, Tops.of([])), Names(["a", "b", "c", "d"], Tops.of([])))
    assert (fit.prefixes.strip, fit.prefixes.add, fit.matched) == ("model.generator.", "", 3)
    twice = [f"{top}.{name}" for top in ("student", "teacher") for name in "abc"]
    fit = best_fit(Names(twice, Tops.of([])), Names(["a", "b", "c", "d"], Tops.of([])))
    assert {strip for strip, _ in fit.rivals} == {"student.", "teacher."}
