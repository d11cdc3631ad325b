"""Whole pickled modules, read as the state dicts that torch makes of them; hostile ones refused."""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import wncli
from tests.support.layers import KINDS, KINDS_AND_DIMS, normalize
from tests.support.modules import expected, found_in, module, opened, refusal, weight
from wncli.formats.open import open_checkpoint
from wncli.formats.pickles.nodes import Call, Dict, Global, Node, PersistentId
from wncli.formats.pickles.writer import write_pickle

pytestmark = pytest.mark.thinned(9)


def roots(content: object, path: Path) -> list[str]:
    """The roots that are found in a saved object."""
    torch.save(content, path)
    return [found.root for found in found_in(path)]


class Net(nn.Module):
    """A model with one of everything that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.zeta = nn.Parameter(torch.randn(3, 2))
        self.conv = nn.Conv1d(2, 3, 3)
        normalize(self.conv, "weight", 0, "hook")
        self.register_buffer("mean", torch.randn(2))
        self.register_buffer("cache", torch.randn(2), persistent=False)
        self.register_buffer("nothing", None)
        self.register_parameter("missing", None)
        self.alpha = nn.Parameter(torch.randn(4).half())
        self.plain = torch.randn(5, 5)
        first, tied = nn.Linear(3, 3), nn.Linear(2, 3)
        tied.bias = first.bias
        self.tied = tied
        self.stack = nn.Sequential(first, nn.ReLU(), nn.BatchNorm1d(3))
        self.stack.append(nn.Linear(3, 3, bias=False))
        self.several = nn.ModuleList([nn.ModuleDict({"in": nn.Linear(2, 2)}), nn.GRU(2, 2)])
        self.shared = self.stack[0]
        self.absent: nn.Module | None
        self.register_module("absent", None)
        self.list = nn.ParameterList([torch.randn(2), torch.randn(3)])
        self.dict = nn.ParameterDict({"b": torch.randn(2), "a": torch.randn(3)})
        self.view = nn.Parameter(torch.randn(4, 3).t())


class Slotted(nn.Linear):
    """A module whose state is a pair, of its attributes and of its slots."""

    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.extra = 1

    def __setstate__(self, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
        super().__setstate__(state[0])  # type: ignore[no-untyped-call]


Layout = Literal["zip", "legacy"]
legacy_or_not = pytest.mark.parametrize("layout", ["zip", "legacy"])


def save(content: object, path: Path, layout: Layout = "zip") -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    return path


# -- as torch's state_dict() -------------------------------------------------------------------


@legacy_or_not
@pytest.mark.parametrize(("kind", "dim"), KINDS_AND_DIMS)
def test_every_kind_of_normalized_layer_is_read_whole(
    kind: str, dim: int | None, layout: Layout, tmp_path: Path
) -> None:
    layer = KINDS[kind].make()
    parameter = KINDS[kind].parameter
    normalize(layer, parameter, dim, "hook")
    path = save(layer, tmp_path / "a.pt", layout)
    assert opened(path)[1] == {"": expected(layer.state_dict())}
    (found,) = wncli.inspect(path).layers
    names = (found.parameter, found.g_name, found.v_name)
    assert names == (parameter, f"{parameter}_g", f"{parameter}_v")


@legacy_or_not
def test_a_module_is_read_as_its_state_dict(layout: Layout, tmp_path: Path) -> None:
    model = Net()
    path = save(model, tmp_path / "a.pt", layout)
    checkpoint, found = opened(path)
    assert found == {"": expected(model.state_dict())}
    assert checkpoint.state_dicts[0].holder == f"{__name__}.Net, a whole module"
    assert checkpoint.entries == ()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@legacy_or_not
def test_modules_of_every_protocol_are_read(protocol: int, layout: Layout, tmp_path: Path) -> None:
    model = Net()
    path = tmp_path / "a.pt"
    zipped = layout == "zip"
    torch.save(model, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert opened(path)[1] == {"": expected(model.state_dict())}


@legacy_or_not
def test_modules_inside_a_checkpoint_are_its_state_dicts(layout: Layout, tmp_path: Path) -> None:
    model, other = Net(), nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    content = {
        "model": model, "iteration": 7, "optimizer": optimizer.state_dict(), "ema": [other, other],
        "state": model.state_dict(), "relu": nn.ReLU(),
    }  # fmt: skip
    checkpoint, found = opened(save(content, tmp_path / "a.pt", layout))
    assert found == {
        "model": expected(model.state_dict()),
        "ema.0": expected(other.state_dict()),
        "ema.1": expected(other.state_dict()),
        "state": expected(model.state_dict()),
    }
    assert {entry.path: entry.kind for entry in checkpoint.entries} == {
        "iteration": "value", "optimizer": "optimizer", "relu": "object",
    }  # fmt: skip
    assert checkpoint.tree is not None
    assert set(checkpoint.tree.mappings) == {("state",)}
    assert set(checkpoint.tree.containers) == {(), ("ema",), ("state",)}


def test_wrapped_modules_have_the_names_of_their_state_dicts(tmp_path: Path) -> None:
    for number, wrapped in enumerate(
        (nn.DataParallel(Net()), torch.optim.swa_utils.AveragedModel(nn.Linear(3, 2)), Slotted())
    ):
        path = save(wrapped, tmp_path / f"{number}.pt")
        assert opened(path)[1] == {"": expected(wrapped.state_dict())}


def test_ties_and_shared_submodules_are_seen(tmp_path: Path) -> None:
    (found,) = found_in(save(Net(), tmp_path / "a.pt"))
    specs = {spec.name: spec for spec in found.tensors}
    assert specs["shared.weight"].view == specs["stack.0.weight"].view
    assert specs["tied.bias"].view == specs["stack.0.bias"].view
    assert specs["stack.0.weight"].view != specs["stack.3.weight"].view


def test_the_parametrized_spelling_is_found_in_a_module(tmp_path: Path) -> None:
    linear = nn.Linear(3, 2)
    del linear.weight
    pair = nn.Module()
    pair.original0, pair.original1 = nn.Parameter(torch.ones(2, 1)), nn.Parameter(torch.ones(2, 3))
    linear.parametrizations = nn.ModuleDict({"weight": pair})
    (layer,) = wncli.inspect(save({"net": linear}, tmp_path / "a.pt")).layers
    assert (layer.root, layer.parameter, layer.naming) == ("net", "weight", "parametrized")


def test_a_tensor_that_cannot_be_read_is_named_beside_the_others(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.add_module("lazy", nn.LazyLinear(2))
    (found,) = found_in(save(model, tmp_path / "a.pt"))
    assert [spec.name for spec in found.tensors] == ["weight", "bias"]
    assert found.others == ("sparse", "lazy.weight", "lazy.bias")


def test_a_module_inside_an_object_stays_part_of_it(tmp_path: Path) -> None:
    content = {"model": nn.Linear(3, 2), "args": argparse.Namespace(model=nn.Linear(3, 2))}
    checkpoint, found = opened(save(content, tmp_path / "a.pt"))
    assert list(found) == ["model"]
    assert [(entry.path, entry.kind) for entry in checkpoint.entries] == [("args", "object")]


@legacy_or_not
def test_the_classes_of_modules_are_names_that_weights_only_refuses(
    layout: Layout, tmp_path: Path
) -> None:
    checkpoint, _ = opened(save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "a.pt", layout))
    assert set(checkpoint.refused_names) == {
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Linear",
    } | ({"__builtin__.set"} if "__builtin__.set" in checkpoint.refused_names else set())


def test_classes_beside_a_legacy_state_dict_do_not_hide_it(tmp_path: Path) -> None:
    content = {"class": nn.Linear, "model": nn.Linear(3, 2).state_dict()}
    checkpoint, found = opened(save(content, tmp_path / "a.pt", "legacy"))
    assert list(found) == ["model"]
    assert [entry.path for entry in checkpoint.entries] == ["class"]
    assert checkpoint.tree is not None
    assert len(checkpoint.tree.references) == 2


# -- hostile modules ---------------------------------------------------------------------------


def written(root: Node, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", write_pickle(root, 2, {}, lambda node: node.pid))
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/version", b"3\n")
    return path


def test_what_is_written_by_hand_is_a_module(tmp_path: Path) -> None:
    root = module([("a", module([], [("w", weight()), (3, 4)])), (5, 6), ("x", "no module")])
    (found,) = found_in(written(root, tmp_path / "a.pt"))
    assert [spec.name for spec in found.tensors] == ["a.w"]
    assert found.others == ("5", "a.3", "x")


def test_a_module_inside_itself_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_module("again", model)
    assert "stands inside itself" in refusal(save(model, tmp_path / "a.pt"))


@pytest.mark.slow
def test_modules_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    node = module([], [("w", weight())])
    for _ in range(20_000):
        node = module([("m", node)])
    assert "too deeply" in refusal(written(node, tmp_path / "a.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 60, 900])
def test_modules_that_are_shared_without_bound_are_refused(depth: int, tmp_path: Path) -> None:
    node = module([], [("w", weight())])
    for _ in range(depth):
        node = module([("a", node), ("b", node)])
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))
    assert "too many names" in refusal(written([node] * 10, tmp_path / "b.pt"))


def test_long_names_cannot_be_multiplied_without_bound(tmp_path: Path) -> None:
    node = module([], [("w", weight())])
    for _ in range(900):
        node = module([("m" * 10_000, node)])
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))


def test_one_block_that_stands_in_a_model_many_times_is_read(tmp_path: Path) -> None:
    block = nn.Sequential(*(nn.Linear(1, 1) for _ in range(50)))
    model = nn.ModuleList([block] * 100)
    (found,) = found_in(save(model, tmp_path / "a.pt"))
    assert [spec.name for spec in found.tensors] == list(model.state_dict())


@pytest.mark.parametrize("name", ["_parameters", "_buffers", "_modules"])
def test_an_object_whose_state_is_no_modules_is_an_object(name: str, tmp_path: Path) -> None:
    node = module([], [("w", weight())])
    state = node.effects[0].state  # type: ignore[union-attr]
    state.entries = [(key, 1 if key == name else value) for key, value in state.entries]
    with open_checkpoint(written(Dict([("x", node)]), tmp_path / "a.pt")) as (checkpoint, _):
        assert checkpoint.state_dicts == ()
        assert [entry.kind for entry in checkpoint.entries] == ["object"]


def pid_of_class(*more: Node) -> PersistentId:
    return PersistentId(("module", Global("m", "M"), *more))


@pytest.mark.parametrize(
    "pid",
    [
        pid_of_class(),
        pid_of_class("file"),
        pid_of_class("file", "source", 1),
        pid_of_class([], "source"),
        PersistentId(("module", "m.M", "file", "source")),
        PersistentId(("modules", Global("m", "M"), "file", "source")),
    ],
)
def test_a_malformed_reference_to_a_class_is_refused(pid: PersistentId, tmp_path: Path) -> None:
    node = Dict([("w", weight()), ("x", Call("NEWOBJ", pid, ()))])
    assert "no tensor storage" in refusal(written(node, tmp_path / "a.pt"))


def test_the_class_of_a_module_is_found_through_its_reference(tmp_path: Path) -> None:
    node = module([], [("w", weight())])
    node.function = pid_of_class("m.py", "class M: ...")
    (found,) = found_in(written(node, tmp_path / "a.pt"))
    assert found.holder == "m.M, a whole module"


# -- where state dicts stand -------------------------------------------------------------------

STATE = {"up.weight": torch.randn(3, 2), "up.bias": torch.randn(3)}


def test_state_dicts_under_numbers_are_found(tmp_path: Path) -> None:
    content = {"models": {0: STATE, 1: {"net": nn.Linear(2, 2).state_dict()}, -3: "x"}, 7: STATE}
    checkpoint, found = opened(save(content, tmp_path / "a.pt"))
    assert list(found) == ["models.0", "models.1.net", "7"]
    assert found["7"] == expected(STATE)
    assert [entry.path for entry in checkpoint.entries] == ["models.-3"]


def test_loose_tensors_beside_modules_are_no_state_dict(tmp_path: Path) -> None:
    content = {"model": nn.Linear(3, 2), "mean": torch.ones(2, 2), "nets": {0: STATE}}
    assert roots(content, tmp_path / "a.pt") == ["model", "nets.0"]
    assert [entry.path for entry in opened(tmp_path / "a.pt")[0].entries] == ["mean"]


def test_paths_cannot_be_multiplied_by_a_long_key(tmp_path: Path) -> None:
    items = [*(Dict() for _ in range(10_000)), Dict([("up.w", weight())])]
    node: Node = Dict([("x" * 100_000, items), ("up.w", weight())])
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))


def test_tensors_under_numbers_are_no_state_dict(tmp_path: Path) -> None:
    assert roots({0: torch.ones(2, 2), 1: torch.ones(2)}, tmp_path / "a.pt") == []
    (found,) = found_in(save(STATE | {0: torch.ones(2, 2), 1: {}}, tmp_path / "b.pt"))
    assert [spec.name for spec in found.tensors] == list(STATE)
    assert found.others == ()


def test_a_number_and_its_text_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    content = {"0": STATE, 0: {"weight": torch.ones(2, 2)}, 1 << 20_000: STATE, True: STATE}
    checkpoint, _ = opened(save(content, tmp_path / "a.pt"))
    assert [
        (found.root, found.keys, [spec.name for spec in found.tensors])
        for found in checkpoint.state_dicts
    ] == [("0", ("0",), list(STATE)), ("0'", (0,), ["weight"])]
    assert [entry.path for entry in checkpoint.entries] == ["an int of 20001 bits", "True"]


def trained(kind: str) -> dict[str, Any]:
    """What an optimizer of `torch.optim` saves after a step."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    options: dict[str, Any] = {"SGD": {"lr": 0.1, "momentum": 0.9}, "LBFGS": {}}.get(kind, {})
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = model(torch.ones(2, 3)).square().sum()
        value.backward()
        return value  # type: ignore[no-any-return]

    optimizer.step(loss)
    state: dict[str, Any] = optimizer.state_dict()
    assert state["state"]
    return state


OPTIMIZERS = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "NAdam",
    "RAdam", "RMSprop", "Rprop", "SGD",
)  # fmt: skip


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_no_state_dict(kind: str, tmp_path: Path) -> None:
    state = trained(kind)
    places: dict[str, object] = {
        "optimizer": state,
        "optimizer_states": [state, state],
        "optimizers": {0: state, 1: state},
        "by name": {"g": state, "d": dict(state)},
        "last_optimizer_state": {"state": state["state"]},
        "state": state["state"],
        "numbered": {0: state["state"]},
        "loops": {"fit_loop": {"state": {0: {"optimizer": state["state"]}}}},
    }
    assert roots(places | {"model": STATE}, tmp_path / "a.pt") == ["model"]
    checkpoint, _ = opened(tmp_path / "a.pt")
    kinds = {entry.path: entry.kind for entry in checkpoint.entries}
    assert [kinds[path] for path in list(places)[:4]] == ["optimizer"] * 4


@pytest.mark.parametrize(
    "beside",
    [
        {"optimizer": {"exp_avg": STATE, "exp_avg_sq": STATE}},
        {"optimizer": {"up.weight": {"step": 3, "exp_avg": torch.ones(3, 2)}}},
        {"optimizer": {"up.weight": {"momentum_buffer": torch.ones(3, 2)}}},
        {"optimizer_history": [{"num_updates": 3, "lr_scheduler_state": {"best": None}}]},
        {"scaler": torch.amp.GradScaler("cpu").state_dict()},
        {"ema": {"decay": 0.99, "num_updates": 3, "shadow_params": [torch.ones(3, 2)]}},
        {"scheduler": {"base_lrs": [1e-3], "last_epoch": 3, "_last_lr": [1e-4]}},
        {"rng": {"cpu": torch.get_rng_state(), "cuda": [torch.get_rng_state()]}},
    ],
)
def test_what_stands_beside_a_model_is_no_state_dict(
    beside: dict[str, object], tmp_path: Path
) -> None:
    assert roots(beside | {"model": STATE}, tmp_path / "a.pt") == ["model"]


def test_one_state_dict_under_two_keys_is_listed_under_both(tmp_path: Path) -> None:
    content = {"best": STATE, "last": STATE, "epochs": {3: {"model": STATE}}}
    checkpoint, found = opened(save(content, tmp_path / "a.pt"))
    assert found == dict.fromkeys(["best", "last", "epochs.3.model"], expected(STATE))
    first, *others = checkpoint.state_dicts
    assert all(other.tensors == first.tensors for other in others)
    assert checkpoint.entries == ()
    assert checkpoint.tree is not None
    assert len({id(node) for node in checkpoint.tree.mappings.values()}) == 1


def test_a_container_under_two_keys_lends_its_state_dicts_to_both(tmp_path: Path) -> None:
    nets = {"g": STATE, "step": 3}
    checkpoint, found = opened(save({"a": nets, "b": nets}, tmp_path / "a.pt"))
    assert list(found) == ["a.g", "b.g"]
    assert [entry.path for entry in checkpoint.entries] == ["a.step", "b.step"]


def test_a_container_inside_itself_is_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": STATE}
    content["self"] = content
    state: dict[str, Any] = dict(STATE)
    state["self"] = state
    assert roots(content, tmp_path / "a.pt") == ["model"]
    assert roots(state, tmp_path / "b.pt") == [""]


def test_containers_that_are_shared_without_bound_are_refused(tmp_path: Path) -> None:
    node: Node = Dict([("up.w", weight())])
    for _ in range(14):
        node = Dict([(letter, node) for letter in "abcdefgh"])
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))


def test_paths_that_are_spelled_alike_are_refused_where_they_multiply(tmp_path: Path) -> None:
    node: Node = Dict([("w.w", weight())])
    for _ in range(12):
        node = Dict([("a", node), ("a.a", node), ("a.a.a", node)])
    assert "too many names" in refusal(written(node, tmp_path / "a.pt"))


def test_what_is_shared_and_holds_no_state_dict_costs_nothing(tmp_path: Path) -> None:
    shared = OrderedDict((str(number), [number]) for number in range(1000))
    assert roots({"model": STATE, "data": [shared] * 20_000}, tmp_path / "a.pt") == ["model"]


@pytest.mark.parametrize("make", [Net, lambda: nn.Linear(2, 2)])
def test_nothing_of_a_module_is_imported(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    path = save(model, tmp_path / "a.pt", "legacy")
    renamed = path.read_bytes().replace(f"c{__name__}\n".encode(), b"cthis_module\n")
    path.write_bytes(renamed.replace(b"ctorch.nn.modules.linear\n", b"corch.nn.modules.linearx\n"))
    assert opened(path)[1] == {"": expected(model.state_dict())}
