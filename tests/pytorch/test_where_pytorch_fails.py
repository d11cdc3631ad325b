"""Where PyTorch's and transformers' own functions fail on live models, and what ours do there.

Each test shows both sides. The first was seen with PyTorch 2.13 and transformers 5.23.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import wncli
import wncli.pytorch as wn
from tests.support.families import APPLIED, BUILT_IN, Family, build
from tests.support.layers import Spelling, normalize
from tests.support.live import heard, norms_of_their_own, vocoder
from tests.support.oracles import bits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])
REMOVE: dict[Spelling, Callable[[nn.Module], object]] = {
    "hook": nn.utils.remove_weight_norm,
    "parametrized": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
}


def linear(spelling: Spelling, seed: int = 0) -> Any:  # noqa: ANN401 - its attributes come and go
    torch.manual_seed(seed)
    layer = nn.Linear(4, 3)
    normalize(layer, "weight", 0, spelling)
    norms_of_their_own(layer)
    with torch.no_grad():
        layer(torch.ones(1, 4))  # else the weight of a hook is the old one
    return layer


def other(spelling: Spelling) -> Spelling:
    return "parametrized" if spelling == "hook" else "hook"


# -- copying, saving, exporting -------------------------------------------------------------------


def test_a_model_with_hooks_cannot_be_copied_after_a_forward() -> None:
    layer = linear("hook")
    layer(torch.ones(1, 4))
    for copied in (copy.deepcopy, AveragedModel):
        with pytest.raises(RuntimeError, match="deepcopy"):
            copied(layer)
    wn.load_weights(layer, layer)  # makes the weight anew, as a leaf
    assert bits(copy.deepcopy(layer).weight) == bits(layer.weight)
    layer(torch.ones(1, 4))
    wn.remove_weight_norm(layer)
    averaged: Any = AveragedModel(layer)
    assert bits(averaged.module.weight) == bits(layer.weight)


def test_a_parametrized_module_cannot_be_pickled(tmp_path: Path) -> None:
    layer = linear("parametrized")
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        torch.save(layer, tmp_path / "whole.pt")
    wn.save(layer, tmp_path / "state.pt")
    wn.remove_weight_norm(layer)
    torch.save(layer, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert bits(again.weight) == bits(layer.weight)


@both_spellings
def test_a_normalized_model_cannot_be_scripted(spelling: Spelling) -> None:
    model = nn.Sequential(linear(spelling))
    fed = torch.ones(1, 4)
    with pytest.raises((torch.jit.Error, AttributeError)):  # "not working with scripting"
        torch.jit.script(model)(fed)
    wn.remove_weight_norm(model)
    assert bits(torch.jit.script(model)(fed)) == bits(model(fed))


@both_spellings
def test_traced_and_compiled_models_compute_the_same_and_keep_g_and_v(spelling: Spelling) -> None:
    model, fed = nn.Sequential(linear(spelling)), torch.ones(1, 4)
    with torch.no_grad():
        traced = torch.jit.trace(model, fed)
        assert len(traced.state_dict()) == 3
        assert bits(torch.compile(model, backend="eager")(fed)) == bits(model(fed))
    wn.remove_weight_norm(model)
    with torch.no_grad():
        again = torch.jit.trace(model, fed)
        torch.testing.assert_close(again(fed), traced(fed), rtol=1e-6, atol=0)
    assert len(again.state_dict()) == 2


@both_spellings
@pytest.mark.filterwarnings("ignore:The tensor attribute self.0.weight was assigned:UserWarning")
def test_exported_programs_keep_g_and_v_until_they_are_folded(spelling: Spelling) -> None:
    torch.compiler.reset()  # what older versions keep of the tests before, they run out of
    model, fed = nn.Sequential(linear(spelling)), (torch.ones(1, 4),)
    assert len(torch.export.export(model, fed).state_dict) == 3
    wn.remove_weight_norm(model)
    exported = torch.export.export(model, fed)
    assert sorted(exported.state_dict) == ["0.bias", "0.weight"]
    assert bits(exported.module()(*fed)) == bits(model(*fed))


# -- loading --------------------------------------------------------------------------------------


def test_the_weight_of_a_hook_is_stale_after_loading() -> None:
    for load in (nn.Module.load_state_dict, wn.load_weights):
        layer, source = linear("hook"), linear("hook", seed=1)
        load(layer, source.state_dict())
        is_stale = bits(layer.weight) != bits(source.weight)
        assert is_stale == (load is nn.Module.load_state_dict)


def test_the_newer_spelling_does_not_load_into_a_model_with_hooks() -> None:
    source, layer = linear("parametrized"), linear("hook", seed=1)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(source.state_dict())
    wn.load_weights(layer, source.state_dict())
    assert bits(layer.weight) == bits(source.weight)


@both_spellings
def test_plain_weights_do_not_load_into_a_normalized_model(spelling: Spelling) -> None:
    source = nn.Linear(4, 3)
    layer = linear(spelling, seed=1)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(source.state_dict())
    layer.load_state_dict(source.state_dict(), strict=False)  # without an error
    layer(torch.ones(1, 4))
    assert bits(layer.weight) == bits(before)
    wn.load_weights(layer, source.state_dict())
    torch.testing.assert_close(layer.weight, source.weight, rtol=2**-22, atol=0)


# -- removing -------------------------------------------------------------------------------------


@both_spellings
def test_removing_what_is_not_there_is_an_error(spelling: Spelling) -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"not found|does not have"):
        REMOVE[spelling](layer)
    assert wn.remove_weight_norm(layer) == ()


@both_spellings
def test_the_other_functions_do_not_find_what_these_made(spelling: Spelling) -> None:
    layer = linear(spelling)
    with pytest.raises(ValueError, match=r"not found|does not have"):
        REMOVE[other(spelling)](layer)
    assert wn.remove_weight_norm(layer) == ("weight",)


@pytest.mark.parametrize("family", [*APPLIED[:2], BUILT_IN[-1]], ids=lambda f: f.config.model_type)
def test_transformers_cannot_remove_what_it_applied(family: Family) -> None:
    torch.manual_seed(0)
    model: Any = family.kind(family.config).eval()
    part = model if family in APPLIED else model.decoder  # VITS' other parts are built normalized
    part.apply_weight_norm()
    with torch.no_grad():
        before = family.compute(model)
        with pytest.raises(ValueError, match="not found"):
            part.remove_weight_norm()
        assert len(wn.remove_weight_norm(model)) >= family.layers
        for one, two in zip(family.compute(model), before, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@both_spellings
def test_removing_forgets_that_a_module_was_frozen(spelling: Spelling) -> None:
    theirs, ours = (linear(spelling).requires_grad_(requires_grad=False) for _ in range(2))
    REMOVE[spelling](theirs)
    if spelling == "hook":
        assert theirs.weight.requires_grad
    else:
        assert "weight" in theirs._buffers
    wn.remove_weight_norm(ours)
    assert isinstance(ours.weight, nn.Parameter)
    assert not ours.weight.requires_grad


def test_removing_under_no_grad_makes_a_buffer_that_no_optimizer_sees() -> None:
    theirs, ours = linear("parametrized"), linear("parametrized")
    with torch.no_grad():
        REMOVE["parametrized"](theirs)
        wn.remove_weight_norm(ours)
    assert [name for name, _ in theirs.named_parameters()] == ["bias"]
    assert [name for name, _ in ours.named_parameters()] == ["weight", "bias"]


@both_spellings
def test_removing_under_inference_mode_makes_what_does_not_train(spelling: Spelling) -> None:
    theirs, ours = linear(spelling), linear(spelling)
    with torch.inference_mode():
        REMOVE[spelling](theirs)
        wn.remove_weight_norm(ours)
    assert theirs.weight.is_inference()
    assert not ours.weight.is_inference()
    ours(torch.ones(1, 4)).sum().backward()
    assert ours.weight.grad is not None


def test_removing_leaves_a_hook_that_renames_what_is_loaded() -> None:
    theirs, ours = linear("parametrized"), linear("parametrized")
    REMOVE["parametrized"](theirs)
    wn.remove_weight_norm(ours)
    for layer in (theirs, ours):
        normalize(layer, "weight", 0, "hook")
    state = linear("hook", seed=1).state_dict()
    with pytest.raises(RuntimeError, match=r"parametrizations\.weight\.original0"):
        theirs.load_state_dict(state)
    ours.load_state_dict(state)


@both_spellings
def test_removing_from_a_copy_breaks_the_original(spelling: Spelling) -> None:
    """A parametrized copy has the class of the original, which loses its property with it."""
    theirs, ours = linear(spelling), linear(spelling)
    with torch.no_grad():
        for layer in (theirs, ours):
            layer(torch.ones(1, 4))
    REMOVE[spelling](copy.deepcopy(theirs))
    wn.remove_weight_norm(copy.deepcopy(ours))
    if spelling == "parametrized":
        with pytest.raises(AttributeError):
            theirs(torch.ones(1, 4))
    ours(torch.ones(1, 4))


@both_spellings
def test_the_order_of_parameters_is_another_after_removing(spelling: Spelling) -> None:
    """Optimizers without names know parameters by their order."""
    theirs, ours = linear(spelling), linear(spelling)
    REMOVE[spelling](theirs)
    wn.remove_weight_norm(ours)
    assert [name for name, _ in theirs.named_parameters()] == ["bias", "weight"]
    assert [name for name, _ in ours.named_parameters()] == ["weight", "bias"]
    plain = nn.Linear(4, 3)
    fed = torch.ones(1, 4)
    optimizer = torch.optim.Adam(plain.parameters())
    plain(fed).sum().backward()
    optimizer.step()
    again = torch.optim.Adam(ours.parameters())
    again.load_state_dict(optimizer.state_dict())
    ours(fed).sum().backward()
    again.step()


# -- applying -------------------------------------------------------------------------------------


@both_spellings
def test_applying_twice(spelling: Spelling) -> None:
    layer = linear(spelling)
    if spelling == "hook":
        with pytest.raises(RuntimeError, match="two weight_norm hooks"):
            normalize(layer, "weight", 0, "hook")
    else:
        normalize(layer, "weight", 0, "parametrized")  # without an error, here
        with pytest.raises(TypeError):
            layer(torch.ones(1, 4))
    layer = linear(spelling)
    assert wn.apply_weight_norm(layer, naming=spelling) == ()
    with pytest.raises(wncli.UsageError, match="is normalized already"):
        wn.apply_weight_norm(layer, layers=["weight"], naming=spelling)
    layer(torch.ones(1, 4))


@both_spellings
def test_a_row_of_zeros_becomes_nan(spelling: Spelling) -> None:
    theirs, ours = nn.Linear(4, 3), nn.Linear(4, 3)
    for layer in (theirs, ours):
        layer.weight.data[1] = 0
    normalize(theirs, "weight", 0, spelling)
    assert bool(theirs(torch.ones(1, 4)).isnan().any())
    wn.apply_weight_norm(ours, naming=spelling)
    assert bool(ours(torch.ones(1, 4)).isfinite().all())


@both_spellings
def test_a_norm_that_float16_cannot_hold_becomes_infinite_without_a_word(
    spelling: Spelling,
) -> None:
    theirs, ours = (nn.Linear(4, 3).half() for _ in range(2))
    for layer in (theirs, ours):
        layer.weight.data.fill_(6e4)
    normalize(theirs, "weight", 0, spelling)
    g = next(value for name, value in theirs.named_parameters() if name.endswith(("_g", "0")))
    assert bool(g.isinf().all())
    with pytest.raises(wncli.WeightNormError, match="beyond what float16 can hold"):
        wn.apply_weight_norm(ours, naming=spelling)
    assert bits(ours.weight) == bits(torch.full((3, 4), 6e4).half())


@both_spellings
def test_applying_and_removing_changes_a_part_of_the_elements(spelling: Spelling) -> None:
    torch.manual_seed(0)
    theirs = nn.Conv1d(64, 64, 7)
    ours = copy.deepcopy(theirs)
    weight = theirs.weight.detach().clone()
    normalize(theirs, "weight", 0, spelling)
    REMOVE[spelling](theirs)
    changed = (theirs.weight != weight).float().mean()
    assert 0.05 < changed < 0.5
    wn.apply_weight_norm(ours, naming=spelling)
    wn.remove_weight_norm(ours)
    assert bits(ours.weight) == bits(weight)


@both_spellings
def test_a_tie_is_broken_on_one_side_without_a_word(spelling: Spelling) -> None:
    def tied() -> Any:  # noqa: ANN401
        embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
        head.weight = embedding.weight
        return nn.ModuleList([embedding, head])

    theirs, ours = tied(), tied()
    normalize(theirs[1], "weight", 0, spelling)
    v = next(value for name, value in theirs[1].named_parameters() if name.endswith(("_v", "1")))
    assert v is not theirs[0].weight
    assert v.data_ptr() == theirs[0].weight.data_ptr()
    with pytest.raises(wncli.WeightNormError, match="this parameter is tied"):
        wn.apply_weight_norm(ours, layers=["1.weight"], naming=spelling)
    assert ours[1].weight is ours[0].weight


@both_spellings
def test_a_layer_without_a_shape_is_refused_in_other_words(spelling: Spelling) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        normalize(nn.LazyLinear(3), "weight", 0, spelling)
    with pytest.raises(wncli.WeightNormError, match="no shape before the first forward"):
        wn.apply_weight_norm(nn.LazyLinear(3), naming=spelling)


@both_spellings
def test_dim_minus_one_is_the_whole_tensor(spelling: Spelling) -> None:
    theirs, ours = nn.Linear(4, 3), nn.Linear(4, 3)
    normalize(theirs, "weight", -1, spelling)
    wn.apply_weight_norm(ours, dim=-1, naming=spelling)
    for layer in (theirs, ours):
        assert [p.shape for n, p in layer.named_parameters() if n.endswith(("_g", "l0"))] == [()]


# -- what works, and has to go on ------------------------------------------------------------------


@both_spellings
def test_a_recurrent_weight_trains_loads_and_is_folded(spelling: Spelling) -> None:
    source, layer = (nn.LSTM(3, 4) for _ in range(2))
    fed = torch.randn(5, 2, 3)
    for each in (source, layer):
        wn.apply_weight_norm(each, layers=["weight_hh_l0"], naming=spelling)
    wn.load_weights(layer, source)
    torch.testing.assert_close(layer(fed)[0], source(fed)[0], rtol=0, atol=0)
    layer(fed)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    wn.remove_weight_norm(layer)
    torch.testing.assert_close(layer(fed)[0], source(fed)[0], rtol=1e-5, atol=1e-6)


@both_spellings
def test_data_parallel_and_compiled_models_load_below_their_prefix(spelling: Spelling) -> None:
    source = vocoder(spelling)
    model = vocoder("parametrized", seed=1)
    compiled: Any = torch.compile(copy.deepcopy(model), backend="eager")
    for wrapped in (nn.DataParallel(model), compiled):
        wn.load_weights(wrapped, source.state_dict())
        assert bits(heard(wrapped)) == bits(heard(source))
        wn.load_weights(source, wrapped.state_dict())


# -- transformers ---------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("offline")
def test_folded_weights_leave_a_speech_encoder_without_its_own(tmp_path: Path) -> None:
    family = BUILT_IN[0]
    torch.manual_seed(0)
    source: Any = family.kind(family.config).eval()
    (expected,) = family.compute(source)
    source.save_pretrained(tmp_path / "original")
    wncli.remove(tmp_path / "original", tmp_path / "folded")
    theirs: Any = family.kind.from_pretrained(tmp_path / "folded").eval()
    (wrong,) = family.compute(theirs)
    assert not torch.allclose(wrong, expected, atol=0.01)
    ours: Any = family.kind(family.config).eval()
    wn.load_weights(ours, tmp_path / "folded")
    (right,) = family.compute(ours)
    torch.testing.assert_close(right, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("offline")
def test_a_vocoder_that_was_saved_normalized_loads_at_random(tmp_path: Path) -> None:
    family = APPLIED[0]
    source = build(family, "parametrized", seed=0)
    (expected,) = family.compute(source)
    source.save_pretrained(tmp_path / "saved")
    theirs: Any = family.kind.from_pretrained(tmp_path / "saved").eval()
    (wrong,) = family.compute(theirs)
    largest = expected.abs().max()
    assert (wrong - expected).abs().max() > 0.5 * largest
    ours: Any = family.kind(family.config).eval()
    wn.load_weights(ours, tmp_path / "saved")
    (right,) = family.compute(ours)
    assert (right - expected).abs().max() < 1e-4 * largest


def meta_but_buffers(model: nn.Module) -> nn.Module:
    """As `accelerate.init_empty_weights` leaves a model: parameters alone have no numbers."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                module._parameters[name] = empty
    return model


@pytest.mark.usefixtures("offline")
def test_buffers_outside_the_state_dict_stay_on_the_meta_device_without_a_word() -> None:
    family = BUILT_IN[2]  # EnCodec keeps paddings and strides so
    torch.manual_seed(0)
    source = family.kind(family.config).eval()
    expected = family.compute(source)
    theirs = family.kind(family.config).eval().to("meta")
    theirs.load_state_dict(source.state_dict(), assign=True)
    assert any(buffer.is_meta for buffer in theirs.buffers())
    with pytest.raises(wncli.WeightNormError, match="in no state dict"):
        wn.load_weights(family.kind(family.config).eval().to("meta"), source, assign=True)
    ours: Any = meta_but_buffers(family.kind(family.config).eval())
    wn.load_weights(ours, source, assign=True)
    for one, two in zip(family.compute(ours), expected, strict=True):
        assert bits(one) == bits(two)
