"""`load_weights`: whatever is given goes into whatever model, or nothing changes."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import wncli
import wncli.pytorch as wn
from tests.support.layers import Spelling
from tests.support.live import everything, heard, mel, norms_of_their_own, vocoder
from tests.support.oracles import bits
from tests.support.run import ROOT

SPELLINGS: tuple[Spelling | None, ...] = (None, "hook", "parametrized")
#: As far as PyTorch's own product is off the exact one, times a layer's fan-in.
ROUNDING = 2e-6

each_spelling = pytest.mark.parametrize("spelling", SPELLINGS)
each_target = pytest.mark.parametrize("into", SPELLINGS)


def given_as(how: str, model: nn.Module, folder: Path) -> Any:  # noqa: ANN401
    """A model's weights in one of the ways that people have them."""
    state = model.state_dict()
    match how:
        case "module":
            return model
        case "state dict":
            return state
        case "torch":
            torch.save(state, folder / "in.pt")
        case "legacy":
            torch.save(state, folder / "in.pt", _use_new_zipfile_serialization=False)
        case "safetensors":
            save_file(state, folder / "in.safetensors")
            return folder / "in.safetensors"
        case "training":
            wrapped = {f"module.{name}": value for name, value in state.items()}
            torch.save({"epoch": 3, "model": wrapped, "args": {"lr": 0.1}}, folder / "in.pt")
        case "loaded":
            return {"epoch": 3, "model": {f"module.{name}": v for name, v in state.items()}}
    return folder / "in.pt"


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "how", ["module", "state dict", "torch", "legacy", "safetensors", "training", "loaded"]
)
@each_target
@each_spelling
@pytest.mark.thinned(5)
def test_any_spelling_and_format_loads_into_any_structure(
    spelling: Spelling | None, into: Spelling | None, how: str, tmp_path: Path, *, assign: bool
) -> None:
    source = vocoder(spelling)
    expected = heard(source)
    model = vocoder(into, seed=1)
    assert not torch.allclose(heard(model), expected, atol=0.01)
    given = given_as(how, source, tmp_path)
    done = wn.load_weights(model.to("meta") if assign else model, given, assign=assign)
    assert not done.missing
    assert not done.unexpected
    is_folded = into is None and spelling is not None
    is_split = spelling is None and into is not None
    found = heard(model)
    if is_folded or is_split:
        torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
        assert len(done.layers) == 3
    else:
        assert bits(found) == bits(expected)
        assert len(done.layers) == (3 if spelling != into else 0)
    assert bits(model[3].num_batches_tracked) == bits(source[3].num_batches_tracked)


@pytest.mark.parametrize("stored", ["torch", "safetensors"])
@each_spelling
def test_what_is_folded_has_the_bits_that_the_command_writes(
    spelling: Spelling | None, stored: str, tmp_path: Path
) -> None:
    path = given_as(stored, vocoder(spelling), tmp_path)
    if spelling:
        wncli.remove(path, tmp_path / "folded.pt")
    else:
        torch.save(vocoder(None).state_dict(), tmp_path / "folded.pt")
    folded = torch.load(tmp_path / "folded.pt")
    model = vocoder(None, seed=1)
    wn.load_weights(model, path)
    assert {n: bits(v) for n, v in model.state_dict().items()} == {
        n: bits(v) for n, v in folded.items()
    }


def test_what_is_split_has_the_bits_that_the_command_writes(tmp_path: Path) -> None:
    path = given_as("torch", vocoder(None), tmp_path)
    wncli.apply(path, tmp_path / "split.pt", naming="parametrized")
    split = torch.load(tmp_path / "split.pt")
    model = vocoder("parametrized", seed=1)
    wn.load_weights(model, path)
    assert {n: bits(v) for n, v in model.state_dict().items()} == {
        n: bits(v) for n, v in split.items()
    }


# -- precision ----------------------------------------------------------------------------------


def test_a_weight_is_cast_to_the_models_dtype_before_it_is_split() -> None:
    weight = torch.randn(6, 4, 3)
    model = parametrizations.weight_norm(nn.Conv1d(4, 6, 3, bias=False).bfloat16())
    wn.load_weights(model, {"weight": weight})
    held = model.parametrizations.weight
    assert bits(held.original1) == bits(weight.bfloat16())
    exact = weight.bfloat16().double().square().sum((1, 2), keepdim=True).sqrt()
    assert bits(held.original0) == bits(exact.bfloat16())


def test_a_pair_is_folded_in_the_files_dtype_before_it_is_cast() -> None:
    g, v = torch.rand(6, 1, 1) + 0.5, torch.randn(6, 4, 3)
    model = nn.Conv1d(4, 6, 3, bias=False).bfloat16()
    wn.load_weights(model, {"weight_g": g, "weight_v": v})
    exact = g.double() * v.double() / v.double().square().sum((1, 2), keepdim=True).sqrt()
    assert bits(model.weight) == bits(exact.float().bfloat16())


# -- which names ----------------------------------------------------------------------------------


def test_the_generator_is_found_in_a_training_checkpoint(tmp_path: Path) -> None:
    source, other = vocoder("hook"), nn.Sequential(nn.Conv2d(1, 4, 5), nn.Conv2d(4, 1, 3))
    state = {"generator": source.state_dict(), "discriminator": other.state_dict(), "steps": 10}
    torch.save(state, tmp_path / "in.pt")
    model = vocoder("parametrized", seed=1)
    wn.load_weights(model, tmp_path / "in.pt")
    assert bits(heard(model)) == bits(heard(source))


def test_of_two_copies_only_says_which(tmp_path: Path) -> None:
    source, ema = vocoder("hook"), vocoder("hook", seed=2)
    torch.save({"model": source.state_dict(), "ema": ema.state_dict()}, tmp_path / "in.pt")
    model = vocoder("parametrized", seed=1)
    before = everything(model)
    with pytest.raises(wncli.UsageError, match="only='ema'"):
        wn.load_weights(model, tmp_path / "in.pt")
    assert everything(model) == before
    wn.load_weights(model, tmp_path / "in.pt", only="ema")
    assert bits(heard(model)) == bits(heard(ema))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.generator."])
def test_prefixes_go_and_come(prefix: str) -> None:
    source = vocoder("hook")
    model = vocoder("parametrized", seed=1)
    wn.load_weights(model, {f"{prefix}{n}": v for n, v in source.state_dict().items()})
    assert bits(heard(model)) == bits(heard(source))
    wrapped = nn.ModuleDict({"generator": vocoder("parametrized", seed=1)})
    wn.load_weights(nn.ModuleDict({"model": wrapped}), source)
    assert bits(heard(wrapped["generator"])) == bits(heard(source))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_seen_through(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, model = vocoder("hook"), vocoder("parametrized", seed=1)
    wn.load_weights(wrap(model), source)
    assert bits(heard(model)) == bits(heard(source))


def test_missing_and_unexpected_names_are_refused_and_nothing_changes() -> None:
    state = vocoder("hook").state_dict()
    del state["0.bias"]
    state["9.weight"] = torch.ones(3)
    model = vocoder("parametrized", seed=1)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError) as caught:
        wn.load_weights(model, state)
    assert "1 missing: 0.bias; 1 unexpected: 9.weight" in str(caught.value)
    assert caught.value.hint == "strict=False"
    assert everything(model) == before
    done = wn.load_weights(model, state, strict=False)
    assert (done.missing, done.unexpected) == (("0.bias",), ("9.weight",))
    assert bits(model[2].weight) == bits(
        torch._weight_norm(state["2.weight_v"], state["2.weight_g"], 0)
    )


def test_nothing_that_meets_is_refused_however_strict() -> None:
    model = vocoder("parametrized")
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="does not fit"):
        wn.load_weights(model, {"encoder.layer": torch.ones(3, 3)}, strict=False)
    assert everything(model) == before


def test_another_shape_is_refused_however_strict_as_pytorch_does() -> None:
    state = vocoder(None).state_dict() | {"0.weight": torch.ones(6, 4, 5)}
    model = vocoder(None, seed=1)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match=r"size mismatch for 0\.weight"):
        wn.load_weights(model, state, strict=False)
    assert everything(model) == before


def test_a_model_whose_last_module_cannot_be_written_to_is_refused_and_nothing_changes() -> None:
    with torch.inference_mode():
        last = nn.Linear(4, 2)
    expanded = nn.Linear(4, 2)
    expanded.weight = nn.Parameter(torch.ones(1, 4).expand(2, 4))
    state = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)
    ).state_dict()
    for module, says in ((last, "made in inference mode"), (expanded, "are one in memory")):
        model = nn.Sequential(nn.Linear(3, 4), module)
        before = everything(model)
        with pytest.raises(wncli.WeightNormError, match=rf"1\.weight: .*{says}"):
            wn.load_weights(model, state)
        assert everything(model) == before
        wn.load_weights(model, state, assign=True)
        assert torch.equal(model.get_parameter("1.weight"), state["1.weight"])


def test_a_checkpoint_without_numbers_is_refused_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).to("meta")).state_dict()
    before = everything(model)
    for assign in (False, True):
        with pytest.raises(wncli.WeightNormError, match=r"1\.weight: .*no numbers to load"):
            wn.load_weights(model, state, assign=assign)
        assert everything(model) == before


def test_integers_are_cast_and_are_refused_as_parameters_that_train() -> None:
    model = nn.Linear(3, 2)
    state = {"weight": torch.arange(6).reshape(2, 3), "bias": torch.ones(2)}
    before = everything(model)
    with pytest.raises(
        wncli.WeightNormError, match="a int64 tensor cannot be a parameter"
    ) as caught:
        wn.load_weights(model, state, assign=True)
    assert everything(model) == before
    assert caught.value.hint == "assign=False casts it"
    wn.load_weights(model, state, assign=False)
    assert torch.equal(model.weight, state["weight"].float())


def test_what_was_made_in_inference_mode_trains_once_it_is_loaded() -> None:
    with torch.inference_mode():
        state = {name: tensor.clone() for name, tensor in vocoder("hook").state_dict().items()}
    for assign in (False, True):
        model = vocoder("parametrized", seed=1).train()
        wn.load_weights(model, state, assign=assign)
        model(mel()).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_lazy_modules_get_their_shapes_in_loading_and_none_in_a_refusal() -> None:
    theirs = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), parametrizations.weight_norm(nn.Linear(4, 2))
    )

    def make() -> nn.Sequential:
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))

    model = make()
    with pytest.raises(wncli.WeightNormError, match=r"1 unexpected: 9\.weight"):
        wn.load_weights(model, theirs.state_dict() | {"9.weight": torch.ones(1)})
    lazy = [name for name, held in model.named_parameters() if nn.parameter.is_lazy(held)]
    assert lazy == ["0.weight", "0.bias", "1.weight", "1.bias"]
    wn.load_weights(model, theirs)
    batch = torch.randn(5, 3)
    torch.testing.assert_close(model(batch), theirs(batch))


def test_a_method_of_the_models_own_may_return_nothing() -> None:
    class Own(nn.Linear):
        def load_state_dict(self, state: Any, strict: bool = True) -> None:  # type: ignore[override]  # noqa: FBT001, FBT002, ANN401
            super().load_state_dict(state, strict)

    model, theirs = Own(3, 2), parametrizations.weight_norm(nn.Linear(3, 2))
    assert wn.load_weights(model, theirs).missing == ()
    torch.testing.assert_close(model.weight, theirs.weight)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_what_has_another_parametrization_on_top_is_neither_composed_nor_split(
    tmp_path: Path,
) -> None:
    """A plain weight would be doubled, and a folded one would not."""
    model: Any = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 2)))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    plain: Any = nn.Sequential(nn.Linear(3, 2))
    for call in (
        lambda: wn.load_weights(model, plain),
        lambda: wn.load_weights(plain, model),
        lambda: wn.fit(plain.state_dict(), model),
        lambda: wn.save(model, tmp_path / "out.pt", remove=True),
    ):
        before = everything(model), everything(plain)
        with pytest.raises(wncli.WeightNormError, match=r"0\.weight: .* on top of weight norm"):
            call()
        assert (everything(model), everything(plain)) == before
    assert not list(tmp_path.iterdir())
    hooked: Any = nn.Sequential(nn.Linear(3, 2))
    wn.apply_weight_norm(hooked, naming="hook")
    wn.load_weights(model, hooked)  # g and v are its own
    torch.testing.assert_close(model[0].weight, 2 * hooked[0].weight)
    expected = model[0].weight.detach().clone()
    parametrize.remove_parametrizations(model[0], "weight")  # as the refusal says
    wn.load_weights(plain, model)
    assert torch.equal(plain[0].weight, expected)


def test_a_model_of_another_size_is_refused_with_the_shapes_that_differ() -> None:
    model = vocoder("parametrized")
    larger = nn.Sequential(nn.Conv1d(8, 12, 3), nn.ReLU(), nn.ConvTranspose1d(12, 10, 3))
    before = everything(model)
    with pytest.raises(wncli.WeightNormError) as caught:
        wn.load_weights(model, larger)
    assert everything(model) == before
    assert re.search(r"of another shape \(.*0\.weight", caught.value.found or "")
    assert "names as in" not in str(caught.value)


class Renamed(nn.Module):
    """A layer that knows its old name, as PyTorch's do."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))
        self.seen: list[Any] = []

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *more: Any) -> None:  # noqa: ANN401
        self.seen.append(local.get("version"))
        if f"{prefix}gain" in state:
            state[f"{prefix}scale"] = state.pop(f"{prefix}gain")
        super()._load_from_state_dict(state, prefix, local, *more)


def test_the_models_own_hooks_and_versions_judge(tmp_path: Path) -> None:
    conv, norm = vocoder("parametrized", seed=1), Renamed()
    model = nn.ModuleDict({"conv": conv, "norm": norm})
    state = OrderedDict(nn.ModuleDict({"conv": vocoder("hook")}).state_dict())
    state["norm.gain"] = torch.arange(3.0)
    state._metadata = {"": {}, "norm": {"version": 1}}  # type: ignore[attr-defined]
    torch.save({"model": {**state}}, tmp_path / "plain.pt")
    torch.save(state, tmp_path / "in.pt")
    for given, version in ((state, 1), (tmp_path / "in.pt", 1), (tmp_path / "plain.pt", None)):
        norm.scale.data.zero_()
        assert not wn.load_weights(model, given).missing
        assert norm.scale.tolist() == [0, 1, 2]
        assert norm.seen == [version]
        norm.seen.clear()


def test_an_old_batch_norm_without_a_counter_loads_as_in_pytorch() -> None:
    state = vocoder("hook").state_dict()
    del state["3.num_batches_tracked"]
    del state._metadata
    assert not wn.load_weights(vocoder("parametrized", seed=1), state).missing


@pytest.mark.parametrize("error", [KeyError, ValueError, RuntimeError])
def test_whatever_a_hook_of_the_model_raises_is_a_refusal(error: type[Exception]) -> None:
    def judge(*_: object) -> None:
        raise error("these are no weights of mine")

    model = vocoder("parametrized", seed=1)
    model[4].register_load_state_dict_pre_hook(judge)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="these are no weights of mine"):
        wn.load_weights(model, vocoder("hook"))
    assert everything(model) == before


def test_names_that_do_not_meet_in_a_file_are_listed_by_no_command_on_a_model(
    tmp_path: Path,
) -> None:
    torch.save({"encoder.layer": torch.ones(3, 3)}, tmp_path / "in.pt")
    with pytest.raises(wncli.WeightNormError, match="does not fit the model") as caught:
        wn.load_weights(vocoder("hook"), tmp_path / "in.pt")
    assert not caught.value.hint


class WithState(nn.Linear):
    """A layer with extra state."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.extra: Any = None

    def get_extra_state(self) -> Any:  # noqa: ANN401
        return self.extra

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401
        self.extra = state


def test_extra_state_that_is_plain_data_is_loaded_once_from_memory_and_files(
    tmp_path: Path,
) -> None:
    source: Any = nn.Sequential(WithState())
    source[0].extra = {"steps": 3, "names": ["a", ("b", None)], "rate": 0.5}
    torch.save({"epoch": 1, "model": source.state_dict()}, tmp_path / "in.pt")
    for given in (source.state_dict(), tmp_path / "in.pt"):
        model: Any = nn.Sequential(WithState())
        parametrizations.weight_norm(model[0])
        wn.load_weights(model, given)
        assert model[0].extra == source[0].extra


class Configuration:
    """No plain data."""


def test_extra_state_of_a_class_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    source: Any = nn.Sequential(WithState())
    source[0].extra = Configuration()
    torch.save(source.state_dict(), tmp_path / "in.pt")
    model = nn.Sequential(WithState())
    before = everything(model)
    with pytest.raises(wncli.FormatError, match=r"0\._extra_state: this extra state is no plain"):
        wn.load_weights(model, tmp_path / "in.pt")
    assert everything(model) == before


# -- ties -----------------------------------------------------------------------------------------


class Tied(nn.Module):
    """An embedding whose weight is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("assign", [False, True])
def test_a_tied_weight_that_is_stored_once_loads_under_both_names(*, assign: bool) -> None:
    state = {"embedding.weight": torch.randn(5, 3)}
    model = Tied()
    if assign:
        model = model.to("meta")
        model.head.weight = model.embedding.weight
    assert not wn.load_weights(model, state, assign=assign).missing
    assert model.head.weight is model.embedding.weight
    assert bits(model.head.weight) == bits(state["embedding.weight"])


# -- what comes after -----------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
def test_the_weights_of_hooks_are_made_anew_so_that_nothing_is_stale(*, assign: bool) -> None:
    model = vocoder("hook", seed=1)
    wn.load_weights(model.to("meta") if assign else model, vocoder("hook"), assign=assign)
    g, v = model[0].weight_g, model[0].weight_v
    assert bits(model[0].weight) == bits(torch._weight_norm(v, g, 0))
    assert bits(copy.deepcopy(model)[0].weight) == bits(model[0].weight)


def test_the_optimizer_that_was_made_before_goes_on_where_nothing_is_assigned() -> None:
    model = vocoder("parametrized", seed=1)
    before = [id(parameter) for parameter in model.parameters()]
    wn.load_weights(model, vocoder(None))
    assert [id(parameter) for parameter in model.parameters()] == before
    done = wn.load_weights(model, vocoder(None), assign=True)
    assert [id(parameter) for parameter in model.parameters()] != before
    assert "optimizer" in {note.code for note in done.notes}


@pytest.mark.parametrize("assign", [False, True])
def test_frozen_parameters_stay_frozen(*, assign: bool) -> None:
    model = vocoder("parametrized", seed=1).requires_grad_(requires_grad=False)
    model[4].requires_grad_(requires_grad=True)
    before = [parameter.requires_grad for parameter in model.parameters()]
    wn.load_weights(model, vocoder("hook"), assign=assign)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@each_target
@each_spelling
def test_what_is_assigned_from_a_file_outlives_it(
    spelling: Spelling | None, into: Spelling | None, tmp_path: Path
) -> None:
    """Were it mapped, a model would end the process with what comes after `torch.save`."""
    source = vocoder(spelling)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    model = vocoder(into, seed=1).to("meta")
    wn.load_weights(model, tmp_path / "in.pt", assign=True)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()
    with (tmp_path / "in.pt").open("r+b") as file:  # as torch.save to the same path begins
        file.truncate(0)
    torch.testing.assert_close(heard(model), heard(source), rtol=0, atol=ROUNDING)


# -- the meta device ------------------------------------------------------------------------------


def test_a_model_on_the_meta_device_asks_for_assign() -> None:
    model = vocoder("parametrized").to("meta")
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="meta device") as caught:
        wn.load_weights(model, vocoder("hook"))
    assert caught.value.hint == "assign=True"
    assert everything(model) == before


def test_buffers_on_the_meta_device_that_no_state_dict_has_are_refused() -> None:
    model = vocoder("parametrized")
    model.register_buffer("window", torch.ones(3), persistent=False)
    model.to("meta")
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="in no state dict") as caught:
        wn.load_weights(model, vocoder("hook"), assign=True)
    assert "1: window" in caught.value.found
    assert everything(model) == before


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("into", [None, "parametrized"])
def test_bytes_that_have_changed_are_refused_and_nothing_changes(
    into: Spelling | None, tmp_path: Path, *, assign: bool
) -> None:
    path = given_as("torch", vocoder("hook"), tmp_path)
    state = torch.load(path)
    data = path.read_bytes()
    place = data.index(state["0.weight_v"].numpy().tobytes())
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert not torch.equal(torch.load(path)["0.weight_v"], state["0.weight_v"])  # without a word
    model = vocoder(into, seed=1)
    before = everything(model)
    with pytest.raises(wncli.FormatError, match="damaged"):
        wn.load_weights(model, path, assign=assign)
    assert everything(model) == before


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_direction_that_is_undefined_is_refused_and_nothing_changes(
    tmp_path: Path, *, is_stored: bool
) -> None:
    state = vocoder("hook").state_dict()
    state["2.weight_v"][:, 3] = 0
    state["2.weight_v"][3] = 0
    torch.save(state, tmp_path / "in.pt")
    model = vocoder(None, seed=1)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="slice 3 "):
        wn.load_weights(model, tmp_path / "in.pt" if is_stored else state)
    assert everything(model) == before


def one_storage(model: nn.Module) -> None:
    """Make all parameters views of one storage, as trainers that flatten them do."""
    parameters = list(model.parameters())
    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    for parameter, part in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.data = part.view(parameter.shape)


def other_order(model: nn.Module) -> None:
    """Let the elements of parameters stand in another order than a file's."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.transpose(0, 1).contiguous().transpose(0, 1)


def behind_others(model: nn.Module) -> None:
    """Let each parameter begin in the middle of a storage of its own."""
    for parameter in model.parameters():
        room = torch.full((parameter.numel() + 7,), 5.0)
        parameter.data = room[4:-3].view(parameter.shape).copy_(parameter.data)


@pytest.mark.parametrize(
    "change", [one_storage, other_order, behind_others, nn.Module.half, nn.Module.double]
)
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_products_have_their_bits_in_whatever_memory_the_model_has(
    spelling: Spelling, change: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    source = vocoder(spelling)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    wncli.remove(tmp_path / "in.pt", tmp_path / "folded.pt")
    model, by_pytorch = vocoder(None, seed=1), vocoder(None, seed=1)
    change(model)
    change(by_pytorch)
    rooms = {name: value.untyped_storage() for name, value in model.state_dict().items()}
    places = {
        name: (value.data_ptr(), value.stride()) for name, value in model.state_dict().items()
    }
    wn.load_weights(model, tmp_path / "in.pt")
    by_pytorch.load_state_dict(torch.load(tmp_path / "folded.pt"))
    for name, value in by_pytorch.state_dict().items():
        found = model.state_dict()[name]
        assert bits(found) == bits(value), name
        assert (found.data_ptr(), found.stride()) == places[name]
        if change is behind_others and name.endswith("weight") and value.dim() > 1:
            around = torch.empty(0).set_(rooms[name])
            assert set(around[:4].tolist()) | set(around[-3:].tolist()) == {5.0}


def test_a_stale_weight_beside_its_halves_is_told_of_once_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    state = vocoder("hook").state_dict()
    state["0.weight"] = torch.ones_like(state["0.weight_v"])
    torch.save(state, tmp_path / "in.pt")
    model = vocoder(None, seed=1)
    done = wn.load_weights(model, tmp_path / "in.pt")
    assert [note.code for note in done.notes if note.is_warning] == ["stale-weight"]
    assert not (model[0].weight == 1).any()


MEMORY = """
import sys, threading, time
from pathlib import Path
import torch
from torch import nn
from torch.nn.utils import parametrizations
import wncli.pytorch as wn

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

def layers():
    return nn.Sequential(*(nn.Conv1d(512, 512, 7) for _ in range(12)))

torch.set_num_threads(1)
path = sys.argv[1]
model = layers()
for layer in model:
    parametrizations.weight_norm(layer)
torch.save(model.state_dict(), path)
del model
model = layers()
before, most, done = anonymous(), 0, threading.Event()

def look():
    global most
    while not done.is_set():
        most = max(most, anonymous())
        time.sleep(0.0002)

thread = threading.Thread(target=look)
thread.start()
wn.load_weights(model, path)
done.set()
thread.join()
print((max(most, anonymous()) - before) / (512 * 512 * 7 * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_folding_on_the_way_takes_no_second_model(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "in.pt")],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert float(ran.stdout) <= 1  # layer of twelve


def test_a_norm_that_the_models_dtype_cannot_hold_is_refused_and_nothing_changes() -> None:
    model = parametrizations.weight_norm(nn.Linear(3, 2).half())
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="beyond what float16 can hold"):
        wn.load_weights(model, {"weight": torch.full((2, 3), 6e4), "bias": torch.ones(2)})
    assert everything(model) == before


def test_a_sparse_tensor_is_refused_where_the_models_is_dense() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    state = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).state_dict()
    state["1.weight"] = torch.eye(3).to_sparse()
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match=r"1\.weight: this is a sparse tensor"):
        wn.load_weights(model, state)
    assert everything(model) == before


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wncli.FileError, match="no such file"):
        wn.load_weights(vocoder(None), tmp_path / "nothing.pt")
    with pytest.raises(wncli.UsageError, match="this is no checkpoint"):
        wn.load_weights(vocoder(None), 3)  # type: ignore[arg-type]


# -- results --------------------------------------------------------------------------------------


def test_what_was_done_is_shown_in_a_line() -> None:
    done = wn.load_weights(vocoder("parametrized", seed=1), vocoder("hook"))
    assert repr(done) == "<Loaded: 3 layers changed on the way>"
    assert [(layer.module, layer.action) for layer in done.layers] == [
        ("0", "convert"), ("2", "convert"), ("4", "convert"),
    ]  # fmt: skip
    done = wn.load_weights(vocoder("hook", seed=1), vocoder("hook"))
    assert repr(done) == "<Loaded: all names meet>"
    assert not done.layers


def test_a_model_that_was_used_under_inference_mode_can_be_loaded_into() -> None:
    model = vocoder("hook", seed=1)
    with torch.inference_mode():
        wn.load_weights(model, vocoder(None))
    model(mel()).sum().backward()
    assert model[0].weight_v.grad is not None


def test_another_dim_is_split_again() -> None:
    weight = torch.randn(6, 4, 3)
    source = parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=0)
    norms_of_their_own(source)
    model = parametrizations.weight_norm(nn.Conv1d(4, 6, 3), dim=2)
    done = wn.load_weights(model, source)
    assert [layer.action for layer in done.layers] == ["renormalize"]
    torch.testing.assert_close(model(weight), source(weight), rtol=0, atol=ROUNDING)


def test_the_state_dict_that_is_given_is_not_changed() -> None:
    state = vocoder("hook").state_dict()
    before = {name: (id(value), bits(value)) for name, value in state.items()}
    wn.load_weights(vocoder("parametrized", seed=1), state)
    assert {name: (id(value), bits(value)) for name, value in state.items()} == before
    metadata: Any = getattr(state, "_metadata", {})
    assert not any("assign" in str(about) for about in metadata.values())


def test_tensors_of_one_storage_load_as_they_are(tmp_path: Path) -> None:
    whole = torch.randn(8, 6)
    state: dict[str, Tensor] = {"weight": whole[::2, :3], "bias": whole[1, 2:6]}
    torch.save(state, tmp_path / "in.pt")
    for assign in (False, True):
        model = nn.Linear(3, 4)
        wn.load_weights(model, tmp_path / "in.pt", assign=assign)
        assert bits(model.weight) == bits(state["weight"])
        assert bits(model.bias) == bits(state["bias"])


def test_an_odd_place_in_a_safetensors_file_is_read(tmp_path: Path) -> None:
    """Its own writer aligns tensors; others put a byte before them."""
    header = (
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        '"weight":{"dtype":"F32","shape":[1,1],"data_offsets":[1,5]}}'
    )
    data = len(header).to_bytes(8, "little") + header.encode()
    weight = torch.tensor([[1.5]])
    (tmp_path / "in.safetensors").write_bytes(data + b"\0" + weight.numpy().tobytes())
    model = nn.Linear(1, 1, bias=False)
    wn.load_weights(model, tmp_path / "in.safetensors", strict=False)
    assert bits(model.weight) == bits(weight)
    assert re.search("1 unexpected", repr(wn.load_weights(
        model, tmp_path / "in.safetensors", strict=False
    )))  # fmt: skip
