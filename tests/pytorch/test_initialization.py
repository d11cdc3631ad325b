"""`initialize`: the paper's formula, layer after layer, whatever runs along g."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize

import wncli
import wncli.pytorch as wn
from tests.support.layers import Spelling
from tests.support.live import everything, norms_of_their_own, vocoder

both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])


def statistics(output: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    rows = output.detach().double().movedim(axis, 0).reshape(output.shape[axis], -1)
    return rows.mean(1), rows.var(1, correction=0)


class Written:
    """What layers compute, in the order of the forward."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.outputs: dict[str, Tensor] = {}
        for name, layer in layers.items():
            layer.register_forward_hook(self.writing(name))

    def writing(self, name: str) -> Any:  # noqa: ANN401
        def write(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self.outputs[name] = output

        return write


def keeping(inputs: dict[str, Tensor], name: str) -> Any:  # noqa: ANN401
    def keep(_module: nn.Module, given: tuple[Tensor]) -> None:
        inputs[name] = given[0]

    return keep


# -- the paper ------------------------------------------------------------------------------------


@both_spellings
def test_the_sample_wavenet_is_set_by_the_formula_of_the_paper(
    spelling: Spelling, make: ModuleType
) -> None:
    """Salimans & Kingma 2016, section 3: t = v.x / ||v||, g = 1 / sigma[t], b = -mu[t] / sigma[t].

    Each layer is computed here from what the layers before it give, as they are after all.
    """
    torch.manual_seed(0)
    model: nn.Module = make.PLAIN["wavenet.pt"]()
    wn.apply_weight_norm(model, naming=spelling)
    norms_of_their_own(model)
    wave = torch.rand(4, 1, 400) * 2 - 1
    done = wn.initialize(model, wave)
    assert len(done) == sum(isinstance(layer, nn.Conv1d) for layer in model.modules())
    inputs: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv1d):
            layer.register_forward_pre_hook(keeping(inputs, name))
    with torch.no_grad():
        model(wave)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv1d):
            continue
        chain: Any = layer
        v = chain.weight_v if spelling == "hook" else chain.parametrizations.weight.original1
        g = chain.weight_g if spelling == "hook" else chain.parametrizations.weight.original0
        wide, x = v.detach().double(), inputs[name].double()
        unit = wide / wide.square().sum((1, 2), keepdim=True).sqrt()
        t = nn.functional.conv1d(x, unit, None, layer.stride, layer.padding, layer.dilation)
        mean, variance = statistics(t, 1)
        sigma = variance.sqrt()
        torch.testing.assert_close(g.double().flatten(), 1 / sigma, rtol=2e-4, atol=0)
        assert layer.bias is not None
        torch.testing.assert_close(layer.bias.double(), -mean / sigma, rtol=2e-4, atol=2e-4)


@both_spellings
def test_pre_activations_have_mean_0_and_variance_1_through_a_network(spelling: Spelling) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3, padding=1), nn.ReLU(),
        nn.ConvTranspose1d(6, 8, 4, stride=2, groups=2), nn.Tanh(),
        nn.ConvTranspose1d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(252, 5),
    )  # fmt: skip
    wn.apply_weight_norm(model, naming=spelling)
    done = wn.initialize(model, torch.randn(64, 4, 19))
    assert done == ("0.weight", "2.weight", "4.weight", "7.weight")
    written = Written({name: model.get_submodule(name) for name in ("0", "2", "4", "7")})
    model(torch.randn(1, 4, 19))
    batch = torch.randn(64, 4, 19, generator=torch.Generator().manual_seed(3))
    wn.initialize(model, batch)
    model(batch)
    for output in written.outputs.values():
        mean, variance = statistics(output, 1)
        assert mean.abs().max() < 1e-4
        assert (variance - 1).abs().max() < 1e-4


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(4, 6), (50, 3, 4)),
    "Conv1d": (nn.Conv1d(4, 6, 3, groups=2), (20, 4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, (3, 1)), (20, 4, 9, 5)),
    "Conv3d": (nn.Conv3d(2, 3, 2), (20, 2, 4, 5, 3)),
    "unbatched Conv1d": (nn.Conv1d(4, 6, 3), (4, 99)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3), (20, 4, 9)),
    "grouped ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), (20, 4, 9)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, stride=2), (20, 4, 5, 5)),
}


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", LAYERS)
@both_spellings
def test_every_layer_along_every_dim_is_set(spelling: Spelling, kind: str, dim: int | None) -> None:
    made, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer: Any = type(made)(**{
        key: getattr(made, key)
        for key in (
            ("in_features", "out_features") if kind == "Linear"
            else ("in_channels", "out_channels", "kernel_size", "stride", "groups")
        )
    })  # fmt: skip
    wn.apply_weight_norm(layer, dim=dim, naming=spelling)
    norms_of_their_own(layer)
    batch = torch.randn(shape) + 0.5
    assert wn.initialize(layer, batch) == ("weight",)
    output = layer(batch)
    axis = output.dim() - 1 if kind == "Linear" else output.dim() - layer.weight.dim() + 1
    mean, variance = statistics(output, axis)
    assert mean.abs().max() < 1e-6
    assert (variance - 1).abs().max() < 1e-5
    (g,) = (p for n, p in layer.named_parameters() if n.endswith(("_g", "original0")))
    assert g.requires_grad
    output.sum().backward()
    assert g.grad is not None


def test_without_a_bias_the_variance_alone_is_set() -> None:
    layer = nn.Linear(4, 6, bias=False)
    wn.apply_weight_norm(layer)
    batch = torch.randn(50, 4) + 1
    wn.initialize(layer, batch)
    mean, variance = statistics(layer(batch), 1)
    assert (variance - 1).abs().max() < 1e-5
    assert mean.abs().max() > 0.01


# -- what it leaves alone -------------------------------------------------------------------------


def test_buffers_and_modes_stay_and_v_too_where_g_runs_along_the_output() -> None:
    model = vocoder("parametrized").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wn.initialize(model, torch.randn(8, 4, 12))
    after = model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0] for name in changed} == {
        "0", "0.parametrizations.weight", "2", "2.parametrizations.weight",
        "4.parametrizations.weight",
    }  # fmt: skip
    assert "0.parametrizations.weight.original1" not in changed
    assert "2.parametrizations.weight.original1" in changed  # whose g runs along the input
    assert model.training


def test_a_module_that_is_used_twice_is_set_the_first_time() -> None:
    layer = nn.Linear(4, 4)
    wn.apply_weight_norm(layer)
    batch = torch.randn(50, 4)
    wn.initialize(nn.Sequential(layer, nn.Tanh(), layer), batch)
    mean, variance = statistics(layer(batch), 1)
    assert mean.abs().max() < 1e-6
    assert (variance - 1).abs().max() < 1e-5


def test_layers_of_other_kinds_and_those_that_are_not_called_are_named() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.used(x)
            return found

    model = Model()
    wn.apply_weight_norm(model)
    done = wn.initialize(model, torch.randn(9, 4))
    assert list(done) == ["used.weight"]
    assert [(note.code, note.where) for note in done.notes] == [
        ("left-alone", "embedding.weight"), ("not-reached", "unused.weight"),
    ]  # fmt: skip
    with pytest.raises(wncli.UsageError, match=r"embedding\.weight cannot be initialized"):
        wn.initialize(model, torch.randn(9, 4), layers=["embedding"])


@pytest.mark.parametrize("batch", ["tensor", "tuple", "mapping"])
def test_a_batch_is_given_as_the_model_takes_it(batch: str) -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x * scale)

    layer = Two(4, 3)
    wn.apply_weight_norm(layer)
    x = torch.randn(50, 4)
    wn.initialize(layer, {"tensor": x, "tuple": (x, 2.0), "mapping": {"x": x, "scale": 2.0}}[batch])
    _, variance = statistics(layer(x, 1.0 if batch == "tensor" else 2.0), 1)
    assert (variance - 1).abs().max() < 1e-5


def test_a_compiled_model_is_initialized_through_its_wrapper() -> None:
    layer = nn.Linear(4, 3)
    wn.apply_weight_norm(layer)
    compiled: Any = torch.compile(layer, backend="eager")
    batch = torch.randn(50, 4)
    assert wn.initialize(compiled, batch) == ("weight",)
    _, variance = statistics(compiled(batch), 1)
    assert (variance - 1).abs().max() < 1e-5


@pytest.mark.parametrize("warm", [False, True])
def test_a_compiled_module_inside_is_initialized_also_after_it_has_run(*, warm: bool) -> None:
    inner = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    compiled: Any = torch.compile(inner, backend="eager")
    model = nn.Sequential(compiled, nn.Linear(3, 2))
    wn.apply_weight_norm(model)
    batch = torch.randn(50, 4)
    if warm:
        torch.compiler.reset()  # so that this very forward is what has been compiled
        with torch.no_grad():
            model(batch)
    assert wn.initialize(model, batch) == ("0.0.weight", "1.weight")
    for output in (inner[0](batch), model(batch)):
        mean, variance = statistics(output, 1)
        assert mean.abs().max() < 1e-6
        assert (variance - 1).abs().max() < 1e-5


def test_of_layers_that_are_tied_the_first_is_set_and_the_others_are_named() -> None:
    first, second = (parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2))
    for half in ("original0", "original1"):
        setattr(second.parametrizations["weight"], half,
                getattr(first.parametrizations["weight"], half))  # fmt: skip
    batch = torch.randn(50, 4)
    done = wn.initialize(nn.Sequential(first, nn.Tanh(), second), batch)
    assert list(done) == ["0.weight"]
    assert [note.message for note in done.notes] == [
        "2.weight is left alone: it is tied to 0.weight"
    ]
    mean, variance = statistics(first(batch), 1)
    assert mean.abs().max() < 1e-6
    assert (variance - 1).abs().max() < 1e-5


def test_a_bias_that_is_computed_is_not_set_and_its_layer_is_named() -> None:
    class Exponential(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.exp()

    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    parametrize.register_parametrization(layer, "bias", Exponential())
    before = everything(layer)
    done = wn.initialize(layer, torch.randn(50, 4))
    assert "weight is left alone: its bias is computed from something else" in repr(done)
    with pytest.raises(wncli.UsageError, match="its bias is computed"):
        wn.initialize(layer, torch.randn(50, 4), layers=["weight"])
    assert everything(layer) == before


class Counting(nn.Module):
    """Makes new buffers of its own, and has one that cannot be written to."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("places", torch.arange(5.0).expand(2, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        found: Tensor = self.layer(x)
        if len(x) == 7:
            raise OSError("seven")
        return found


@both_spellings
def test_buffers_that_the_forward_replaces_are_the_very_ones_of_before(spelling: Spelling) -> None:
    model = Counting()
    wn.apply_weight_norm(model, naming=spelling)
    model(torch.randn(5, 4))  # after which a hook's weight has a graph
    count, weight = model.count, model.layer.weight
    assert wn.initialize(model, torch.randn(50, 4)) == ("layer.weight",)
    assert model.count is count
    before, weight = everything(model), model.layer.weight
    with pytest.raises(OSError, match="seven"):
        wn.initialize(model, torch.randn(7, 4))
    assert everything(model) == before
    assert (model.layer.weight is weight) == (spelling == "hook")


# -- refusals -------------------------------------------------------------------------------------


@both_spellings
def test_a_channel_without_variance_is_refused_by_name_and_nothing_changes(
    spelling: Spelling,
) -> None:
    norm = nn.BatchNorm1d(6)
    nn.init.zeros_(norm.weight)  # so that the last layer gets the same numbers for all
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm, nn.Linear(6, 3))
    wn.apply_weight_norm(model, naming=spelling)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match=r"3\.weight: its output has no variance") as e:
        wn.initialize(model, torch.randn(9, 4))
    assert everything(model) == before
    assert e.value.hint.startswith("exclude=['3.weight']")
    assert wn.initialize(model, torch.randn(9, 4), exclude=["3.weight"]) == ("0.weight",)


def test_whatever_the_forward_raises_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(7, 3))
    wn.apply_weight_norm(model)
    before = everything(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        wn.initialize(model, torch.randn(9, 4))
    assert everything(model) == before


def test_what_gives_no_tensor_or_cannot_be_set_is_refused_by_name_and_nothing_changes() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:  # noqa: ANN401
            return super().forward(x), x

    with torch.inference_mode():
        fixed = nn.Linear(4, 3)
        parametrizations.weight_norm(fixed)
    pair = Pair(4, 3)
    wn.apply_weight_norm(pair)
    for model, says in ((pair, "its module gives no tensor"), (fixed, "made in inference mode")):
        before = everything(model)
        with pytest.raises(wncli.WeightNormError, match=f"weight: .*{says}"):
            wn.initialize(model, torch.randn(9, 4))
        assert everything(model) == before


def test_a_plain_model_has_nothing_to_initialize() -> None:
    assert wn.initialize(nn.Linear(4, 3), torch.randn(9, 4)) == ()
    assert not parametrize.is_parametrized(nn.Linear(4, 3))


def test_several_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would take a batch of its own; on one rank it works through the wrapper."""
    dist = torch.distributed
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        layer = nn.Linear(4, 3)
        wn.apply_weight_norm(layer)
        model = DistributedDataParallel(layer)
        assert wn.initialize(model, torch.randn(9, 4)) == ("weight",)
        monkeypatch.setattr(dist, "get_world_size", lambda _: 2)
        with pytest.raises(wncli.WeightNormError, match="each rank would initialize its copy"):
            wn.initialize(model, torch.randn(9, 4))
    finally:
        dist.destroy_process_group()
