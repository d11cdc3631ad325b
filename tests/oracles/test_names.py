"""Names as in public files: roots, prefixes, wrappers. What is made of them loads strictly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_model
from torch import nn

import wncli
from tests.support.networks import (
    As,
    Tensors,
    check_same_weights,
    discriminator,
    generator,
    normalized,
    randomize,
    under,
    weights,
)
from tests.support.oracles import bits, load, read, save
from tests.support.run import Ran
from wncli.checkpoint.prefixes import Names, Tops, best_fit
from wncli.hints import in_shell
from wncli.plan.renames import parse_renames

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


@pytest.mark.parametrize(
    ("glob", "gone"),
    [
        ("model.student.*", lambda name: name.startswith("student.")),
        ("*.mlp.*", lambda name: ".mlp." in name),
        ("*last_layer.weight_?", lambda name: "last_layer.weight_" in name),
        ("model.[st]*.bias", lambda name: name.endswith(".bias")),
        ("*model", lambda _: True),
    ],
)
def test_a_glob_drops_the_tensors_and_entries_that_it_matches(
    glob: str, gone: Callable[[str], bool], tmp_path: Path
) -> None:
    save_dinov2(tmp_path)
    source = tmp_path / "model_final.rank_0.pth"
    before = load(source)["model"]
    wncli.convert(source, tmp_path / "out.pth", drop=[glob, "opt*"])
    found = load(tmp_path / "out.pth")
    assert "optimizer" not in found
    assert list(found.get("model", {})) == [name for name in before if not gone(name)]
    flat = save(before, tmp_path / "flat", "safetensors")
    if glob != "*model":
        wncli.convert(flat, tmp_path / "out.safetensors", drop=[glob.removeprefix("model.")])
        assert set(read(tmp_path / "out.safetensors")) == set(found["model"])


def test_a_name_comes_before_a_glob_and_a_glob_that_matches_nothing_is_refused(
    wn_here: RunHere, tmp_path: Path
) -> None:
    save({"a": {"x*": torch.ones(1), "xy": torch.ones(2)}, "a*": 1, "ab": 2}, tmp_path / "in.pt")
    command = ("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--force", "--drop")
    for glob, left in (("a.x*", ["xy"]), ("a.x?", []), ("a.[x]*", [])):
        assert wn_here(*command, glob).code == 0
        assert list(load(tmp_path / "out.pt")["a"]) == left
    assert wn_here(*command, "a*").code == 0
    assert list(load(tmp_path / "out.pt")) == ["a", "ab"]
    ran = wn_here(*command, "b*")
    assert ran.code == 2
    assert "--drop b*: it matches no entry and no tensor" in ran.stderr


@pytest.mark.parametrize("like", [False, True], ids=["", "like"])
def test_the_tensors_that_are_dropped_are_named(like: bool, tmp_path: Path) -> None:  # noqa: FBT001
    save_dinov2(tmp_path)
    source = tmp_path / "model_final.rank_0.pth"
    reference = save({"model": dinov2()[2]}, tmp_path / "teacher.pth") if like else None
    drop = ["model.student.*", "*.mlp.0.*", "optimizer"]
    gone = [name for name in load(source)["model"] if "student." in name or ".mlp.0." in name]
    report = wncli.convert(source, tmp_path / "out.pth", drop=drop, like=reference, partial=like)
    (note,) = (note for note in report.notes if note.message.startswith("dropped: "))
    assert (note.code, note.where, note.is_warning) == ("left-out", "model", False)
    named = note.message.removeprefix("dropped: ").replace(" and ", ", ").split(", ")
    assert named == [*gone[:3], f"{len(gone) - 3} more"]


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


def test_of_two_copies_one_of_which_has_wrappers_inside_none_is_taken_for_meant(
    wn_here: RunHere, tmp_path: Path
) -> None:
    """FSDP wraps the student's modules, and the teacher is left as it is."""
    _, student, teacher = dinov2()
    inside = {n.replace("backbone.", "backbone._fsdp_wrapped_module."): t
              for n, t in student.items()}  # fmt: skip
    save(dino().state_dict(), tmp_path / "ref.pt")
    command = ("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--force")
    like = ("--like", tmp_path / "ref.pt", "--partial")
    for above in ("", "module."):
        copies = under(f"{above}student", inside) | under(f"{above}teacher", teacher)
        save(copies, tmp_path / "in.pt")
        ran = wn_here(*command, *like)
        assert ran.code == 2
        assert f"--only {above}student or --only {above}teacher" in ran.stderr
        for name, expected in (("student", student), ("teacher", teacher)):
            assert wn_here(*command, *like, "--only", above + name).code == 0
            dino().load_state_dict(load(tmp_path / "out.pt"), strict=True)
            check_same_weights(weights(load(tmp_path / "out.pt")), weights(expected))


def wide(seed: int) -> nn.Module:
    """The names of `dino`, and other shapes."""
    made = dino("hook")
    made.dino_head.last_layer = normalized(nn.Linear(4, 7, bias=False), "hook")  # type: ignore[union-attr]
    randomize(made, seed)
    return made


def test_shapes_tell_copies_apart_whose_names_are_the_same(
    wn_here: RunHere, tmp_path: Path
) -> None:
    small, large = dino("hook", 1), wide(2)
    copies = {"student": small.state_dict(), "teacher": large.state_dict()}
    flat = {f"{root}.{name}": t for root, state in copies.items() for name, t in state.items()}
    out = tmp_path / "out.pt"
    for content in (copies, flat):
        save(content, tmp_path / "in.pt")
        for source in (small, large):
            target = dino("hook", 9) if source is small else wide(9)
            save(target.state_dict(), tmp_path / "ref.pt")
            wncli.convert(
                tmp_path / "in.pt", out, like=tmp_path / "ref.pt", partial=True, force=True
            )
            target.load_state_dict(load(out), strict=True)
            check_same_weights(weights(target.state_dict()), weights(source.state_dict()))
    save(copies, tmp_path / "in.pt")
    save({"x": wide(9).state_dict(), "y": dino("hook", 9).state_dict()}, tmp_path / "ref.pt")
    ran = wn_here("convert", tmp_path / "in.pt", out, "--like", tmp_path / "ref.pt", "--force")
    assert ran.code == 0, ran.stderr
    for root, source in (("x", large), ("y", small)):
        check_same_weights(weights(load(out)[root]), weights(source.state_dict()))


@pytest.mark.parametrize("layer", [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4)])
def test_one_layer_is_no_model_of_which_others_are_copies(
    layer: nn.Module, wn_here: RunHere, tmp_path: Path
) -> None:
    save(layer.state_dict(), tmp_path / "a.pt")
    save(nn.Sequential(layer, nn.ReLU(), layer).state_dict(), tmp_path / "b.pt")
    ran = wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt")
    assert (ran.code, ran.stderr) == (1, "")
    assert wn_here("compare", tmp_path / "a.pt", tmp_path / "b.pt", "--only", "=2").code == 0


@pytest.mark.parametrize("command", ["inspect", "remove", "apply", "convert", "compare"])
def test_two_roots_are_not_taken_for_the_last_one(
    command: str, wn_here: RunHere, tmp_path: Path
) -> None:
    save({"a": generator().state_dict(), "b": generator().state_dict()}, tmp_path / "in.pt")
    other = {"inspect": [], "compare": [tmp_path / "in.pt"]}.get(command, [tmp_path / "out.pt"])
    ran = wn_here(command, tmp_path / "in.pt", *other, "--only", "a", "--only", "b")
    assert ran.code == 2
    assert "'a', 'b'" in ran.stderr
    assert not (tmp_path / "out.pt").exists()
    assert wn_here(command, tmp_path / "in.pt", *other, "--only", "b").code == 0


def test_a_root_comes_before_a_prefix_and_what_is_neither_is_named(
    wn_here: RunHere, tmp_path: Path
) -> None:
    state = {"teacher.a.weight": torch.ones(2, 2), "teacher.b.weight": torch.zeros(2, 2)}
    save({"model": state, "model.teacher": {"c": torch.ones(3)}}, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", only="model.teacher")
    assert set(load(tmp_path / "out.pt")) == {"c"}
    torch.save(dino(), tmp_path / "module.pt")  # of which nothing can be left out
    ran = wn_here("convert", tmp_path / "module.pt", tmp_path / "o.pt", "--drop", "backbone.*")
    assert ran.code == 2
    assert "--drop backbone\n" not in ran.stderr
    ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "o.pt", "--only", "model.teacher.*")
    assert ran.code == 2
    assert "--only model.teacher\n" in ran.stderr
    save({"net": {"g": state, "d": state}, "model": state}, tmp_path / "net.pt")
    ran = wn_here("convert", tmp_path / "net.pt", tmp_path / "o.pt", "--only", "net")
    assert ran.code == 2
    assert "--only net.g or --only net.d" in ran.stderr
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


# -- roots ----------------------------------------------------------------------------------------


def style_tts(spelled: As, seed: int) -> dict[str, nn.Module]:
    """The networks of StyleTTS 2 and Kokoro in small, of which several are built alike."""
    made: dict[str, nn.Module] = {
        "bert": nn.Sequential(nn.Linear(4, 4)),
        "decoder": generator(spelled, seed),
        "predictor": nn.ModuleDict({"F0": normalized(nn.Conv1d(4, 4, 3), spelled)}),
        "text_encoder": nn.ModuleDict({"F0": normalized(nn.Conv1d(4, 4, 3), spelled)}),
    }
    for number, module in enumerate(made.values()):
        randomize(module, seed + number)
    return made


def arrays(path: Path) -> Tensors:
    """The arrays of an .npz file as NumPy reads them."""
    with np.load(path) as found:
        return {name: torch.from_numpy(array) for name, array in found.items()}


def states(modules: dict[str, nn.Module], prefix: str = "") -> dict[str, Tensors]:
    return {root: {prefix + name: tensor for name, tensor in module.state_dict().items()}
            for root, module in modules.items()}  # fmt: skip


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
def test_roots_meet_by_their_last_part(wrapper: str, wn_here: RunHere, tmp_path: Path) -> None:
    trained, released = style_tts("hook", 0), style_tts("parametrized", 20)
    expected = {
        source: {root: weights(module.state_dict()) for root, module in modules.items()}
        for source, modules in (("epoch.pth", trained), ("kokoro.pth", released))
    }
    save({"net": states(trained, wrapper), "iters": 1}, tmp_path / "epoch.pth")
    save(states(released, "module."), tmp_path / "kokoro.pth")
    ran = wn_here("compare", tmp_path / "epoch.pth", tmp_path / "kokoro.pth")
    assert ran.code == 1
    assert "only in" not in ran.stdout
    for source, reference, modules in (
        ("epoch.pth", "kokoro.pth", released), ("kokoro.pth", "epoch.pth", trained)
    ):  # fmt: skip
        out = tmp_path / f"out of {source}"
        ran = wn_here("convert", tmp_path / source, out, "--like", tmp_path / reference, "--verify")
        assert ran.code == 0, ran.stderr
        found = load(out).get("net", load(out))
        for root, module in modules.items():
            strip = "module." if modules is released else wrapper
            module.load_state_dict(
                {name.removeprefix(strip): tensor for name, tensor in found[root].items()}
            )
            check_same_weights(weights(module.state_dict()), expected[source][root])
        assert wn_here("compare", tmp_path / source, out).code == 0


def test_what_one_side_has_not_is_left_out_with_partial(tmp_path: Path) -> None:
    trained, released = style_tts("hook", 0), style_tts(None, 20)
    del released["bert"], trained["text_encoder"]
    save({"net": states(trained, "module.")}, tmp_path / "epoch.pth")
    save(states(released), tmp_path / "released.pth")
    wncli.convert(
        tmp_path / "epoch.pth", tmp_path / "out.pth", like=tmp_path / "released.pth", partial=True
    )
    found = load(tmp_path / "out.pth")
    assert set(found) == {"decoder", "predictor"}
    for root, state in found.items():
        check_same_weights(weights(state), weights(trained[root].state_dict()))


class Vocoder(nn.Module):
    """ParallelWaveGAN's and espnet's structure: two networks in one module."""

    def __init__(self, spelled: As, seed: int) -> None:
        super().__init__()
        self.generator = generator(spelled, seed)
        self.discriminator = discriminator(spelled, seed + 1)


@pytest.mark.parametrize("shape", ["parallel_wavegan", "espnet", "lightning", "flat"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_several_roots_become_one_flat_state_dict_and_roots_again(
    shape: str, suffix: str, wn_here: RunHere, tmp_path: Path
) -> None:
    source, target = Vocoder("hook", 0), Vocoder("parametrized", 9)
    roots = {name: module.state_dict() for name, module in source.named_children()}
    save({"model": roots, "steps": 3}, tmp_path / "checkpoint.pkl")
    prefix = {"espnet": "tts.", "lightning": "vocoder.module."}.get(shape, "")
    flat = {prefix + name: tensor for name, tensor in target.state_dict().items()}
    content = {"parallel_wavegan": {"model": flat}, "lightning": {"state_dict": flat}}
    save(content.get(shape, flat), tmp_path / "flat.ckpt")
    out = tmp_path / f"out{suffix}"
    like = ("--like", tmp_path / "flat.ckpt", "--verify")
    ran = wn_here("convert", tmp_path / "checkpoint.pkl", out, *like)
    assert ran.code == 0, ran.stderr
    found = read(out)
    for key in content.get(shape, {}) if suffix == ".pth" else ():
        found = found[key]
    target.load_state_dict({name.removeprefix(prefix): t for name, t in found.items()}, strict=True)
    check_same_weights(weights(target.state_dict()), weights(source.state_dict()))
    assert wn_here("compare", tmp_path / "checkpoint.pkl", out).code == 0
    ran = wn_here(
        "convert", out, tmp_path / "back.pkl", "--like", tmp_path / "checkpoint.pkl", "--verify"
    )
    assert ran.code == 0, ran.stderr
    back = load(tmp_path / "back.pkl")["model"]
    assert {name: set(state) for name, state in back.items()} == {
        name: set(state) for name, state in roots.items()
    }
    for name, module in source.named_children():
        expected = weights(module.state_dict())
        module.load_state_dict(back[name], strict=True)
        check_same_weights(weights(module.state_dict()), expected)


@pytest.mark.parametrize("options", [(), ("--naming", "parametrized")])
@pytest.mark.parametrize("out", ["out.pth", "out.safetensors", "out.npz", "shards/"])
def test_flatten_puts_the_roots_before_the_names_and_takes_wrappers_off(
    out: str, options: tuple[str, ...], wn_here: RunHere, tmp_path: Path
) -> None:
    source = Vocoder("hook", 0)
    content = {
        "generator": {f"module.{n}": t for n, t in source.generator.state_dict().items()},
        "discriminator": {
            n.replace("convs.0", "convs.0._orig_mod"): t
            for n, t in source.discriminator.state_dict().items()
        },
        "epoch": 7,
    }
    save(content, tmp_path / "in.pth")
    more = ("--max-shard-size", "200B", "--format", "safetensors") if out == "shards/" else ()
    command = ("convert", tmp_path / "in.pth", f"{tmp_path}/{out}", *options)
    ran = wn_here(*command, "--flatten", "--verify", *more)
    assert ran.code == 0, ran.stderr
    assert "epoch" in ran.stdout + ran.stderr
    assert "discriminator.discriminators" not in ran.stderr
    if out == "shards/":
        wncli.convert(tmp_path / out, tmp_path / "joined.safetensors")
    if out == "out.npz":
        found = arrays(tmp_path / out)
    else:
        found = read(tmp_path / ("joined.safetensors" if out == "shards/" else out))
    target = Vocoder("parametrized" if options else "hook", 4)
    target.load_state_dict(found, strict=True)
    check_same_weights(weights(found), weights(source.state_dict()))
    if out == "out.safetensors":
        refused = wn_here(*command[:2], tmp_path / "x.safetensors")
        assert refused.code == 2
        assert "--flatten" in refused.stderr


def test_flatten_takes_a_root_off_that_is_a_wrapper_and_says_what_is_put_on(tmp_path: Path) -> None:
    """DeepSpeed keeps the state dict under `module`."""
    state = {"conv.weight": torch.ones(2, 2)}
    save({"module": state, "ds_version": "0.9"}, tmp_path / "in.pt")
    report = wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", flatten=True)
    assert list(load(tmp_path / "out.pt")) == ["conv.weight"]
    assert "flattened" not in [note.code for note in report.notes]
    save({"net": {"module": state, "g": state}}, tmp_path / "in.pt")
    report = wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", flatten=True, force=True)
    assert list(load(tmp_path / "out.pt")) == ["net.conv.weight", "net.g.conv.weight"]
    said = [note.message for note in report.notes if note.code == "flattened"]
    assert said == ["put before the names in its state dict: 'net.', 'net.g.'"]


def test_flatten_refuses_two_tensors_of_one_name(wn_here: RunHere, tmp_path: Path) -> None:
    save({"a": {"b.w": torch.ones(2)}, "a.b": {"w": torch.zeros(2)}}, tmp_path / "in.pt")
    ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--flatten")
    assert ran.code == 2
    assert "two tensors would have this name" in ran.stderr
    assert not (tmp_path / "out.pt").exists()
    ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--flatten", "--drop", "a.b")
    assert ran.code == 0
    assert set(load(tmp_path / "out.pt")) == {"a.b.w"}


def test_ties_across_roots_stay_ties_in_one_state_dict(tmp_path: Path) -> None:
    shared = torch.rand(3, 4)
    save({"a": {"w": shared}, "b": {"w": shared, "v": shared.t()}}, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", flatten=True)
    found = load(tmp_path / "out.pt")
    assert list(found) == ["a.w", "b.w", "b.v"]
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.safetensors", flatten=True)
    assert bits(read(tmp_path / "out.safetensors")["a.w"]) == bits(shared)


# -- the versions that modules are saved by --------------------------------------------------------


class Versioned(nn.Module):
    """A module that reads its version in what is loaded, as BatchNorm and spectral norm do."""

    _version = 7

    def __init__(self, *, is_empty: bool = False) -> None:
        super().__init__()
        self.seen: list[int | None] = []
        if not is_empty:
            self.scale = nn.Parameter(torch.ones(2))
            self.act = Versioned(is_empty=True)

    def _load_from_state_dict(
        self,
        state_dict: Tensors,
        prefix: str,
        local_metadata: dict[str, int],
        *rest: Any,  # noqa: ANN401 - as PyTorch has it
    ) -> None:
        self.seen.append(local_metadata.get("version"))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def versioned(spelled: As) -> nn.Module:
    return nn.ModuleDict({
        "conv": normalized(nn.Conv1d(2, 2, 3), spelled),
        "blocks": nn.ModuleList([Versioned(), Versioned()]),
    })  # fmt: skip


def both(spelled: As) -> nn.Module:
    return nn.ModuleDict({"g": versioned(spelled), "d": versioned(spelled)})


def check_versions(state: Any, target: nn.Module) -> None:  # noqa: ANN401 - any state dict
    target.load_state_dict(state, strict=True)
    for name, module in target.named_modules():
        if isinstance(module, Versioned):
            assert module.seen == [7], name


def test_modules_find_their_versions_under_their_new_names(tmp_path: Path) -> None:
    model, out = versioned("hook"), tmp_path / "out.pt"
    save({"model": nn.DataParallel(model).state_dict()}, tmp_path / "ddp.pt")
    save(versioned("parametrized").state_dict(), tmp_path / "flat.pt")
    wncli.convert(tmp_path / "ddp.pt", out, like=tmp_path / "flat.pt", force=True)
    check_versions(load(out), versioned("parametrized"))
    wncli.convert(out, tmp_path / "back.pt", like=tmp_path / "ddp.pt")
    check_versions(load(tmp_path / "back.pt")["model"], nn.DataParallel(versioned("hook")))
    wncli.remove(tmp_path / "ddp.pt", out, only="model.module", force=True)
    check_versions(load(out), versioned(None))
    wncli.convert(tmp_path / "ddp.pt", out, rename=["module.*=net.*"], force=True)
    check_versions(load(out)["model"], nn.ModuleDict({"net": versioned("hook")}))


def test_modules_of_several_state_dicts_find_their_versions_in_one(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    roots = {"g": versioned("hook").state_dict(), "d": versioned("hook").state_dict()}
    save(roots, tmp_path / "roots.pt")
    save(both("parametrized").state_dict(), tmp_path / "flat.pt")
    wncli.convert(tmp_path / "roots.pt", out, flatten=True)
    check_versions(load(out), both("hook"))
    wncli.convert(tmp_path / "roots.pt", out, like=tmp_path / "flat.pt", force=True)
    check_versions(load(out), both("parametrized"))
    wncli.convert(out, tmp_path / "back.pt", like=tmp_path / "roots.pt")
    for state in load(tmp_path / "back.pt").values():
        check_versions(state, versioned("hook"))
    one = roots["g"]
    save({"a": one, "b": one}, tmp_path / "shared.pt")
    save({root: under(root, dict(one)) for root in "ab"}, tmp_path / "ref.pt")
    wncli.convert(tmp_path / "shared.pt", out, like=tmp_path / "ref.pt", force=True)
    for root, state in load(out).items():
        check_versions(state, nn.ModuleDict({root: versioned("hook")}))


# -- what CHECKPOINT lacks ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize("stored", ["torch", "legacy", "safetensors"])
def test_fill_takes_what_is_missing_or_misshapen_from_the_reference(
    stored: str, suffix: str, wn_here: RunHere, tmp_path: Path
) -> None:
    """so-vits-svc: a base model without some buffers and with another speaker table."""
    source, target = generator("hook", 1), generator("parametrized", 2)
    have = {f"dec.module.{name}": tensor for name, tensor in source.state_dict().items()}
    del have["dec.module.conv_pre.bias"]
    del have["dec.module.ups.0.weight_g"], have["dec.module.ups.0.weight_v"]
    have["dec.module.conv_post.weight"] = torch.ones(2, 6, 3)
    have |= {"enc.emb.weight": torch.ones(3, 3)}
    origin = save(have, tmp_path / "in.pt", stored)
    reference = save(target.state_dict(), tmp_path / "ref.pt", stored)
    out = tmp_path / f"out{suffix}"
    ran = wn_here("convert", origin, out, "--like", reference)
    assert ran.code == 2
    assert "--fill" in ran.stderr
    before = {path: path.read_bytes() for path in (origin, reference)}
    wanted = weights(target.state_dict())
    report = wncli.convert(origin, out, like=reference, fill=True, verify=True)
    assert {path: path.read_bytes() for path in before} == before
    filled = {"conv_pre.bias", "ups.0.weight", "conv_post.weight"}
    assert set(report.filled) == (filled - {"ups.0.weight"}) | {
        f"ups.0.parametrizations.weight.original{n}" for n in (0, 1)
    }
    assert {note.code for note in report.notes} >= {"matched", "filled", "unexpected"}
    expected = weights(source.state_dict()) | {name: wanted[name] for name in filled}
    found = arrays(out) if suffix == ".npz" else read(out)
    generator("parametrized").load_state_dict(found, strict=True)
    check_same_weights(weights(found), expected)
    for name in report.filled:
        assert bits(found[name]) == bits(target.state_dict()[name])
    stored_names = sum(t.numel() for n, t in have.items())
    assert report.parameters.before == stored_names
    assert report.parameters.after == sum(t.numel() for t in found.values())


def test_fill_keeps_the_rest_of_the_file_and_adds_whole_roots(tmp_path: Path) -> None:
    one, two = generator("hook", 1).state_dict(), generator("hook", 2).state_dict()
    del one["conv_pre.bias"]
    save({"epoch": 3, "model": one, "args": [1]}, tmp_path / "in.pt")
    save({"model": two, "epoch": 9}, tmp_path / "ref.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "ref.pt", fill=True)
    found = load(tmp_path / "out.pt")
    assert (list(found), found["epoch"], found["args"]) == (["epoch", "model", "args"], 3, [1])
    generator("hook").load_state_dict(found["model"], strict=True)
    assert bits(found["model"]["conv_pre.bias"]) == bits(two["conv_pre.bias"])
    assert bits(found["model"]["conv_pre.weight"]) == bits(one["conv_pre.weight"])
    heads = discriminator("hook", 5).state_dict()
    save({"net": {"generator": two, "mpd": heads}}, tmp_path / "ref.pt")
    report = wncli.convert(
        tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "ref.pt", fill=True, force=True
    )
    net = load(tmp_path / "out.pt")["net"]
    generator("hook").load_state_dict(net["generator"], strict=True)
    discriminator("hook").load_state_dict(net["mpd"], strict=True)
    assert all(bits(net["mpd"][name]) == bits(tensor) for name, tensor in heads.items())
    assert len(report.filled) == len(heads) + 1


def test_fill_works_from_and_to_shards(tmp_path: Path) -> None:
    target, source = generator(None, 1).state_dict(), generator("hook", 2).state_dict()
    save(target, tmp_path / "ref.pt")
    wncli.convert(tmp_path / "ref.pt", tmp_path / "ref/", max_shard_size="200B", format="torch")
    del source["conv_pre.bias"]
    save(source, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "in/", max_shard_size="200B", format="safetensors")
    for origin in ("in/", "in.pt"):
        for out in ("out/", "one.safetensors", "sized/"):
            size = "300B" if out == "sized/" else None
            if out == "out/" and origin == "in.pt":
                continue
            wncli.convert(
                tmp_path / origin, f"{tmp_path}/{out}", like=tmp_path / "ref/", fill=True,
                force=True, max_shard_size=size, verify=True,
            )  # fmt: skip
            wncli.convert(tmp_path / out, tmp_path / "whole.safetensors", force=True)
            found = read(tmp_path / "whole.safetensors")
            generator(None).load_state_dict(found, strict=True)
            assert bits(found["conv_pre.bias"]) == bits(target["conv_pre.bias"])


def test_fill_refuses_what_is_damaged_in_the_reference(wn_here: RunHere, tmp_path: Path) -> None:
    save({"a": torch.ones(3), "b": torch.rand(64)}, tmp_path / "ref.pt")
    raw = bytearray((tmp_path / "ref.pt").read_bytes())
    place = raw.index(torch.load(tmp_path / "ref.pt")["b"].numpy().tobytes())
    raw[place] ^= 1
    (tmp_path / "ref.pt").write_bytes(raw)
    save({"a": torch.zeros(3)}, tmp_path / "in.pt")
    like = ("--like", tmp_path / "ref.pt", "--fill")
    ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "out.safetensors", *like)
    assert ran.code == 2
    assert "damaged" in ran.stderr
    assert not (tmp_path / "out.safetensors").exists()
    assert wn_here("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--fill").code == 2


class Tied(nn.Module):
    """A language model's head tied to its embedding, and two layers to each other."""

    def __init__(self, spelled: As) -> None:
        super().__init__()
        self.emb = nn.Embedding(5, 4)
        self.one = normalized(nn.Linear(4, 4), spelled)
        self.two = self.one
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.emb.weight


@pytest.mark.parametrize("stored", ["torch", "safetensors"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("spelled", ["hook", "parametrized", None])
def test_fill_ties_what_the_reference_ties_to_something_that_meets(
    spelled: As, suffix: str, stored: str, tmp_path: Path
) -> None:
    """Loaded into one parameter, the reference's own would take the checkpoint's place."""
    source = Tied("hook")
    have = {n: t for n, t in source.state_dict().items() if not n.startswith(("head", "two"))}
    save({"net": Tied(spelled).state_dict()}, tmp_path / "ref.pt")
    report = wncli.convert(
        save(have, tmp_path / "in.pt", stored), tmp_path / f"out{suffix}",
        like=tmp_path / "ref.pt", fill=True, verify=True,
    )  # fmt: skip
    assert report.filled == ()
    (note,) = [note.message for note in report.notes if note.code == "reference-ties"]
    assert "net.two.weight" in note
    assert "net.head.weight" in note
    target = Tied(spelled)
    if suffix == ".pth":
        target.load_state_dict(load(tmp_path / "out.pth")["net"], strict=True)
    else:
        load_model(target, tmp_path / "out.safetensors")
    check_same_weights(weights(target.state_dict()), weights(source.state_dict()))


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_fill_ties_in_shards_too(kind: str, tmp_path: Path) -> None:
    source = Tied("hook")
    have = {n: t for n, t in source.state_dict().items() if not n.startswith(("head", "two"))}
    save(have, tmp_path / "in.pt")
    save(Tied(None).state_dict(), tmp_path / "ref.pt")
    small = {"max_shard_size": "50B", "format": kind}
    wncli.convert(tmp_path / "in.pt", tmp_path / "in/", **small)  # type: ignore[arg-type]
    for options in ({}, small):
        wncli.convert(
            tmp_path / "in/", tmp_path / "out/", like=tmp_path / "ref.pt", fill=True, verify=True,
            force=True, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        wncli.convert(tmp_path / "out/", tmp_path / "one.pt", force=True)
        target = Tied(None)
        target.load_state_dict(load(tmp_path / "one.pt"), strict=True)
        check_same_weights(weights(target.state_dict()), weights(source.state_dict()))


# -- names of another project ---------------------------------------------------------------------


def mlx_names(tensors: Tensors) -> Tensors:
    """The generator under the names of another project's port."""
    changed = {}
    for name, tensor in tensors.items():
        new = name.replace("resblocks.0.convs1.", "blocks.conv_").replace("ups.", "upsampler.")
        changed[f"decoder.{new}".replace("weight_g", "scale").replace("weight_v", "kernel")] = (
            tensor
        )
    return changed


def test_names_of_another_project_meet_a_reference(wn_here: RunHere, tmp_path: Path) -> None:
    source, target = generator("hook", 1), generator("parametrized", 2)
    names = mlx_names(dict(source.state_dict()))
    save({"model": names, "step": 5}, tmp_path / "in.pt")
    save(target.state_dict(), tmp_path / "ref.pt")
    rules = tmp_path / "rules.txt"
    rules.write_text(
        "# of the port\n\ndecoder.blocks.conv_*.scale=resblocks.0.convs1.*.weight_g\n"
        "decoder.blocks.conv_*.kernel=resblocks.0.convs1.*.weight_v\n"
        "decoder.blocks.conv_*=resblocks.0.convs1.*\n"
    )
    options = (
        "--rename", f"@{rules}", "--rename", "decoder.upsampler.*.scale=ups.*.weight_g",
        "--rename", "decoder.upsampler.*.kernel=ups.*.weight_v",
        "--rename", "decoder.upsampler.*=ups.*", "--rename", "decoder.*=*",
    )  # fmt: skip
    command = ("convert", tmp_path / "in.pt", tmp_path / "out.pt", *options)
    dry = wn_here(*command, "--like", tmp_path / "ref.pt", "--dry-run")
    assert dry.code == 0, dry.stderr
    assert "decoder.upsampler.0.scale is ups.0.weight_g" in dry.stdout
    assert not (tmp_path / "out.pt").exists()
    ran = wn_here(*command, "--like", tmp_path / "ref.pt", "--verify")
    assert ran.code == 0, ran.stderr
    target.load_state_dict(load(tmp_path / "out.pt"), strict=True)
    check_same_weights(weights(target.state_dict()), weights(source.state_dict()))
    ran = wn_here(*command, "--force", "--naming", "parametrized", "--verify")
    assert ran.code == 0, ran.stderr
    found = load(tmp_path / "out.pt")
    assert (list(found), found["step"]) == (["model", "step"], 5)
    generator("parametrized").load_state_dict(found["model"], strict=True)
    check_same_weights(weights(found["model"]), weights(source.state_dict()))
    ran = wn_here(*command, "--force", "--only", "model")
    assert ran.code == 0, ran.stderr
    assert {name: bits(tensor) for name, tensor in load(tmp_path / "out.pt").items()} == {
        name: bits(tensor) for name, tensor in source.state_dict().items()
    }


def test_a_normalized_weight_is_renamed_by_its_own_name_too(tmp_path: Path) -> None:
    for spelled in ("hook", "parametrized"):
        source = dict(generator(spelled, 1).state_dict())
        save(source, tmp_path / "in.pt")
        wncli.convert(
            tmp_path / "in.pt", tmp_path / "out.safetensors", force=True,
            rename=["ups.0.weight=up.first"],
        )  # fmt: skip
        wncli.remove(tmp_path / "out.safetensors", tmp_path / "out.pt", force=True)
        expected = weights(source)
        expected["up.first"] = expected.pop("ups.0.weight")
        check_same_weights(weights(load(tmp_path / "out.pt")), expected)


def test_renaming_takes_the_first_rule_and_refuses_what_cannot_be_meant(
    wn_here: RunHere, tmp_path: Path
) -> None:
    save(
        {"a.b.c.w": torch.ones(1), "a.x": torch.zeros(1), "odd=*": torch.ones(2)}, tmp_path / "i.pt"
    )
    command = ("convert", tmp_path / "i.pt", tmp_path / "o.pt")
    rules = ("a.*.*=*/*", "*=first.*", "odd[=][*]=n[*]")
    assert wn_here(*command, *(w for rule in rules for w in ("--rename", rule))).code == 2
    rules = ("a.*.*=*/*", "odd[=][*]=n[*]", "a.?=z")
    assert wn_here(*command, *(w for rule in rules for w in ("--rename", rule))).code == 0
    assert set(load(tmp_path / "o.pt")) == {"b/c.w", "n*", "z"}
    for rule in (
        "none.*=b.*",
        "a.*=b",
        "*.w=w",
        "a.x",
        "=b",
        "a.x=",
        "*=a",
        "a.x=odd[=]*",
        "@none",
    ):
        ran = wn_here(*command, "--force", "--rename", rule)
        assert ran.code == 2, rule
        assert "--rename" in ran.stderr or "this name" in ran.stderr
    ran = wn_here(*command, "--force", "--rename", "a.x=odd=[*]")
    assert ran.code == 2
    assert "two tensors would have this name" in ran.stderr


RULE_FILES = {
    "plain": b"a.*=x.*\nb.*=y.*\n",
    "Windows": b"\xef\xbb\xbfa.*=x.*\r\n\r\n# names\r\nb.*=y.*\r\n",
    "indented": b"  # names\n\ta.*=x.*\n  b.*=y.*  ",
    "comments behind": b"a.*=x.*  # the first\nb.*=y.*\t#\n#",
    "spaces": b"a.* = x.*\nb.*=  y.*\n",
}


@pytest.mark.parametrize("kind", RULE_FILES)
def test_a_file_of_rules_is_read_as_editors_write_it(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    save({"a.w": torch.ones(1), "b.w": torch.zeros(1)}, tmp_path / "i.pt")
    (tmp_path / "rules").write_bytes(RULE_FILES[kind])
    command = ("convert", tmp_path / "i.pt", tmp_path / "o.pt")
    ran = wn_here(*command, "--rename", f"@{tmp_path}/rules")
    assert ran.code == 0, ran.stderr
    assert list(load(tmp_path / "o.pt")) == ["x.w", "y.w"]


def test_a_file_of_rules_says_odd_characters_in_brackets(wn_here: RunHere, tmp_path: Path) -> None:
    names = ["a #1", "b=c", "d\u2028e", "#f"]
    save({name: torch.ones(1) for name in names}, tmp_path / "i.pt")
    (tmp_path / "rules").write_text(
        "a[ ]#1=a[ ]#2\nb[=]c=b=d\nd\u2028e=\u2028\n[#]f=f\n", encoding="utf-8"
    )
    command = ("convert", tmp_path / "i.pt", tmp_path / "o.pt", "--rename", f"@{tmp_path}/rules")
    ran = wn_here(*command)
    assert ran.code == 0, ran.stderr
    assert list(load(tmp_path / "o.pt")) == ["a #2", "b=d", "\u2028", "f"]
    for empty in (b"", b"\n# a=b\n", b"\xff"):
        (tmp_path / "rules").write_bytes(empty)
        ran = wn_here(*command, "--force")
        assert ran.code == 2
        assert f"@{tmp_path}/rules" in ran.stderr


@pytest.mark.parametrize("name", ["a" * 200_000, "a." * 100_000])
def test_a_rule_of_many_stars_costs_no_more_than_the_names(name: str) -> None:
    (rule,) = parse_renames(["*a*a*a*a*a*a*a*b=*a*a*a*a*a*a*a*b"])
    assert rule.rename(name) is None


# -- wrappers between any two parts of a name -----------------------------------------------------

WRAPPED: dict[str, Callable[[str], str]] = {
    "two compiled networks": lambda name: f"model_g._orig_mod.{name}",
    "so-vits-svc": lambda name: f"model_g.module.{name}",
    "inside": lambda name: name.replace("ups.0.", "ups.0.module.").replace(
        "resblocks.0.", "resblocks.0._orig_mod."
    ),
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}".replace(
        "convs1.", "convs1._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "Lightning": lambda name: f"net.0.module.{name}",
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_anywhere_in_a_name_meet_names_without(
    wrapped: str, wn_here: RunHere, tmp_path: Path
) -> None:
    source, target = generator("hook", 1), generator(None, 2)
    other = discriminator("hook", 3).state_dict() if "two" in wrapped else {}
    state = {WRAPPED[wrapped](name): tensor for name, tensor in source.state_dict().items()}
    state |= {f"model_d._orig_mod.{name}": tensor for name, tensor in other.items()}
    save({"state_dict": state}, tmp_path / "in.ckpt")
    save(target.state_dict(), tmp_path / "ref.pt")
    partial = ("--partial",) if other else ()
    out = tmp_path / "out.safetensors"
    ran = wn_here("convert", tmp_path / "in.ckpt", out, "--like", tmp_path / "ref.pt", *partial)
    assert ran.code == 0, ran.stderr
    target.load_state_dict(read(out), strict=True)
    check_same_weights(weights(read(out)), weights(source.state_dict()))
    if not other:
        assert wn_here("compare", tmp_path / "in.ckpt", out).code == 0
        back = ("convert", out, tmp_path / "back.ckpt", "--like", tmp_path / "in.ckpt", "--verify")
        ran = wn_here(*back)
        assert ran.code == 0, ran.stderr
        found = load(tmp_path / "back.ckpt")["state_dict"]
        assert set(found) == set(state)
        check_same_weights(weights(found), weights(state))


def test_a_part_that_only_reads_like_a_wrapper_stays_where_names_meet_as_they_are(
    tmp_path: Path,
) -> None:
    state = {"a.module.w": torch.ones(2), "a.w": torch.zeros(2), "module": torch.ones(1)}
    save(state, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "in.pt")
    assert {name: bits(tensor) for name, tensor in load(tmp_path / "out.pt").items()} == {
        name: bits(tensor) for name, tensor in state.items()
    }


# -- vectors g on square convolutions -------------------------------------------------------------


def paddle(module: nn.Module) -> Tensors:
    """The names and shapes of PaddleSpeech's vocoders, brought over: every g is a vector."""
    return {
        name: tensor.reshape(-1) if name.endswith("weight_g") else tensor
        for name, tensor in module.state_dict().items()
    }


def square(dim: int, spelled: As = "hook", seed: int = 0) -> nn.Module:
    """Convolutions of which two axes are as long as g."""
    made = nn.ModuleDict({
        "ups": nn.ModuleList([normalized(nn.ConvTranspose1d(4, 4, 5), spelled, dim)]),
        "post": normalized(nn.Conv1d(6, 6, 3), spelled, dim),
        "last": nn.Conv1d(6, 1, 3),
    })  # fmt: skip
    randomize(made, seed)
    return made


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("stored", ["torch", "safetensors"])
def test_the_dim_of_a_vector_on_a_square_convolution_is_said(
    dim: int, stored: str, wn_here: RunHere, tmp_path: Path
) -> None:
    state = paddle(square(dim))
    source = save(state, tmp_path / "in.pt", stored)
    expected = weights(state, {"ups.0.weight": dim, "post.weight": dim})
    refused = wn_here("remove", source, tmp_path / "out.pt")
    assert refused.code == 2
    assert "--dim 0 or --dim 1" in refused.stderr
    for options in (("--dim", str(dim)), ("-l", f"ups.*={dim}", "-l", f"post={dim}"),
                    ("-l", f"ups.*={dim}", "-l", "post", "--dim", str(dim))):  # fmt: skip
        ran = wn_here("remove", source, tmp_path / "out.pt", "--force", "--verify", *options)
        assert ran.code == 0, ran.stderr
        square(dim, None).load_state_dict(load(tmp_path / "out.pt"), strict=True)
        check_same_weights(weights(load(tmp_path / "out.pt")), expected)
    for naming in ("hook", "parametrized"):
        ran = wn_here(
            "convert", source, tmp_path / "out.pt", "--force", "--naming", naming, "--dim",
            str(dim), "--verify",
        )  # fmt: skip
        assert ran.code == 0, ran.stderr
        found = load(tmp_path / "out.pt")
        square(dim, naming).load_state_dict(found, strict=True)
        check_same_weights(
            weights(found, {"ups.0.weight": dim, "post.weight": dim}), expected
        )  # fmt: skip
        assert wn_here("compare", source, tmp_path / "out.pt").code == 0
        ran = wn_here(
            "convert", source, tmp_path / "like.pt", "--force", "--like", tmp_path / "out.pt"
        )
        assert ran.code == 0, ran.stderr
        square(dim, naming).load_state_dict(load(tmp_path / "like.pt"))
        check_same_weights(
            weights(load(tmp_path / "like.pt"), {"ups.0.weight": dim, "post.weight": dim}), expected
        )


def test_a_reference_without_weight_norm_leaves_the_dim_to_the_user(
    wn_here: RunHere, tmp_path: Path
) -> None:
    state = paddle(square(1))
    save(state, tmp_path / "in.pt")
    save(square(1, None, 4).state_dict(), tmp_path / "ref.pt")
    command = ("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--like", tmp_path / "ref.pt")
    assert wn_here(*command).code == 2
    assert wn_here("compare", tmp_path / "in.pt", tmp_path / "ref.pt").code == 2
    ran = wn_here(*command, "-l", "*=1")
    assert ran.code == 0, ran.stderr
    expected = weights(state, {"ups.0.weight": 1, "post.weight": 1})
    check_same_weights(weights(load(tmp_path / "out.pt")), expected)
    back = ("convert", tmp_path / "out.pt", tmp_path / "back.pt", "--like", tmp_path / "in.pt")
    assert wn_here(*back).code == 2
    assert wn_here(*back, "--dim", "1").code == 0
    found = load(tmp_path / "back.pt")
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in state.items()
    }
    check_same_weights(weights(found, {"ups.0.weight": 1, "post.weight": 1}), expected)
    save(state, tmp_path / "twin.pt")
    twin = ("convert", tmp_path / "in.pt", tmp_path / "same.pt", "--like", tmp_path / "twin.pt")
    assert wn_here(*twin).code == 0
    assert all(bits(tensor) == bits(state[n]) for n, tensor in load(tmp_path / "same.pt").items())
    assert wn_here("compare", tmp_path / "in.pt", tmp_path / "twin.pt").code == 0


def test_a_rule_whose_dim_is_not_the_one_that_the_shape_tells_is_refused(
    wn_here: RunHere, tmp_path: Path
) -> None:
    save(square(0).state_dict(), tmp_path / "in.pt")
    command = ("remove", tmp_path / "in.pt", tmp_path / "out.pt")
    for rule in ("ups.*=1", "ups.*=none"):
        ran = wn_here(*command, "-l", rule)
        assert ran.code == 2
        assert "along another dim" in ran.stderr
    assert wn_here(*command, "-l", "ups.*=0").code == 0
    assert wn_here(*command, "--force", "--dim", "1").code == 0  # of vectors, and there is none


# -- what inspect says of names -------------------------------------------------------------------


def notes_of(path: Path) -> dict[str, str]:
    return {note.code: note.message for note in wncli.inspect(path).notes}


def test_inspect_says_what_the_names_can_become(tmp_path: Path) -> None:
    save_dinov2(tmp_path)
    notes = notes_of(tmp_path / "model_final.rank_0.pth")
    assert list(notes) == ["copies"]
    assert "--only model.student or --only model.teacher takes one" in in_shell(notes["copies"])
    vocoder = Vocoder("hook", 0)
    roots = {name: module.state_dict() for name, module in vocoder.named_children()}
    save({"model": roots}, tmp_path / "in.pt")
    notes = notes_of(tmp_path / "in.pt")
    assert list(notes) == ["roots"]
    assert "model.generator., model.discriminator." in notes["roots"]
    save({f"model_g._orig_mod.{n}": t for n, t in roots["generator"].items()}, tmp_path / "in.pt")
    notes = notes_of(tmp_path / "in.pt")
    assert list(notes) == ["wrappers"]
    assert "model_g._orig_mod.conv_pre.weight is model_g.conv_pre.weight" in notes["wrappers"]


def hifi_gan() -> nn.Module:
    """HiFi-GAN's generator and discriminator with as many lists of layers as the real ones."""

    def convs(count: int) -> nn.ModuleList:
        return nn.ModuleList([normalized(nn.Conv1d(2, 2, 3), "hook") for _ in range(count)])

    return nn.ModuleDict({
        "conv_pre": normalized(nn.Conv1d(2, 2, 3), "hook"),
        "ups": convs(4),
        "resblocks": nn.ModuleList([
            nn.ModuleDict({"convs1": convs(3), "convs2": convs(3)}) for _ in range(12)
        ]),
        "discriminators": nn.ModuleList([nn.ModuleDict({"convs": convs(5)}) for _ in range(5)]),
    })  # fmt: skip


def test_inspect_says_nothing_of_names_where_there_is_nothing_to_say(tmp_path: Path) -> None:
    layers = nn.ModuleList([nn.TransformerEncoderLayer(4, 2, 8) for _ in range(3)])
    state = generator("hook").state_dict()
    for content in (
        state, layers.state_dict(), hifi_gan().state_dict(), {"model": state, "ema": dict(state)},
        {"layers": layers.state_dict()}, under("encoder", layers.state_dict()),
    ):  # fmt: skip
        save(content, tmp_path / "in.pt")
        assert notes_of(tmp_path / "in.pt") == {}
