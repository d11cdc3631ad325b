"""Models of transformers: whatever file their weights are in, they compute what they did."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wncli
import wncli.pytorch as wn
from tests.support.families import APPLIED, BUILT_IN, Family, Outputs, build, remove_its_own_way
from tests.support.layers import Spelling
from tests.support.live import everything
from tests.support.oracles import bits, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
    pytest.mark.thinned(7),
]

#: Differences of outputs as shares of their largest number: of folding, and of other weights.
ROUNDING, OTHER_WEIGHTS = 1e-4, 0.1
#: wav2vec 2.0, EnCodec, VITS, HiFi-GAN, DAC.
FAMILIES = [BUILT_IN[0], BUILT_IN[2], BUILT_IN[3], *APPLIED[:2]]
SOURCES = ("parametrized", "hook", "folded", "folder", "training")

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.config.model_type)


@pytest.fixture(autouse=True)
def _offline_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def written(family: Family, how: str, folder: Path) -> tuple[Path, Outputs]:
    """A checkpoint of a trained model, and what that computes."""
    model: Any = build(family, "hook" if how in {"hook", "training"} else "parametrized", seed=0)
    expected = family.compute(model)
    path = folder / "in.pt"
    if how == "folder":
        model.save_pretrained(folder / "saved", max_shard_size="6KB")
        return folder / "saved", expected
    state = model.state_dict()
    if how == "folded":
        torch.save(state, path)
        wncli.remove(path, folder / "folded.safetensors")
        return folder / "folded.safetensors", expected
    if how == "training":
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"model": wrapped, "epoch": 7, "optimizer": {"state": {}}}, path)
    else:
        torch.save(state, path)
    return path, expected


def without_numbers(model: nn.Module) -> nn.Module:
    """Move what a state dict has to the meta device; other buffers are computed by `__init__`."""
    known = {id(value) for value in model.state_dict(keep_vars=True).values()}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and id(value) in known:
                    empty: Tensor = value.detach().to("meta")
                    held[name] = nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty  # type: ignore[assignment]
    return model


def difference(found: Outputs, expected: Outputs) -> float:
    if [one.shape for one in found] != [two.shape for two in expected]:
        return float("inf")  # VITS speaks as long as its weights say
    return max(
        float((one - two).abs().max() / two.abs().max())
        for one, two in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("how", SOURCES)
@pytest.mark.parametrize("into", ["parametrized", "hook", "plain"])
@each_family
def test_the_outputs_are_those_of_the_model_that_was_saved(
    family: Family, into: str, how: str, tmp_path: Path, *, assign: bool
) -> None:
    path, expected = written(family, how, tmp_path)
    model = build(family, "hook" if into == "hook" else "parametrized", seed=1)
    if into == "plain":
        remove_its_own_way(family, model)
    assert difference(family.compute(model), expected) > OTHER_WEIGHTS
    done = wn.load_weights(without_numbers(model) if assign else model, path, assign=assign)
    assert not done.missing
    assert not done.unexpected
    found = family.compute(model)
    if (into == "plain") == (how == "folded"):
        if into == "plain":
            assert difference(found, expected) < ROUNDING
        else:
            assert [bits(one) for one in found] == [bits(two) for two in expected]
    else:
        assert difference(found, expected) < ROUNDING


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@each_family
def test_removal_keeps_the_outputs_and_gives_the_bits_of_the_command(
    family: Family, spelling: Spelling, tmp_path: Path
) -> None:
    model = build(family, spelling, seed=0)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    expected = family.compute(model)
    assert len(wn.remove_weight_norm(model)) == family.layers
    assert difference(family.compute(model), expected) < ROUNDING
    folded = load(tmp_path / "out.pt")
    own = model.state_dict()
    assert {n: bits(v) for n, v in own.items()} == {n: bits(v) for n, v in folded.items()}


@each_family
def test_apply_like_the_original_makes_what_the_original_is(family: Family) -> None:
    original = build(family, "parametrized", seed=0)
    model = build(family, "hook", seed=1)
    remove_its_own_way(family, model)
    assert len(wn.apply_weight_norm(model, like=original)) == family.layers
    assert list(model.state_dict()) == list(original.state_dict())
    wn.load_weights(model, original)
    assert [bits(one) for one in family.compute(model)] == [
        bits(two) for two in family.compute(original)
    ]


@each_family
def test_another_familys_checkpoint_is_refused_and_nothing_changes(
    family: Family, tmp_path: Path
) -> None:
    path, _ = written(FAMILIES[FAMILIES.index(family) - 1], "parametrized", tmp_path)
    model = build(family, "parametrized", seed=1)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError):
        wn.load_weights(model, path)
    assert everything(model) == before
