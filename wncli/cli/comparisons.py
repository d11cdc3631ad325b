"""Draws the result of `compare`: the verdict, what has changed most, what would be equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING

from wncli.arithmetic.ulps import DEFAULT_ULPS
from wncli.checkpoint.naming import join, split
from wncli.checkpoint.tensors import DType
from wncli.cli.inspections import View, come_from
from wncli.cli.page import Column, Page, Table
from wncli.cli.terminal import height_of_screen, many, show, show_refusal
from wncli.cli.units import number
from wncli.errors import printable, shortened
from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison, TensorDifference

#: As many names are shown of those without a counterpart.
_NAMED = 5
#: Characters of such a name on a terminal.
_LONGEST_NAME = 200
#: Kinds of tensors that are counted one by one.
_MOST_KINDS = 3
#: Characters of a full bar, and the eighths of one.
_LONGEST_BAR = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
#: Of labels in front of lines.
_WIDTH = 10
_PRECISIONS = {dtype.label: dtype.precision[0] for dtype in DType if dtype.precision}
#: Digits beyond which an angle is not told from the difference of two norms.
_MOST_DIGITS = 26
#: Units of the last place between these, and whole ones, are written as whole numbers.
_FEW, _MANY = 100, 1e9
#: Powers of ten that are offered as a tolerance.
_ROUND = range(-1, -10, -1)


def show_comparison(found: Comparison, *, shows_all: bool = False) -> None:
    """Print a comparison for people; what may need action goes to stderr."""
    page = Page()
    view = View(height_of_screen(), shows_all)
    verdict = ("equal", "bold green") if found.equal else ("different", "bold red")
    page.line(verdict, f"  {' · '.join((*_facts(found), *come_from(found.remote)))}", hang=3)
    changed = [tensor for tensor in found.tensors if tensor.max_ulps]
    if changed:
        _add_tensors(page, changed, view)
    elif not found.equal:
        page.line()
    _add_summary(page, found, view)
    for note in found.notes:
        if not note.is_warning:
            page.line("  ", ("note: ", "dim"), printable(in_shell(note.message)), hang=8)
    show(page)
    warnings = [in_shell(note.message) for note in found.notes if note.is_warning]
    for message in dict.fromkeys(warnings):  # both sides may say the same
        show_refusal("warning", message)


def _facts(found: Comparison) -> list[str]:
    """Say how many differ, what is on one side only, and how much has changed in all."""
    beyond = sum(not tensor.within for tensor in found.tensors)
    changed = [tensor for tensor in found.tensors if tensor.max_ulps]
    count = len(found.tensors)
    alone = len(found.only_in_a) + len(found.only_in_b)
    facts = []
    if not count:
        facts.append("no name is on both sides")
    elif found.equal:
        same = "all identical" if not changed else f"{count - len(changed):,} identical"
        facts.append(f"{many(count, 'tensor')}, {same}")
    else:
        facts.append(f"{beyond:,} of {many(count, 'tensor')}")
    if alone:
        facts.append(f"{alone:,} without a counterpart")
    if found.misshapen:
        facts.append(f"{len(found.misshapen):,} of other shapes")
    if changed:
        facts.append(f"total change ‖ΔW‖/‖W‖ {_percent(found.change)}")
        if count > 1:
            facts.append(f"worst {_percent(found.tensors[0].change)}")
    return facts


def _add_tensors(page: Page, changed: Sequence[TensorDifference], view: View) -> None:
    """Add a row for each that has changed, or for those that have most."""
    has_roots = len({tensor.root for tensor in changed}) > 1
    is_split = any(tensor.g_moved is not None for tensor in changed)
    dtypes = [_dtypes(tensor) for tensor in changed]
    has_dtypes = len({*dtypes}) > 1
    tags = [_tag(tensor) for tensor in changed[: view.most]]
    has_tags = any(tags) and {*tags} != {"within"}
    longest = max((t.change for t in changed if math.isfinite(t.change)), default=0.0)
    columns = (
        Column("weight", is_name=True),
        Column("‖ΔW‖/‖W‖", is_right=True),
        Column("", goes=4, style="cyan"),
        *(Column("g moved", is_right=True, goes=1), Column("v turned", is_right=True, goes=2))
        * is_split,
        Column("max |Δ|", is_right=True, goes=3),
        Column("max rel", is_right=True, goes=7),
        Column("ulps", is_right=True, goes=8),
        *(Column("dtype", goes=6),) * has_dtypes,
        *(Column("", goes=5),) * has_tags,
    )
    rows = [
        (
            _name(tensor, has_roots=has_roots, in_full=view.height is None),
            _percent(tensor.change),
            _bar(tensor.change / longest if longest else 0.0),
            *(_percent(tensor.g_moved, sign="+"), _angle(tensor)) * is_split,
            number(tensor.max_absolute),
            number(tensor.max_relative),
            _ulps(tensor.max_ulps),
            *(dtype,) * has_dtypes,
            *(tag,) * has_tags,
        )
        for tensor, dtype, tag in zip(changed, dtypes, tags, strict=False)
    ]
    left = len(changed) - len(rows)
    more = [(f"… {left:,} more: --all", *("",) * (len(columns) - 1))] if left else []
    page.table(Table(columns, rows, more))


def _name(tensor: TensorDifference, *, has_roots: bool, in_full: bool) -> str:
    """Give the full name; on a terminal the path of the module where it is its weight."""
    module, parameter = split(tensor.name)
    name = module if module and parameter == "weight" and not in_full else tensor.name
    return printable(join(tensor.root, name) if has_roots else name)


def _dtypes(tensor: TensorDifference) -> str:
    one, other = tensor.dtype_a, tensor.dtype_b
    return one if one == other else f"{one}, {other}"


def _rounding(tensor: TensorDifference) -> float:
    """Return how far rounding of both sides may turn a slice, in radians, or move its norm."""
    digits = [_PRECISIONS.get(label, 1) for label in (tensor.dtype_a, tensor.dtype_b)]
    return 2.0 ** (1 - min(*digits, _MOST_DIGITS))


def _tag(tensor: TensorDifference) -> str:
    """Say which of g and v alone has moved, or that a change is within the tolerance."""
    if tensor.within:
        return "within"
    if tensor.g_moved is None or tensor.v_turned is None:
        return ""
    has_moved = not abs(tensor.g_moved) <= _rounding(tensor)
    has_turned = not math.radians(tensor.v_turned) <= _rounding(tensor)
    if has_moved == has_turned:
        return ""
    return "g only" if has_moved else "v only"


def _bar(share: float) -> str:
    """Draw a share of the longest bar; all of it where it is more, and nothing for NaN."""
    if math.isnan(share):
        return ""
    eighths = math.ceil(8 * _LONGEST_BAR * min(share, 1.0))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _percent(value: float | None, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return number(value)
    plus = sign if value > 0 else ""
    return f"{plus}{number(100 * value)} %"


def _ulps(value: float) -> str:
    is_short = _FEW <= value < _MANY or not value % 1
    return f"{value:,.0f}" if is_short and value < _MANY else number(value)


def _angle(tensor: TensorDifference) -> str:
    turned = tensor.v_turned
    if turned is None or math.isnan(turned):
        return number(turned)
    return "0.00°" if math.radians(turned) <= _rounding(tensor) else f"{number(turned)}°"


def _add_summary(page: Page, found: Comparison, view: View) -> None:
    """Add which tolerance that was and which would do, what is identical, and what is alone."""
    if any(tensor.max_ulps for tensor in found.tensors):
        _labelled(page, "tolerance", "; ".join((_tolerance(found), *_looser(found))))
    identical = [tensor for tensor in found.tensors if not tensor.max_ulps]
    if identical and len(identical) < len(found.tensors):
        kinds = Counter(split(tensor.name)[1] for tensor in identical).most_common()
        told = ", ".join(f"{count:,} {kind}" for kind, count in kinds)
        kind = kinds[0][0] if len(kinds) == 1 else told
        text = many(len(identical), "tensor")
        text += f" ({printable(kind)})" if len(kinds) <= _MOST_KINDS else ""
        _labelled(page, "identical", text)
    for label, what, names in (
        ("only in A", f" of {found.checkpoint}", found.only_in_a),
        ("only in B", f" of {found.other}", found.only_in_b),
        ("shapes", " that differ", found.misshapen),
    ):
        if names:
            named = names if view.shows_all else names[:_NAMED]
            if view.height is not None:
                named = tuple(shortened(name, _LONGEST_NAME) for name in named)
            more = f" and {len(names) - len(named):,} more" if len(names) > len(named) else ""
            text = f"{many(len(names), 'tensor')}{what}: {', '.join(named)}{more}"
            _labelled(page, label, printable(text))


def _labelled(page: Page, label: str, text: str) -> None:
    page.line(f" {label:{_WIDTH}} ", text, hang=_WIDTH + 2)


def _tolerance(found: Comparison) -> str:
    if found.rtol is not None or found.atol is not None:
        return f"rtol {_typed(found.rtol or 0.0)}, atol {_typed(found.atol or 0.0)}"
    coarser = {
        min(known, key=_PRECISIONS.__getitem__)
        for tensor in found.tensors
        if (known := [one for one in (tensor.dtype_a, tensor.dtype_b) if one in _PRECISIONS])
    }
    dtype = min(coarser) if len(coarser) == 1 else "the coarser dtype"
    return f"{DEFAULT_ULPS} ulp of {dtype} (a rounding)"


def _looser(found: Comparison) -> list[str]:
    """Say what other tolerances would call equal: one that is round, and the smallest for all."""
    beyond = [tensor for tensor in found.tensors if not tensor.within]
    if not beyond:
        return []
    rtol, atol = found.needed_rtol, found.needed_atol
    known = [one.needed_rtol for one in beyond if one.needed_rtol is not None]
    would = []
    for exponent in _ROUND:
        count = sum(value <= float(f"1e{exponent}") for value in known)
        if 0 < count < len(beyond):
            would.append(f"--rtol 1e{exponent} would call {count:,} of them equal")
            break
    enough = [
        f"--{name} {_typed(value)}"
        for name, value in (("rtol", rtol), ("atol", atol))
        if value is not None
    ]
    if enough:
        would.append(f"{' or '.join(enough)} would call all {len(beyond):,} equal")
    else:
        would.append("no tolerance would call all equal")
    return would


def _typed(value: float) -> str:
    """Write a tolerance in two digits, rounded up: what is typed is as much at least."""
    decimal = Context(prec=2, rounding=ROUND_CEILING).plus(Decimal(value))
    if 1e-3 <= value < 1e3 or not value:  # noqa: PLR2004 - which are as short in full
        return f"{decimal.normalize():f}"
    mantissa, _, exponent = f"{decimal:e}".partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"
