"""Draws the result of `compare`: the worst weights first."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from wncli.arithmetic.ulps import DEFAULT_ULPS
from wncli.checkpoint.naming import join
from wncli.cli.page import Column, Page, Table
from wncli.cli.terminal import many, show, show_refusal
from wncli.errors import printable
from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison, TensorDifference

#: As many weights are shown; `--json` lists all.
_SHOWN = 20
#: As many names of those without a counterpart.
_NAMED = 5


def show_comparison(found: Comparison) -> None:
    """Print a comparison for people; what may need action goes to stderr."""
    page = Page()
    verdict = ("equal", "bold green") if found.equal else ("different", "bold red")
    a, b = printable(found.checkpoint), printable(found.other)
    page.line((a, "bold"), (" and ", "dim"), (b, "bold"), "  ", verdict)
    differing = [tensor for tensor in found.tensors if tensor.max_ulps]
    if differing:
        _add_tensors(page, differing)
    else:
        page.line()
    for line in _summary(found):
        page.line(f"  {line}")
    for note in found.notes:
        if not note.is_warning:
            page.line("  ", ("note: ", "dim"), printable(in_shell(note.message)))
    show(page)
    for note in found.notes:
        if note.is_warning:
            show_refusal("warning", in_shell(note.message))


def _add_tensors(page: Page, tensors: list[TensorDifference]) -> None:
    columns = (
        Column("tensor", is_name=True),
        Column("max abs", is_right=True),
        Column("max rel", is_right=True, goes=2),
        Column("ulps", is_right=True, goes=1),
        Column(""),
        Column("shape", goes=4),
        Column("dtype", goes=3),
    )
    rows = [
        (
            printable(join(tensor.root, tensor.name)),
            _number(tensor.max_absolute),
            _number(tensor.max_relative),
            _number(tensor.max_ulps),
            "" if tensor.within else "differs",
            " x ".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype_a
            if tensor.dtype_a == tensor.dtype_b
            else f"{tensor.dtype_a}, {tensor.dtype_b}",
        )
        for tensor in tensors[:_SHOWN]
    ]
    page.table(Table(columns, rows))
    if len(tensors) > _SHOWN:
        page.line(f"  and {len(tensors) - _SHOWN:,} more, closer to each other (--json lists all)")


def _number(value: float) -> str:
    if math.isinf(value):
        return "inf"
    return f"{value:.3g}"


def _summary(found: Comparison) -> list[str]:
    kinds = Counter(
        "beyond" if not t.within else "within" if t.max_ulps else "identical" for t in found.tensors
    )
    allowed = (
        f"{DEFAULT_ULPS} ulp of the coarser dtype"
        if found.rtol is None and found.atol is None
        else f"rtol {found.rtol or 0:g}, atol {found.atol or 0:g}"
    )
    if not found.tensors:
        words = ["no name is on both sides"]
    else:
        words = [f"{kinds['identical']:,} identical"]
    words += [f"{kinds['within']:,} within {allowed}"] if kinds["within"] else []
    words += [f"{kinds['beyond']:,} beyond {allowed}"] if kinds["beyond"] else []
    lines = [f"{many(len(found.tensors), 'tensor')} compared: {', '.join(words)}"]
    for what, names in (
        (f"only in {found.checkpoint}", found.only_in_a),
        (f"only in {found.other}", found.only_in_b),
        ("of different shapes", found.misshapen),
    ):
        if names:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            lines.append(
                f"{len(names):,} {printable(what)}: {printable(', '.join(names[:_NAMED]))}{more}"
            )
    return lines
