"""A weight-norm pair: a magnitude and its direction, as they are stored or are to be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wncli.checkpoint.dims import magnitude_shape
from wncli.checkpoint.naming import Naming, pair_names, split
from wncli.checkpoint.tensors import NORMALIZABLE, DType, Storage, TensorSpec, product_dtype


class Pair(NamedTuple):
    """A magnitude and its direction; `stale` is a tensor that stands under the weight's own name.

    `dim` is the lowest that g's shape can mean, None for the whole tensor. `axes` are set where g
    is a vector that fits several, and nothing has said yet which.
    """

    weight: str
    naming: Naming
    g: TensorSpec
    v: TensorSpec
    dim: int | None
    stale: TensorSpec | None = None
    axes: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return self.v.shape

    @property
    def numel(self) -> int:
        """Number of the weight's elements."""
        return self.v.numel

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The pair's tensors, the stale one included."""
        return tuple(spec for spec in (self.g, self.v, self.stale) if spec)

    @property
    def dtype(self) -> DType:
        """The dtype of the weight: the pair's, or what PyTorch promotes a mixed pair to."""
        return product_dtype(self.g.dtype, len(self.g.shape), self.v.dtype)


def storages_of(items: Iterable[Pair | TensorSpec]) -> list[Storage]:
    """Return the storages that tensors, and those of pairs, are in."""
    specs = [spec for one in items for spec in (one.tensors if isinstance(one, Pair) else (one,))]
    return [spec.storage for spec in specs]


class Halves(NamedTuple):
    """A pair of the output: the names of the weight, of g and v, their spelling, and g's shape."""

    weight: str
    g: str
    v: str
    naming: Naming
    g_shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: str, shape: tuple[int, ...], dim: int | None, naming: Naming) -> Halves:
        """Those that PyTorch makes for a weight of this full name and shape."""
        g, v = pair_names(weight, naming)
        return cls(weight, g, v, naming, magnitude_shape(shape, dim))


def is_plain_weight(spec: TensorSpec) -> bool:
    """Whether `apply` takes it by itself: floating, of two or more dimensions, and a `weight`."""
    return spec.dtype in NORMALIZABLE and len(spec.shape) > 1 and split(spec.name)[1] == "weight"
