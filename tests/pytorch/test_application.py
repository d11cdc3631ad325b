"""`apply_weight_norm`: v is the weight, g exact, PyTorch's own hooks; or nothing changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import wncli
import wncli.pytorch as wn
from tests.support.layers import KINDS, KINDS_AND_DIMS, Spelling, forward, normalize
from tests.support.live import everything, heard, vocoder
from tests.support.oracles import bits

both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])


@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
@both_spellings
def test_a_layer_is_as_pytorch_makes_it_with_an_exact_magnitude(
    spelling: Spelling, kind: str, dim: int | None
) -> None:
    made = KINDS[kind]
    torch.manual_seed(0)
    layer = made.make()
    weight = getattr(layer, made.parameter).detach()
    theirs = copy.deepcopy(layer)
    normalize(theirs, made.parameter, dim, spelling)
    memory, copied = weight.data_ptr(), weight.clone()
    rule = f"{made.parameter}={'none' if dim is None else dim}"
    assert wn.apply_weight_norm(layer, layers=[rule], naming=spelling) == (made.parameter,)
    assert [(n, p.shape) for n, p in layer.named_parameters()] == [
        (n, p.shape) for n, p in theirs.named_parameters()
    ]
    assert [type(h) for h in layer._forward_pre_hooks.values()] == [
        type(h) for h in theirs._forward_pre_hooks.values()
    ]
    assert len(layer._load_state_dict_pre_hooks) == len(theirs._load_state_dict_pre_hooks)
    g, v = (
        next(p for n, p in layer.named_parameters() if n.endswith(ends)).detach()
        for ends in (("_g", "original0"), ("_v", "original1"))
    )
    assert v.data_ptr() == memory
    assert bits(v) == bits(copied)
    axes = [axis for axis in range(v.dim()) if axis != dim]
    norm = v.double().square().sum(axes, keepdim=True).sqrt().reshape(g.shape)
    assert bits(g) == bits(norm.float())
    fed = made.feed()
    torch.testing.assert_close(forward(layer, fed), forward(theirs, fed), rtol=1e-5, atol=1e-6)
    theirs.load_state_dict(layer.state_dict())
    assert bits(forward(layer, fed)) == bits(forward(theirs, fed))


@both_spellings
def test_real_steps_train_g_and_v(spelling: Spelling) -> None:
    model = vocoder(None).train()
    wn.apply_weight_norm(model, naming=spelling)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    fed, wanted = torch.randn(4, 4, 12), torch.randn(4, 1, 12)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(fed) - wanted).square().mean()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in model[4].parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    before = heard(model)
    wn.remove_weight_norm(model)
    torch.testing.assert_close(heard(model), before, rtol=0, atol=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model.train()
    loss = (model(fed) - wanted).square().mean()
    loss.backward()
    optimizer.step()
    assert (model(fed) - wanted).square().mean() < loss


@both_spellings
def test_a_zero_row_stays_zero_and_trains_without_nan(spelling: Spelling) -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[1] = 0
    kept = model.weight
    done = wn.apply_weight_norm(model, naming=spelling)
    assert [note.code for note in done.notes] == ["zero-slices", "optimizer"]
    fed = torch.randn(5, 3)
    output = model(fed)
    assert bits(output[:, 1]) == bits(model.bias.detach()[1].expand(5))
    output.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.step()
    assert bool(model(fed).isfinite().all())
    assert bool(model.weight[1].any())
    assert kept[1].tolist() == [0, 0, 0]  # what held the weight before has it as it was


@both_spellings
def test_without_rules_every_weight_but_vectors_is_taken(spelling: Spelling) -> None:
    model = vocoder(None)
    assert wn.apply_weight_norm(model, naming=spelling) == ("0.weight", "2.weight", "4.weight")
    assert wn.apply_weight_norm(model, naming=spelling) == ()  # all are normalized by now


@both_spellings
def test_a_copy_can_be_made_before_the_first_forward_and_after(spelling: Spelling) -> None:
    model = vocoder(None)
    wn.apply_weight_norm(model, naming=spelling)
    assert bits(heard(copy.deepcopy(model))) == bits(heard(model))


# -- like -----------------------------------------------------------------------------------------


def reference(how: str, tmp_path: Path) -> nn.Module | dict[str, Tensor] | Path:
    model = vocoder(None)
    normalize(model[0], "weight", 2, "hook")
    normalize(model[2], "weight", 1, "parametrized")
    if how == "module":
        return nn.DataParallel(model)
    state = {f"generator.{name}": value for name, value in model.state_dict().items()}
    if how == "state dict":
        return state
    torch.save(state, tmp_path / "like.pt")
    return tmp_path / "like.pt"


@pytest.mark.parametrize("how", ["module", "state dict", "file"])
def test_like_takes_layers_dims_and_spelling(how: str, tmp_path: Path) -> None:
    model = vocoder(None, seed=1)
    wanted = reference(how, tmp_path)
    assert wn.apply_weight_norm(model, like=wanted) == ("0.weight", "2.weight")
    assert model[0].weight_g.shape == (1, 1, 3)
    assert model[2].parametrizations.weight.original0.shape == (1, 5, 1)
    assert not parametrize.is_parametrized(model[4])


def test_like_and_rules_contradict_each_other() -> None:
    with pytest.raises(wncli.UsageError, match="`like` takes the layers"):
        wn.apply_weight_norm(vocoder(None), like=vocoder("hook"), layers=["0"])


# -- refusals -------------------------------------------------------------------------------------


def tied() -> nn.Module:
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    return nn.ModuleDict({"embedding": embedding, "head": head})


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))


def integer() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Module())
    model[1].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return model


def overflowing() -> nn.Module:
    large = nn.Linear(4, 2)
    nn.init.constant_(large.weight, 6e4)
    return nn.Sequential(nn.Linear(3, 4), large).half()


def tied_to_a_direction() -> nn.Module:
    normalized, plain = parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3)
    plain.weight = normalized.parametrizations["weight"].original1
    return nn.ModuleDict({"normalized": normalized, "plain": plain})


def of_inference_mode() -> nn.Module:
    with torch.inference_mode():
        last = nn.Linear(4, 2)
    return nn.Sequential(nn.Linear(3, 4), last)


def spectral() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), parametrizations.spectral_norm(nn.Linear(4, 2)))


@pytest.mark.parametrize(
    ("make", "rules", "says"),
    [
        (tied, [], "embedding.weight: this parameter is tied"),
        (tied_to_a_direction, [], "plain.weight: this parameter is tied"),
        (of_inference_mode, [], "1.weight: this tensor was made in inference mode"),
        (lazy, [], "1.weight: this parameter has no shape before the first forward"),
        (integer, ["0", "1.weight"], "1.weight: a int8 tensor cannot be normalized"),
        (overflowing, [], "1.weight: the norm of slices 0, 1 .of 2. is beyond what float16"),
        (lambda: vocoder("hook"), ["0.weight"], "0.weight is normalized already"),
        (spectral, ["0", "1.weight"], "1.weight is spectral norm, not weight norm"),
        (lambda: vocoder(None), ["0=3"], "dim 3 is out of range"),
    ],
)
@both_spellings
def test_what_cannot_be_normalized_is_refused_by_name_and_nothing_changes(
    spelling: Spelling, make: Callable[[], nn.Module], rules: list[str], says: str
) -> None:
    model = make()
    before = everything(model)
    with pytest.raises(wncli.WnError, match=says):
        wn.apply_weight_norm(model, layers=rules, naming=spelling)
    assert everything(model) == before


def test_names_that_a_module_has_for_something_else_are_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].register_buffer("weight_g", torch.ones(1))
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="an attribute weight_g already") as caught:
        wn.apply_weight_norm(model, naming="hook")
    assert everything(model) == before
    assert caught.value.hint == "naming='parametrized'"
    assert len(wn.apply_weight_norm(model, naming="parametrized")) == 2


def test_a_copy_of_a_model_of_inference_mode_is_normalized() -> None:
    model = of_inference_mode()
    with pytest.raises(wncli.WeightNormError) as caught:
        wn.apply_weight_norm(model)
    assert caught.value.hint == "copy.deepcopy(model) outside of it makes one"
    made = copy.deepcopy(model)
    wn.apply_weight_norm(made)
    made(torch.ones(1, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_a_refusal_says_which_layers_to_leave_out() -> None:
    for make, layers in (
        (tied, ["embedding.weight", "head.weight"]),
        (tied_to_a_direction, ["plain.weight"]),
        (overflowing, ["1.weight"]),
    ):
        model = make()
        with pytest.raises(wncli.WeightNormError) as caught:
            wn.apply_weight_norm(model)
        assert caught.value.hint.startswith(f"exclude={layers!r}")
        wn.apply_weight_norm(model, exclude=layers)


@pytest.mark.parametrize(("given", "says"), [({"naming": "old"}, "naming"), ({"dim": 0.5}, "dim")])
def test_arguments_that_are_none_are_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(wncli.UsageError, match=f"^{says}: no"):
        wn.apply_weight_norm(vocoder(None), **given)  # type: ignore[arg-type]
