"""Dims and shapes of weight norm, held to PyTorch's `norm_except_dim` and to NumPy's indexing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.strategies import dims_of, every_slice, examples, shapes
from wncli import WeightNormError
from wncli.checkpoint.dims import fitting_dims, magnitude_shape, resolve_dim, slices


@given(data=st.data())
@examples(100)
def test_magnitude_shape_is_the_shape_of_torchs_norm(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_rank=5))
    dim = data.draw(dims_of(len(shape)))
    expected = torch.norm_except_dim(torch.ones(shape), 2, -1 if dim is None else dim).shape
    assert magnitude_shape(shape, dim) == tuple(expected)


@given(data=st.data())
@examples(100)
def test_every_magnitude_shape_fits_the_dim_that_it_was_made_for(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_rank=5))
    dim = data.draw(dims_of(len(shape)))
    assert dim in fitting_dims(magnitude_shape(shape, dim), shape)


@given(data=st.data())
@examples(100)
def test_dims_that_fit_one_magnitude_compute_the_same_numbers(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_rank=4, max_side=3))
    g_shape = data.draw(st.one_of(shapes(max_rank=4, max_side=3), st.just(())))
    found = fitting_dims(g_shape, shape)
    w = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    norms = [torch.norm_except_dim(w, 2, -1 if dim is None else dim).reshape(-1) for dim in found]
    for norm in norms:
        assert norm.tolist() == norms[0].tolist()
        assert norm.numel() == math.prod(g_shape)


@given(data=st.data())
@examples(100)
def test_slices_see_the_tensor_as_the_slices_of_its_dim(data: st.DataObject) -> None:
    shape = data.draw(shapes(max_rank=5))
    dim = data.draw(dims_of(len(shape)))
    w = np.arange(math.prod(shape)).reshape(shape)
    view = w.reshape(slices(shape, dim))
    expected = every_slice(w, dim)
    assert view.shape[1] == len(expected)
    for channel, values in enumerate(expected):
        assert view[:, channel, :].reshape(-1).tolist() == values.reshape(-1).tolist()


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_every_dim_below_the_rank_stands_for_itself(rank: int) -> None:
    assert [resolve_dim(dim, rank) for dim in range(rank)] == list(range(rank))


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_none_and_minus_one_are_the_whole_tensor(rank: int) -> None:
    assert resolve_dim(None, rank) is None
    assert resolve_dim(-1, rank) is None


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (2, 2), (7, 3), (-2, 3), (-3, 3), (-100, 1)])
def test_a_dim_out_of_range_is_refused_with_the_range(dim: int, rank: int) -> None:
    with pytest.raises(WeightNormError) as refusal:
        resolve_dim(dim, rank, "model.pt: conv.weight")
    message = str(refusal.value)
    assert message.startswith(f"model.pt: conv.weight: dim {dim} is out of range")
    assert f"0 to {rank - 1}" in message


def test_a_negative_dim_is_refused_with_what_minus_one_means() -> None:
    with pytest.raises(WeightNormError, match="not the last axis"):
        resolve_dim(-2, 3)


@pytest.mark.parametrize("dim", [None, -1, 0, 1])
def test_a_tensor_without_dimensions_has_no_dim(dim: int | None) -> None:
    with pytest.raises(WeightNormError, match="0-dimensional"):
        resolve_dim(dim, 0)


@pytest.mark.parametrize(
    ("g", "v", "dims"),
    [
        pytest.param((5, 1), (5, 3), (0,), id="dim 0"),
        pytest.param((1, 3), (5, 3), (1,), id="dim 1"),
        pytest.param((1, 1, 128), (1024, 64, 128), (2,), id="wav2vec 2.0"),
        pytest.param((), (5, 3), (None,), id="whole tensor"),
        pytest.param((), (), (), id="a v of rank 0"),
        pytest.param((5,), (5, 3), (0,), id="flat, first axis"),
        pytest.param((3,), (5, 3), (1,), id="flat, last axis"),
        pytest.param((1,), (5, 3), (None,), id="(1,) is the whole tensor"),
        pytest.param((1,), (5, 1), (None,), id="(1,) is the whole tensor beside an axis of 1 too"),
        pytest.param((5,), (5, 5), (), id="flat, two axes"),
        pytest.param((5,), (5, 3, 5), (), id="flat, two axes apart"),
        pytest.param((5,), (5, 1, 1), (0,), id="flat beside axes of 1"),
        pytest.param((4,), (5, 3), (), id="flat, no axis"),
        pytest.param((5,), (5,), (0,), id="a vector's own"),
        pytest.param((1,), (1,), (0,), id="a vector of one"),
        pytest.param((1, 1), (1, 1), (0, 1), id="axes of 1 alone"),
        pytest.param((4, 1, 1), (4, 1, 7), (0,), id="pointwise"),
        pytest.param((1, 1, 1), (1, 1, 7), (0, 1), id="lowest first"),
        pytest.param((5, 3), (5, 3), (), id="as large as v"),
        pytest.param((3, 1), (5, 3), (), id="the wrong axis"),
        pytest.param((1, 5), (5, 3), (), id="transposed"),
        pytest.param((5, 1, 1), (5, 3), (), id="a rank too many"),
        pytest.param((5, 1), (5, 3, 1), (), id="a rank too few"),
        pytest.param((1, 1), (5, 3), (), id="all axes gone"),
        pytest.param((0,), (5, 3), (), id="empty"),
        pytest.param((0, 1), (0, 3), (0,), id="no slices"),
    ],
)
def test_the_dim_is_read_off_the_shape(
    g: tuple[int, ...], v: tuple[int, ...], dims: tuple[int | None, ...]
) -> None:
    assert fitting_dims(g, v) == dims
