"""The `-l` and `-x` rules: which weights they take, and what they say of what they don't."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import wncli
from wncli import NothingToDo, UsageError
from wncli.errors import WeightNormError
from wncli.plan.rules import (
    Candidate,
    check_exclusions,
    choose_pairs,
    choose_weights,
    parse_exclusions,
    parse_layers,
)

#: A vocoder's parameters: name and rank.
VOCODER = {
    "conv_pre.weight": 3,
    "conv_pre.bias": 1,
    "ups.0.weight": 3,
    "ups.0.bias": 1,
    "ups.1.weight": 3,
    "norm.weight": 1,
    "norm.bias": 1,
    "lstm.weight_ih_l0": 2,
    "lstm.weight_hh_l0": 2,
    "lstm.bias_hh_l0": 1,
    "mix.gate": 2,
}


def candidates(ranks: dict[str, int]) -> list[Candidate]:
    """As `apply` offers them: by default it means what is called weight and is no vector."""
    return [
        Candidate("", name, rank, by_default=rank > 1 and name.split(".")[-1] == "weight")
        for name, rank in ranks.items()
    ]


def taken(*layers: str, exclude: Sequence[str] = (), ranks: dict[str, int] = VOCODER) -> list[str]:
    """The names that `apply` would take of the vocoder's."""
    rules, exclusions = parse_layers(layers, with_dims=True), parse_exclusions(exclude)
    return [item.weight for item in choose_weights(candidates(ranks), rules, exclusions, {})]


def folded(*layers: str, exclude: Sequence[str] = ()) -> list[str]:
    """The names that `remove` would take of these normalized ones."""
    names = ("conv_pre.weight", "ups.0.weight", "ups.1.weight", "lstm.weight_hh_l0", "head.bias")
    offered = [Candidate("", name, 2, by_default=True) for name in names]
    rules, exclusions = parse_layers(layers, with_dims=False), parse_exclusions(exclude)
    return [item.weight for item in choose_pairs(offered, rules, exclusions, {})]


DEFAULT = ["conv_pre.weight", "ups.0.weight", "ups.1.weight"]


# -- apply --------------------------------------------------------------------------------------


def test_without_rules_every_weight_of_two_or_more_dimensions_is_taken() -> None:
    assert taken() == DEFAULT


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param("ups.0.weight", ["ups.0.weight"], id="a full name"),
        pytest.param("ups.0", ["ups.0.weight"], id="a module takes its weight, not its bias"),
        pytest.param("ups.*", ["ups.0.weight", "ups.1.weight"], id="a folder"),
        pytest.param("ups.?", ["ups.0.weight", "ups.1.weight"], id="one character"),
        pytest.param("ups.[1-9]", ["ups.1.weight"], id="a range"),
        pytest.param("*", DEFAULT, id="a star takes what is meant by default"),
        pytest.param("*.weight", DEFAULT, id="not the gains of norms"),
        pytest.param("*pre*", ["conv_pre.weight"], id="a star crosses dots"),
        pytest.param("norm.weight", ["norm.weight"], id="a vector by its name"),
        pytest.param("norm", ["norm.weight"], id="a vector by its module"),
        pytest.param("lstm.weight_hh_l0", ["lstm.weight_hh_l0"], id="another parameter"),
        pytest.param("lstm.weight_hh*", ["lstm.weight_hh_l0"], id="another parameter's glob"),
        pytest.param("*.weight_?h_l0", ["lstm.weight_ih_l0", "lstm.weight_hh_l0"], id="several"),
        pytest.param("lstm.*", ["lstm.weight_ih_l0", "lstm.weight_hh_l0"], id="no vectors of it"),
        pytest.param("*.bias", ["conv_pre.bias", "ups.0.bias", "norm.bias"], id="vectors alone"),
        pytest.param("mix.gate", ["mix.gate"], id="a parameter of any name"),
    ],
)
def test_a_rule_takes_what_it_means(rule: str, expected: list[str]) -> None:
    assert taken(rule) == expected


def test_rules_add_up_in_the_order_of_the_checkpoint() -> None:
    assert taken("ups.1", "norm.weight", "conv_pre") == [
        "conv_pre.weight",
        "ups.1.weight",
        "norm.weight",
    ]


def test_an_exclusion_wins_over_every_rule() -> None:
    assert taken(exclude=["ups.*"]) == ["conv_pre.weight"]
    assert taken("ups.0.weight", "ups.*", exclude=["ups.0"]) == ["ups.1.weight"]
    assert taken("ups.0", exclude=["*.weight"]) == []


def test_the_first_rule_that_matches_gives_the_dim() -> None:
    rules = parse_layers(["ups.1=2", "ups.*=none", "*"], with_dims=True)
    chosen = choose_weights(candidates(VOCODER), rules, (), {})
    found = {item.weight: (rule.has_dim, rule.dim) for item, rule in chosen.items() if rule}
    assert found == {
        "conv_pre.weight": (False, None),
        "ups.0.weight": (True, None),
        "ups.1.weight": (True, 2),
    }


def test_names_are_matched_with_their_case() -> None:
    for rule, name in (("UPS.*", "ups.0.weight"), ("ups.*", "UPS.0.weight")):
        with pytest.raises(UsageError):
            taken(rule, ranks={name: 3})


@pytest.mark.parametrize(
    ("rule", "near"),
    [
        ("ups.0.wieght", "ups.0.weight"),
        ("conv_prr", "conv_pre"),
        ("lstm.weight_hh_l9", "lstm.weight_hh_l0"),
        ("UPS.*", "ups.0"),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_with_near_names(rule: str, near: str) -> None:
    with pytest.raises(UsageError, match="the rule matches nothing") as refusal:
        taken("ups.0", rule)
    assert str(refusal.value).startswith(f"layers=[{rule!r}]: ")
    assert refusal.value.in_shell.startswith(f"-l {rule}: ")
    assert near in refusal.value.hint


def test_a_rule_that_is_near_nothing_leads_to_the_list_of_names() -> None:
    rules = parse_layers(["zzzzzzzz"], with_dims=True)
    with pytest.raises(UsageError) as refusal:
        choose_weights(candidates(VOCODER), rules, (), {}, "wn inspect --tensors in.pt")
    assert refusal.value.hint == "wn inspect --tensors in.pt"


def test_a_rule_for_what_cannot_be_chosen_is_refused_with_the_reason() -> None:
    rules = parse_layers(["post.weight"], with_dims=True)
    reasons = {"ups.2.weight": "is of int8", "post.weight": "is normalized already"}
    with pytest.raises(UsageError, match=r"post\.weight is normalized already"):
        choose_weights(candidates(VOCODER), rules, (), reasons)
    with pytest.raises(UsageError, match=r"post\.weight is normalized already"):
        choose_pairs(candidates(VOCODER), rules, (), reasons)


# -- remove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), ["conv_pre.weight", "ups.0.weight", "ups.1.weight", "lstm.weight_hh_l0", "head.bias"]),
        (("ups.*",), ["ups.0.weight", "ups.1.weight"]),
        (("lstm",), ["lstm.weight_hh_l0"]),
        (("head",), ["head.bias"]),
        (("*.weight",), ["conv_pre.weight", "ups.0.weight", "ups.1.weight"]),
    ],
)
def test_removal_takes_every_normalized_layer_that_a_rule_matches(
    rules: tuple[str, ...], expected: list[str]
) -> None:
    assert folded(*rules) == expected


def test_removal_leaves_what_is_excluded() -> None:
    assert folded(exclude=["ups.*", "lstm"]) == ["conv_pre.weight", "head.bias"]


def test_removal_refuses_a_rule_that_matches_nothing() -> None:
    with pytest.raises(UsageError, match="the rule matches nothing") as refusal:
        folded("up.0")
    assert "ups.0" in refusal.value.hint


def test_removal_refuses_a_dim() -> None:
    with pytest.raises(UsageError, match="no dim can be chosen here") as refusal:
        folded("ups.*=1")
    assert refusal.value.hint == "layers=['ups.*']"


# -- how rules are read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ups.*", ("ups.*", False, None)),
        ("ups.*=0", ("ups.*", True, 0)),
        ("ups.*=2", ("ups.*", True, 2)),
        ("ups.*=-1", ("ups.*", True, -1)),
        ("ups.*=none", ("ups.*", True, None)),
        ("ups.*=None", ("ups.*", True, None)),
        ("a=b=1", ("a=b", True, 1)),
    ],
)
def test_a_rule_is_a_glob_and_at_most_a_dim(
    text: str, expected: tuple[str, bool, int | None]
) -> None:
    (rule,) = parse_layers([text], with_dims=True)
    assert rule.text == text
    assert (rule.glob, rule.has_dim, rule.dim) == expected


@pytest.mark.parametrize("text", ["ups=x", "ups=", "ups=1.5", "ups=0x1", "ups=all"])
def test_a_dim_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a dim") as refusal:
        parse_layers([text], with_dims=True)
    assert f"layers=[{text!r}]: " in str(refusal.value)


@pytest.mark.parametrize("text", ["", "=0", "=none"])
def test_an_empty_rule_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="the rule is empty"):
        parse_layers([text], with_dims=True)


def test_an_empty_exclusion_is_refused() -> None:
    with pytest.raises(UsageError, match="the rule is empty"):
        parse_exclusions(["ups.*", ""])


def test_an_exclusion_that_matches_nothing_is_refused_with_near_names() -> None:
    rules = parse_exclusions(["ups.*", "conv_prr"])
    with pytest.raises(UsageError, match="the rule matches nothing") as refusal:
        check_exclusions(rules, list(VOCODER))
    assert str(refusal.value).startswith("exclude=['conv_prr']: ")
    assert "exclude=['conv_pre']" in refusal.value.hint


def test_an_exclusion_may_match_what_is_not_offered() -> None:
    check_exclusions(parse_exclusions(["norm", "*.bias"]), list(VOCODER))


# -- in files -----------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    shapes = {"conv.weight": (4, 3, 5), "conv.bias": (4,), "norm.weight": (4,), "rnn.u": (2, 4)}
    generator = torch.Generator().manual_seed(0)
    save_file({name: torch.randn(s, generator=generator) for name, s in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("rule", "dim", "shape"),
    [
        ("conv.weight=0", 0, (4, 1, 1)),
        ("conv=1", 1, (1, 3, 1)),
        ("conv.*=2", 2, (1, 1, 5)),
        ("conv=none", None, ()),
        ("conv=-1", None, ()),
    ],
)
def test_the_dim_of_a_rule_is_the_shape_of_its_g(
    checkpoint: Path, rule: str, dim: int | None, shape: tuple[int, ...]
) -> None:
    output = checkpoint.with_name("out.safetensors")
    report = wncli.apply(checkpoint, output, layers=[rule], dim=1)
    assert [(layer.module, layer.parameter, layer.dim) for layer in report.layers] == [
        ("conv", "weight", dim)
    ]
    state = load_file(output)
    assert tuple(state["conv.weight_g"].shape) == shape
    weight = load_file(checkpoint)["conv.weight"]
    expected = torch.norm_except_dim(weight.double(), 2, -1 if dim is None else dim).float()
    assert torch.equal(state["conv.weight_g"], expected)


def test_a_dim_for_all_leaves_a_rules_own_dim(checkpoint: Path) -> None:
    report = wncli.apply(checkpoint, "out.pt", layers=["conv=2", "rnn.u"], dim=None, dry_run=True)
    assert {layer.module: layer.dim for layer in report.layers} == {"conv": 2, "rnn": None}


@pytest.mark.parametrize("rule", ["conv=3", "conv=-2", "norm.weight=1", "rnn.u=2"])
def test_a_dim_out_of_range_is_refused_with_the_layer_and_writes_nothing(
    checkpoint: Path, rule: str
) -> None:
    output = checkpoint.with_name("out.safetensors")
    with pytest.raises(WeightNormError, match="out of range") as refusal:
        wncli.apply(checkpoint, output, layers=[rule])
    assert rule.partition("=")[0].split(".")[0] in str(refusal.value)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.safetensors"]


def test_everything_excluded_is_nothing_to_do(checkpoint: Path) -> None:
    output = checkpoint.with_name("out.safetensors")
    with pytest.raises(NothingToDo):
        wncli.apply(checkpoint, output, exclude=["conv"])
    assert not output.exists()
    wncli.apply(checkpoint, output, layers=["*"])
    with pytest.raises(NothingToDo):
        wncli.remove(output, checkpoint.with_name("plain.safetensors"), exclude=["conv"])


def test_a_rule_for_what_is_normalized_already_says_so(checkpoint: Path) -> None:
    output = checkpoint.with_name("out.safetensors")
    wncli.apply(checkpoint, output)
    with pytest.raises(UsageError, match=r"conv\.weight is normalized already"):
        wncli.apply(output, checkpoint.with_name("twice.safetensors"), layers=["conv"])


def test_rules_hold_for_listing_too(checkpoint: Path) -> None:
    output = checkpoint.with_name("out.safetensors")
    wncli.apply(checkpoint, output, layers=["conv", "rnn.u"])
    assert len(wncli.inspect(output).layers) == 2
    assert [layer.module for layer in wncli.inspect(output, layers=["rnn"]).layers] == ["rnn"]
    assert [layer.module for layer in wncli.inspect(output, exclude=["rnn"]).layers] == ["conv"]
    with pytest.raises(UsageError):
        wncli.inspect(output, layers=["cnov"])


@pytest.mark.parametrize("given", [None, 3, [3], b"conv", ["conv", None]], ids=repr)
def test_what_is_no_list_of_texts_is_refused_by_the_parameters_name(
    tmp_path: Path, given: object
) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"a.weight": torch.ones(2, 2)}, path)
    for name in ("layers", "exclude", "drop", "rename"):
        rules: dict[str, Any] = {name: given}
        with pytest.raises(UsageError, match=f"^{name}: these are no rules"):
            wncli.convert(path, tmp_path / "out.pt", **rules)
