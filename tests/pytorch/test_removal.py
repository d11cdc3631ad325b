"""`remove_weight_norm`: parameters as before, whatever normalized them; or nothing changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import wncli
import wncli.pytorch as wn
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, forward, normalize
from tests.support.live import everything, heard, norms_of_their_own, vocoder
from tests.support.oracles import bits

both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])


def exact(g: Tensor, v: Tensor, dim: int | None) -> Tensor:
    axes = [axis for axis in range(v.dim()) if axis != dim]
    norm = v.double().square().sum(axes, keepdim=True).sqrt()
    return g.double().reshape(norm.shape if dim is not None else [1] * v.dim()) * v.double() / norm


@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
@both_spellings
def test_every_kind_of_layer_becomes_plain_and_computes_the_same(
    spelling: Spelling, kind: str, dim: int | None
) -> None:
    made = KINDS[kind]
    layer, plain = made.make(), made.make()
    normalize(layer, made.parameter, dim, spelling)
    norms_of_their_own(layer)
    fed = made.feed()
    before = forward(layer, fed)
    g, v = (
        next(p for n, p in layer.named_parameters() if n.endswith(ends)).detach()
        for ends in (("_g", "original0"), ("_v", "original1"))
    )
    assert wn.remove_weight_norm(layer) == (made.parameter,)
    assert type(layer) is type(plain)
    assert list(dict(layer.named_parameters())) == list(dict(plain.named_parameters()))
    assert not [*layer._forward_pre_hooks, *layer._load_state_dict_pre_hooks]
    weight: Tensor = getattr(layer, made.parameter)
    assert weight.is_leaf
    torch.testing.assert_close(weight.detach().double(), exact(g, v, dim), rtol=2**-23, atol=0)
    torch.testing.assert_close(forward(layer, fed), before, rtol=1e-5, atol=1e-5)
    plain.load_state_dict(layer.state_dict())
    assert bits(forward(plain, fed)) == bits(forward(layer, fed))


@pytest.fixture(params=[nullcontext, torch.no_grad, torch.inference_mode])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


@both_spellings
@pytest.mark.usefixtures("mode")
def test_the_weight_is_a_parameter_that_trains_in_every_mode(spelling: Spelling) -> None:
    with torch.inference_mode(mode=False):
        model = vocoder(spelling)
    wn.remove_weight_norm(model)
    assert isinstance(model[0].weight, nn.Parameter)
    assert not model[0].weight.is_inference()
    with torch.inference_mode(mode=False), torch.enable_grad():
        model(torch.randn(2, 4, 12)).sum().backward()
    assert model[0].weight.grad is not None


@both_spellings
def test_dtype_memory_format_and_requires_grad_stay(spelling: Spelling) -> None:
    layer = nn.Conv2d(4, 6, 3, dtype=torch.bfloat16)
    layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    normalize(layer, "weight", 0, spelling)
    layer.requires_grad_(requires_grad=False)
    wn.remove_weight_norm(layer)
    assert layer.weight.dtype is torch.bfloat16
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert not layer.weight.requires_grad
    assert isinstance(layer.weight, nn.Parameter)


@both_spellings
def test_what_was_never_trained_comes_back_bit_for_bit(spelling: Spelling) -> None:
    plain = vocoder(None)
    model = copy.deepcopy(plain)
    wn.apply_weight_norm(model, naming=spelling)
    wn.remove_weight_norm(model)
    before, after = plain.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(bits(before[name]) == bits(after[name]) for name in before)


def test_a_plain_model_has_nothing_to_fold_and_that_is_no_error() -> None:
    model = vocoder(None)
    before = everything(model)
    assert wn.remove_weight_norm(model) == ()
    assert everything(model) == before


@both_spellings
def test_rules_choose_layers_as_on_the_command_line(spelling: Spelling) -> None:
    model = vocoder(spelling)
    assert wn.remove_weight_norm(model, layers=["[02]"], exclude=["2"]) == ("0.weight",)
    assert wn.remove_weight_norm(model) == ("2.weight", "4.weight")


def test_a_rule_that_matches_nothing_is_refused_with_names_that_are_near() -> None:
    model = vocoder("hook")
    before = everything(model)
    with pytest.raises(wncli.UsageError) as caught:
        wn.remove_weight_norm(model, layers=["0.wieght"])
    assert "layers=['0.weight']" in caught.value.hint
    with pytest.raises(wncli.UsageError, match="is not normalized"):
        wn.remove_weight_norm(model, layers=["3"])
    assert everything(model) == before


@both_spellings
def test_a_direction_that_is_undefined_is_refused_before_any_layer_changes(
    spelling: Spelling,
) -> None:
    model = vocoder(spelling)
    with torch.no_grad():
        next(p for n, p in model[4].named_parameters() if n.endswith(("_v", "original1"))).zero_()
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="all zero and has no direction") as caught:
        wn.remove_weight_norm(model)
    assert everything(model) == before
    assert caught.value.hint.startswith("exclude=['4.weight']")
    assert wn.remove_weight_norm(model, exclude=["4.weight"]) == ("0.weight", "2.weight")


@both_spellings
def test_a_zero_slice_under_a_zero_magnitude_is_zero(spelling: Spelling) -> None:
    model = nn.Linear(3, 2)
    normalize(model, "weight", 0, spelling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[1] = 0
    wn.remove_weight_norm(model)
    assert model.weight[1].tolist() == [0, 0, 0]


@both_spellings
def test_other_parametrizations_are_left_alone(spelling: Spelling) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    parametrizations.spectral_norm(model[0])
    parametrizations.orthogonal(model[1])
    normalize(model[2], "weight", 0, spelling)
    assert wn.remove_weight_norm(model) == ("2.weight",)
    assert parametrize.is_parametrized(model[0], "weight")
    assert parametrize.is_parametrized(model[1], "weight")
    with pytest.raises(wncli.UsageError, match="is spectral norm, not weight norm"):
        wn.remove_weight_norm(model, layers=["0"])


def test_another_parametrization_of_the_same_module_stays() -> None:
    model = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.register_parametrization(model, "bias", nn.ReLU())
    other = copy.deepcopy(model)
    assert wn.remove_weight_norm(model) == ("weight",)
    assert parametrize.is_parametrized(model, "bias")
    assert not parametrize.is_parametrized(model, "weight")
    assert bool((model.bias >= 0).all())
    assert isinstance(model.weight, nn.Parameter)
    # Its class was that of the copy.
    torch.testing.assert_close(other.weight, model.weight, rtol=1e-6, atol=0)


@both_spellings
def test_a_module_in_two_places_is_folded_once(spelling: Spelling) -> None:
    shared = nn.Linear(3, 3)
    normalize(shared, "weight", 0, spelling)
    model = nn.ModuleList([shared, nn.ReLU(), shared])
    assert wn.remove_weight_norm(model) == ("0.weight",)
    assert model[0] is model[2]


@both_spellings
def test_layers_of_one_g_and_v_have_one_weight_afterwards(spelling: Spelling) -> None:
    model: Any = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    wn.apply_weight_norm(model, naming=spelling)
    norms_of_their_own(model)
    for layer in model[1:]:
        if spelling == "hook":
            layer.weight_g, layer.weight_v = model[0].weight_g, model[0].weight_v
        else:
            own, first = layer.parametrizations.weight, model[0].parametrizations.weight
            own.original0, own.original1 = first.original0, first.original1
    assert wn.remove_weight_norm(model) == ("0.weight", "1.weight", "2.weight")
    assert model[0].weight is model[1].weight is model[2].weight


@both_spellings
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["DP", "compile"]
)
def test_wrappers_are_seen_through(
    spelling: Spelling, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    model = vocoder(spelling)
    wrapped = wrap(model)
    before = heard(model)
    heard(wrapped)
    assert wn.remove_weight_norm(wrapped) == ("0.weight", "2.weight", "4.weight")
    torch.testing.assert_close(heard(wrapped), before, rtol=0, atol=2e-6)


def test_weight_norm_of_ones_own_is_left_alone_and_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight_g = nn.Parameter(torch.ones(2, 1))
            self.weight_v = nn.Parameter(torch.ones(2, 3))

    model = nn.Sequential(Own())
    done = wn.remove_weight_norm(model)
    assert not done
    assert [note.code for note in done.notes] == ["own-code"]
    with pytest.raises(wncli.UsageError, match="code of its own"):
        wn.remove_weight_norm(model, layers=["0"])


def test_a_model_on_the_meta_device_is_folded_too() -> None:
    model = vocoder("parametrized").to("meta")
    wn.remove_weight_norm(model)
    assert model[0].weight.device.type == "meta"
    assert model[0].weight.shape == (6, 4, 3)


class Wrapper(Tensor):
    """A tensor that is made of another, as quantized ones are, and has no memory of its own."""

    within: Tensor

    def __new__(cls, inner: Tensor) -> Wrapper:  # noqa: PYI034
        made: Wrapper = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.within = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: object, _types: object, args: tuple[Any, ...] = (), _more: object = None
    ) -> Wrapper:
        if function is torch.ops.aten.detach.default:
            return cls(args[0].within)
        raise NotImplementedError(function)


def test_tensors_that_are_no_run_of_memory_are_refused_by_name_and_nothing_changes(
    tmp_path: Path,
) -> None:
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    plain[1].weight = nn.Parameter(Wrapper(torch.ones(3, 3)), requires_grad=False)
    model: Any = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(3, 3)) for _ in "ab"))
    chain = model[1].parametrizations.weight
    chain.original1 = nn.Parameter(Wrapper(torch.ones(3, 3)), requires_grad=False)
    kinds = [type(module) for module in model]
    for call in (
        lambda: wn.apply_weight_norm(plain),
        lambda: wn.split(plain.state_dict()),
        lambda: wn.remove_weight_norm(model),
        lambda: wn.fold(model.state_dict()),
        lambda: wn.split({"1.weight": torch.eye(3).to_sparse()}),
        lambda: wn.save(plain, tmp_path / "out.pt"),
    ):
        with pytest.raises(wncli.WnError, match=r": 1\.weight: this tensor is no run of numbers"):
            call()
    assert [type(module) for module in plain] == [nn.Linear, nn.Linear]
    assert [type(module) for module in model] == kinds
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_no_module_is_refused() -> None:
    scripted = torch.jit.script(nn.Linear(3, 2))
    with pytest.raises(wncli.UsageError, match="this is no module"):
        wn.remove_weight_norm({})  # type: ignore[arg-type]
    with pytest.raises(wncli.UsageError, match="TorchScript"):
        wn.remove_weight_norm(scripted)


def test_what_is_returned_reads_well_and_is_a_plain_tuple_otherwise() -> None:
    done = wn.remove_weight_norm(vocoder("hook"))
    assert repr(done) == (
        "<3 layers: 0.weight, 2.weight, 4.weight;"
        " an optimizer made before holds the old parameters: make it again>"
    )
    assert isinstance(done, tuple)
    again: Any = pickle.loads(pickle.dumps(done))  # noqa: S301 - made here
    assert (again, again.notes) == (done, done.notes)
