"""`fold`, `split`, `respell`, `fit`: state dicts in memory, as the commands write them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wncli
import wncli.pytorch as wn
from tests.support.layers import Spelling
from tests.support.live import norms_of_their_own, vocoder
from tests.support.oracles import bits, load

both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def held(state: dict[str, Tensor]) -> list[tuple[str, Any]]:
    return [(name, bits(value)) for name, value in state.items()]


@pytest.mark.parametrize("dtype", DTYPES)
@both_spellings
def test_fold_gives_the_bits_and_the_order_that_the_command_writes(
    spelling: Spelling, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = vocoder(spelling).to(dtype).state_dict()
    torch.save(state, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert held(wn.fold(state)) == held(load(tmp_path / "out.pt"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, None])
@both_spellings
def test_split_gives_the_bits_and_the_order_that_the_command_writes(
    spelling: Spelling, dim: int | None, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = vocoder(None).to(dtype).state_dict()
    state["2.weight"][3] = 0
    torch.save(state, tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "out.pt", dim=dim, naming=spelling)
    assert held(wn.split(state, dim=dim, naming=spelling)) == held(load(tmp_path / "out.pt"))


def odd_layouts() -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(10, 8, 6)
    return {
        "transposed.weight": whole.transpose(0, 2),
        "sliced.weight": whole[::2, 1:5],
        "flipped.weight": whole[3:6].permute(1, 0, 2),
        "expanded.weight": torch.randn(1, 4).expand(3, 4),
        "channels_last.weight": torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last),
        "empty.weight": torch.ones(0, 3),
    }


@pytest.mark.parametrize("dim", [0, 1, None])
def test_tensors_of_every_layout_are_split_and_folded(dim: int | None, tmp_path: Path) -> None:
    state = odd_layouts()
    torch.save(state, tmp_path / "in.pt")
    wncli.apply(tmp_path / "in.pt", tmp_path / "split.pt", dim=dim)
    split = wn.split(state, dim=dim)
    assert held(split) == held(load(tmp_path / "split.pt"))
    for name, value in split.items():
        if name.endswith("_g"):
            value.mul_(1.5)
    torch.save(split, tmp_path / "again.pt")
    wncli.remove(tmp_path / "again.pt", tmp_path / "folded.pt")
    folded = wn.fold(split)
    assert held(folded) == held(load(tmp_path / "folded.pt"))
    last = "channels_last.weight"
    assert folded[last].stride() == state[last].stride()


@settings(max_examples=150, deadline=None)
@given(
    # One of a single element is taken for a placeholder of DeepSpeed's.
    st.lists(st.integers(1, 5), min_size=1, max_size=4).filter(lambda shape: shape != [1]),
    st.data(),
    st.sampled_from(DTYPES),
    st.sampled_from(["hook", "parametrized"]),
)
def test_what_is_split_and_folded_is_what_it_was_bit_for_bit(
    shape: list[int], data: st.DataObject, dtype: torch.dtype, spelling: Spelling
) -> None:
    dim = data.draw(st.sampled_from([None, *range(len(shape))]))
    order = data.draw(st.permutations(range(len(shape))))
    numbers = st.floats(-2.0, 2.0, width=16)
    drawn = data.draw(st.lists(numbers, min_size=prod(shape), max_size=prod(shape)))
    weight = torch.tensor(drawn).reshape(shape).to(dtype).permute(order)
    split = wn.split({"weight": weight}, layers=["weight"], dim=dim, naming=spelling)
    folded = wn.fold(wn.respell(split, "hook"))["weight"]
    assert bits(folded) == bits(weight)


def test_untouched_tensors_are_the_same_objects() -> None:
    state = vocoder("hook").state_dict()
    for made in (wn.fold(state), wn.split(state, layers=["3.weight"]), wn.respell(state, "hook")):
        assert made["0.bias"] is state["0.bias"]
        assert made["3.num_batches_tracked"] is state["3.num_batches_tracked"]


def test_split_shares_v_with_the_weight_and_respell_everything() -> None:
    state = vocoder(None).state_dict()
    split = wn.split(state, naming="hook")
    assert split["0.weight_v"].data_ptr() == state["0.weight"].data_ptr()
    respelled = wn.respell(split, "parametrized")
    assert list(respelled)[:2] == [
        "0.parametrizations.weight.original0", "0.parametrizations.weight.original1",
    ]  # fmt: skip
    for one, two in zip(split.values(), respelled.values(), strict=True):
        assert one is two


@both_spellings
def test_a_respelled_state_dict_loads_into_the_other_model(spelling: Spelling) -> None:
    other: Spelling = "parametrized" if spelling == "hook" else "hook"
    model = vocoder(other, seed=1)
    source = vocoder(spelling)
    model.load_state_dict(wn.respell(source.state_dict(), other))
    assert held(wn.fold(model.state_dict())) == held(
        wn.fold(wn.respell(source.state_dict(), other))
    )


@pytest.mark.parametrize("like", ["module", "state dict", "file"])
def test_fit_gives_what_loads_strictly(like: str, tmp_path: Path) -> None:
    model = nn.DataParallel(vocoder("parametrized", seed=1))
    reference: Any = model
    if like == "state dict":
        reference = model.state_dict()
    elif like == "file":
        reference = tmp_path / "like.pt"
        torch.save(model.state_dict(), reference)
    state = vocoder(None).state_dict()
    model.load_state_dict(wn.fit(state, reference))
    assert bits(model.module[0].parametrizations.weight.original1) == bits(state["0.weight"])
    with pytest.raises(wncli.WeightNormError, match="does not fit"):
        wn.fit({"0.weight": state["0.weight"]}, reference)


def test_lazily_negated_tensors_are_the_numbers_that_they_are() -> None:
    v = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert v.is_neg()
    folded = wn.fold({"weight_g": torch.ones(3, 1), "weight_v": v})["weight"]
    torch.testing.assert_close(folded, v / v.norm(dim=1, keepdim=True))
    made = wn.split({"weight": v})
    torch.testing.assert_close(made["weight_g"], v.norm(dim=1, keepdim=True))
    assert torch.equal(made["weight_v"], v)


def test_ties_stay() -> None:
    layer = vocoder("hook")[0].state_dict()
    state = {f"{place}.{name}": value for place in "ab" for name, value in layer.items()}
    folded = wn.fold(state)
    assert folded["a.weight"] is folded["b.weight"]
    split = wn.split(folded)
    assert split["a.weight_g"] is split["b.weight_g"]


def test_what_is_no_tensor_and_the_versions_go_along() -> None:
    state: Any = vocoder("hook").state_dict()
    state["4._extra_state"] = {"steps": 3}
    folded: Any = wn.fold(state)
    assert folded["4._extra_state"] is state["4._extra_state"]
    assert folded._metadata["3"] == {"version": 2}
    nn.Sequential(nn.Linear(3, 2)).load_state_dict(
        wn.fold(nn.Linear(3, 2).state_dict()), strict=False
    )


def test_nothing_needs_a_gradient_or_leaves_inference_tensors() -> None:
    state = dict(vocoder("hook").named_parameters())
    with torch.inference_mode():
        folded = wn.fold(state)
    assert not folded["0.weight"].requires_grad
    assert not folded["0.weight"].is_inference()
    assert folded["0.bias"] is state["0.bias"]


def test_rules_choose_layers_and_dims() -> None:
    state = vocoder(None).state_dict()
    split = wn.split(state, layers=["0=2", "4"], naming="hook")
    assert split["0.weight_g"].shape == (1, 1, 3)
    assert split["4.weight_g"].shape == (1, 1, 1)
    assert "2.weight" in split
    assert set(wn.fold(split, exclude=["0"])) == {*split, "4.weight"} - {"4.weight_g", "4.weight_v"}


@pytest.mark.parametrize("function", [wn.fold, wn.split])
def test_what_is_no_state_dict_is_refused(function: Any) -> None:  # noqa: ANN401
    model = vocoder("hook")
    with pytest.raises(wncli.UsageError, match="this is no state dict") as caught:
        function(model)
    assert caught.value.hint == "give its state_dict()"
    function(model.state_dict())
    for other in ("model.pt", None, [("weight", torch.ones(2, 2))]):
        with pytest.raises(wncli.UsageError, match="this is no state dict"):
            function(other)


def test_what_cannot_be_done_is_refused() -> None:
    state = vocoder("hook").state_dict()
    with pytest.raises(wncli.WeightNormError, match=r"0\.weight: is incomplete"):
        wn.fold({name: value for name, value in state.items() if name != "0.weight_g"})
    with pytest.raises(wncli.UsageError, match="there is no tensor in it"):
        wn.fold({"model": state})
    with pytest.raises(wncli.UsageError, match="no such choice"):
        wn.respell(state, "old")  # type: ignore[arg-type]
    with pytest.raises(wncli.UsageError, match="a key of it is no text"):
        wn.fold({0: torch.ones(2)})  # type: ignore[dict-item]
    state["2.weight_v"][1] = 0
    with pytest.raises(wncli.WeightNormError, match=r"slice 1 \(of 6\)"):
        wn.fold(state)


def test_a_mixed_pair_is_folded_in_the_wider_dtype(tmp_path: Path) -> None:
    layer: Any = nn.Linear(3, 2)
    wn.apply_weight_norm(layer, naming="hook")
    norms_of_their_own(layer)
    state = layer.state_dict() | {"weight_v": layer.weight_v.detach().half()}
    torch.save(state, tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    assert held(wn.fold(state)) == held(load(tmp_path / "out.pt"))
