"""What goes by a model's parameters beside its state dict: by name, by number, by position."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import wncli
from tests.support.layers import Spelling, normalize
from tests.support.oracles import bits, load

pytestmark = pytest.mark.thinned(3)

OTHER: dict[Spelling, Spelling] = {"hook": "parametrized", "parametrized": "hook"}
FORMS = ["named", "flattened", "numbered", "listed"]


def model(spelling: Spelling | None) -> nn.Module:
    """Two layers, the first normalized, and a buffer among their parameters."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Linear(5, 4))
    if spelling:
        normalize(made[0], "weight", 0, spelling)
    return made


def stepped(net: nn.Module, *, with_names: bool = False) -> torch.optim.Optimizer:
    """An optimizer after two steps."""
    optimizer = torch.optim.AdamW(net.named_parameters() if with_names else net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(2, 2, 7, generator=generator)).square().mean().backward()
        optimizer.step()
    return optimizer


def saved_by(form: str, spelling: Spelling) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model, and the state of its optimizer in one of PyTorch's forms."""
    net = model(spelling)
    optimizer = stepped(net, with_names=form == "listed")
    if form in {"numbered", "listed"}:
        return net, optimizer.state_dict()
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flattened")
    return net, dict(get_optimizer_state_dict(net, optimizer, options=options))


def written(
    tmp_path: Path, content: object, command: str = "convert", **options: object
) -> tuple[Any, list[wncli.Note]]:
    """What a command makes of the content, and its notes on what goes by parameters."""
    torch.save(content, tmp_path / "in.pt")
    report = getattr(wncli, command)(tmp_path / "in.pt", tmp_path / "out.pt", **options)
    notes = [note for note in report.notes if note.code in {"optimizer", "by-position"}]
    return load(tmp_path / "out.pt"), notes


def same(one: object, two: object) -> bool:
    """Whether both are the same, tensors bit for bit, and items in the same order."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return bits(one) == bits(two)
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


# Optimizers by name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_an_optimizer_of_any_form_becomes_what_pytorch_saves_in_the_other_spelling(
    spelling: Spelling, form: str, tmp_path: Path
) -> None:
    net, state = saved_by(form, spelling)
    content = {"model": net.state_dict(), "optimizer": state}
    found, (note,) = written(tmp_path, content, naming=OTHER[spelling])
    assert (note.where, note.is_warning) == ("optimizer", False)
    assert "stays valid" in note.message

    _, expected = saved_by(form, OTHER[spelling])
    assert same(found["optimizer"], rounded_as(found["optimizer"], expected))


def rounded_as(found: Any, expected: Any) -> Any:  # noqa: ANN401 - any item
    """The expected items, with the tensors of `found` where both agree but for rounding."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected)
        return found
    if isinstance(expected, dict):
        return {key: rounded_as(found[key], value) for key, value in expected.items()}
    return expected


@pytest.mark.parametrize("form", ["named", "flattened"])
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_pytorch_sets_a_respelled_optimizer_by_name_bit_for_bit(
    spelling: Spelling, form: str, tmp_path: Path
) -> None:
    net, state = saved_by(form, spelling)
    before = stepped(model(spelling)).state_dict()["state"]
    content = {"model": net.state_dict(), "optimizer": state}
    found, _ = written(tmp_path, content, naming=OTHER[spelling])

    other = model(OTHER[spelling])
    other.load_state_dict(found["model"], strict=True)
    resumed = torch.optim.AdamW(other.parameters(), 1e-2)
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flattened")
    set_optimizer_state_dict(other, resumed, found["optimizer"], options=options)
    after = resumed.state_dict()["state"]
    assert list(after) == list(before)
    assert all(same(after[number], before[number]) for number in before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "generator.", "net_g."])
@pytest.mark.parametrize("at", ["optimizer", "model"])
def test_names_with_a_prefix_more_on_either_side_are_respelled(
    at: str, prefix: str, tmp_path: Path
) -> None:
    net, state = saved_by("named", "hook")
    _, expected = saved_by("named", "parametrized")
    weights = net.state_dict()
    if at == "model":
        weights = type(weights)((prefix + name, value) for name, value in weights.items())
    else:
        state, expected = (prefixed(one, prefix) for one in (state, expected))
    found, (note,) = written(
        tmp_path, {"generator": weights, "optim": state}, naming="parametrized"
    )
    assert not note.is_warning
    assert list(found["optim"]["state"]) == list(expected["state"])
    groups = found["optim"]["param_groups"]
    assert [group["params"] for group in groups] == [
        group["params"] for group in expected["param_groups"]
    ]


def test_one_optimizer_of_several_models_is_respelled_by_their_roots(tmp_path: Path) -> None:
    net, state = saved_by("named", "hook")
    _, expected = saved_by("named", "parametrized")

    def joint(one: dict[str, Any]) -> dict[str, Any]:
        generator, discriminator = prefixed(one, "generator."), prefixed(one, "discriminator.")
        return {
            "state": generator["state"] | discriminator["state"],
            "param_groups": generator["param_groups"] + discriminator["param_groups"],
        }

    models = {"generator": net.state_dict(), "discriminator": copy.deepcopy(net.state_dict())}
    found, (note,) = written(tmp_path, {**models, "optim": joint(state)}, naming="parametrized")
    assert "stays valid" in note.message
    assert list(found["optim"]["state"]) == list(joint(expected)["state"])


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        "state": {prefix + name: kept for name, kept in state["state"].items()},
        "param_groups": [
            {**group, "params": [prefix + name for name in group["params"]]}
            for group in state["param_groups"]
        ],
    }


@pytest.mark.parametrize(
    "place",
    [
        lambda state: {"optimizers": [state, copy.deepcopy(state)]},
        lambda state: {"optim": {"g": state, "d": copy.deepcopy(state)}},
        lambda state: {"trainer": {"epoch": 3, "optimizer": state}},
        lambda state: {"last": ({"optimizer": state}, 1)},
    ],
    ids=["list", "dict", "beside other values", "tuple"],
)
def test_optimizers_by_name_are_respelled_wherever_they_stand(
    place: Callable[[Any], dict[str, Any]], tmp_path: Path
) -> None:
    net, state = saved_by("named", "hook")
    _, expected = saved_by("named", "parametrized")
    found, notes = written(
        tmp_path, {"model": net.state_dict(), **place(state)}, naming="parametrized"
    )
    assert [note.is_warning for note in notes] == [False]
    states = list(optimizers_in(found))
    assert states
    assert all(list(one["state"]) == list(expected["state"]) for one in states)


def optimizers_in(found: object) -> Iterator[dict[str, Any]]:
    if isinstance(found, dict) and "param_groups" in found:
        yield found
    elif isinstance(found, (dict, list, tuple)):
        for item in found.values() if isinstance(found, dict) else found:
            yield from optimizers_in(item)


def test_optimizers_beside_their_names_are_listed_and_warned_of_as_one_entry(
    tmp_path: Path,
) -> None:
    """StyleTTS 2 saves a list of pairs, of a network's name and its optimizer's state."""
    net, _ = saved_by("named", "hook")
    optimizer = torch.optim.AdamW(net.parameters())
    pairs = [(name, copy.deepcopy(optimizer.state_dict())) for name in ("bert", "decoder")]
    content = {"net": {"decoder": net.state_dict()}, "optimizer": pairs}
    found, (note,) = written(tmp_path, content, "remove")
    assert (note.where, note.is_warning) == ("optimizer", True)
    assert "drop=['optimizer'] leaves it out" in note.message
    assert [name for name, _ in found["optimizer"]] == ["bert", "decoder"]
    (entry,) = wncli.inspect(tmp_path / "in.pt").entries
    assert (entry.path, entry.kind) == ("optimizer", "optimizer")


@pytest.mark.parametrize("form", ["named", "flattened"])
@pytest.mark.parametrize("command", ["remove", "apply"])
def test_an_optimizer_by_name_whose_parameters_change_is_kept_with_a_warning_or_dropped(
    command: str, form: str, tmp_path: Path
) -> None:
    net, state = saved_by(form, "hook")
    content = {"model": net.state_dict(), "optim": state}
    found, (note,) = written(tmp_path, content, command)
    assert (note.where, note.is_warning) == ("optim", True)
    assert "drop=['optim'] leaves it out" in note.message
    assert same(found["optim"], state)
    found, notes = written(tmp_path, content, command, drop=["optim"], force=True)
    assert ("optim" in found, notes) == (False, [])


@pytest.mark.parametrize("form", FORMS)
def test_an_optimizer_of_other_parameters_by_name_is_not_said_to_be_unfit(
    form: str, tmp_path: Path
) -> None:
    net, state = saved_by("named", "hook")
    torch.manual_seed(3)
    other = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, 7))
    inner = torch.optim.SGD(other.named_parameters(), 0.1, momentum=0.9)
    other(torch.ones(1, 7)).sum().backward()
    inner.step()
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flattened")
    plain = inner.state_dict()
    if form == "numbered":
        for group in plain["param_groups"]:
            del group["param_names"]
    elif form != "listed":
        plain = dict(get_optimizer_state_dict(other, inner, options=options))
    weights = {f"d.{name}": value for name, value in other.state_dict().items()}
    content = {"g": net.state_dict(), "d": weights, "optim_g": state, "optim_d": plain}
    found, notes = written(tmp_path, content, "remove")
    by_where = {note.where: note.is_warning for note in notes}
    # by number alone nothing tells whose parameters they are
    assert by_where == {"optim_g": True, "optim_d": form == "numbered"}
    assert same(found["optim_d"], plain)


def test_an_optimizer_by_name_does_not_fit_a_magnitude_of_another_shape(tmp_path: Path) -> None:
    shapes = {"a.weight_g": (3,), "a.weight_v": (3, 4)}
    state = {name: {"exp_avg": torch.zeros(shape)} for name, shape in shapes.items()}
    optimizer = {"state": state, "param_groups": [{"params": list(shapes)}]}
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    _, (note,) = written(
        tmp_path, {"model": weights, "optimizer": optimizer}, naming="parametrized"
    )
    assert note.is_warning


def test_an_optimizer_by_name_stays_valid_where_parameters_change_their_order(
    tmp_path: Path,
) -> None:
    net = nn.MultiheadAttention(4, 2)
    normalize(net, "in_proj_weight", 0, "hook")
    names = [name for name, _ in net.named_parameters()]
    state = {name: {"exp_avg": p.detach()} for name, p in net.named_parameters()}
    content = {
        "model": net.state_dict(),
        "named": {"state": state, "param_groups": [{"params": names}]},
        "numbered": torch.optim.Adam(net.parameters()).state_dict(),
    }
    found, notes = written(tmp_path, content, naming="parametrized")
    assert {note.where: note.is_warning for note in notes} == {"named": False, "numbered": True}
    other = nn.MultiheadAttention(4, 2)
    normalize(other, "in_proj_weight", 0, "parametrized")
    assert found["named"]["state"].keys() == dict(other.named_parameters()).keys()


def test_names_that_lead_to_no_state_dict_are_kept_and_told_of(tmp_path: Path) -> None:
    net, state = saved_by("named", "hook")
    lost = prefixed(state, "nowhere.")
    lost["state"]["extra.weight_g"] = lost["state"].pop("nowhere.0.weight_g")
    lost["state"]["other.weight"] = {}
    found, (note,) = written(
        tmp_path, {"model": {"x.y": torch.ones(2, 2), **net.state_dict()}, "optim": lost},
        naming="parametrized",
    )  # fmt: skip
    assert note.is_warning
    assert same(found["optim"], lost)
    more = copy.deepcopy(state)
    more["state"]["loss.scale"] = {"exp_avg": torch.ones(1)}
    found, (note,) = written(
        tmp_path, {"model": net.state_dict(), "optim": more}, naming="parametrized", force=True
    )
    assert "loss.scale" in note.message
    assert "stays valid" not in note.message
    assert "0.parametrizations.weight.original0" in found["optim"]["state"]


def test_an_optimizer_by_number_does_not_fit_a_model_that_loses_a_parameter(
    tmp_path: Path,
) -> None:
    net, state = saved_by("numbered", "hook")
    content = {"model": net.state_dict(), "optimizer": state}
    _, (note,) = written(tmp_path, content, naming="parametrized", drop=["model.2.bias"])
    assert note.is_warning


def test_a_flattened_optimizer_is_listed_as_an_optimizer(tmp_path: Path) -> None:
    net, state = saved_by("flattened", "hook")
    torch.save({"model": net.state_dict(), "optimizer": state}, tmp_path / "in.pt")
    report = wncli.inspect(tmp_path / "in.pt")
    assert [root.root for root in report.roots] == ["model"]
    assert [(entry.kind, entry.summary) for entry in report.entries] == [
        ("optimizer", f"optimizer, state of {len(list(net.parameters()))} parameters")
    ]


def test_like_gives_an_optimizer_the_names_that_it_gives_the_parameters(tmp_path: Path) -> None:
    net, state = saved_by("named", "hook")
    _, expected = saved_by("named", "parametrized")
    torch.save({"model": model("parametrized").state_dict()}, tmp_path / "like.pt")
    found, (note,) = written(
        tmp_path, {"model": net.state_dict(), "optim": state}, like=tmp_path / "like.pt"
    )
    assert not note.is_warning
    assert list(found["optim"]["state"]) == list(expected["state"])
    torch.save({"model": model(None).state_dict()}, tmp_path / "plain.pt")
    _, (note,) = written(
        tmp_path, {"model": net.state_dict(), "optim": state},
        like=tmp_path / "plain.pt", force=True,
    )  # fmt: skip
    assert note.is_warning


def test_an_optimizer_by_number_does_not_fit_where_like_puts_parameters_in_another_order(
    tmp_path: Path,
) -> None:
    net, state = saved_by("numbered", "hook")
    weights = model("parametrized").state_dict()
    torch.save({"model": dict(reversed(weights.items()))}, tmp_path / "like.pt")
    content = {"model": net.state_dict(), "optim": state}
    _, (note,) = written(tmp_path, content, like=tmp_path / "like.pt")
    assert note.is_warning


# Tensors by position


def ema_of(net: nn.Module) -> dict[str, Any]:
    """What torch_ema saves (`ExponentialMovingAverage.state_dict`)."""
    shadow = [parameter.detach().clone() for parameter in net.parameters()]
    return {"decay": 0.99, "num_updates": 7, "shadow_params": shadow, "collected_params": None}


@pytest.mark.parametrize(
    ("place", "where"),
    [
        (lambda ema: {"ema": ema}, "ema"),
        (lambda ema: {"ema": {**ema, "collected_params": ema["shadow_params"][:]}}, "ema"),
        (lambda ema: {"trainer": {"ema": ema, "epoch": 3}}, "trainer.ema"),
        (lambda ema: {"shadow": ema["shadow_params"]}, "shadow"),
        (lambda ema: {"shadow": tuple(ema["shadow_params"])}, "shadow"),
        (lambda ema: {"shadow": dict(enumerate(ema["shadow_params"]))}, "shadow"),
        (lambda ema: {"my ema": {"tensors": ema["shadow_params"]}}, "my ema.tensors"),
    ],
    ids=["torch_ema", "in use", "nested", "list", "tuple", "numbers", "another name"],
)
@pytest.mark.parametrize("command", ["remove", "apply"])
def test_tensors_by_position_beside_changed_parameters_are_kept_with_a_warning_or_dropped(
    command: str, place: Callable[[Any], dict[str, Any]], where: str, tmp_path: Path
) -> None:
    net = model("hook" if command == "remove" else None)
    content = {"model": net.state_dict(), **place(ema_of(net))}
    found, (note,) = written(tmp_path, content, command)
    assert (note.code, note.where, note.is_warning) == ("by-position", where, True)
    assert "drop=[" in note.message
    assert same(found | {"model": 0}, content | {"model": 0})
    _, notes = written(tmp_path, content, command, drop=[where], force=True)
    assert not notes


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_tensors_by_position_fit_the_other_spelling(spelling: Spelling, tmp_path: Path) -> None:
    net = model(spelling)
    content = {"model": net.state_dict(), "ema": ema_of(net)}
    found, notes = written(tmp_path, content, naming=OTHER[spelling])
    assert not notes
    other = model(OTHER[spelling])
    pairs = zip(other.parameters(), found["ema"]["shadow_params"], strict=True)
    assert all(parameter.shape == shadow.shape for parameter, shadow in pairs)


def test_tensors_by_position_are_warned_of_where_the_other_spelling_has_another_order(
    tmp_path: Path,
) -> None:
    net = nn.MultiheadAttention(4, 2)
    normalize(net, "in_proj_weight", 0, "hook")
    content = {"model": net.state_dict(), "ema": ema_of(net)}
    _, (note,) = written(tmp_path, content, naming="parametrized")
    assert (note.code, note.is_warning) == ("by-position", True)


@pytest.mark.parametrize(
    "other",
    [
        [torch.ones(3), torch.ones(3)],
        [torch.ones(()), torch.ones(())],
        [torch.ones(2, 2), torch.ones(9)],
        [torch.ones(3, 2, 3)],
        [],
    ],
)
def test_other_lists_of_tensors_are_not_taken_for_parameters(other: object, tmp_path: Path) -> None:
    content = {"model": model("hook").state_dict(), "losses": other}
    _, notes = written(tmp_path, content, "remove")
    assert not notes


@pytest.mark.parametrize("command", ["remove", "convert"])
def test_an_ema_by_name_goes_with_the_model(command: str, tmp_path: Path) -> None:
    net = model("hook")
    shadow = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    options = {"naming": "parametrized"} if command == "convert" else {}
    content = {"model": net.state_dict(), "ema": {"decay": 0.9, "shadow": shadow}}
    found, notes = written(tmp_path, content, command, **options)
    other = model("parametrized" if command == "convert" else None)
    assert found["ema"]["shadow"].keys() == dict(other.named_parameters()).keys()
    assert not notes
