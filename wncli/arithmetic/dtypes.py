"""The NumPy dtype of each element type."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from wncli.checkpoint.tensors import DType

if TYPE_CHECKING:
    import numpy as np


@cache
def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the NumPy dtype of one element; bits where NumPy has no such number."""
    import numpy as np

    name = dtype.numpy
    if name is None:
        name = f"V{dtype.itemsize}"
    elif name.startswith(("bfloat", "float8")):
        import ml_dtypes

        name = getattr(ml_dtypes, name)
    found: np.dtype[Any] = np.dtype(name)
    return found
