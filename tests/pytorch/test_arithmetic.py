"""Weight norm on other devices: PyTorch's own operations in float64, held against exact numbers.

They run on the CPU here too, where the functions themselves take the loops; on CUDA where it is.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wncli
import wncli.pytorch as wn
from tests.support.live import norms_of_their_own, vocoder
from wncli.plan.survey import survey
from wncli.pytorch import arithmetic
from wncli.pytorch.tensors import describe_all

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

each_device = pytest.mark.parametrize("device", DEVICES)


def pair(g: Tensor, v: Tensor) -> Any:  # noqa: ANN401
    (found,) = survey(describe_all({"weight_g": g, "weight_v": v})).pairs
    return found


def composed(g: Tensor, v: Tensor) -> Tensor:
    return arithmetic._compose_by_torch("here", pair(g, v), g, v)


def ulps(found: Tensor, exact: np.ndarray[Any, Any]) -> float:
    """How far off the worst element is, in units of the last place of its dtype."""
    info = torch.finfo(found.dtype)
    values = found.double().cpu().numpy().astype(np.longdouble)
    exponent = np.floor(np.log2(np.maximum(np.abs(exact), float(info.smallest_normal))))
    return float((np.abs(values - exact) / (2.0**exponent * info.eps)).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
@each_device
def test_products_are_within_an_ulp_of_the_exact_ones(
    device: str, dim: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    v = torch.randn(6, 5, 7).to(dtype)
    axes = tuple(axis for axis in range(3) if axis != dim)
    shape = [size if axis == dim else 1 for axis, size in enumerate(v.shape)]
    g = (torch.rand([] if dim is None else shape) + 0.5).to(dtype)
    wide = v.double().numpy().astype(np.longdouble)
    norm = np.sqrt((wide**2).sum(axes, keepdims=True))
    exact = g.double().numpy().astype(np.longdouble) * wide / norm
    found = composed(g.to(device), v.to(device))
    assert found.dtype is dtype
    assert found.device.type == device
    # Of float64 the norm itself is rounded, and the quotient, before the product is.
    assert ulps(found, exact) <= (3 if dtype is torch.float64 else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1, None])
@each_device
def test_what_is_split_comes_back_bit_for_bit(
    device: str, dim: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 7).to(dtype).to(device)
    weight[1] = 0
    found = arithmetic._decompose_by_torch("here", "weight", weight, dim)
    assert torch.equal(composed(found.g, found.v), weight)
    if dim == 0:
        assert found.g[1].item() == 0
        assert torch.equal(found.v[1].flatten(), torch.eye(35, dtype=dtype, device=device)[0])
        assert found.v.data_ptr() != weight.data_ptr()
    else:
        assert found.v.data_ptr() == weight.data_ptr()


@each_device
def test_magnitudes_are_the_nearest_to_the_exact_norms(device: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 33)
    found = arithmetic._decompose_by_torch("here", "weight", weight.to(device), 0)
    for row, g in zip(weight.tolist(), found.g.flatten().tolist(), strict=True):
        square = sum(Fraction(value) ** 2 for value in row)
        unit = Fraction(float(np.spacing(np.float32(g))))
        assert (Fraction(g) - unit / 2) ** 2 <= square <= (Fraction(g) + unit / 2) ** 2


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@each_device
def test_tiny_and_huge_float64_do_not_overflow_on_the_way(device: str, scale: float) -> None:
    weight = torch.tensor([[3.0, 4.0]], dtype=torch.float64, device=device) * scale
    found = arithmetic._decompose_by_torch("here", "weight", weight, 0)
    exact = torch.tensor([[5 * scale]], dtype=torch.float64)
    torch.testing.assert_close(found.g.cpu(), exact, rtol=1e-15, atol=0)
    assert torch.equal(composed(found.g, found.v), weight)


@each_device
def test_what_has_no_direction_or_no_norm_is_refused(device: str) -> None:
    v = torch.ones(3, 2, device=device)
    v[2] = 0
    g = torch.ones(3, 1, device=device)
    with pytest.raises(wncli.WeightNormError, match=r"slice 2 \(of 3\) of weight_v is all zero"):
        composed(g, v)
    g[2] = 0
    assert composed(g, v)[2].tolist() == [0, 0]
    large = torch.full((3, 4), 6e4, device=device).half()
    with pytest.raises(wncli.WeightNormError, match="beyond what float16 can hold"):
        arithmetic._decompose_by_torch("here", "weight", large, 0)


@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_every_function_works_by_pytorchs_operations_alone(
    spelling: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on another device, up to an ulp of what the loops give."""
    made: dict[str, list[Tensor]] = {}
    for way in ("loops", "torch"):
        if way == "torch":
            monkeypatch.setattr(
                arithmetic,
                "_compose_by_loops",
                lambda where, pair, numbers, _: (
                    arithmetic._compose_by_torch(where, pair, numbers.g, numbers.v),
                    (),
                ),
            )
            monkeypatch.setattr(arithmetic, "_decompose_by_loops", arithmetic._decompose_by_torch)
        model = vocoder(None)
        wn.apply_weight_norm(model, naming=spelling)
        wn.initialize(model, torch.randn(8, 4, 12, generator=torch.Generator().manual_seed(2)))
        other = vocoder(None, seed=1)
        wn.load_weights(other, model)
        split = wn.split(wn.fold(model.state_dict()), dim=1, naming=spelling)
        wn.remove_weight_norm(model)
        made[way] = [*split.values(), *model.state_dict().values(), *other.state_dict().values()]
    for one, two in zip(*made.values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("spelling", ["hook", "parametrized"])
def test_a_model_on_a_device_stays_there(spelling: str, tmp_path: Any) -> None:  # noqa: ANN401
    model = vocoder(None).cuda()
    assert wn.apply_weight_norm(model, naming=spelling)  # type: ignore[arg-type]
    norms_of_their_own(model)
    fed = torch.randn(2, 4, 12, device="cuda")
    before = model(fed)
    wn.save(model, tmp_path / "out.pt")
    folded = wn.fold(model.state_dict())
    assert all(value.is_cuda for value in folded.values())
    wn.remove_weight_norm(model)
    assert all(parameter.is_cuda for parameter in model.parameters())
    torch.testing.assert_close(model(fed), before, rtol=1e-4, atol=1e-4)
    other = nn.Sequential(*vocoder("parametrized", seed=1)).cuda().eval()
    wn.load_weights(other, tmp_path / "out.pt")
    torch.testing.assert_close(other(fed), before, rtol=1e-4, atol=1e-4)
