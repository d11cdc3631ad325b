"""Which names `weights_only` accepts, held against PyTorch's own list."""

from __future__ import annotations

import argparse
import builtins
import collections
import importlib
import pathlib
import pickle

import numpy as np
import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from wncli.formats.open import open_checkpoint
from wncli.formats.torch.weights_only import accepts

MODULES = (
    "argparse", "builtins", "codecs", "_codecs", "collections", "copyreg", "functools", "numpy",
    "operator", "os", "pathlib", "pickle", "posix", "subprocess", "torch", "torch._tensor",
    "torch._utils", "torch.cuda", "torch.nn", "torch.nn.parameter", "torch.serialization",
    "torch.sparse", "torch.storage", "types",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(_get_allowed_globals()))
def test_every_name_that_torch_allows_is_accepted(name: str) -> None:
    assert accepts(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("module", MODULES)
def test_no_other_name_of_a_module_is_accepted(module: str) -> None:
    names = {f"{module}.{name}" for name in dir(importlib.import_module(module))}
    assert {name for name in names if accepts(name)} == names & set(_get_allowed_globals())


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "torch", "torch.", "builtins", "OrderedDict", "posix.system", "builtins.eval",
        "builtins.getattr", "torch.FloatStorage.x", " torch.Size", "torch.Size\n", "Torch.size",
        "argparse.Namespace", "collections.defaultdict", "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct", "pathlib.PosixPath", "torch.nn.Module",
    ],
)  # fmt: skip
def test_names_that_look_alike_are_not_accepted(name: str) -> None:
    assert not accepts(name)


@pytest.mark.parametrize(
    "value",
    [
        1j, {1}, b"x", bytearray(b"x"), collections.OrderedDict(a=1), collections.Counter("a"),
        torch.Size([1]), torch.device("cpu"), torch.float32, torch.nn.Parameter(torch.zeros(1)),
        torch.per_tensor_affine, argparse.Namespace(a=1), collections.defaultdict(list), range(3),
        frozenset({1}), pathlib.PurePosixPath("a"), np.float32(1), np.zeros(2), slice(1, 2),
        torch.nn.Linear(1, 1), len, int,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_names_are_refused_exactly_where_torch_load_refuses_the_file(
    value: object, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(2, 2), "value": value}, path)
    with open_checkpoint(path) as (opened, _):
        refused = opened.refused_names
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        assert refused
    else:
        assert not refused


def test_the_oracle_holds_the_names_that_state_dicts_are_made_of() -> None:
    allowed = _get_allowed_globals()
    assert allowed["collections.OrderedDict"] is collections.OrderedDict
    assert allowed["torch._utils._rebuild_tensor_v2"] is torch._utils._rebuild_tensor_v2
    assert builtins.eval not in allowed.values()
