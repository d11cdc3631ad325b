"""The arithmetic on tensors: NumPy's numbers bit for bit, and the gradients of PyTorch's own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.nn.functional import conv1d
from torch.nn.utils.parametrizations import weight_norm

import wncli
from tests.support.run import environment

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DIMS = (None, 0, 1, 2)


def array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype is torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    found: np.ndarray = tensor.detach().numpy()
    return found


def weight(dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_tensors_have_the_bits_of_arrays(
    dtype: torch.dtype, dim: int | None, *, wants_gradient: bool
) -> None:
    w = weight(dtype).requires_grad_(wants_gradient)
    g, v = wncli.decompose(w, dim)
    assert v is w
    assert g.dtype == dtype
    assert g.shape == (torch.norm_except_dim(w, 2, dim).shape if dim is not None else ())
    np.testing.assert_array_equal(array(g), wncli.magnitude(array(w), dim))
    assert torch.equal(wncli.compose(g, v), w)
    other = (g.detach() * 1.5).requires_grad_(wants_gradient)
    np.testing.assert_array_equal(
        array(wncli.compose(other, v)), wncli.compose(array(other), array(v))
    )
    assert g.requires_grad == wants_gradient
    assert wncli.compose(other, v).requires_grad == wants_gradient


@pytest.mark.parametrize("p", [1, 2, 3, 0.5, math.inf])
@pytest.mark.parametrize("dim", [0, 2])
def test_the_gradient_of_a_magnitude_is_that_of_torch(dim: int, p: float) -> None:
    ours, theirs = (weight(torch.float64).requires_grad_() for _ in range(2))
    axes = [axis for axis in range(3) if axis != dim]
    wncli.magnitude(ours, dim, p).cos().sum().backward()
    torch.linalg.vector_norm(theirs, p, axes, keepdim=True).cos().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_composed_weight_trains_as_the_parametrization_of_torch(
    dtype: torch.dtype, dim: int
) -> None:
    layer = weight_norm(torch.nn.Conv1d(4, 5, 3, dtype=dtype), dim=dim)
    parts = layer.parametrizations.weight
    g0, v0 = parts.original0, parts.original1
    with torch.no_grad():
        g0.mul_(1.5)
    g, v = (one.detach().clone().requires_grad_() for one in (g0, v0))
    signal = torch.randn(2, 4, 9, dtype=dtype, generator=torch.Generator().manual_seed(1))
    conv1d(signal, wncli.compose(g, v)).square().sum().backward()
    conv1d(signal, layer.weight).square().sum().backward()
    for ours, theirs in ((g, g0), (v, v0)):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_are_right_to_the_second_order(dim: int | None) -> None:
    w = weight(torch.float64).requires_grad_()
    g = (wncli.magnitude(w, dim).detach() * 1.25).requires_grad_()

    def composed(g: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return wncli.compose(g, v)

    def norms(w: torch.Tensor) -> torch.Tensor:
        return wncli.magnitude(w, dim)

    checks: tuple[Callable[..., bool], ...] = (
        torch.autograd.gradcheck,
        torch.autograd.gradgradcheck,
    )
    for check in checks:
        assert check(composed, (g, w))
        assert check(norms, (w,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_dead_slice_composes_to_its_zeros_and_has_a_finite_gradient(
    dtype: torch.dtype, dim: int
) -> None:
    zeros = weight(dtype).detach().movedim(dim, 0).contiguous()
    zeros[1] = torch.tensor(-0.0)
    w = zeros.movedim(0, dim).requires_grad_()
    g, v = wncli.decompose(w, dim)
    assert v is not w
    expected = wncli.decompose(array(w), dim)[1]
    np.testing.assert_array_equal(array(v), expected)
    back = wncli.compose(g, v)
    assert torch.equal(back, w)
    assert torch.equal(back.signbit(), w.signbit())
    back.float().square().sum().backward()
    assert w.grad is not None
    assert w.grad.isfinite().all()
    g, v = g.detach().requires_grad_(), w.detach().requires_grad_()  # as some files have it
    wncli.compose(g, v).float().sum().backward()
    for part in (g, v):
        assert part.grad is not None
        assert part.grad.isfinite().all()


def test_views_parameters_and_arrays_beside_tensors_are_taken() -> None:
    whole = torch.randn(6, 8)
    turned = torch.nn.Parameter(whole.T)
    g, v = wncli.decompose(turned)
    assert v is turned
    assert torch.equal(wncli.compose(g, v), whole.T)
    mixed = wncli.compose(array(g), v)
    assert isinstance(mixed, torch.Tensor)
    assert torch.equal(mixed, whole.T)
    with torch.no_grad():
        assert not wncli.magnitude(turned).requires_grad
    assert isinstance(wncli.magnitude(array(turned)), np.ndarray)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(2, 2, dtype=torch.int64), "int64 has no weight norm"),
        (torch.ones(2, 2, dtype=torch.float8_e4m3fn), "float8_e4m3fn has no weight norm"),
        (torch.ones(2, 2, device="meta"), "no elements at hand"),
        (torch.ones(2, 2).to_sparse(), "no elements at hand"),
        (torch.tensor(1.0), "0-dimensional"),
        (torch.full((2, 2), 6e4, dtype=torch.float16), "beyond what float16 can hold"),
    ],
)
def test_what_no_array_could_be_is_refused_by_name(tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(wncli.WeightNormError, match=said):
        wncli.decompose(tensor)
    with pytest.raises(wncli.WeightNormError):
        wncli.compose(torch.ones(3, 1), tensor)


def test_arrays_import_no_torch() -> None:
    script = (
        "import json, sys, numpy, wncli\n"
        "g, v = wncli.decompose(numpy.ones((2, 2), numpy.float32)); wncli.compose(g, v)\n"
        "print(json.dumps('torch' in sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, env=environment(), timeout=60,
    )  # fmt: skip
    assert json.loads(ran.stdout) is False
