"""Tensors that share memory or lie oddly in it: what is tied stays tied, and nothing else is."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import wncli
from tests.support.every_dtype import SAFETENSORS_DTYPES, tensor_of
from tests.support.layers import Spelling, normalize, pair_of
from tests.support.oracles import bits, load

pytestmark = pytest.mark.thinned(5)

State = dict[str, Tensor]
SUFFIXES = [".pt", ".safetensors"]
suffixes = pytest.mark.parametrize("suffix", SUFFIXES)


def read(path: Path) -> State:
    found: State = load(path) if path.suffix == ".pt" else safetensors.torch.load_file(path)
    return found


def run(state: Any, folder: Path, command: str, suffix: str = ".pt", **options: Any) -> State:  # noqa: ANN401
    """Save, run a command, load."""
    torch.save(state, folder / "in.pt")
    out = folder / f"out{suffix}"
    getattr(wncli, command)(folder / "in.pt", out, force=True, **options)
    return read(out)


def hold_bits(found: State, expected: State) -> None:
    assert {k: bits(t) for k, t in found.items()} == {k: bits(t) for k, t in expected.items()}


def storages(path: Path) -> int:
    """How many storages a torch file holds."""
    with zipfile.ZipFile(path) as archive:
        return sum("/data/" in name for name in archive.namelist())


def are_tied(*tensors: Tensor) -> bool:
    """Whether these are one tensor in memory."""
    return len({(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in tensors}) == 1


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def header_of(path: Path) -> Any:  # noqa: ANN401
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def shared_block(spelling: Spelling | None) -> nn.ModuleDict:
    """One convolution that stands under three names, and a weight that two layers share."""
    block = nn.Conv1d(3, 3, 2)
    first, second = nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
    if spelling:
        normalize(block, "weight", 0, spelling)
        normalize(first, "weight", 0, spelling)
        normalize(second, "weight", 0, spelling)
    model = nn.ModuleDict(
        {"a": block, "b": block, "c": nn.Sequential(block), "x": first, "y": second}
    )
    for name in pair_of("weight", spelling) if spelling else ("weight",):
        *path, last = name.split(".")
        one, other = (m.get_submodule(".".join(path)) for m in (first, second))
        setattr(other, last, getattr(one, last))
    return model


# -- ties --------------------------------------------------------------------------------------


@suffixes
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_tied_pairs_are_folded_once_and_tied_again(
    spelling: Spelling, suffix: str, tmp_path: Path
) -> None:
    state = shared_block(spelling).state_dict()
    torch.save(state, tmp_path / "in.pt")
    report = wncli.remove(tmp_path / "in.pt", tmp_path / f"out{suffix}")
    assert report.parameters.after == 3 * 3 * 2 + 3 + 12 + 3
    if suffix == ".safetensors":
        wncli.convert(tmp_path / "out.safetensors", tmp_path / "out.pt")
    found = load(tmp_path / "out.pt")
    shared_block(None).load_state_dict(found, strict=True)
    assert are_tied(found["a.weight"], found["b.weight"], found["c.0.weight"])
    assert are_tied(found["a.bias"], found["b.bias"], found["c.0.bias"])
    assert are_tied(found["x.weight"], found["y.weight"])
    assert storages(tmp_path / "out.pt") == 4
    for name in ("a.", "x."):
        g, v = (state[name + half] for half in pair_of("weight", spelling))
        torch.testing.assert_close(found[name + "weight"], torch._weight_norm(v, g, 0))


@suffixes
def test_tied_weights_are_split_once_tied_again_and_come_back(suffix: str, tmp_path: Path) -> None:
    state = shared_block(None).state_dict()
    run(state, tmp_path, "apply", suffix)
    if suffix == ".safetensors":
        wncli.convert(tmp_path / f"out{suffix}", tmp_path / "out.pt")
    found = load(tmp_path / "out.pt")
    shared_block("hook").load_state_dict(found, strict=True)
    for half in "gv":
        assert are_tied(*(found[f"{name}.weight_{half}"] for name in ("a", "b", "c.0")))
        assert are_tied(found[f"x.weight_{half}"], found[f"y.weight_{half}"])
    assert storages(tmp_path / "out.pt") == 6
    wncli.remove(tmp_path / "out.pt", tmp_path / "back.pt")
    hold_bits(load(tmp_path / "back.pt"), state)
    assert storages(tmp_path / "back.pt") == 4


@suffixes
@pytest.mark.parametrize("shared", ["g", "v"])
def test_pairs_that_share_one_half_are_folded_each_for_itself(
    shared: str, suffix: str, tmp_path: Path
) -> None:
    halves = {"g": lambda: torch.rand(4, 1) + 0.5, "v": lambda: torch.randn(4, 3)}
    state: State = {f"{name}.weight_{half}": halves[half]() for name in "ab" for half in "gv"}
    state[f"b.weight_{shared}"] = state[f"a.weight_{shared}"]
    found = run(state, tmp_path, "remove", suffix)
    for name in "ab":
        expected = torch._weight_norm(state[f"{name}.weight_v"], state[f"{name}.weight_g"], 0)
        torch.testing.assert_close(found[f"{name}.weight"], expected)
    assert not are_tied(*found.values())


def test_ties_between_state_dicts_stay(tmp_path: Path) -> None:
    model = shared_block("hook").state_dict()
    content = {"model": model, "ema": dict(model), "best": {"table.data": model["x.weight_v"]}}
    found: Any = run(content, tmp_path, "remove")
    for name in ("a.weight", "x.weight", "a.bias"):
        assert are_tied(found["model"][name], found["ema"][name])
    hold_bits(found["best"], content["best"])
    assert storages(tmp_path / "out.pt") == 5


@suffixes
def test_a_tied_weight_that_is_not_chosen_stays_as_it_is(suffix: str, tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    weight[1] = 0  # its direction is another in v, which must not show in the plain weight
    state = {"a.weight": weight, "b.weight": weight, "c.weight": weight}
    found = run(state, tmp_path, "apply", suffix, layers=["a", "c=1"])
    state_again = found | ({"b.weight": weight} if suffix == ".safetensors" else {})
    assert bits(state_again["b.weight"]) == bits(weight)
    for name, dim in (("a", 0), ("c", 1)):
        g, v = found[f"{name}.weight_g"], found[f"{name}.weight_v"]
        torch.testing.assert_close(torch._weight_norm(v, g, dim), weight)
    assert "b.weight" in found


@suffixes
def test_of_two_tied_pairs_one_can_be_folded_alone(suffix: str, tmp_path: Path) -> None:
    g, v = torch.rand(4, 1), torch.randn(4, 3)
    state = {f"{name}.weight_{half}": t for name in "ab" for half, t in (("g", g), ("v", v))}
    found = run(state, tmp_path, "remove", suffix, layers=["b"])
    assert set(found) == {"a.weight_g", "a.weight_v", "b.weight"}
    assert (bits(found["a.weight_g"]), bits(found["a.weight_v"])) == (bits(g), bits(v))
    torch.testing.assert_close(found["b.weight"], torch._weight_norm(v, g, 0))


def test_tensors_of_one_flat_storage_stay_in_it(tmp_path: Path) -> None:
    flat = torch.randn(100)
    state = {
        "a.weight_g": flat[:4].reshape(4, 1), "a.weight_v": flat[4:24].reshape(4, 5),
        "b.weight": flat[30:60].reshape(5, 6), "b.bias": flat[60:65], "step": flat[99],
    }  # fmt: skip
    found = run(state, tmp_path, "remove")
    expected = torch._weight_norm(state["a.weight_v"], state["a.weight_g"], 0)
    torch.testing.assert_close(found.pop("a.weight"), expected)
    hold_bits(found, {name: state[name] for name in found})
    assert len({t.untyped_storage().data_ptr() for t in found.values()}) == 1
    assert found["b.bias"].storage_offset() == 60
    found = run(state, tmp_path, "apply")
    halves = {"b.weight_g": found["b.weight_g"], "b.weight_v": state["b.weight"]}
    hold_bits(found, {k: t for k, t in state.items() if k != "b.weight"} | halves)
    hold_bits(run(state, tmp_path, "convert", ".safetensors"), state)


# -- views -------------------------------------------------------------------------------------


def views() -> dict[str, Tensor]:
    """Tensors of three dims and more, laid out in every way that `torch.save` keeps."""
    base = torch.randn(6, 5, 4, 3)
    return {
        "row-major": base[..., 0].contiguous(), "transposed": base.transpose(0, 2),
        "channels last": base.contiguous(memory_format=torch.channels_last),
        "strided": base[::2, 1::3, :, 0], "narrowed": base[1:3, :, 1:], "offset": base[3],
        "expanded": torch.randn(4, 1, 3).expand(4, 5, 3),
        "repeated": torch.randn(1, 5, 3).expand(4, 5, 3),
        "windows": torch.randn(9).unfold(0, 5, 2)[:, None], "one": torch.randn(1, 1, 1),
        "permuted": base.permute(3, 1, 0, 2), "no rows": torch.zeros(0, 2, 3),
        "no columns": torch.zeros(3, 0, 2),
        "holes": torch.as_strided(base, (3, 2, 2), (20, 7, 2), 5),
    }  # fmt: skip


VIEWS = sorted(views())


@pytest.mark.parametrize("name", [*VIEWS, "0-d", "empty"])
def test_a_view_is_copied_with_its_layout_and_through_safetensors_with_its_values(
    name: str, tmp_path: Path
) -> None:
    odd = {"0-d": torch.tensor(2.5), "empty": torch.zeros(0)}
    state = {"w": (views() | odd)[name], "other": torch.ones(2)}
    found = run(state, tmp_path, "convert")
    hold_bits(found, state)
    assert found["w"].stride() == state["w"].stride()
    assert found["w"].storage_offset() == state["w"].storage_offset()
    hold_bits(run(state, tmp_path, "convert", ".safetensors"), state)
    wncli.convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    hold_bits(load(tmp_path / "back.pt"), state)


@suffixes
@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("zeros", ["", "zeros"])
def test_a_view_is_split_and_folded_as_its_copy_would_be(
    name: str,
    zeros: str,
    suffix: str,
    tmp_path: Path,
) -> None:
    view = views()[name]
    if zeros and view.numel():
        for column in view[0]:  # one by one, for torch writes into no tensor that overlaps itself
            column[:] = 0
    before = bits(view)
    for dim in range(view.dim()):
        found = run({"weight": view, "same": view}, tmp_path, "apply", suffix, dim=dim)
        g, v = found["weight_g"], found["weight_v"]
        assert bits(found["same"]) == before
        alone = run({"weight": view}, tmp_path, "apply", suffix, dim=dim)
        assert (bits(alone["weight_g"]), bits(alone["weight_v"])) == (bits(g), bits(v))
        if view.numel():
            torch.testing.assert_close(torch._weight_norm(v, g, dim), view.contiguous())
        wncli.remove(tmp_path / f"out{suffix}", tmp_path / f"back{suffix}", force=True)
        assert bits(read(tmp_path / f"back{suffix}")["weight"]) == before


@suffixes
@pytest.mark.parametrize("name", [name for name in VIEWS if "no " not in name])
def test_a_direction_that_is_a_view_folds_as_pytorch_folds_it(
    name: str, suffix: str, tmp_path: Path
) -> None:
    v = views()[name]
    g = torch.rand(v.shape[0], 1).expand(-1, 2)[:, :1].reshape(-1, *(1 for _ in v.shape[1:]))
    found = run({"weight_g": g, "weight_v": v, "same": v}, tmp_path, "remove", suffix)
    torch.testing.assert_close(found["weight"], torch._weight_norm(v.contiguous(), g, 0))
    assert bits(found["same"]) == bits(v)


def test_rows_that_share_memory_are_told_apart_where_one_is_all_zero(tmp_path: Path) -> None:
    """Giving a zero row its direction must not reach the rows that overlap it."""
    weight = torch.tensor([0.0, 0, 0, 5, 0, 0, 0, 0]).unfold(0, 3, 1)
    found = run({"weight": weight}, tmp_path, "apply")
    recomputed = torch._weight_norm(found["weight_v"].contiguous(), found["weight_g"], 0)
    torch.testing.assert_close(recomputed, weight.contiguous(), rtol=0, atol=0)


# -- dtypes ------------------------------------------------------------------------------------


def test_every_dtype_comes_back_through_safetensors(tmp_path: Path) -> None:
    state = {dtype: tensor_of(dtype, 2, 3) for dtype in SAFETENSORS_DTYPES}
    state |= {f"{dtype} 0-d": tensor_of(dtype) for dtype in SAFETENSORS_DTYPES}
    state |= {f"{dtype} empty": tensor_of(dtype, 0, 3) for dtype in SAFETENSORS_DTYPES}
    hold_bits(run(state, tmp_path, "convert", ".safetensors"), state)
    wncli.convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    back = load(tmp_path / "back.pt")
    hold_bits(back, state)
    assert {back[name].dtype for name in back} == {
        getattr(torch, dtype) for dtype in SAFETENSORS_DTYPES
    }


# -- as save_model and load_model have it ------------------------------------------------------


def triple() -> nn.Module:
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("b", "a", "z")})
    for name in "az":
        model[name].weight = model["b"].weight
    model["z"].bias = model["a"].bias
    return model


def embedding() -> nn.Module:
    model = nn.ModuleDict({"wte": nn.Embedding(5, 3), "lm_head": nn.Linear(3, 5, bias=False)})
    model["lm_head"].weight = model["wte"].weight
    return model


def buffers() -> nn.Module:
    model = nn.ModuleDict({"n": nn.BatchNorm1d(3), "m": nn.BatchNorm1d(3)})
    model["m"].running_var = model["n"].running_var
    return model


TIED: dict[str, Callable[[], nn.Module]] = {
    "triple": triple, "embedding": embedding, "buffers": buffers,
    "shared block": lambda: shared_block(None), "normalized": lambda: shared_block("hook"),
}  # fmt: skip


@pytest.mark.parametrize("name", TIED)
def test_ties_become_what_save_model_makes_of_them_and_come_back(name: str, tmp_path: Path) -> None:
    model = TIED[name]()
    state = model.state_dict()
    run(state, tmp_path, "convert", ".safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "expected.safetensors"), {"format": "pt"})
    assert header_of(tmp_path / "out.safetensors") == header_of(tmp_path / "expected.safetensors")
    fresh = TIED[name]()
    assert not any(safetensors.torch.load_model(fresh, tmp_path / "out.safetensors"))
    hold_bits(fresh.state_dict(), state)
    for source in ("out", "expected"):
        wncli.convert(tmp_path / f"{source}.safetensors", tmp_path / f"{source}.pt", force=True)
        back = load(tmp_path / f"{source}.pt")
        hold_bits(back, state)
        for one, tensor in state.items():
            tied = {other for other in state if are_tied(state[other], tensor)}
            assert tied == {other for other in back if are_tied(back[other], back[one])}
    wncli.convert(tmp_path / "out.pt", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "out.safetensors"
    ).read_bytes()


def test_views_that_overlap_without_being_equal_are_each_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(4, 3)
    state = {
        "all": base,
        "part": base[1:3],
        "turned": base.t(),
        "flat": base.view(-1),
        "again": base,
    }
    found = run(state, tmp_path, "convert", ".safetensors")
    hold_bits(found, {name: t.contiguous() for name, t in state.items() if name != "all"})
    assert metadata_of(tmp_path / "out.safetensors") == {
        "format": "pt", "all": "again", "wn.tie:all": "again",
    }  # fmt: skip


# -- what only reads like a tie ----------------------------------------------------------------

#: Metadata whose text is a tensor's name, and that records no tie.
COINCIDENCES = {
    "a note": {"note": "conv.weight"},
    "a note with dots": {"modelspec.main_layer": "conv.weight"},
    "a module": {"conv": "conv.weight"},
    "a name below it": {"conv.weight.source": "conv.weight"},
    "another of its module": {"conv.main": "conv.weight"},
    "a bare name": {"weight": "conv.weight"},
    "the format": {"format": "conv.weight"},
    "nothing": {"": "conv.weight"},
    "a name of another kind": {"other.bias": "conv.weight"},
}


@pytest.mark.parametrize("metadata", COINCIDENCES.values(), ids=COINCIDENCES)
@pytest.mark.parametrize("command", ["convert", "remove"])
def test_metadata_that_happens_to_name_a_tensor_stays_metadata(
    command: str, metadata: dict[str, str], tmp_path: Path
) -> None:
    state = {"conv.weight": torch.randn(2, 3), "conv.bias": torch.randn(2)}
    state |= {"n.weight_g": torch.ones(2, 1), "n.weight_v": torch.randn(2, 5)}
    source = tmp_path / "in.safetensors"
    safetensors.torch.save_file(state, source, metadata)
    assert wncli.inspect(source).parameters.before == sum(t.numel() for t in state.values())
    getattr(wncli, command)(source, tmp_path / "out.safetensors")
    getattr(wncli, command)(source, tmp_path / "out.pt")
    assert metadata_of(tmp_path / "out.safetensors") == metadata
    expected = state.keys() if command == "convert" else {"conv.weight", "conv.bias", "n.weight"}
    for name in ("out.pt", "out.safetensors"):
        read = load if name == "out.pt" else safetensors.torch.load_file
        assert read(tmp_path / name).keys() == expected


@pytest.mark.parametrize("metadata", [{"note": "weight"}, {"a": "b"}, {"x": "weight", "y": "b"}])
def test_where_no_tensor_has_a_module_a_text_is_no_tie(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    state = {"weight": torch.randn(2, 3), "b": torch.randn(2)}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors", metadata)
    wncli.convert(tmp_path / "in.safetensors", tmp_path / "out.pt")
    assert load(tmp_path / "out.pt").keys() == state.keys()


#: Tied names that no reader could tell from a text, and one that it can.
ODD_TIES = [("a", "d"), ("again", "all"), ("conv.weight", "proj"), ("emb", "head.weight"),
            ("x.weight_v", "y.weight"), ("wte.weight", "lm_head.weight")]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ODD_TIES)
@pytest.mark.parametrize("shards", [None, 1])
def test_a_tie_under_any_names_comes_back_through_safetensors(
    one: str, other: str, shards: int | None, tmp_path: Path
) -> None:
    shared = torch.randn(3, 4)
    state = {one: shared, other: shared, "c.bias": torch.randn(3)}
    torch.save(state, tmp_path / "in.pt")
    middle = tmp_path / ("middle" if shards else "middle.safetensors")
    wncli.convert(tmp_path / "in.pt", middle, max_shard_size=shards, format="safetensors")
    wncli.convert(middle, tmp_path / "back.pt")
    back = load(tmp_path / "back.pt")
    hold_bits(back, state)
    assert are_tied(back[one], back[other])


def test_a_text_that_stands_under_a_tied_name_is_not_overwritten(tmp_path: Path) -> None:
    """`save_model` does not override user data either."""
    state = {"a.weight": torch.ones(2, 2)}
    source, middle = tmp_path / "in.safetensors", tmp_path / "middle.safetensors"
    metadata = {"b.weight": "what I say of it", "wn.tie:b.weight": "a.weight"}
    safetensors.torch.save_file(state, source, metadata)
    wncli.convert(source, middle)
    assert metadata_of(middle) == metadata
    wncli.convert(middle, tmp_path / "back.pt")
    back = load(tmp_path / "back.pt")
    assert are_tied(back["a.weight"], back["b.weight"])
