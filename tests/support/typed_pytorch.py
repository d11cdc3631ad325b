"""A program that uses `wncli.pytorch`, as a user with `mypy --strict` writes it.

python typed_pytorch.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import assert_type

import torch
from torch import Tensor, nn

import wncli
import wncli.pytorch as wn


def main(folder: Path) -> None:
    """Use the functions for models and for tensors; their types are as documented."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    assert_type(tuple(wn.apply_weight_norm(model, layers=["0"])), tuple[str, ...])
    assert_type(wn.split(wn.fold(model.state_dict())), dict[str, Tensor])
    assert_type(wn.save(model, folder / "model.safetensors"), wncli.Report)

    loaded = wn.load_weights(model, folder / "model.safetensors")
    assert_type(loaded, wn.Loaded)
    assert_type(loaded.missing, tuple[str, ...])
    assert loaded.missing == ()
    wn.remove_weight_norm(model)

    weight = nn.Parameter(torch.ones(3, 4))
    g, v = wncli.decompose(weight)
    assert_type(g, Tensor)
    assert_type(wncli.compose(g, v), Tensor)
    assert_type(wncli.magnitude(weight.detach(), p=1), Tensor)
    assert wncli.compose(g, v).equal(weight)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
