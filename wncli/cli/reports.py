"""Draws the reports of `inspect`, `apply`, `remove` and `convert`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from wncli.cli.inspections import View, add_inspection, add_layers, add_next, come_from, note_text
from wncli.cli.page import Page
from wncli.cli.terminal import height_of_screen, many, show, show_refusal
from wncli.cli.units import seconds, sizes
from wncli.errors import printable

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.report import Report

#: Of an action: what was done, and what would be.
_VERBS = {
    "apply": ("normalized", "normalize"),
    "remove": ("folded", "fold"),
    "convert": ("respelled", "respell"),
    "renormalize": ("split along another dim", "split along another dim"),
}


def show_report(
    report: Report, *, verbose: bool = False, shows_all: bool = False, sort: str | None = None
) -> None:
    """Print a report for people; its warnings go to stderr."""
    page = Page()
    view = View(height_of_screen(), shows_all, sort)
    is_inspection = report.command == "inspect"
    if is_inspection:
        add_inspection(page, report, view)
    else:
        _add_success(page, report)
        if verbose:
            _add_traffic(page, report)
        if verbose and report.layers:
            add_layers(page, report, view._replace(shows_all=True))
    for note in report.notes:
        if not note.is_warning:
            page.line("  ", ("note: ", "dim"), note_text(report, note), hang=8)
    if report.findings is not None:
        _add_findings(page, report, report.findings)
    if is_inspection and view.height is not None:
        add_next(page, report, view)
    show(page)
    if report.findings is None:
        show_warnings(report)


def show_warnings(report: Report) -> None:
    """Print what may need action on stderr."""
    for note in report.notes:
        if note.is_warning:
            show_refusal("warning", note_text(report, note))


def done(report: Report) -> str:
    """Say what became of the layers, or would: `folded 28 layers`."""
    counts: Counter[str] = Counter(layer.action for layer in report.layers)
    words = [
        f"{verbs[report.dry_run]} {many(counts[action], 'layer')}"
        for action, verbs in _VERBS.items()
        if counts[action]
    ]
    would = "would " if report.dry_run else ""
    copy = f"{'copy' if report.dry_run else 'copied'} the tensors"
    return would + (", ".join(words) or copy)


def _add_success(page: Page, report: Report) -> None:
    """Add what a command that writes has done, or would do, in up to four lines."""
    before, after = report.parameters.before, report.parameters.after
    mark = ("  ", "") if report.dry_run else ("✓ ", "bold green")
    page.line(
        mark,
        (done(report), "bold"),
        f"  {printable(report.checkpoint)} → ",
        (printable(report.output or ""), "bold"),
        f"  {_size(report)}",
        "" if report.dry_run else f"  {seconds(report.seconds)}",
        hang=4,
    )
    if before != after:
        page.line(f"  parameters  {before:,} → {after:,} ({report.parameters.change:+,})", hang=14)
    if report.verified is not None:
        weights = many(report.verified, "weight")
        page.line(f"  verified    read back from disk: {weights}, 0 differ", hang=14)


def _add_traffic(page: Page, report: Report) -> None:
    for said in come_from(report.remote):
        page.line(f"  remote      {said}", hang=14)


def _size(report: Report) -> str:
    text = sizes(report.checkpoint_bytes, report.output_bytes or 0)
    return f"{text} in {many(len(report.output_files), 'file')}" if report.output_files else text


def _add_findings(page: Page, report: Report, findings: tuple[Note, ...]) -> None:
    """Add what a check found; the warnings of the report are among it."""
    page.line()
    if not findings:
        all_is_well = ("everything was read, and nothing is wrong", "green")
        page.line("  checked: ", all_is_well, hang=11)
        return
    page.line(f"  checked: {many(len(findings), 'finding')}")
    for note in findings:
        page.line("  ", (f"{note.code}: ", "bold red"), note_text(report, note), hang=6)
