"""What the numbers of a checkpoint look like: g, g / ||v||, and norms, as distributions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Distribution:
    """Numbers, one for each slice, and where they lie.

    Attributes:
        count: how many there are.
        min: the smallest of the finite ones; None where there is none.
        median: their median.
        max: the largest.
        values: all of them, in the order of the slices.
    """

    count: int
    min: float | None
    median: float | None
    max: float | None
    values: Sequence[float] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Describe these numbers."""
        finite = sorted(values if math.isfinite(sum(values)) else filter(math.isfinite, values))
        if not finite:
            return cls(len(values), None, None, None, values)
        middle = len(finite) // 2
        median = finite[middle]
        if not len(finite) % 2:
            below = finite[middle - 1]
            median = (
                (below + median) / 2 if math.isfinite(below + median) else median / 2 + below / 2
            )
        return cls(len(values), finite[0], median, finite[-1], values)

    @classmethod
    def together(cls, parts: Iterable[Distribution]) -> Distribution:
        """Describe the numbers of several."""
        return cls.of([value for part in parts for value in part.values])

    def to_json(self) -> dict[str, Any]:
        """Return what sums it up."""
        return {"count": self.count, "min": self.min, "median": self.median, "max": self.max}


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """The numbers of a normalized layer.

    Attributes:
        root: where its state dict stands.
        name: the full name of its weight.
        g: the magnitudes, one for each slice.
        ratio: g / ||v||, exactly 1 where g is the norm of v, as it is after weight norm was
            applied and before anything was trained; None where v was not read.
        dead: slices whose g is 0, so that they give nothing.
        non_finite: slices with a NaN or an infinity in g, or in v where it was read.
    """

    root: str
    name: str
    g: Distribution
    ratio: Distribution | None
    dead: int
    non_finite: int


@dataclass(frozen=True, slots=True)
class TensorNorms:
    """The norms of a tensor's slices, as `torch.norm_except_dim` has them.

    Attributes:
        root: where its state dict stands.
        name: its full name there.
        shape: its shape.
        p: the order: the p-th root of the sum of the p-th powers; infinite for the largest element.
        dim: the dim whose slices they are of; None for the norm of the whole tensor.
        norms: one for each slice.
    """

    root: str
    name: str
    shape: tuple[int, ...]
    p: float
    dim: int | None
    norms: Distribution

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values: JSON has no infinity, whose order is `"inf"`."""
        order = self.p if math.isfinite(self.p) else "inf"
        found = {"root": self.root, "name": self.name, "shape": self.shape, "p": order}
        return found | {"dim": self.dim, "norms": self.norms.to_json()}
