"""Writes what a report has into files: a table as CSV, a picture or a page of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wncli
from wncli.checkpoint.naming import join
from wncli.cli.csv_files import is_checkpoint, write_csv
from wncli.cli.inspections import facts_of, note_text
from wncli.cli.page import Page
from wncli.cli.terminal import STDOUT, many, show
from wncli.errors import FileError, UsageError, printable
from wncli.figures.bands import Side, aligned
from wncli.formats.open import open_checkpoint
from wncli.hints import free_path, option, path_word
from wncli.plan.pairing import split_only
from wncli.report import Report
from wncli.storage.addresses import place_of
from wncli.storage.replace_file import check_parent, replacing

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison

_PICTURES = (".png", ".svg", ".html")


def check_plot(plot: str) -> None:
    """Refuse a picture that cannot be written, before anything is read.

    A picture that is there already is replaced, as by `cp` or by Matplotlib; a checkpoint never is.

    Raises:
        UsageError: no such suffix, or no Matplotlib.
        FileError: the file cannot be written, or is a checkpoint.
    """
    path = Path(plot)
    suffix = path.suffix.lower()
    if suffix not in _PICTURES:
        raise UsageError(
            option("--plot", plot),
            "the suffix says no kind of picture",
            expected=", ".join(_PICTURES),
            found=suffix or "none",
        )
    if suffix != ".html":
        from wncli.figures.chart import refuse_without_matplotlib

        refuse_without_matplotlib()
    if path.exists() and not path.is_file():
        raise FileError(plot, "--plot is no regular file", expected="a file's name")
    if is_checkpoint(path):
        raise FileError(
            plot,
            "--plot replaces no checkpoint",
            expected="the name of a picture",
            hint=option("--plot", str(free_path(path))),
        )
    check_parent(plot, path.parent)


def write_exports(reports: Sequence[Report], plot: str | None, table: str | None) -> None:
    """Write what was asked for of the reports of `inspect`; a picture shows one of them.

    Raises:
        UsageError: there is nothing to draw.
        FileError: the system does not let it be written.
    """
    if plot is not None:
        report = reports[0]
        _write_picture(plot, [_side(report)], _facts(report))
    if table is not None:
        _write_table(table, reports)


def draw_comparison(plot: str, found: Comparison, only: str | None, *, is_narrowed: bool) -> None:
    """Draw both sides of a comparison on the same axes.

    Args:
        plot: the file to write.
        found: the comparison.
        only: as it was given to `compare`.
        is_narrowed: only the layers that were compared are wanted.

    Raises:
        WnError: there is nothing to draw, or the system does not let it be written.
    """
    a, b = _both_sides(found.checkpoint, found.other, only)
    drawn = [_side(a), _side(b)]
    if is_narrowed:
        compared = {name for one in found.tensors for name in (one.name, join(one.root, one.name))}
        drawn = aligned(drawn)
        chosen = [
            at
            for at, layer in enumerate(drawn[0].layers)
            if {layer.name, f"{layer.name}.weight"} & compared
        ]
        drawn = [side._replace(layers=tuple(side.layers[at] for at in chosen)) for side in drawn]
    verdict = "equal" if found.equal else "different"
    _write_picture(plot, drawn, [f"{verdict}: {many(len(found.tensors), 'tensor')} compared"])


def _both_sides(a: str, b: str, only: str | None) -> list[Report]:
    roots: tuple[str | None, str | None] = (None, None)
    if only is not None:
        with open_checkpoint(place_of(a)) as (one, _), open_checkpoint(place_of(b)) as (other, _):
            roots = split_only(only, one, other)
    return [
        wncli.inspect(path, only=root, statistics=True)
        for path, root in zip((a, b), roots, strict=True)
    ]


def show_written(*files: str | None) -> None:
    """Say what has been written."""
    page = Page()
    for file in files:
        if file is not None and file != STDOUT:
            page.line(("✓ ", "bold green"), f"wrote {path_word(file)}", hang=4)
    show(page)


def _side(report: Report) -> Side:
    side = report.side()
    return side if side.layers else side._replace(title=f"{side.title} (no weight norm)")


def _facts(report: Report) -> list[str]:
    return [facts_of(report), *(note_text(report, note) for note in report.notes)]


def _write_picture(plot: str, sides: list[Side], facts: list[str]) -> None:
    if not any(side.has("g") for side in sides):
        names = " and ".join(side.title.removesuffix(" (no weight norm)") for side in sides)
        raise UsageError(
            printable(names),
            "there is nothing to draw: no weight norm",
            hint="leave --plot out",
        )
    kind = Path(plot).suffix.lower()[1:]
    if kind == "html":
        from wncli.figures.page import page

        _replace(plot, page(sides, facts))
    else:
        from wncli.figures.chart import image

        _replace(plot, image(sides, kind))


def _write_table(table: str, reports: Sequence[Report]) -> None:
    rows = [
        ({"checkpoint": report.checkpoint} if len(reports) > 1 else {}) | _in_words(row)
        for report in reports
        for row in report.to_rows()
    ]
    write_csv(table, rows)


def _in_words(row: dict[str, Any]) -> dict[str, Any]:
    """Write a dim that is none as options have it: an empty cell says that it is not known."""
    return row | {"dim": "none"} if row.get("dim", 0) is None else row


def _replace(path: str, data: bytes) -> None:
    with replacing(Path(path), len(data), force=True) as (_, sink):
        sink.write_at(0, memoryview(data))
