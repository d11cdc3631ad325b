"""`wn convert --like REFERENCE`: what loads REFERENCE loads the result, which means the same."""

from __future__ import annotations

import itertools
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wncli
from tests.support.layers import Spelling, normalize, pair_of
from tests.support.oracles import FORMATS, bits, load, read, save
from tests.support.run import Ran
from wncli.checkpoint.prefixes import find_prefix_map

pytestmark = pytest.mark.thinned(23)

RunHere = Callable[..., Ran]
Tensors = dict[str, Tensor]
Kind = tuple[Literal["plain", "hook", "parametrized"], int | None]

SPELLINGS: tuple[Spelling, ...] = ("hook", "parametrized")
DIMS = (0, 2, None)
KINDS: list[Kind] = [("plain", 0), *itertools.product(SPELLINGS, DIMS)]
LAYERS = ("0", "2.inner")


class Block(nn.Module):
    """A layer below another name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ConvTranspose1d(6, 5, 4)


def model(kind: Kind = ("plain", 0), seed: int = 0) -> nn.Module:
    """A small network, with g that is not the norm of v."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), Block())
    spelling, dim = kind
    if spelling != "plain":
        for name in LAYERS:
            layer = made.get_submodule(name)
            normalize(layer, "weight", dim, spelling)
            with torch.no_grad():
                g = dict(layer.named_parameters())[pair_of("weight", spelling)[0]]
                g.mul_(torch.rand_like(g) + 0.5)
    return made


def state_of(kind: Kind = ("plain", 0), seed: int = 0) -> Tensors:
    return dict(model(kind, seed).state_dict())


def effective(state: Tensors, layer: str, kind: Kind) -> Tensor:
    """The weight that a layer computes with, by PyTorch, in float64."""
    spelling, dim = kind
    if spelling == "plain":
        return state[f"{layer}.weight"].double()
    g, v = (state[f"{layer}.{name}"].double() for name in pair_of("weight", spelling))
    return torch._weight_norm(v, g, -1 if dim is None else dim)


def like(state: Any, reference: Any, folder: Path, **options: Any) -> Any:  # noqa: ANN401
    """Save both, convert, load."""
    save(state, folder / "in.pt")
    save(reference, folder / "reference.pt")
    wncli.convert(folder / "in.pt", folder / "out.pt", like=folder / "reference.pt", **options)
    return load(folder / "out.pt")


# What is normalized there is normalized here


@pytest.mark.parametrize("wanted", KINDS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_result_loads_strictly_and_means_the_same_weights(
    kind: Kind, wanted: Kind, tmp_path: Path
) -> None:
    number = KINDS.index(kind) * len(KINDS) + KINDS.index(wanted)
    state, target = state_of(kind), model(wanted, seed=9)
    source = save(state, tmp_path / "in.pt", FORMATS[number % 3])
    reference = save(target.state_dict(), tmp_path / "reference.pt", FORMATS[number // 3 % 3])
    output = tmp_path / f"out{('.pt', '.safetensors')[number % 2]}"
    wncli.convert(source, output, like=reference)
    found = read(output)
    assert set(found) == set(target.state_dict())
    target.load_state_dict(found, strict=True)
    for name in set(found):
        if "weight" not in name or name.startswith("1."):
            assert bits(found[name]) == bits(state[name])
    for layer in LAYERS:
        before, after = effective(state, layer, kind), effective(found, layer, wanted)
        unit = np.spacing(np.abs(before.float().numpy())).astype(np.float64)
        assert (np.abs((after - before).numpy()) <= 2 * unit).all()
        if wanted[0] == "plain":
            continue
        g, v = (found[f"{layer}.{half}"] for half in pair_of("weight", wanted[0]))
        if kind[0] != "plain" and kind[1] == wanted[1]:
            halves = (state[f"{layer}.{half}"] for half in pair_of("weight", kind[0]))
            assert [bits(g), bits(v)] == [bits(half) for half in halves]
        else:
            axes = [axis for axis in range(3) if axis != wanted[1]]
            norms = v.double().square().sum(axes, keepdim=wanted[1] is not None).sqrt()
            error = (g.double() - norms).abs().numpy()
            assert (error <= 0.7500001 * np.spacing(g.numpy())).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_dtypes_are_those_of_the_checkpoint(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in state_of().items()
    }
    found = like(state, state_of(("hook", 0)), tmp_path)
    assert {found[f"{layer}.weight_{half}"].dtype for layer in LAYERS for half in "gv"} == {dtype}


def test_old_one_dimensional_magnitudes_of_the_reference_are_kept_to(tmp_path: Path) -> None:
    reference = state_of(("hook", 0))
    for layer in LAYERS:
        reference[f"{layer}.weight_g"] = reference[f"{layer}.weight_g"].reshape(-1)
    for kind in KINDS:
        found = like(state_of(kind), reference, tmp_path, force=True)
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in reference.items()}
    found = like(reference, state_of(("hook", 0), seed=5), tmp_path, force=True)
    assert {n: bits(t) for n, t in found.items()} == {
        n: bits(t) for n, t in state_of(("hook", 0)).items()
    }


# Names


def prefixed(prefix: str) -> Callable[[Tensors], Any]:
    return lambda state: {prefix + name: value for name, value in state.items()}


PLACES: dict[str, Callable[[Tensors], Any]] = {
    "flat": prefixed(""),
    "module": prefixed("module."),
    "_orig_mod": prefixed("_orig_mod."),
    "both": prefixed("_orig_mod.module."),
    "both the other way": prefixed("module._orig_mod."),
    "generator prefix": prefixed("generator."),
    "root": lambda state: {"generator": state},
    "nested root": lambda state: {"model": {"generator": state}},
    "lightning": lambda state: {"state_dict": prefixed("generator.")(state)},
    "wrapped in a root": lambda state: {"generator": prefixed("module.")(state)},
    "wrapped below a root": lambda state: {"state_dict": prefixed("generator.module.")(state)},
}


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Tensor]:  # noqa: ANN401
    if isinstance(tree, Tensor):
        return {path: tree}
    return {p: t for name, below in tree.items() for p, t in leaves(below, (*path, name)).items()}


@pytest.mark.parametrize("there", PLACES)
@pytest.mark.parametrize("here", PLACES)
def test_names_and_roots_become_those_of_the_reference(
    here: str, there: str, tmp_path: Path
) -> None:
    values = torch.rand(3), torch.rand(3, 1), torch.rand(3, 2)
    spelled = [
        dict(
            zip(
                ("a.bias", *(f"a.{half}" for half in pair_of("weight", spelling))),
                values,
                strict=True,
            )
        )
        for spelling in SPELLINGS
    ]
    state, expected = PLACES[here](spelled[0]), leaves(PLACES[there](spelled[1]))
    found = leaves(like(state, PLACES[there](spelled[1]), tmp_path))
    assert list(found) == list(expected)
    assert {path: bits(t) for path, t in found.items()} == {
        path: bits(t) for path, t in expected.items()
    }


dotted = st.lists(st.sampled_from(["a", "b", "module", "_orig_mod", "model"]), max_size=3).map(
    lambda parts: "".join(f"{part}." for part in parts)
)
names = st.sets(
    st.lists(st.sampled_from(["a", "b", "c", "weight", "0"]), min_size=1, max_size=3).map(".".join),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None, database=None)
@given(below=names, prefix=dotted, more=names, data=st.data())
def test_any_prefix_is_found_with_which_one_side_meets_in_full(
    below: set[str], prefix: str, more: set[str], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(sorted(below)))
    others = {prefix + name for name in below}
    longer = [*(f"discriminator.{name}.x" for name in sorted(more)), *sorted(others)]
    on = find_prefix_map(order, longer, [])
    assert {on.rename(name) for name in order} <= set(longer)
    off = find_prefix_map(longer, order, [])
    assert set(order) <= {off.rename(name) for name in longer}


@settings(max_examples=60, deadline=None, database=None)
@given(below=names, off=dotted, on=dotted)
def test_a_wrapper_is_taken_off_whatever_is_put_on(below: set[str], off: str, on: str) -> None:
    assume(set(off.split(".")) <= {"module", "_orig_mod", ""})
    theirs = {on + name for name in below}
    found = find_prefix_map([off + name for name in sorted(below)], theirs, [])
    assert {found.rename(off + name) for name in below} == theirs


# Where a state dict stands is its path of keys, however that reads

Put = Callable[[Any], Any]
#: What holds a state dict, and how the code that loads such a file gets at it.
HOLDERS: dict[str, tuple[Put, Put]] = {
    "top": (lambda state: state, lambda found: found),
    "key": (lambda state: {"model": state}, lambda found: found["model"]),
    "key with a dot": (lambda state: {"model.ema": state}, lambda found: found["model.ema"]),
    "two keys": (lambda state: {"model": {"ema": state}}, lambda found: found["model"]["ema"]),
    "dots at both ends": (lambda state: {".m.": {".": state}}, lambda found: found[".m."]["."]),
    "empty key": (lambda state: {"": state}, lambda found: found[""]),
    "empty keys": (lambda state: {"": {"": state}}, lambda found: found[""][""]),
    "two quotes": (lambda state: {"''": state}, lambda found: found["''"]),
    "number": (lambda state: {0: state}, lambda found: found[0]),
    "number below zero": (lambda state: {-1: {"m": state}}, lambda found: found[-1]["m"]),
    "number as text": (lambda state: {"0": state}, lambda found: found["0"]),
    "list": (lambda state: [state], lambda found: found[0]),
    "list below a key": (lambda state: {"models": [state]}, lambda found: found["models"][0]),
    "key below a list": (lambda state: [{"a.b": state}], lambda found: found[0]["a.b"]),
    "tuple": (lambda state: (state,), lambda found: found[0]),
    "list in a tuple": (lambda state: {"x": ([state],)}, lambda found: found["x"][0][0]),
    "ordered": (lambda state: OrderedDict(m=OrderedDict(n=state)), lambda found: found["m"]["n"]),
}


def shape_of(found: Any, state: object) -> object:  # noqa: ANN401
    """What holds a state dict, level by level, with a mark in the place of that."""
    if found is state or (isinstance(found, dict) and "0.bias" in found):
        return "state dict"
    if isinstance(found, dict):
        return {key: shape_of(value, state) for key, value in found.items()}
    return type(found)(shape_of(item, state) for item in found)


@pytest.mark.parametrize("there", HOLDERS)
@pytest.mark.parametrize("here", HOLDERS)
def test_the_state_dict_goes_where_what_loads_the_reference_looks(
    here: str, there: str, tmp_path: Path
) -> None:
    state, kind = state_of(), KINDS[1 + (len(here) + len(there)) % 6]
    (put, _), (put_there, get) = HOLDERS[here], HOLDERS[there]
    found = like(put(state), put_there(state_of(kind, 5)), tmp_path, verify=True)
    target = model(kind, 7)
    target.load_state_dict(get(found), strict=True)
    for name in state:
        if name not in {f"{layer}.weight" for layer in LAYERS}:
            assert bits(get(found)[name]) == bits(state[name])
    for layer in LAYERS:
        direction = get(found)[f"{layer}.{pair_of('weight', kind[0])[1]}"]  # type: ignore[arg-type]
        assert bits(direction) == bits(state[f"{layer}.weight"])
    if here != there and not {here, there} <= {"list", "tuple"}:
        assert shape_of(found, None) == shape_of(put_there(state), state)


TWINS: dict[str, tuple[Put, tuple[Put, Put]]] = {
    "dots": (
        lambda two: {"a.b": two[0], "a": {"b": two[1]}},
        (lambda found: found["a.b"], lambda found: found["a"]["b"]),
    ),
    "dots the other way": (
        lambda two: {"a": {"b": two[1]}, "a.b": two[0]},
        (lambda found: found["a.b"], lambda found: found["a"]["b"]),
    ),
    "dots of names": (
        lambda two: {"a": {"0": two[0]}, "a.0": two[1]},
        (lambda found: found["a"]["0"], lambda found: found["a.0"]),
    ),
    "a number and text": (
        lambda two: {0: two[0], "0": two[1]},
        (lambda found: found[0], lambda found: found["0"]),
    ),
    "the top and an empty key": (
        lambda two: {**two[0], "": two[1]},
        (lambda f: {k: v for k, v in f.items() if k}, lambda found: found[""]),
    ),
    "a list": (list, (lambda found: found[0], lambda found: found[1])),
    "a tuple": (lambda two: {"x": tuple(two)}, (lambda f: f["x"][0], lambda f: f["x"][1])),
    "one in the other": (
        lambda two: {"x": {**two[0], "ema": two[1]}},
        (lambda f: {k: v for k, v in f["x"].items() if k != "ema"}, lambda f: f["x"]["ema"]),
    ),
}


@pytest.mark.parametrize("source", ["in place", "written anew"])
@pytest.mark.parametrize("twins", TWINS)
def test_two_state_dicts_whose_paths_read_alike_both_go_to_their_places(
    twins: str,
    source: str,
    tmp_path: Path,
) -> None:
    """The second has one tensor more, so that it is clear which is meant."""
    put, gets = TWINS[twins]
    states = [state_of(seed=1), state_of(seed=2)]
    states[1]["more"] = torch.ones(2)
    references = [state_of(("hook", 0), 3), state_of(("hook", 0), 4)]
    references[1]["more"] = torch.zeros(2)
    content = dict(zip("xy", states, strict=True)) if source == "written anew" else put(states)
    found = like(content, put(references), tmp_path, verify=True)
    for get, state, reference in zip(gets, states, references, strict=True):
        assert set(get(found)) == set(reference)
        for layer in LAYERS:
            assert bits(get(found)[f"{layer}.weight_v"]) == bits(state[f"{layer}.weight"])


@pytest.mark.parametrize("twins", TWINS)
def test_state_dicts_whose_paths_read_alike_are_all_worked_on_and_verified(
    twins: str, tmp_path: Path
) -> None:
    put, gets = TWINS[twins]
    states = [state_of(seed=1), state_of(seed=2)]
    source = save(put(states), tmp_path / "a.pt")
    report = wncli.apply(source, tmp_path / "b.pt", verify=True)
    assert len({root.root for root in report.roots}) == 2
    found = load(tmp_path / "b.pt")
    for get, state in zip(gets, states, strict=True):
        for layer in LAYERS:
            assert bits(get(found)[f"{layer}.weight_v"]) == bits(state[f"{layer}.weight"])
    for root, state in zip(report.roots, states, strict=True):
        wncli.convert(source, tmp_path / "c.pt", only=root.root, force=True)
        alone = load(tmp_path / "c.pt")
        assert bits(alone["0.bias"]) in {bits(state["0.bias"]) for state in states}
    assert wncli.compare(source, tmp_path / "b.pt").equal


def test_compare_holds_state_dicts_at_one_path_against_each_other(tmp_path: Path) -> None:
    one, two = state_of(seed=1), state_of(seed=2)
    a = save({"a.b": one, "a": {"b": two}}, tmp_path / "a.pt")
    b = save({"a": {"b": two}}, tmp_path / "b.pt")
    found = wncli.compare(a, b)
    assert all(tensor.within for tensor in found.tensors)
    assert len(found.only_in_a) == len(one)
    c = save({"a": {"b": two}, "a.b": one}, tmp_path / "c.pt")
    assert wncli.compare(a, c).equal


@pytest.mark.parametrize(
    "reference",
    [
        lambda state: [state, 3],
        lambda state: [{"config": 1}, state],
        lambda state: {"m": (state, None)},
        lambda state: [state, {"other": torch.ones(2, 2)}],
    ],
)
def test_a_list_that_needs_more_than_the_state_dicts_is_refused(
    reference: Put, wn_here: RunHere, tmp_path: Path
) -> None:
    save(state_of(), tmp_path / "in.pt")
    save(reference(state_of(("hook", 0))), tmp_path / "reference.pt")
    command = ("convert", tmp_path / "in.pt", "--like", tmp_path / "reference.pt", "--partial")
    ran = wn_here(*command, tmp_path / "out.pt")
    assert ran.code == 2
    assert "item " in ran.stderr
    assert "1 of 2 items" in ran.stderr
    assert not (tmp_path / "out.pt").exists()
    assert wn_here(*command, tmp_path / "out.safetensors").code == 0


def test_one_mapping_under_two_keys_becomes_what_the_reference_has_under_each(
    tmp_path: Path,
) -> None:
    state = state_of()
    for reference in (
        {"a": state_of(("hook", 0)), "b": state_of()},
        {"a": state_of(), "b": state_of(("parametrized", 2))},
    ):
        found = like({"a": state, "b": state}, reference, tmp_path, verify=True, force=True)
        for key, wanted in reference.items():
            assert set(found[key]) == set(wanted)


# Several state dicts


def test_several_roots_meet_by_their_names(tmp_path: Path) -> None:
    one, two = state_of(("hook", 0)), {"post.weight": torch.ones(2, 2), "post.bias": torch.ones(2)}
    reference = {"discriminator": two, "model": {"generator": state_of(("parametrized", 0))}}
    found = like({"generator": one, "critic": two}, reference, tmp_path)
    assert list(found) == ["discriminator", "model"]
    assert list(found["discriminator"]) == list(two)
    model(("parametrized", 0)).load_state_dict(found["model"]["generator"], strict=True)


def test_with_the_same_roots_everything_else_is_kept(tmp_path: Path) -> None:
    state = {"epoch": 3, "model": state_of(("hook", 0)), "config": {"a": [1]}}
    found = like(state, {"model": state_of(("parametrized", 0)), "epoch": 9}, tmp_path)
    assert list(found) == ["epoch", "model", "config"]
    assert (found["epoch"], found["config"]) == (3, {"a": [1]})
    model(("parametrized", 0)).load_state_dict(found["model"], strict=True)


def test_several_that_fit_are_refused_until_only_names_one(
    wn_here: RunHere, tmp_path: Path
) -> None:
    both = {"model": state_of(("hook", 0), 1), "ema": state_of(("hook", 0), 2)}
    save(both, tmp_path / "in.pt")
    save(state_of(), tmp_path / "reference.pt")
    command = ("convert", tmp_path / "in.pt", tmp_path / "out.pt")
    ran = wn_here(*command, "--like", tmp_path / "reference.pt")
    assert ran.code == 2
    assert "--only model or --only ema" in ran.stderr
    assert not (tmp_path / "out.pt").exists()
    assert wn_here(*command, "--like", tmp_path / "reference.pt", "--only", "ema").code == 0
    found = load(tmp_path / "out.pt")
    model().load_state_dict(found, strict=True)
    assert bits(found["0.bias"]) == bits(both["ema"]["0.bias"])


def test_the_root_of_the_same_name_is_meant(tmp_path: Path) -> None:
    both = {"ema": state_of(("hook", 0), 2), "model": state_of(("hook", 0), 1)}
    found = like(both, {"model": state_of()}, tmp_path, partial=True)
    assert bits(found["model"]["0.bias"]) == bits(both["model"]["0.bias"])


def test_an_optimizer_is_not_called_valid_where_parameters_are_left_out(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(model(("hook", 0)).parameters()).state_dict()
    state = {"model": state_of(("hook", 0)), "optimizer": optimizer}
    reference = {"model": state_of(("parametrized", 0))}
    del reference["model"]["0.bias"]
    save(state, tmp_path / "in.pt")
    save(reference, tmp_path / "reference.pt")
    report = wncli.convert(
        tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "reference.pt", partial=True
    )
    for note in report.notes:
        assert "stays valid" not in note.message


# What does not fit

Change = Callable[[Tensors], object]
MISFITS: dict[str, tuple[Change, str, str]] = {
    "missing": (lambda state: state.pop("0.bias"), "missing", "0.bias"),
    "unexpected": (lambda state: state.update(extra=torch.ones(2)), "unexpected", "extra"),
    "shape-mismatch": (
        lambda state: state.update({"0.bias": torch.ones(7)}),
        "of another shape",
        "0.bias [7], not [6]",
    ),
    "pair of another shape": (
        lambda state: state.update({"0.weight_v": torch.ones(6, 4, 5)}),
        "of another shape",
        "[6, 4, 5]",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_refused_and_named_and_left_out_with_partial(
    misfit: str, wn_here: RunHere, tmp_path: Path
) -> None:
    change, word, name = MISFITS[misfit]
    state, reference = state_of(("hook", 0)), state_of(("parametrized", 0))
    change(state)
    save(state, tmp_path / "in.pt")
    save(reference, tmp_path / "reference.pt")
    command = (
        "convert",
        tmp_path / "in.pt",
        tmp_path / "out.pt",
        "--like",
        tmp_path / "reference.pt",
    )
    ran = wn_here(*command)
    assert ran.code == 2
    assert f"1 {word}" in ran.stderr
    assert name in ran.stderr
    assert "--partial" in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "reference.pt"]
    ran = wn_here(*command, "--partial", "--json")
    assert ran.code == 0
    codes = [note["code"] for note in json.loads(ran.stdout)["notes"]]
    assert codes[0] == "matched"
    assert codes[1:] == [misfit if misfit in codes else "shape-mismatch"]
    found = load(tmp_path / "out.pt")
    assert set(found) < set(reference) or misfit == "unexpected"
    model(("parametrized", 0)).load_state_dict(found, strict=misfit == "unexpected")


@pytest.mark.parametrize("partial", [True, False])
def test_nothing_in_common_is_refused_in_any_case(partial: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with pytest.raises(wncli.WeightNormError, match="does not fit"):
        like({"x.weight": torch.ones(2, 2)}, state_of(), tmp_path, partial=partial)
    assert not (tmp_path / "out.pt").exists()


def test_a_dtype_without_weight_norm_is_refused(tmp_path: Path) -> None:
    state = state_of() | {"0.weight": torch.ones(6, 4, 3, dtype=torch.int8)}
    with pytest.raises(wncli.WeightNormError, match="int8"):
        like(state, state_of(("hook", 0)), tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--like", "reference.pt", "--naming", "hook"), "--naming"),
        (("--partial",), "--partial"),
        (("--like", "reference.pt", "-l", "0"), "-l 0"),
        (("--like", "reference.pt", "-x", "0"), "-x 0"),
        (("--like", "nothing.pt"), "nothing.pt"),
    ],
)
def test_contradictions_are_refused(
    options: tuple[str, ...], named: str, wn_here: RunHere, tmp_path: Path
) -> None:
    save(state_of(("hook", 0)), tmp_path / "in.pt")
    save(state_of(), tmp_path / "reference.pt")
    placed = [tmp_path / option if option.endswith(".pt") else option for option in options]
    ran = wn_here("convert", tmp_path / "in.pt", tmp_path / "out.pt", *placed)
    assert ran.code == 2
    assert named in ran.stderr
    assert not (tmp_path / "out.pt").exists()


def test_the_report_tells_what_became_of_each_layer(tmp_path: Path) -> None:
    state = {**state_of(("hook", 0)), "plain.weight": torch.randn(3, 2)}
    wanted = state_of(("hook", 2))
    wanted |= {"plain.weight_g": torch.ones(3, 1), "plain.weight_v": torch.ones(3, 2)}
    save(state, tmp_path / "in.pt")
    save(wanted, tmp_path / "reference.pt")
    report = wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "reference.pt")
    assert [(layer.module, layer.dim) for layer in report.layers] == [
        ("0", 2), ("2.inner", 2), ("plain", 0)
    ]  # fmt: skip
    assert report.layers[2].action == "apply"
    assert report.parameters.change == (3 - 6) + (4 - 6) + 3
    assert [note.code for note in report.notes] == ["matched"]


def test_an_empty_name_is_a_name(tmp_path: Path) -> None:
    torch.save({"": torch.ones(2, 2), "a": torch.ones(2)}, tmp_path / "in.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.pt", like=tmp_path / "in.pt")
    assert set(load(tmp_path / "out.pt")) == {"", "a"}
