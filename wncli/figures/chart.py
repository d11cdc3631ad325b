"""Draws figures with Matplotlib; the only module that needs it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from wncli.errors import UsageError
from wncli.figures.bands import (
    LABELS,
    Band,
    Quantity,
    Scale,
    Side,
    aligned,
    band_of,
    groups_of,
    shown_name,
)
from wncli.hints import parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: More layers than these have no name each: they are columns of a band instead of rows.
MOST_NAMED = 48
#: Okabe and Ito's blue and vermilion, which everybody can tell apart; what is wrong is theirs too.
_COLOURS = ("#0072B2", "#D55E00")
_WRONG = "#C2185B"
_GREY = "#808080"
#: Inches: the text of a page is about 7 wide.
_WIDTH = 7.0
_ROW = 0.17
_PANEL = 2.1
_DPI = 200
_STYLE = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "wn",
}
#: From so many on the ticks of a logarithmic axis are ours.
_DECADES = 30
#: Characters of a name on an axis.
_LONGEST_NAME = 44


def refuse_without_matplotlib() -> None:
    """Refuse to draw where Matplotlib is not installed.

    Raises:
        UsageError: it is not.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(
            parameter("plot"), "Matplotlib is not installed", hint="pip install 'wncli[plot]'"
        )


def image(sides: Sequence[Side], kind: str) -> bytes:
    """Draw what the sides have, g and g / ||v||, as a PNG or an SVG.

    The same numbers give the same bytes.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    refuse_without_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    quantities: list[Quantity] = ["g"]
    if any(side.has("ratio") for side in sides):
        quantities.append("ratio")
    sides = aligned(sides)
    count = len(sides[0].layers)
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", "overflow encountered")  # beyond what is shown
        if count <= MOST_NAMED:
            height = 0.75 + max(4, count) * _ROW * (1 if len(sides) == 1 else 1.5)
            figure = Figure((_WIDTH, height), dpi=_DPI, layout="constrained")
            grid = figure.subplots(1, len(quantities), sharey=True, squeeze=False)
            for axes, quantity in zip(grid[0], quantities, strict=True):
                _draw_rows(axes, sides, quantity)
            for axes in grid[0][1:]:
                axes.tick_params(left=False)
        else:
            figure = Figure(
                (_WIDTH, 0.6 + _PANEL * len(quantities) * len(sides)),
                dpi=_DPI, layout="constrained",
            )  # fmt: skip
            panels = [(quantity, side) for quantity in quantities for side in sides]
            grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
            for (quantity, side), axes in zip(panels, grid[:, 0], strict=True):
                _draw_columns(axes, side, quantity, _scale(sides, quantity), sides.index(side))
            _name_groups(grid[-1, 0], sides[0])
            for axes in grid[:-1, 0]:
                axes.tick_params(axis="x", length=0)
        _add_words(figure, sides)
        FigureCanvasAgg(figure)
        found = io.BytesIO()
        figure.savefig(found, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return found.getvalue()


def draw(side: Side, axes: Axes | None, quantity: Quantity) -> Axes:
    """Draw one quantity of a checkpoint into these axes, or into those of a new figure of pyplot.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    refuse_without_matplotlib()
    count = len(side.layers)
    if axes is None:
        from matplotlib import pyplot as plt

        height = 0.75 + max(4, count) * _ROW if count <= MOST_NAMED else _PANEL + 0.6
        with plt.rc_context(_STYLE):
            _, axes = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
    if count <= MOST_NAMED:
        _draw_rows(axes, [side], quantity)
    else:
        _draw_columns(axes, side, quantity, _scale([side], quantity), 0)
        _name_groups(axes, side)
    axes.set_title(shown_name(side.title), parse_math=False)
    marks = _marks([axes])
    if marks:
        axes.legend(handles=[*marks.values()], fontsize=7)
    return axes


def _add_words(figure: Figure, sides: Sequence[Side]) -> None:
    """Add which checkpoint is shown, or which is of which colour, and what the shapes mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if len(sides) == 1:
        figure.suptitle(shown_name(sides[0].title), fontsize=9, parse_math=False)
    else:
        names = [
            Patch(color=colour, label=_short(side.title))
            for side, colour in zip(sides, _COLOURS, strict=True)
        ]
        legend = figure.legend(
            handles=names, loc="outside upper center", ncols=len(names), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    colour = _COLOURS[0] if len(sides) == 1 else _GREY
    is_column = len(sides[0].layers) > MOST_NAMED
    meanings: list[Any] = [
        Patch(color=colour, alpha=0.2, label="min to max")
        if is_column
        else Line2D([], [], color=colour, linewidth=0.8, label="min to max"),
        Patch(color=colour, alpha=0.4, linewidth=0, label="quartiles"),
        Line2D([], [], color=colour, linewidth=1.6, label="median"),
        *_marks(figure.axes).values(),
    ]
    figure.legend(
        handles=meanings, loc="outside lower center", ncols=len(meanings), frameon=False,
        fontsize=7,
    )  # fmt: skip


def _marks(all_axes: Sequence[Axes]) -> dict[str, Any]:
    """Return what has a label in these axes, each once."""
    return {
        str(label): handle
        for axes in all_axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }


def _scale(sides: Sequence[Side], quantity: Quantity) -> Scale:
    return Scale.of(one for side in sides for layer in side.layers if (one := layer.of(quantity)))


def _short(name: str) -> str:
    name = shown_name(name)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"


# -- a row for each layer -----------------------------------------------------------------------


def _draw_rows(axes: Axes, sides: Sequence[Side], quantity: Quantity) -> None:
    """Draw a box for each layer and side, from the least to the largest, the first layer on top."""
    scale = _scale(sides, quantity)
    count = len(sides[0].layers)
    thick = 0.62 / len(sides)
    for number, (side, colour) in enumerate(zip(sides, _COLOURS, strict=False)):
        shift = (number - (len(sides) - 1) / 2) * (thick + 0.06)
        bands = [band_of(layer.of(quantity), is_log=scale.is_log) for layer in side.layers]
        places = [at + shift for at in range(count)]
        _draw_boxes(axes, places, bands, thick, colour)
        _mark(axes, places, bands, scale, is_upright=False)
    axes.set_ylim(count - 0.4, -0.6)
    names = [_short(layer.name) for layer in sides[0].layers]
    axes.set_yticks(range(count), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    if scale.is_log:
        axes.set_xscale("log")
        _set_decades(axes.xaxis, scale)
    axes.set_xlim(scale.low, scale.high)
    axes.set_xlabel(LABELS[quantity])
    axes.grid(axis="x", color=_GREY, alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    if quantity == "ratio":
        axes.axvline(1, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)


def _set_decades(axis: Axis, scale: Scale) -> None:
    """Choose the ticks where there are many decades: Matplotlib's end in an overflow."""
    first, last = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
    if last - first > _DECADES:
        ticks = [10.0**power for power in range(first, last + 1, (last - first) // 5)]
        axis.set_ticks(ticks)
        axis.set_ticks([], minor=True)


def _draw_boxes(
    axes: Axes, places: list[float], bands: list[Band], thick: float, colour: str
) -> None:
    shown = [(at, band.quantiles) for at, band in zip(places, bands, strict=True) if band.quantiles]
    if not shown:
        return
    at = [place for place, _ in shown]
    least, first, median, third, largest = zip(*(found for _, found in shown), strict=True)
    axes.hlines(at, least, largest, color=colour, linewidth=0.8)
    widths = [high - low for low, high in zip(first, third, strict=True)]
    axes.barh(at, widths, thick, first, color=colour, alpha=0.35, linewidth=0)
    half = thick / 2
    axes.vlines(
        median, [y - half for y in at], [y + half for y in at], color=colour, linewidth=1.6
    )  # fmt: skip


# -- a column for each layer --------------------------------------------------------------------


def _draw_columns(axes: Axes, side: Side, quantity: Quantity, scale: Scale, number: int) -> None:
    """Draw bands from the least to the largest and between the quartiles, and the medians."""
    colour = _COLOURS[number % len(_COLOURS)]
    bands = [band_of(layer.of(quantity), is_log=scale.is_log) for layer in side.layers]
    nothing = (float("nan"),) * 5
    least, first, median, third, largest = zip(
        *(band.quantiles or nothing for band in bands), strict=True
    )
    count = len(bands)
    edges = [at - 0.5 for at in range(count + 1)]

    def steps(values: Sequence[float]) -> list[float]:
        return [*values, values[-1]]

    for low, high, alpha in ((least, largest, 0.2), (first, third, 0.4)):
        axes.fill_between(
            edges, steps(low), steps(high), step="post", color=colour, alpha=alpha, linewidth=0
        )
    axes.step(edges, steps(median), where="post", color=colour, linewidth=0.7)
    _mark(axes, list(range(count)), bands, scale, is_upright=True)
    axes.set_xlim(-0.5, count - 0.5)
    if scale.is_log:
        axes.set_yscale("log")
        _set_decades(axes.yaxis, scale)
    axes.set_ylim(scale.low, scale.high)
    axes.set_ylabel(LABELS[quantity])
    axes.grid(axis="y", color=_GREY, alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    if quantity == "ratio":
        axes.axhline(1, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)


def _name_groups(axes: Axes, side: Side) -> None:
    """Name the layers that belong together below the axis."""
    names = [shown_name(layer.name) for layer in side.layers]
    groups = groups_of(names)
    axes.set_xlabel(f"{len(names):,} layers")
    if not groups:
        return
    for axis in axes.figure.axes if axes.figure else ():
        for group in groups[1:]:
            axis.axvline(group.start - 0.5, color=_GREY, alpha=0.4, linewidth=0.5)
    least = len(names) / 50
    named = [group for group in groups if group.stop - group.start >= least]
    is_tight = sum(len(group.name) for group in named) > 90  # noqa: PLR2004 - of that width
    axes.set_xticks(
        [(group.start + group.stop - 1) / 2 for group in named],
        [_short(group.name) for group in named],
        rotation=35 if is_tight else 0,
        ha="right" if is_tight else "center",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.tick_params(axis="x", length=0)


def _mark(
    axes: Axes, places: Sequence[float], bands: list[Band], scale: Scale, *, is_upright: bool
) -> None:
    """Mark layers with slices that are 0, at the low end, or NaN or Inf, at the high end."""
    kinds: list[tuple[str, str, float, list[float]]] = [
        ("x", "g = 0 in some slices", scale.low if scale.is_log else 0.0,
         [at for at, band in zip(places, bands, strict=True) if band.zeros]),
        ("d", "NaN or infinite in some slices", scale.high,
         [at for at, band in zip(places, bands, strict=True) if band.non_finite]),
    ]  # fmt: skip
    for marker, label, value, at in kinds:
        if at:
            points = ([*at], [value] * len(at)) if is_upright else ([value] * len(at), [*at])
            axes.plot(
                *points, marker, color=_WRONG, markersize=4, label=label, clip_on=False,
                linestyle="none",
            )  # fmt: skip
