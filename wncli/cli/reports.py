"""Draws the reports of `inspect`, `apply`, `remove` and `convert`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wncli.checkpoint.naming import join
from wncli.cli.page import Page, Table
from wncli.cli.terminal import many, show, show_refusal
from wncli.errors import few, printable
from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.report import Layer, Report, Tensor


#: Entries that are shown one by one.
_MOST_LISTED = 1000


def show_report(report: Report) -> None:
    """Print a report for people; its warnings go to stderr."""
    page = Page()
    _add_headline(page, report)
    if report.tensors is not None:
        _add_tensors(page, report.tensors)
    elif report.layers:
        _add_layers(page, report.layers)
    elif report.command == "inspect":
        page.line()
        page.line("  no weight norm")
        page.line()
    else:
        page.line()
    if report.command == "inspect":
        _add_contents(page, report)
    _add_parameters(page, report)
    for note in report.notes:
        if not note.is_warning:
            page.line("  ", ("note: ", "dim"), _note(report, note))
    if report.findings is not None:
        _add_findings(page, report, report.findings)
    show(page)
    if report.findings is None:
        show_warnings(report)


def show_warnings(report: Report) -> None:
    """Print what may need action on stderr."""
    for note in report.notes:
        if note.is_warning:
            show_refusal("warning", _note(report, note))


def show_line(report: Report) -> None:
    """Print one line for one of several inputs; its warnings go to stderr."""
    counts = report.parameters
    page = Page()
    _add_headline(page, report, f"  parameters {counts.before:,} → {counts.after:,}")
    show(page)
    show_warnings(report)


def names_of(report: Report) -> list[str]:
    """List the full names of the layers, or of all tensors where these are listed, each once."""
    if report.tensors is not None:
        return list(dict.fromkeys(tensor.name for tensor in report.tensors))
    return list(dict.fromkeys(map(_weight, report.layers)))


def _note(report: Report, note: Note) -> str:
    """Return a note's message, with the place where several state dicts may have the same names."""
    message = in_shell(note.message)
    elsewhere = len(report.roots) > 1 and note.where and note.where not in message
    return printable(f"{note.where}: {message}" if elsewhere else message)


_VERBS = {
    "apply": "normalized",
    "remove": "folded",
    "convert": "respelled",
    "renormalize": "split along another dim",
}


def _add_headline(page: Page, report: Report, more: str = "") -> None:
    name = printable(report.checkpoint)
    if report.output is None:
        page.line((name, "bold"), f"  {_kind(report.format, report.checkpoint_files)}")
        return
    output = f"{printable(report.output)} ({_kind(report.output_format, report.output_files)})"
    page.line(name, (" → ", "dim"), (output, "bold"), f"  {_done(report)}{more}")


def _kind(name: str | None, files: tuple[str, ...]) -> str:
    """Say the format, and in how many files: `safetensors, 3 files`."""
    return f"{name}, {many(len(files), 'file')}" if files else str(name)


def _done(report: Report) -> str:
    """Say what became of the layers, or would: `2 layers folded, 1 layer normalized`."""
    counts: Counter[str] = Counter(layer.action for layer in report.layers)
    done = [
        f"{many(counts[action], 'layer')} {verb}"
        for action, verb in _VERBS.items()
        if counts[action] or (action == report.command and action != "convert")
    ]
    if report.dry_run:
        return f"would be {', '.join(done) or 'written'} (dry run)"
    return ", ".join(done) or "no layer changed"


def _add_layers(page: Page, layers: tuple[Layer, ...]) -> None:
    rows = [
        (
            printable(layer.root),
            printable(_weight(layer)),
            "none" if layer.dim is None else str(layer.dim),
            " x ".join(map(str, layer.shape)),
            layer.dtype,
            printable(_pair(layer)),
        )
        for layer in layers
    ]
    _add_table(page, ("root", "layer", "dim", "shape", "dtype", "g and v"), rows, narrow=4)


def _add_tensors(page: Page, tensors: tuple[Tensor, ...]) -> None:
    rows = [
        (
            printable(tensor.root),
            printable(tensor.name),
            " x ".join(map(str, tensor.shape)) or "scalar",
            tensor.dtype,
        )
        for tensor in tensors
    ]
    _add_table(page, ("root", "tensor", "shape", "dtype"), rows, narrow=4)


def _add_table(
    page: Page, header: tuple[str, ...], rows: Sequence[tuple[str, ...]], narrow: int
) -> None:
    """Add a table whose first column, the root, is shown only where there are several."""
    if len({row[0] for row in rows}) <= 1:
        header, rows, narrow = header[1:], [row[1:] for row in rows], narrow - 1
    page.table(Table(header, rows, frozenset({"dim"}), narrow))


def _add_contents(page: Page, report: Report) -> None:
    """Add what `inspect` says of the state dicts and of everything else in the file."""
    rows = []
    for root in report.roots[:_MOST_LISTED]:
        what = printable(root.holder) or "state dict"
        summary = f"{what}, {many(root.tensors, 'tensor')}, {root.parameters:,} parameters"
        if root.normalized:
            summary += f", {many(root.normalized, 'layer')} normalized"
        rows.append((f" {printable(root.root) or '(top)'}", summary))
    entries = [
        (f" {printable(entry.path)}", printable(entry.summary))
        for entry in report.entries[:_MOST_LISTED]
    ]
    page.table(Table((), rows, dim=entries))
    more = max(0, len(report.roots) - _MOST_LISTED) + max(0, len(report.entries) - _MOST_LISTED)
    if more:
        page.line(f"  and {more:,} more; --json lists them all")
    if report.unsafe:
        names = printable(few(report.unsafe, _MOST_LISTED))
        page.line()
        page.line("  torch.load(weights_only=True) refuses: ", (names, "yellow"))
    for call in report.would_run[:_MOST_LISTED]:
        place = f"  ({printable(call.where)})" if call.where else ""
        page.line(
            "  torch.load ",
            ("would run: ", "bold red"),
            (printable(call.call), "red"),
            place,
        )
    page.line()


def _add_findings(page: Page, report: Report, findings: tuple[Note, ...]) -> None:
    """Add what a check found; the warnings of the report are among it."""
    if not findings:
        page.line()
        page.line("  checked: ", ("everything was read, and nothing is wrong", "green"))
        return
    page.line()
    page.line(f"  checked: {many(len(findings), 'finding')}")
    for note in findings:
        page.line("  ", (f"{note.code}: ", "bold red"), (_note(report, note), ""))


def _add_parameters(page: Page, report: Report) -> None:
    counts = report.parameters
    change = f"{counts.before:,} → {counts.after:,} ({counts.change:+,})"
    if report.command == "inspect":
        if not counts.change:
            change = f"{counts.before:,}"
        else:
            change += " if weight norm is removed"
    page.line("  parameters ", (change, "bold"), ("  (buffers count too)", "dim"))


def _pair(layer: Layer) -> str:
    """Give the names of g and v below their module: `weight_g, weight_v`."""
    g = layer.g.removeprefix(f"{layer.module}.")
    return f"{g}, {layer.v.rpartition('.')[2]}"


def _weight(layer: Layer) -> str:
    return join(layer.module, layer.parameter)
