"""The compiled loops; None where they were not built."""

from __future__ import annotations

from wncli.checkpoint.tensors import DType

try:
    from wncli.arithmetic.kernels import kernel
except ImportError:
    kernel = None  # type: ignore[assignment]

__all__ = ["COMPILED", "kernel"]

#: The dtypes that they are for: squares of float64 are not exact in float64.
COMPILED = (DType.F32, DType.F16, DType.BF16)
