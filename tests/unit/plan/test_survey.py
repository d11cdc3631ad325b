"""What a state dict holds: pairs, and what only looks like one. No file is needed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.support.strategies import product
from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, row_major
from wncli.plan.survey import LookAlike, Survey, survey

Shapes = dict[str, tuple[int, ...]]
FLOATING = (DType.F64, DType.F32, DType.F16, DType.BF16)


def spec(name: str, shape: tuple[int, ...], dtype: DType = DType.F32) -> TensorSpec:
    return TensorSpec(name, dtype, shape, Storage(name, 0, 0), 0, row_major(shape))


def look(shapes: Shapes, dtype: DType = DType.F32) -> Survey:
    """Survey tensors of these names and shapes."""
    return survey(StateDict("", tuple(spec(name, shape, dtype) for name, shape in shapes.items())))


def look_at(module: nn.Module) -> Survey:
    """Survey what PyTorch would save of a module."""
    return look({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})


def only_pair(found: Survey) -> Pair:
    assert found.look_alikes == ()
    (pair,) = found.pairs
    return pair


def only_look_alike(found: Survey) -> LookAlike:
    assert found.pairs == ()
    (alike,) = found.look_alikes
    return alike


def hook(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found: nn.Module = nn.utils.weight_norm(module, name, -1 if dim is None else dim)
    return found


# -- pairs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2, None])
@pytest.mark.parametrize("naming", ["hook", "parametrized"])
def test_torchs_own_weight_norm_is_a_pair_of_its_dim(dim: int | None, naming: str) -> None:
    conv = nn.Conv1d(4, 6, 3)
    if naming == "hook":
        module = hook(conv, "weight", dim)
    else:
        module = nn.utils.parametrizations.weight_norm(conv, "weight", -1 if dim is None else dim)
    pair = only_pair(look_at(nn.Sequential(module)))
    assert (pair.weight, pair.naming, pair.dim) == ("0.weight", naming, dim)
    assert (pair.v.shape, pair.stale) == ((6, 4, 3), None)


def test_parameters_of_other_names_are_pairs_too() -> None:
    module = hook(hook(nn.LSTM(3, 2), "weight_hh_l0"), "bias_ih_l0")
    found = look_at(module)
    assert {(pair.weight, pair.dim) for pair in found.pairs} == {
        ("weight_hh_l0", 0),
        ("bias_ih_l0", 0),
    }


@pytest.mark.parametrize(
    ("g", "v", "dim"),
    [
        ((5,), (5, 3), 0),
        ((3,), (5, 3), 1),
        ((1,), (5, 3), None),
        ((), (5, 3), None),
        ((5,), (5,), 0),
        ((1, 1, 16), (8, 4, 16), 2),
        ((5, 1), (5, 1), 0),
    ],
)
@pytest.mark.parametrize("naming", ["hook", "parametrized"])
def test_every_shape_of_g_that_says_one_dim_is_taken(
    g: tuple[int, ...], v: tuple[int, ...], dim: int | None, naming: str
) -> None:
    names = ("c.weight_g", "c.weight_v")
    if naming == "parametrized":
        names = ("c.parametrizations.weight.original0", "c.parametrizations.weight.original1")
    pair = only_pair(look({names[0]: g, names[1]: v}))
    assert (pair.dim, pair.g.name, pair.v.name) == (dim, *names)


def test_pairs_come_in_the_order_of_the_checkpoint_whichever_half_is_first() -> None:
    found = look({
        "b.weight_v": (2, 3), "a.weight_g": (2, 1), "b.weight_g": (2, 1), "a.weight_v": (2, 3),
    })  # fmt: skip
    assert [pair.weight for pair in found.pairs] == ["b.weight", "a.weight"]
    assert found.halves() == {"a.weight_g", "a.weight_v", "b.weight_g", "b.weight_v"}


def test_two_layers_may_have_different_spellings() -> None:
    found = look({
        "a.weight_g": (2, 1), "a.weight_v": (2, 3),
        "b.parametrizations.weight.original0": (2, 1),
        "b.parametrizations.weight.original1": (2, 3),
    })  # fmt: skip
    assert [pair.naming for pair in found.pairs] == ["hook", "parametrized"]
    assert found.look_alikes == ()


def test_a_weight_beside_its_own_g_and_v_is_stale() -> None:
    found = look({"c.weight": (2, 3), "c.weight_g": (2, 1), "c.weight_v": (2, 3)})
    pair = only_pair(found)
    assert pair.stale is not None
    assert pair.stale.name == "c.weight"


def test_a_weight_that_stands_alone_is_no_pair_and_no_look_alike() -> None:
    found = look({"c.weight": (2, 3), "c.bias": (2,), "c.g": (2, 1), "c.v": (2, 3)})
    assert (found.pairs, found.look_alikes, found.halves()) == ((), (), frozenset())


@pytest.mark.parametrize(("g", "v"), product(FLOATING, FLOATING))
def test_a_mixed_pair_has_the_dtype_that_torch_promotes_to(g: DType, v: DType) -> None:
    found = survey(StateDict("", (spec("weight_g", (2, 1), g), spec("weight_v", (2, 3), v))))
    expected = torch.promote_types(getattr(torch, g.label), getattr(torch, v.label))
    assert getattr(torch, only_pair(found).dtype.label) is expected


@pytest.mark.parametrize(("g", "v"), product(FLOATING, FLOATING))
def test_a_mixed_pair_of_the_whole_tensor_has_the_dtype_that_torch_gives(
    g: DType, v: DType
) -> None:
    # A 0-dimensional tensor does not promote in torch.
    found = survey(StateDict("", (spec("weight_g", (), g), spec("weight_v", (2, 3), v))))
    magnitude = torch.ones((), dtype=getattr(torch, g.label))
    direction = torch.ones((2, 3), dtype=getattr(torch, v.label))
    expected = torch.result_type(magnitude, direction)
    assert getattr(torch, only_pair(found).dtype.label) is expected


# -- what is broken -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weight", "missing"),
    [
        ("c.weight_g", "c.weight", "c.weight_v"),
        ("c.weight_v", "c.weight", "c.weight_g"),
        ("weight_v", "weight", "weight_g"),
        ("lstm.weight_hh_l0_v", "lstm.weight_hh_l0", "lstm.weight_hh_l0_g"),
        (
            "c.parametrizations.weight.original0",
            "c.weight",
            "c.parametrizations.weight.original1",
        ),
        (
            "c.parametrizations.scale.original1",
            "c.scale",
            "c.parametrizations.scale.original0",
        ),
    ],
)
def test_half_a_pair_is_named_with_what_is_missing(name: str, weight: str, missing: str) -> None:
    alike = only_look_alike(look({name: (2, 3)}))
    assert (alike.code, alike.weight, alike.names) == ("half-pair", weight, (name,))
    assert missing in alike.message
    assert alike.is_broken


@pytest.mark.parametrize(
    ("g", "v"),
    [
        pytest.param((4,), (4, 4), id="a flat g that fits two dims"),
        pytest.param((5,), (4, 3), id="a flat g that fits none"),
        pytest.param((3, 1), (4, 3), id="another length"),
        pytest.param((4, 3), (4, 3), id="as large as v"),
        pytest.param((4, 1, 1), (4, 3), id="another rank"),
        pytest.param((), (), id="no dimensions"),
    ],
)
@pytest.mark.parametrize("naming", ["hook", "parametrized"])
def test_a_g_that_fits_no_dim_is_named_with_both_shapes(
    g: tuple[int, ...], v: tuple[int, ...], naming: str
) -> None:
    names = ("c.weight_g", "c.weight_v")
    if naming == "parametrized":
        names = ("c.parametrizations.weight.original0", "c.parametrizations.weight.original1")
    alike = only_look_alike(look({names[0]: g, names[1]: v}))
    code = "several-dims" if (g, v) == ((4,), (4, 4)) else "misfit"
    assert (alike.code, alike.weight, alike.names) == (code, "c.weight", names)
    assert alike.is_broken
    assert f"{names[0]} {list(g)}" in alike.message
    assert f"{names[1]} {list(v)}" in alike.message


def test_both_spellings_of_one_weight_are_never_a_pair() -> None:
    names: Shapes = {
        "c.weight_g": (2, 1), "c.weight_v": (2, 3),
        "c.parametrizations.weight.original0": (2, 1),
        "c.parametrizations.weight.original1": (2, 3),
    }  # fmt: skip
    alike = only_look_alike(look(names))
    assert (alike.code, alike.weight, set(alike.names)) == ("both-spellings", "c.weight", {*names})
    assert alike.is_broken


@pytest.mark.parametrize("dtype", [DType.F8_E4M3, DType.I8, DType.I64, DType.C64, DType.BOOL])
def test_a_pair_of_other_dtypes_is_named_and_no_pair(dtype: DType) -> None:
    alike = only_look_alike(look({"c.weight_g": (2, 1), "c.weight_v": (2, 3)}, dtype))
    assert (alike.code, alike.is_broken) == ("dtype", True)
    assert dtype.label in alike.message


# -- what is something else ---------------------------------------------------------------------


def test_spectral_norm_as_a_hook_is_no_weight_norm() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.utils.spectral_norm(nn.Linear(3, 2))
    alike = only_look_alike(look_at(module))
    assert (alike.code, alike.weight) == ("spectral-norm", "weight")
    assert "weight_v" in alike.names
    assert not alike.is_broken


def test_spectral_norm_as_a_parametrization_is_no_weight_norm() -> None:
    module = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)))
    alike = only_look_alike(look_at(module))
    assert (alike.code, alike.weight) == ("spectral-norm", "0.weight")
    assert not alike.is_broken


def test_spectral_norm_beside_weight_norm_hides_neither() -> None:
    module = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 2)), hook(nn.Linear(3, 2))
    )
    found = look_at(module)
    assert [pair.weight for pair in found.pairs] == ["1.weight"]
    assert [alike.weight for alike in found.look_alikes] == ["0.weight"]


class LowRank(nn.Module):
    """A parametrization of two tensors that is no weight norm."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :2].clone(), weight[:2].clone()


class Scaled(nn.Module):
    """A parametrization with a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class Attention(nn.Module):
    """Attention as people write it by hand: a parameter a letter, of one shape or another."""

    def __init__(self, letters: str, *, bias: bool = True) -> None:
        super().__init__()
        for letter in letters:
            self.register_parameter(f"weight_{letter}", nn.Parameter(torch.ones(4, 4)))
            if bias:
                self.register_parameter(f"bias_{letter}", nn.Parameter(torch.ones(4)))


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(nn.MultiheadAttention(8, 2, add_bias_kv=True), id="bias_k and bias_v"),
        pytest.param(Attention("qkv"), id="query, key, value"),
        pytest.param(Attention("ifgo"), id="the gates of a cell"),
        pytest.param(Attention("QKv", bias=False), id="capitals"),
    ],
)
def test_parameters_told_apart_by_letters_are_no_half_of_a_pair(module: nn.Module) -> None:
    found = look_at(nn.Sequential(module, hook(nn.Conv1d(8, 4, 3))))
    assert [pair.weight for pair in found.pairs] == ["1.weight"]
    assert found.look_alikes == ()


@pytest.mark.parametrize("g", [(4, 4), (4, 1), (4,)])
def test_a_g_and_v_beside_other_letters_are_left_alone_and_named(g: tuple[int, ...]) -> None:
    found = look({
        "a.weight_q": (4, 4), "a.weight_k": (4, 4), "a.weight_v": (4, 4), "a.weight_g": g,
        "a.bias_q": (4,), "a.bias_k": (4,), "a.bias_v": (4,), "a.bias_g": (4,),
    })  # fmt: skip
    assert (found.pairs, found.halves()) == ((), frozenset())
    assert [(alike.code, alike.weight) for alike in found.look_alikes] == [
        ("other-letters", "a.weight"),
        ("other-letters", "a.bias"),
    ]
    assert not any(alike.is_broken for alike in found.look_alikes)
    assert "a.weight_q" in found.look_alikes[0].message


def test_the_biases_of_a_value_and_a_gate_are_no_pair() -> None:
    found = look_at(Attention("gv"))
    assert found.pairs == ()
    assert {(alike.code, alike.weight) for alike in found.look_alikes} == {
        ("misfit", "weight"),
        ("misfit", "bias"),
    }


def test_a_normalized_bias_beside_a_normalized_weight_is_a_pair() -> None:
    found = look_at(hook(hook(nn.Linear(3, 4)), "bias"))
    assert {pair.weight for pair in found.pairs} == {"weight", "bias"}


def test_another_parametrization_of_two_tensors_is_never_a_pair() -> None:
    module = nn.Linear(5, 4)
    nn.utils.parametrize.register_parametrization(module, "weight", LowRank())
    alike = only_look_alike(look_at(module))
    assert (alike.code, alike.weight) == ("misfit", "weight")
    assert set(alike.names) == {
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }


def test_a_parametrization_on_top_of_weight_norm_is_never_folded_as_a_pair() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    nn.utils.parametrize.register_parametrization(module, "weight", Scaled())
    alike = only_look_alike(look_at(module))
    assert (alike.code, alike.weight) == ("other-parametrization", "weight")
    assert not alike.is_broken
    assert "parametrizations.weight.1.scale" in alike.names


def test_a_parametrization_of_one_tensor_is_no_concern_of_weight_norm() -> None:
    module = nn.Linear(5, 4)
    nn.utils.parametrize.register_parametrization(module, "weight", Scaled())
    found = look_at(module)
    assert (found.pairs, found.look_alikes) == ((), ())


def test_a_parametrization_of_another_weight_leaves_the_pair_alone() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))
    nn.utils.parametrize.register_parametrization(module, "bias", Scaled())
    assert only_pair(look_at(module)).weight == "weight"


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(
            {"att.time_mix_g": (1, 1, 64), "att.time_mix_v": (1, 1, 64)}, id="RWKV time mixing"
        ),
        pytest.param({"att.time_mix_g": (64,), "att.time_mix_v": (64,)}, id="RWKV, flat"),
        pytest.param({"att.x_g": (1, 1, 64), "att.x_v": (1, 1, 64)}, id="RWKV 7"),
        pytest.param({"att.time_mix_g": (1, 1, 64)}, id="RWKV, one alone"),
        pytest.param({"attn.q_g": (64, 64), "attn.q_v": (64, 64)}, id="projections of one size"),
        pytest.param({"attn.q_g": (8, 64), "attn.q_v": (16, 64)}, id="projections that do not fit"),
        pytest.param({"attn.proj_v": (64, 64)}, id="a value projection"),
        pytest.param({"attn.proj_g": (64,)}, id="a gate"),
    ],
)
def test_parameters_that_happen_to_end_in_g_or_v_are_nothing(shapes: Shapes) -> None:
    found = look(shapes)
    assert (found.pairs, found.look_alikes, found.halves()) == ((), (), frozenset())


# -- names in hostile files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        (".weight_g", ".weight_v"),
        (".weight_g", "weight_v"),
        (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
        ("..weight_g", "..weight_v"),
        ("", ".", "_g", "_v", "._g", "._v"),
        ("../weight_g", "../weight_v"),
        ("\0.weight_g", "\0.weight_v"),
    ],
    ids=repr,
)
def test_any_name_that_a_file_can_have_is_surveyed(names: tuple[str, ...]) -> None:
    shapes = [(2, 1), (2, 3)] * 3
    found = look(dict(zip(names, shapes, strict=False)))
    for pair in found.pairs:
        assert {pair.g.name, pair.v.name} <= set(names)
    assert found.halves() <= set(names)
