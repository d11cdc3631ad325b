"""What a figure shows of each layer, and on which axis: the same for every kind of picture."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Literal, NamedTuple

from wncli.errors import printable
from wncli.statistics import Distribution

#: g, or g / ||v||.
Quantity = Literal["g", "ratio"]
LABELS: dict[Quantity, str] = {"g": "g", "ratio": "g / ‖v‖"}

#: How many times as large as the smallest the largest may be before an axis is logarithmic.
_WIDE = 100.0
#: The share of a linear axis that is free on each side.
_MARGIN = 0.02
#: Beyond this no axis goes: what is computed for it is to stay finite.
_FARTHEST = 1e300
_CLOSEST = 1e-300
#: How many times as large as the smallest the largest may be on an axis: Matplotlib goes far beyond
#: both ends where it looks for ticks. What is smaller is at the low end.
_MOST_DECADES = 1e250
#: Groups of neighbours that are named on an axis.
_MOST_GROUPS = 24


class Numbers(NamedTuple):
    """The numbers of a layer, under the name that a figure has for it, and what else it is."""

    name: str
    g: Distribution | None
    ratio: Distribution | None
    details: Mapping[str, str] = MappingProxyType({})

    def of(self, quantity: Quantity) -> Distribution | None:
        """Return one of them."""
        return self.g if quantity == "g" else self.ratio


class Side(NamedTuple):
    """A checkpoint: what it is called, and its layers in the model's order."""

    title: str
    layers: tuple[Numbers, ...]

    def has(self, quantity: Quantity) -> bool:
        """Whether any layer has such numbers."""
        return any(layer.of(quantity) for layer in self.layers)


class Band(NamedTuple):
    """Where the numbers of a layer lie: least, quartiles, largest; how many are 0, NaN or Inf."""

    quantiles: tuple[float, float, float, float, float] | None
    zeros: int
    non_finite: int


class Scale(NamedTuple):
    """An axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, shown: Iterable[Distribution]) -> Scale:
        """Choose one for all of these: logarithmic where they span decades and none is negative."""
        finite = sorted(v for one in shown for v in one.values if math.isfinite(v))
        if not finite:
            return cls(0.0, 1.0, is_log=False)
        low, high = (max(-_FARTHEST, min(end, _FARTHEST)) for end in (finite[0], finite[-1]))
        least = finite[bisect_left(finite, math.nextafter(0, 1))] if high > 0 else 0.0
        if low >= 0 and high / _WIDE > least > 0:
            least = max(least, high / _MOST_DECADES)
            return cls(10 ** (math.log10(least) - 0.1), 10 ** (math.log10(high) + 0.1), is_log=True)
        if 0 < low < high / 2:
            low = 0.0
        if low == high:
            return cls(low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1), is_log=False)
        if high - low < _CLOSEST:  # whose parts could not be told apart
            return cls(low - _CLOSEST, high + _CLOSEST, is_log=False)
        margin = (high - low) * _MARGIN
        return cls(low - margin * (low != 0), high + margin, is_log=False)

    def share(self, value: float) -> float:
        """Say where a number is, from 0 at the low end to 1; what lies beyond is at the end."""
        if self.is_log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value / 2 - self.low / 2) / ((self.high - self.low) / 2)
        return min(1.0, max(0.0, share))

    def value(self, share: float) -> float:
        """Say which number is at a share of the axis."""
        if self.is_log:
            return self.low * math.pow(self.high / self.low, share)
        return self.low * (1 - share) + self.high * share


def band_of(one: Distribution | None, *, is_log: bool = False) -> Band:
    """Sum up the numbers of a layer; on a logarithmic axis those that are 0 only count."""
    if one is None:
        return Band(None, 0, 0)
    finite = sorted(value for value in one.values if math.isfinite(value))
    zeros = sum(value == 0 for value in finite)
    bad = len(one.values) - len(finite)
    if is_log:
        finite = [value for value in finite if value > 0]
    if not finite:
        return Band(None, zeros, bad)
    return Band(tuple(_quantile(finite, n / 4) for n in range(5)), zeros, bad)  # type: ignore[arg-type]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Interpolate as NumPy does."""
    place = (len(ordered) - 1) * share
    at = math.floor(place)
    if at + 1 == len(ordered):
        return ordered[at]
    rest = place - at
    return ordered[at] * (1 - rest) + ordered[at + 1] * rest


def histogram(one: Distribution, scale: Scale, columns: int) -> list[int]:
    """Count the numbers of a layer in each of so many columns of an axis."""
    counts = [0] * columns
    for value in one.values:
        if math.isfinite(value) and not (scale.is_log and value <= 0):
            counts[min(columns - 1, int(scale.share(value) * columns))] += 1
    return counts


def aligned(sides: Sequence[Side]) -> list[Side]:
    """Give all sides the same layers in the same order, those of the first in front.

    Layers meet by their names, or where no names do by what is behind a root or prefix.
    """
    keys = [[layer.name for layer in side.layers] for side in sides]
    if len(sides) > 1 and not set.intersection(*map(set, keys)):
        keys = [_without_prefix(names) for names in keys]
    found = [
        dict(zip(names, side.layers, strict=True)) for names, side in zip(keys, sides, strict=True)
    ]
    order = dict.fromkeys(name for names in keys for name in names)
    nothing = Numbers("", None, None)
    shown = [next(layers[name].name for layers in found if name in layers) for name in order]
    return [
        Side(side.title, tuple(
            layers.get(name, nothing)._replace(name=title)
            for name, title in zip(order, shown, strict=True)
        ))
        for side, layers in zip(sides, found, strict=True)
    ]  # fmt: skip


def _without_prefix(names: list[str]) -> list[str]:
    """Take off the parts that all names begin with."""
    parts = [name.split(".") for name in names]
    shared = 0
    while parts and all(len(one) > shared + 1 for one in parts):
        if len({one[shared] for one in parts}) > 1:
            break
        shared += 1
    return [".".join(one[shared:]) for one in parts]


class Group(NamedTuple):
    """Neighbours whose names begin alike: from which to before which, and what is written there.

    `label` is the name, or its last part, or nothing where there is no place.
    """

    name: str
    start: int
    stop: int
    label: str


def groups_of(names: Sequence[str], letter: float = 0.0) -> list[Group]:
    """Find the finest groups of neighbours of which there are few enough to be named.

    Args:
        names: of the layers, in their order.
        letter: how many layers a letter is as wide as: most layers are in groups whose name has
            place, or else its last part.
    """
    for is_whole in (True, False):
        best: list[Group] = []
        for depth in range(1, max((name.count(".") for name in names), default=0) + 1):
            found = _runs([".".join(name.split(".")[:depth]) for name in names], letter, is_whole)
            labelled = sum(group.stop - group.start for group in found if group.label)
            if len(found) > _MOST_GROUPS or 2 * labelled < len(names):
                break
            if [group.start for group in found] != [group.start for group in best]:
                best = found
        if len(best) > 1:
            return best
    return []


def _runs(names: Sequence[str], letter: float, is_whole: bool) -> list[Group]:  # noqa: FBT001
    found = []
    start = 0
    for name, run in groupby(names):
        stop = start + len(list(run))
        label = name if is_whole else name.rpartition(".")[2]
        fits = len(label) * letter <= stop - start
        found.append(Group(name, start, stop, label if fits else ""))
        start = stop
    return found


def shown_number(value: float | None) -> str:
    """Write a number in four digits."""
    return "" if value is None else f"{value:.4g}"


def shown_name(name: str) -> str:
    """Write a name: strangers' hold anything."""
    return printable(name)
