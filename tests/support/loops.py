"""The compiled loops: what they take, and how a process does without them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import wncli.arithmetic.weight_norm
import wncli.streaming.fold
from tests.support.strategies import BFLOAT16, FLOAT16, FLOAT32, Array, named


def without_compiled_loops(patch: pytest.MonkeyPatch) -> None:
    """Let this process compute with NumPy alone."""
    for room in (wncli.arithmetic.weight_norm, wncli.streaming.fold):
        patch.setattr(room, "kernel", None)


#: The dtypes that there are loops for.
NAMES = {FLOAT32: "F32", FLOAT16: "F16", BFLOAT16: "BF16"}
compiled_dtypes = pytest.mark.parametrize("dtype", NAMES, ids=named)


def raw(array: Array) -> memoryview:
    found: Any = array.reshape(-1).view(np.uint8)
    return memoryview(found)


def numbers(channels: int) -> memoryview:
    """Zeros for the sums of so many channels."""
    return memoryview(bytearray(channels * 16))


#: Rows that go by columns and others, more channels than have columns, rests of vectors.
SHAPES = [(1, 3, 1), (5, 7, 1), (3, 1030, 1), (2, 500, 3), (1, 4, 15), (3, 2, 23), (2, 3, 24),
          (1, 2, 67), (1, 1, 8193)]  # fmt: skip
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
