"""Draws distributions as small bars on one axis."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from wncli.cli.units import number
from wncli.statistics import Distribution

_BARS = " ▁▂▃▄▅▆▇█"
#: Columns of a drawing.
_WIDTH = 14
#: How many times as large as the smallest the largest may be before the axis is logarithmic.
_WIDE = 200.0


class Axis(NamedTuple):
    """What the drawings of a table have in common: from where to where they go."""

    low: float
    high: float
    is_log: bool

    @classmethod
    def of(cls, shown: Iterable[Distribution]) -> Axis:
        """Choose the axis on which all of these can be drawn: from 0 where that is not far."""
        found = [one for one in shown if one.min is not None and one.max is not None]
        low = min((one.min or 0.0 for one in found), default=0.0)
        high = max((one.max or 0.0 for one in found), default=1.0)
        if low > 0 and high > _WIDE * low:
            return cls(low, high, is_log=True)
        if 0 < low < high / 2:
            low = 0.0
        return cls(low, high, is_log=False)

    def header(self, name: str) -> str:
        """Name the axis, with its ends: `0 ·· g ·· 1.05`."""
        low, high, name = number(self.low), number(self.high), f"log {name}" * self.is_log or name
        dots = max(2, _WIDTH - len(low) - len(high) - len(name) - 4)
        return f"{low} {'·' * (dots // 2)} {name} {'·' * (dots - dots // 2)} {high}"

    def draw(self, one: Distribution, width: int) -> str:
        """Draw the numbers in `width` columns; the highest bar is that of the most."""
        counts = [0] * width
        finite = sorted(value for value in one.values if math.isfinite(value))
        start = 0
        for column in range(width):
            stop = len(finite)
            if column < width - 1:
                stop = bisect_left(finite, self._edge((column + 1) / width))
            counts[column], start = max(0, stop - start), max(start, stop)
        most = max(counts)
        steps = len(_BARS) - 1
        return "".join(_BARS[math.ceil(steps * count / most) if count else 0] for count in counts)

    def _edge(self, share: float) -> float:
        if self.is_log:  # a quotient or a difference of both ends may be more than a float holds
            return math.exp(math.log(self.low) * (1 - share) + math.log(self.high) * share)
        return self.low * (1 - share) + self.high * share
