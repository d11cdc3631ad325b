"""How numbers read: sizes in bytes, seconds, and those of weights."""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
#: Numbers between these are written in full.
_SMALL, _LARGE = 0.01, 1000.0
#: From here on one digit behind the point is enough.
_MANY = 100


def size(nbytes: int) -> str:
    """Give bytes in the unit that keeps the number below 1,000, as `117 KiB` or `2.1 GiB`."""
    return " ".join(_in_unit(nbytes, _unit_of(nbytes)))


def sizes(before: int, after: int) -> str:
    """Give two sizes in one unit, as `124 → 117 KiB`."""
    unit = _unit_of(max(before, after))
    return f"{_in_unit(before, unit)[0]} → {' '.join(_in_unit(after, unit))}"


def number(value: float | None) -> str:
    """Give a number of a weight in four places or so; `-` where there is none."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else f"{value}"
    if value == 0:
        return "0"
    if _SMALL <= abs(value) < _LARGE:
        return f"{value:.{1 if abs(value) >= _MANY else 2}f}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e+")


def seconds(value: float) -> str:
    """Give a time, as `0.2 s` or `3 min 20 s`."""
    if value < 60:  # noqa: PLR2004 - of a minute
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"


def _unit_of(nbytes: int) -> int:
    unit = 0
    while unit < len(_UNITS) - 1 and nbytes >= 1000 * _STEP**unit:
        unit += 1
    return unit


def _in_unit(nbytes: int, unit: int) -> tuple[str, str]:
    value = nbytes / _STEP**unit
    return f"{value:.1f}" if unit and value < 100 else f"{value:,.0f}", _UNITS[unit]  # noqa: PLR2004
