"""`wn convert`: the same weights in another format or spelling; a pure rename computes nothing."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, forward, normalize, pair_of
from tests.support.oracles import FORMATS, bits, load, read, save
from tests.support.run import Ran

pytestmark = pytest.mark.thinned(5)

RunHere = Callable[..., Ran]

OTHER: dict[str, Spelling] = {"hook": "parametrized", "parametrized": "hook"}


def convert(state: Any, folder: Path, suffix: str = ".pt", **options: Any) -> Any:  # noqa: ANN401
    """Save, convert, load."""
    wncli.convert(save(state, folder / "in.pt"), folder / f"out{suffix}", **options)
    return read(folder / f"out{suffix}")


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether both hold the same names, and the same bits under each."""
    return {name: bits(t) for name, t in found.items()} == {
        name: bits(t) for name, t in expected.items()
    }


def layer(kind: str, dim: int | None, spelling: Spelling) -> nn.Module:
    """A normalized layer whose g is not the norm of v."""
    made = KINDS[kind]
    module = made.make()
    normalize(module, made.parameter, dim, spelling)
    with torch.no_grad():
        for name, g in module.named_parameters():
            if name == pair_of(made.parameter, spelling)[0]:
                g.mul_(torch.rand_like(g) + 0.5)
    return module


def small_model(spelling: Spelling) -> nn.Sequential:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ConvTranspose1d(4, 3, 2))
    for index in (0, 2):
        normalize(model[index], "weight", 0, spelling)
    return model


# Another spelling


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_a_respelled_layer_loads_strictly_and_computes_the_same_bit_for_bit(
    kind: str, dim: int | None, spelling: Spelling, tmp_path: Path
) -> None:
    source = layer(kind, dim, spelling)
    target = layer(kind, dim, OTHER[spelling])
    value = KINDS[kind].feed()
    found = convert(source.state_dict(), tmp_path, naming=OTHER[spelling])
    assert list(found) == list(target.state_dict())
    target.load_state_dict(found, strict=True)
    assert bits(forward(target, value)) == bits(forward(source, value))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("stored", FORMATS)
def test_respelling_to_parametrized_gives_what_pytorch_makes_of_hook_names(
    stored: str, suffix: str, tmp_path: Path
) -> None:
    state = small_model("hook").state_dict()
    model = small_model("parametrized")
    model.load_state_dict(state, strict=True)  # renames hook names by itself
    path = save(state, tmp_path / "in.pt", stored)
    wncli.convert(path, tmp_path / f"out{suffix}", naming="parametrized")
    assert same_bits(read(tmp_path / f"out{suffix}"), model.state_dict())


@st.composite
def state_dicts(draw: st.DrawFn) -> dict[str, Tensor]:
    """Hook pairs of any dtype, dim and bits, among other tensors."""
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    any_bytes = st.integers(0, 255)

    def tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = dtype.itemsize * math.prod(shape)
        raw = draw(st.lists(any_bytes, min_size=count, max_size=count))
        if not raw:
            return torch.empty(shape, dtype=dtype)
        return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape)

    state: dict[str, Tensor] = {}
    for index in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
        dim = draw(st.sampled_from([*range(len(shape)), None]))
        g_shape = tuple(n if axis == dim else 1 for axis, n in enumerate(shape))
        parameter = draw(st.sampled_from(["weight", "weight_hh_l0"]))
        dtype = draw(st.sampled_from(dtypes))
        prefix = draw(st.sampled_from(["", "up.", "a.b.parametrized.", "ü."])) + f"{index}."
        if draw(st.booleans()):
            state[f"{prefix}bias"] = tensor(
                (draw(st.integers(0, 2)),), draw(st.sampled_from([*dtypes, torch.int64]))
            )
        state[f"{prefix}{parameter}_g"] = tensor(() if dim is None else g_shape, dtype)
        state[f"{prefix}{parameter}_v"] = tensor(shape, dtype)
    return state


@pytest.mark.slow
@settings(max_examples=60, deadline=None, database=None)
@given(state=state_dicts(), formats=st.tuples(*[st.sampled_from([".pt", ".safetensors"])] * 3))
def test_to_the_other_spelling_and_back_gives_the_same_bits(
    state: dict[str, Tensor],
    formats: tuple[str, str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    first, other, again = (
        folder / f"{stage}{suffix}" for stage, suffix in zip("abc", formats, strict=True)
    )
    save_file(state, first) if formats[0] == ".safetensors" else torch.save(state, first)
    wncli.convert(first, other, naming="parametrized", force=True)
    assert not any(name.endswith(("_g", "_v")) for name in read(other))
    wncli.convert(other, again, naming="hook", force=True)
    assert same_bits(read(again), state)


def test_an_old_one_dimensional_magnitude_gets_the_shape_that_pytorch_gives_it(
    tmp_path: Path,
) -> None:
    conv = layer("Conv1d", 0, "parametrized")
    state = conv.state_dict()
    g, v = (state[name] for name in pair_of("weight", "parametrized"))
    old = {"bias": state["bias"], "weight_g": g.reshape(-1), "weight_v": v}
    assert same_bits(convert(old, tmp_path, naming="parametrized"), state)
    assert same_bits(
        convert(old, tmp_path, naming="hook", force=True),
        {"bias": state["bias"], "weight_g": g, "weight_v": v},
    )


def test_an_old_magnitude_of_the_whole_tensor_becomes_zero_dimensional(tmp_path: Path) -> None:
    state = layer("Linear", None, "parametrized").state_dict()
    g, v = (state[name] for name in pair_of("weight", "parametrized"))
    old = {"bias": state["bias"], "weight_g": g.reshape(1), "weight_v": v}
    assert same_bits(convert(old, tmp_path, naming="parametrized"), state)


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_a_stale_weight_is_dropped_with_a_warning(spelling: Spelling, tmp_path: Path) -> None:
    state = dict(small_model(spelling).state_dict())
    path = save(state | {"0.weight": torch.zeros(4, 2, 3)}, tmp_path / "in.pt")
    report = wncli.convert(path, tmp_path / "out.pt", naming=OTHER[spelling])
    (note,) = report.notes
    assert note.is_warning
    assert note.code == "stale-weight"
    assert "0.weight" in note.message
    assert set(load(tmp_path / "out.pt")) == set(small_model(OTHER[spelling]).state_dict())


def test_ties_strides_and_other_dtypes_survive_a_rename(tmp_path: Path) -> None:
    g, v = torch.rand(4, 1, 1), torch.randn(3, 5, 4).permute(2, 0, 1)
    state: dict[str, Any] = {
        "a.weight_g": g,
        "a.weight_v": v,
        "b.weight_g": g,
        "b.weight_v": v,
        "table": torch.tensor([1, 65535], dtype=torch.uint16),
        "nan": torch.tensor([math.nan, -0.0, math.inf]),
        "f8": torch.tensor([1.5]).to(torch.float8_e5m2),
    }
    found = convert(state, tmp_path, naming="parametrized")
    names = [f"a.{name}" for name in pair_of("weight", "parametrized")]
    assert found[names[1]].stride() == v.stride()
    assert found[names[1]].data_ptr() == found[f"b.{names[1][2:]}"].data_ptr()
    assert bits(found[names[0]]) == bits(g)
    assert bits(found[names[1]]) == bits(v)
    for name in ("table", "nan", "f8"):
        assert bits(found[name]) == bits(state[name])


def test_rules_choose_what_is_respelled(tmp_path: Path) -> None:
    state = small_model("hook").state_dict()
    by_layer = convert(state, tmp_path, naming="parametrized", layers=["0"])
    by_exclusion = convert(state, tmp_path, naming="parametrized", exclude=["2"], force=True)
    for found in (by_layer, by_exclusion):
        assert "0.parametrizations.weight.original0" in found
        assert "2.weight_g" in found


def test_names_that_are_taken_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    state = small_model("hook").state_dict() | {
        "0.parametrizations.weight.original0": torch.ones(1)
    }
    path = save(state, tmp_path / "in.pt")
    ran = wn_here("convert", path, tmp_path / "out.pt", "--naming", "parametrized")
    assert ran.code == 2
    assert "0.weight" in ran.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.pt"]


# Optimizers


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 2, 7, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_training_goes_on_after_a_rename_as_if_nothing_had_happened(
    spelling: Spelling, tmp_path: Path
) -> None:
    model = small_model(spelling)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    trained(model, optimizer, 3)
    both = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    path = save(copy.deepcopy(both), tmp_path / "in.pt")
    report = wncli.convert(path, tmp_path / "out.pt", naming=OTHER[spelling])
    (note,) = report.notes
    assert not note.is_warning
    assert "stays valid" in note.message

    found = load(tmp_path / "out.pt")
    other = small_model(OTHER[spelling])
    other.load_state_dict(found["model"], strict=True)
    resumed = torch.optim.Adam(other.parameters(), 1e-2)
    resumed.load_state_dict(found["optimizer"])
    trained(model, optimizer, 2)
    trained(other, resumed, 2)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert bits(one) == bits(two)


def test_an_optimizer_is_not_called_valid_where_a_magnitude_gets_another_shape(
    tmp_path: Path,
) -> None:
    g, v = torch.ones(3), torch.randn(3, 4)
    state = {0: {"exp_avg": torch.zeros(3)}, 1: {"exp_avg": torch.zeros(3, 4)}}
    optimizer = {"state": state, "param_groups": [{"params": [0, 1]}]}
    both = {"model": {"a.weight_g": g, "a.weight_v": v}, "optimizer": optimizer}
    report = wncli.convert(
        save(both, tmp_path / "in.pt"), tmp_path / "out.pt", naming="parametrized"
    )
    (note,) = (note for note in report.notes if note.code == "optimizer")
    assert note.is_warning


def test_an_optimizer_is_not_called_valid_where_parameters_change_their_order(
    tmp_path: Path,
) -> None:
    hook, parametrized = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
    normalize(hook, "in_proj_weight", 0, "hook")
    normalize(parametrized, "in_proj_weight", 0, "parametrized")
    shapes, others = ([p.shape for p in m.parameters()] for m in (hook, parametrized))
    assert shapes != others  # PyTorch puts parametrizations behind the module's children
    optimizer = torch.optim.Adam(hook.parameters()).state_dict()
    both = {"model": hook.state_dict(), "optimizer": optimizer}
    report = wncli.convert(
        save(both, tmp_path / "in.pt"), tmp_path / "out.pt", naming="parametrized"
    )
    (note,) = (note for note in report.notes if note.code == "optimizer")
    assert note.is_warning or "stays valid" not in note.message


# Another format


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("stored", FORMATS)
def test_another_format_holds_the_same_bits(stored: str, suffix: str, tmp_path: Path) -> None:
    state = small_model("hook").state_dict() | {
        "half": torch.randn(3).half(),
        "none": torch.empty(0, 2),
        "scalar": torch.tensor(7),
        "odd": torch.tensor([math.nan, -0.0]),
    }
    path = save(state, tmp_path / "in.pt", stored)
    wncli.convert(path, tmp_path / f"out{suffix}")
    assert same_bits(read(tmp_path / f"out{suffix}"), state)


def test_one_of_several_state_dicts_goes_to_safetensors_flat(tmp_path: Path) -> None:
    state = small_model("hook").state_dict()
    whole = {"model": {"generator": state, "discriminator": {"w": torch.ones(2)}}, "epoch": 1}
    found = convert(whole, tmp_path, ".safetensors", only="model.generator", naming="parametrized")
    assert set(found) == set(small_model("parametrized").state_dict())


def test_torch_to_torch_keeps_the_tree(tmp_path: Path) -> None:
    state = small_model("hook").state_dict()
    whole = {"epoch": 7, "model": state, "names": ["a", {"b": (1, None)}]}
    found = convert(whole, tmp_path, naming="parametrized")
    assert list(found) == ["epoch", "model", "names"]
    assert (found["epoch"], found["names"]) == (7, ["a", {"b": (1, None)}])


def test_plain_weights_are_written_in_another_format(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    assert same_bits(convert(state, tmp_path, ".safetensors"), state)


def test_metadata_of_safetensors_says_what_the_reader_expects(tmp_path: Path) -> None:
    convert(small_model("hook").state_dict(), tmp_path, ".safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


# The command


def test_a_spelling_for_plain_weights_leaves_nothing_to_do(
    wn_here: RunHere, tmp_path: Path
) -> None:
    path = save(nn.Linear(3, 2).state_dict(), tmp_path / "in.pt")
    ran = wn_here("convert", path, tmp_path / "out.pt", "--naming", "hook")
    assert ran.code == 1
    assert "no weight norm" in ran.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.pt"]


def test_the_json_of_a_rename_lists_its_layers(wn_here: RunHere, tmp_path: Path) -> None:
    path = save(small_model("hook").state_dict(), tmp_path / "in.pt")
    ran = wn_here("convert", path, tmp_path / "o.pt", "--naming", "parametrized", "--json")
    found = json.loads(ran.stdout)
    assert (found["schema"], found["command"], ran.code) == ("wn/1", "convert", 0)
    assert found["parameters"]["change"] == 0
    assert [(x["module"], x["action"], x["naming"]) for x in found["layers"]] == [
        ("0", "convert", "parametrized"),
        ("2", "convert", "parametrized"),
    ]
    assert found["layers"][0]["g"] == "0.parametrizations.weight.original0"


def test_a_dry_run_writes_nothing_and_says_the_same(wn_here: RunHere, tmp_path: Path) -> None:
    path = save(small_model("hook").state_dict(), tmp_path / "in.pt")
    ran = wn_here("convert", path, tmp_path / "o.pt", "--naming", "parametrized", "--dry-run")
    assert ran.code == 0
    assert "would respell 2 layers" in ran.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.pt"]


def test_rules_without_a_spelling_are_refused(wn_here: RunHere, tmp_path: Path) -> None:
    path = save(small_model("hook").state_dict(), tmp_path / "in.pt")
    ran = wn_here("convert", path, tmp_path / "out.pt", "-l", "0")
    assert ran.code == 2
    assert "--naming" in ran.stderr


def test_the_input_can_be_converted_in_place(tmp_path: Path) -> None:
    path = save(small_model("hook").state_dict(), tmp_path / "in.pt")
    wncli.convert(path, path, naming="parametrized", force=True)
    small_model("parametrized").load_state_dict(load(path), strict=True)


def test_packed_float4_goes_to_safetensors_and_back(tmp_path: Path) -> None:
    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    torch.save({"x": packed, "w": torch.ones(2, 2)}, tmp_path / "a.pt")
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.safetensors")
    wncli.convert(tmp_path / "b.safetensors", tmp_path / "c.pt")
    for found in (load_file(tmp_path / "b.safetensors"), load(tmp_path / "c.pt")):
        assert found["x"].dtype is torch.float4_e2m1fn_x2
        assert torch.equal(found["x"].view(torch.uint8), packed.view(torch.uint8))
    assert wncli.compare(tmp_path / "a.pt", tmp_path / "b.safetensors").equal
