"""Both spellings, held to the names that PyTorch's own modules give."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.strategies import examples
from wncli.checkpoint.naming import (
    Half,
    Naming,
    join,
    pair_names,
    parametrized_weight,
    read_half,
    split,
)

#: A part of a name as torch allows it: not empty, without dots.
parts = st.text(st.characters(exclude_characters="."), min_size=1, max_size=8)
weight_names = st.lists(parts, min_size=1, max_size=4).map(".".join)
spellings = st.sampled_from(("hook", "parametrized"))


def normalized(module: nn.Module, parameter: str, naming: Naming) -> nn.Module:
    """PyTorch's own weight norm in either spelling."""
    if naming == "parametrized":
        found: nn.Module = nn.utils.parametrizations.weight_norm(module, parameter)
        return found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, parameter)


@pytest.mark.parametrize("naming", ["hook", "parametrized"])
@pytest.mark.parametrize(
    ("module", "parameter"),
    [(nn.Linear, "weight"), (nn.Linear, "bias"), (nn.LSTM, "weight_hh_l0")],
    ids=["weight", "bias", "weight_hh_l0"],
)
def test_the_names_are_those_of_torchs_own_modules(
    module: type[nn.Module], parameter: str, naming: Naming
) -> None:
    model = nn.Sequential(nn.Sequential(normalized(module(3, 2), parameter, naming)))
    halves = {name: half for name in model.state_dict() if (half := read_half(name))}
    found = halves.values()
    assert [(half.weight, half.role) for half in found] == [
        (f"0.0.{parameter}", "g"),
        (f"0.0.{parameter}", "v"),
    ]
    assert {half.naming for half in found} == {naming}
    assert pair_names(f"0.0.{parameter}", naming) == tuple(halves)


@pytest.mark.parametrize("naming", ["hook", "parametrized"])
def test_a_module_at_the_top_has_an_empty_path(naming: Naming) -> None:
    names = set(normalized(nn.Linear(3, 2, bias=False), "weight", naming).state_dict())
    assert set(pair_names("weight", naming)) == names
    assert {half.module for half in map(read_half, names) if half} == {""}


@given(weight_names, spellings)
@examples(100)
def test_names_that_are_written_are_read_again(weight: str, naming: Naming) -> None:
    g, v = pair_names(weight, naming)
    module, parameter = split(weight)
    assert read_half(g) == Half(module, parameter, "g", naming)
    assert read_half(v) == Half(module, parameter, "v", naming)


@given(st.lists(st.sampled_from(("", "a", "weight_g", "parametrizations", "weight", "original0"))))
@examples(150)
def test_a_half_is_spelled_as_the_very_name_that_it_was_read_from(pieces: list[str]) -> None:
    name = ".".join(pieces)  # a file's names may have empty parts
    half = read_half(name)
    if half:
        g, v = pair_names(half.weight, half.naming)
        assert name == {"g": g, "v": v}[half.role]


@given(st.text(st.sampled_from("ab."), max_size=6))
@examples(150)
def test_join_is_the_inverse_of_split_for_any_name_in_a_file(name: str) -> None:
    assert join(*split(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "weight",
        "conv.weight",
        "_g",
        "conv._v",
        "conv.weight_u",
        "conv.weight_orig",
        "conv.weight_G",
        "conv.weightg",
        "conv.weight_g.scale",
        "original0",
        "conv.original0",
        "parametrizations.original0",
        "conv.weight.original1",
        "conv.parametrization.weight.original0",
        "conv.parametrizations.weight.original",
        "conv.parametrizations.weight.original2",
        "conv.parametrizations.weight.0.original0",
        "conv.parametrizations.weight.0._v.x",
    ],
)
def test_other_names_are_no_halves(name: str) -> None:
    assert read_half(name) is None


def test_dataparallel_and_compile_prefixes_are_part_of_the_module() -> None:
    assert read_half("module._orig_mod.conv.weight_g") == Half(
        "module._orig_mod.conv", "weight", "g", "hook"
    )


def test_a_parametrized_name_tells_its_weight_as_torchs_spectral_norm_has_it() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)))
    owners = {name: parametrized_weight(name) for name in model.state_dict()}
    assert owners == {
        "0.bias": None,
        "0.parametrizations.weight.original": "0.weight",
        "0.parametrizations.weight.0._u": "0.weight",
        "0.parametrizations.weight.0._v": "0.weight",
    }


@pytest.mark.parametrize(
    "name", ["", "weight", "conv.weight_g", "parametrizations", "parametrizations.weight"]
)
def test_other_names_parametrize_nothing(name: str) -> None:
    assert parametrized_weight(name) is None


def test_hook_names_load_into_torchs_parametrized_module_and_name_the_same_weight() -> None:
    old = normalized(nn.Linear(3, 2), "weight", "hook")
    new = normalized(nn.Linear(3, 2), "weight", "parametrized")
    new.load_state_dict(old.state_dict(), strict=True)
    names = zip(pair_names("weight", "hook"), pair_names("weight", "parametrized"), strict=True)
    for hook, parametrized in names:
        assert torch.equal(old.state_dict()[hook], new.state_dict()[parametrized])
