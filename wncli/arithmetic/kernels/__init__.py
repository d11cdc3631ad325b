"""The compiled loops; None where they were not built, or not for such a processor."""

from __future__ import annotations

try:
    from wncli.arithmetic.kernels import kernel
except ImportError:
    kernel = None  # type: ignore[assignment]

__all__ = ["kernel"]
