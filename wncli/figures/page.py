"""Writes one self-contained HTML page: bands of all layers, and a table that sorts.

It needs no network, no server and no other file: the style, the script and the pictures (SVG) are
in it, and nothing else is let run.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html import escape

from wncli.figures.bands import (
    LABELS,
    Numbers,
    Quantity,
    Scale,
    Side,
    aligned,
    band_of,
    groups_of,
    histogram,
    shown_name,
    shown_number,
)
from wncli.statistics import Distribution

#: Units of a picture of all layers, and of one of a row.
_WIDTH, _HEIGHT, _LEFT = 1000, 180, 46
_COLUMNS, _SPARK = 48, 22
#: Units that a letter takes.
_LETTER = 6
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1b1b; --dim: #666; --rule: #ddd;
  --a: #0072b2; --b: #d55e00; --bad: #c2185b; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --text: #e4e4e4; --dim: #9a9a9a;
  --rule: #34383f; --a: #56b4e9; --b: #f0914a; --bad: #ff6d9e; } }
body { background: var(--back); color: var(--text); font: 14px/1.45 system-ui, sans-serif;
  margin: 1.5rem; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.4rem 0 .2rem; font-weight: 600; }
p { margin: .2rem 0; overflow-wrap: anywhere; } .dim, figcaption { color: var(--dim); }
.a { color: var(--a); } .b { color: var(--b); } .bad { color: var(--bad); }
figure { margin: 0; max-width: 1100px; } svg { display: block; overflow: visible; }
figure svg { width: 100%; height: auto; }
svg text { fill: var(--dim); font-size: 11px; }
svg .a { fill: var(--a); } svg .b { fill: var(--b); } svg .bad { fill: var(--bad); }
svg .rule { stroke: var(--rule); fill: none; } svg .one { stroke: var(--dim); fill: none;
  stroke-dasharray: 4 3; } svg .hit { fill: transparent; }
svg .hit:hover { fill: var(--dim); fill-opacity: .25; }
.far { fill-opacity: .3; } .near { fill-opacity: .5; }
table { border-collapse: collapse; margin-top: .5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid var(--rule); text-align: left;
  white-space: nowrap; }
td.n, th.n { text-align: right; } td:first-child { font-family: ui-monospace, monospace; }
thead { position: sticky; top: 0; background: var(--back); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--a); }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
input { font: inherit; margin-top: 1.2rem; padding: .25rem .5rem; width: 20rem; max-width: 100%; }
"""
_SCRIPT = """
const table = document.querySelector("table"), body = table && table.tBodies[0];
const rows = body ? [...body.rows] : [];
const key = (row, at) => row.cells[at].dataset.v ?? row.cells[at].textContent;
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, at = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  document.querySelectorAll("th[aria-sort]").forEach(one => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  rows.sort((one, other) => {
    const a = key(one, at), b = key(other, at);
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
    const by = head.className === "n" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return up ? by : -by;
  });
  body.append(...rows);
}));
const filter = document.querySelector("input");
if (filter) filter.addEventListener("input", () => rows.forEach(row => {
  row.hidden = !row.cells[0].textContent.toLowerCase().includes(filter.value.toLowerCase());
}));
"""


def page(sides: Sequence[Side], facts: Sequence[str]) -> bytes:
    """Make a page of one checkpoint or two; `facts` are lines that stand above."""
    quantities: list[Quantity] = ["g"]
    if any(side.has("ratio") for side in sides):
        quantities.append("ratio")
    sides = aligned(sides)
    title = " and ".join(shown_name(side.title) for side in sides)
    allowed = b64encode(sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_heading(sides)}</h1>",
        *(f"<p>{escape(shown_name(fact))}</p>" for fact in facts),
    ]
    if any(side.has(quantity) for side in sides for quantity in quantities):
        scales = {quantity: _scale(sides, quantity) for quantity in quantities}
        for quantity, scale in scales.items():
            parts.append(f"<h2>{LABELS[quantity]}, layer by layer</h2>")
            parts += [_overview(side, quantity, scale, _class(n)) for n, side in enumerate(sides)]
        parts.append(
            '<p class="dim">from min to max, darker between the quartiles, a line at the median; '
            '<span class="bad">×</span> g = 0 in some slices, '
            '<span class="bad">◆</span> NaN or infinite</p>'
        )
        parts.append('<input type="search" placeholder="filter layers" aria-label="filter layers">')
        parts += _table(sides, scales)
    parts.append(f"<script>{_SCRIPT}</script></body></html>\n")
    return "".join(parts).encode()


def _heading(sides: Sequence[Side]) -> str:
    if len(sides) == 1:
        return escape(shown_name(sides[0].title))
    return " and ".join(
        f'<span class="{_class(number)}">{escape(shown_name(side.title))}</span>'
        for number, side in enumerate(sides)
    )


def _class(number: int) -> str:
    return "ab"[number]


def _scale(sides: Sequence[Side], quantity: Quantity) -> Scale:
    return Scale.of(one for side in sides for layer in side.layers if (one := layer.of(quantity)))


# -- the picture of all layers ------------------------------------------------------------------


def _overview(side: Side, quantity: Quantity, scale: Scale, colour: str) -> str:
    """Draw a column for each layer; the pointer shows its name and numbers."""
    count = len(side.layers)
    step = _WIDTH / count
    gap = min(step / 4, 4) if step > 3 else 0  # noqa: PLR2004 - units, below which none is seen
    far, near, middle, marks, hits = [], [], [], [], []
    for at, layer in enumerate(side.layers):
        one = layer.of(quantity)
        band = band_of(one, is_log=scale.is_log)
        left, width = _LEFT + at * step, step - gap
        if band.quantiles:
            least, first, median, third, largest = (_y(scale, value) for value in band.quantiles)
            far.append(_box(left, largest, width, max(least - largest, 1)))
            near.append(_box(left, third, width, max(first - third, 1)))
            middle.append(_box(left, median - 0.8, width, 1.6))
        for is_there, text, y in (
            (band.zeros, "×", _y(scale, 0.0) + 4),
            (band.non_finite, "◆", -2),
        ):
            if is_there:
                x = left + width / 2
                marks.append(
                    f'<text class="bad" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{text}</text>'
                )
        label = escape(f"{shown_name(layer.name)}: {_in_words(one)}")
        hits.append(
            f'<rect class="hit" x="{left:.2f}" width="{step:.2f}" height="{_HEIGHT}">'
            f"<title>{label}</title></rect>"
        )
    paths = (
        f'<path class="{colour} far" d="{"".join(far)}"/><path class="{colour} near" d="'
        f'{"".join(near)}"/><path class="{colour}" d="{"".join(middle)}"/>'
    )
    one_line = ""
    if quantity == "ratio" and scale.low < 1 < scale.high:
        one_line = f'<path class="one" d="M{_LEFT} {_y(scale, 1.0):.1f}h{_WIDTH}"/>'
    return (
        f'<figure><svg viewBox="0 -12 {_LEFT + _WIDTH} {_HEIGHT + 32}" role="img" '
        f'aria-label="{LABELS[quantity]}, layer by layer">{"".join(_ticks(scale))}'
        f"{_groups(side.layers, step)}{one_line}{paths}{''.join(marks)}{''.join(hits)}"
        "</svg></figure>"
    )


def _y(scale: Scale, value: float) -> float:
    return _HEIGHT * (1 - scale.share(value))


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{x:.2f} {y:.1f}h{width:.2f}v{height:.1f}h-{width:.2f}z"


def _ticks(scale: Scale) -> Iterator[str]:
    for value in _tick_values(scale):
        y = _y(scale, value)
        yield f'<path class="rule" d="M{_LEFT} {y:.1f}h{_WIDTH}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _tick_values(scale: Scale) -> list[float]:
    """Choose round numbers on an axis: powers of ten, or steps of 1, 2 or 5."""
    if scale.is_log:
        first, last = math.ceil(math.log10(scale.low)), math.floor(math.log10(scale.high))
        each = max(1, (last - first) // 6)
        return [10.0**power for power in range(first, last + 1, each)]
    rough = (scale.high - scale.low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * n for n in range(math.ceil(scale.low / step), math.floor(scale.high / step) + 1)]


def _groups(layers: Sequence[Numbers], step: float) -> str:
    """Name the layers that belong together, where there is place for the name."""
    parts = []
    letter = _LETTER / step
    for group in groups_of([shown_name(layer.name) for layer in layers], letter):
        left, width = _LEFT + group.start * step, (group.stop - group.start) * step
        if group.start:
            parts.append(f'<path class="rule" d="M{left:.1f} 0v{_HEIGHT}"/>')
        if group.label:
            x, y = left + width / 2, _HEIGHT + 16
            parts.append(
                f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{escape(group.label)}</text>'
            )
    return "".join(parts)


def _in_words(one: Distribution | None) -> str:
    if one is None or one.median is None:
        return "nothing finite" if one else "not there"
    return f"{shown_number(one.min)} to {shown_number(one.max)}, median {shown_number(one.median)}"


# -- the table ----------------------------------------------------------------------------------


def _table(sides: Sequence[Side], scales: dict[Quantity, Scale]) -> Iterator[str]:
    """Make a row for each layer, in the model's order."""
    details = [
        next((side.layers[at].details for side in sides if side.layers[at].details), {})
        for at in range(len(sides[0].layers))
    ]
    varying = [
        key
        for key in (details[0] if details else ())
        if key == "g" or len({one.get(key) for one in details}) > 1
    ]
    has = {
        what: any(getattr(band_of(layer.g), what) for side in sides for layer in side.layers)
        for what in ("zeros", "non_finite")
    }
    yield "<table><thead><tr>"
    yield f'<th colspan="{1 + len(varying)}"></th>'
    for quantity, scale in scales.items():
        for number in range(len(sides)):
            yield f'<th colspan="3" class="{_class(number)}">{LABELS[quantity]}</th>'
        yield f"<th>{_axis(scale)}</th>"
    counted = sum(has.values()) * len(sides)
    yield f'<th colspan="{counted}"></th>' if counted else ""
    yield "</tr><tr>"
    yield _head("layer")
    yield from (_head("g shape" if key == "g" else key) for key in varying)
    for _ in scales:
        yield from (_head(what, "n") for _ in sides for what in ("min", "median", "max"))
        yield "<th></th>"
    yield from (_head("g = 0", "n") for _ in sides if has["zeros"])
    yield from (_head("NaN, Inf", "n") for _ in sides if has["non_finite"])
    yield "</tr></thead><tbody>"
    for at, shown in enumerate(details):
        yield f"<tr><td>{escape(shown_name(sides[0].layers[at].name))}</td>"
        yield from (f"<td>{escape(shown_name(shown.get(key, '')))}</td>" for key in varying)
        layers = [side.layers[at] for side in sides]
        for quantity, scale in scales.items():
            found = [layer.of(quantity) for layer in layers]
            for one in found:
                yield from map(_number, (one.min, one.median, one.max) if one else (None,) * 3)
            yield f"<td>{_spark(found, scale)}</td>"
        bands = [band_of(layer.g) for layer in layers]
        yield from (_number(band.zeros) for band in bands if has["zeros"])
        yield from (_number(band.non_finite) for band in bands if has["non_finite"])
        yield "</tr>"
    yield "</tbody></table>"


def _head(name: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<th{kind}><button type="button">{escape(name)}</button></th>'


def _number(value: float | None) -> str:
    return (
        '<td class="n"></td>'
        if value is None
        else f'<td class="n" data-v="{value!r}">{value:.4g}</td>'
    )


def _axis(scale: Scale) -> str:
    """Say from where to where the pictures of the rows go."""
    kind = ", log" if scale.is_log else ""
    return f'<span class="dim">{shown_number(scale.low)} to {shown_number(scale.high)}{kind}</span>'


def _spark(found: Sequence[Distribution | None], scale: Scale) -> str:
    """Draw how often which numbers are: a bar for each piece of the axis, the sides one by one."""
    width, height = 3 * _COLUMNS, _SPARK * len(found)
    paths = []
    for number, one in enumerate(found):
        counts = histogram(one, scale, _COLUMNS) if one else []
        most = max(counts, default=0)
        bars = "".join(
            f"M{3 * column} {_SPARK * (number + 1)}v-{max(1, (_SPARK - 3) * count / most):.0f}h2V"
            f"{_SPARK * (number + 1)}z"
            for column, count in enumerate(counts)
            if count
        )
        paths.append(f'<path class="{_class(number)}" d="{bars}"/>')
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f"{''.join(paths)}</svg>"
    )
