"""Draws what `inspect` found: a line of facts, the layers, one block a root, what to type next."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from wncli.checkpoint.naming import natural
from wncli.cli.page import Column, Page, Part, Table, cells, shortened
from wncli.cli.patterns import grouped
from wncli.cli.sparkline import Axis
from wncli.cli.terminal import many, width_of_screen
from wncli.cli.units import number, size
from wncli.errors import few, printable
from wncli.formats.registry import SUFFIXES
from wncli.hints import free_path, has_cut, in_shell, path_word
from wncli.statistics import Distribution

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.report import Layer, Report, Tensor
    from wncli.statistics import LayerStatistics, TensorNorms
    from wncli.storage.addresses import Traffic

#: Lines of a screen that are no rows of its table.
_AROUND = 12
#: As many groups are shown at least, and as many entries.
_LEAST = 30
#: Entries that are shown one by one where all are wanted.
_MOST_LISTED = 1000
#: A label of more places stands on a line of its own.
_LONGEST_LABEL = 24
_SPELLINGS = {"hook": "weight_g, weight_v", "parametrized": "parametrizations.weight.original0/1"}


class View(NamedTuple):
    """How a report is looked at.

    `height` are the lines of the terminal, None where it is none: then each item has its row, and
    nothing is said of what to type next. `shows_all` does the same on a terminal; `sort` is what
    the rows are sorted by, if they are.
    """

    height: int | None
    shows_all: bool = False
    sort: str | None = None

    @property
    def most(self) -> int | None:
        """Rows that fit on a screen; None where all are shown."""
        if self.height is None or self.shows_all:
            return None
        return max(self.height - _AROUND, 8)


def add_inspection(page: Page, report: Report, view: View) -> None:
    """Add all that `inspect` has to say, but for notes and findings."""
    add_facts(page, report)
    if report.norms is not None:
        _add_norms(page, report.norms, view)
    elif report.tensors is not None:
        _add_tensors(page, report.tensors, view)
    elif report.layers:
        add_layers(page, report, view)
    else:
        page.line()
    _add_contents(page, report, view)
    _add_code(page, report)


def add_facts(page: Page, report: Report) -> None:
    """Add what is said first: the format, the size, and how much is normalized."""
    page.line((printable(report.checkpoint), "bold"), f"   {facts_of(report)}", hang=3)


def facts_of(report: Report) -> str:
    """Say the format, the size, and how much is normalized."""
    kind = printable(report.format)
    if report.checkpoint_files:
        kind += f", {many(len(report.checkpoint_files), 'file')}"
    count, could = len(report.layers), report.normalizable
    if count:
        share = (
            f"{count:,} of {many(could, 'weight')} {'has' if could == 1 else 'have'} weight norm"
        )
    else:
        share = "no weight norm"
        share += f", {many(could, 'weight')} could have it" if could else ""
    return " · ".join((kind, size(report.checkpoint_bytes), share, *come_from(report.remote)))


def come_from(remote: Traffic | None) -> list[str]:
    """Say what reading at a distance took, if it did."""
    if remote is None:
        return []
    return [f"{many(remote.requests, 'request')}, {size(remote.bytes)} read"]


class _Row(NamedTuple):
    """A row of a table that is sorted, or grouped with those that are alike."""

    root: str
    name: str
    cells: tuple[str, ...]
    alike: Hashable
    numbers: Distribution | None
    weight: float = 0.0


def add_layers(page: Page, report: Report, view: View) -> None:
    """Add a row for each layer, or for those alike, with the numbers of g or g / ||v||."""
    found = {(one.root, one.name): one for one in report.statistics or ()}
    known = [found.get((layer.root, layer.name)) for layer in report.layers]
    has_ratio = any(one and one.ratio for one in known)
    layers = report.layers
    columns = [Column("g shape", goes=5)]
    columns += [Column("dim", is_right=True)] if len({one.dim for one in layers}) > 1 else []
    columns += [Column("dtype", goes=2)] if len({one.dtype for one in layers}) > 1 else []
    columns += [Column("names", goes=1)] if len({one.naming for one in layers}) > 1 else []
    headers = {column.header for column in columns}
    has_dead = any(one and one.dead for one in known)
    has_bad = any(one and one.non_finite for one in known)
    columns += [Column("dead", is_right=True)] if has_dead else []
    columns += [Column("nan, inf", is_right=True)] if has_bad else []
    rows = []
    for layer, one in zip(layers, known, strict=True):
        own = [_shape_of_g(layer)]
        own += [str(layer.dim).lower()] if "dim" in headers else []
        own += [layer.dtype] if "dtype" in headers else []
        own += [layer.naming] if "names" in headers else []
        alike = tuple(own)
        own += [str(one.dead) if one else "-"] if has_dead else []
        own += [str(one.non_finite) if one else "-"] if has_bad else []
        numbers = (one.ratio if has_ratio else one.g) if one else None
        rows.append(
            _Row(
                layer.root,
                _shown_name(layer, view),
                tuple(own),
                alike,
                numbers,
                one.dead if one else 0,
            )
        )
    if report.format == "safetensors":  # which has the order of bytes, not of the model
        rows.sort(key=lambda row: (natural(row.root), natural(row.name)))
    _add_rows(page, "layer", columns, rows, view, "g/‖v‖" if has_ratio else "g")
    if has_ratio:
        _add_verdict(page, [one for one in known if one])


def _shown_name(layer: Layer, view: View) -> str:
    """Give the path of the module on a screen, unless that leaves open which parameter it is."""
    is_weight = view.height is not None and layer.parameter == "weight" and layer.module
    return printable(layer.module if is_weight else layer.name)


def _shape_of_g(layer: Layer) -> str:
    """Say how many slices of which weight: `32 of 32×16×7`."""
    slices = 1 if layer.dim is None else layer.shape[layer.dim]
    return f"{slices} of {_shape(layer.shape)}"


def _shape(sizes: tuple[int, ...]) -> str:
    return "×".join(map(str, sizes)) or "scalar"


def _add_verdict(page: Page, found: Sequence[LayerStatistics]) -> None:
    all_ratios = Distribution.together(one.ratio for one in found if one.ratio)
    low, high = all_ratios.min, all_ratios.max
    if low is None or high is None:
        return
    if low == high == 1:
        verdict = "only just applied: g is ‖v‖ everywhere, nothing has been trained since"
    else:
        verdict = (
            f"trained with weight norm: g/‖v‖ is {number(low)} to {number(high)}"
            " (1 everywhere would be: only just applied)"
        )
    page.line(f" {verdict}", hang=3)
    page.line()


def _add_norms(page: Page, norms: tuple[TensorNorms, ...], view: View) -> None:
    if not norms:
        page.line()
        return
    first = norms[0]
    rows = [
        _Row(one.root, printable(one.name), (_shape(one.shape),), one.shape, one.norms)
        for one in norms
    ]
    order = f"{first.p:g}"
    _add_rows(page, "tensor", [Column("shape", goes=1)], rows, view, f"{order}-norm")


def _add_rows(  # noqa: PLR0913, PLR0917 - what its tables differ in
    page: Page, what: str, columns: list[Column], rows: list[_Row], view: View, numbers: str
) -> None:
    """Add a table of rows, sorted and grouped, with the numbers of each on one axis."""
    rows = _sorted(rows, view)
    has_roots = len({row.root for row in rows}) > 1
    shown = [row.numbers for row in rows if row.numbers]
    axis = Axis.of(shown)
    header = axis.header(numbers)
    head = (Column("root", is_name=True),) * has_roots + (Column(what, is_name=True),)
    tail: tuple[Column, ...] = (
        Column("min", is_right=True, goes=4),
        Column("median", is_right=True),
        Column("max", is_right=True, goes=4),
        Column(header, goes=3, style="cyan"),
    )
    tail = tail if shown else ()
    drawn = []
    for name, chosen in _groups(rows, view):
        first = rows[chosen[0]]
        more = [row.numbers for at in chosen if (row := rows[at]).numbers]
        own = _sums(columns, [rows[at] for at in chosen]) if len(chosen) > 1 else first.cells
        pooled = Distribution.together(more) if more else None
        drawn.append(
            (
                *(printable(first.root),) * has_roots,
                name,
                *own,
                *(_numbers(pooled, axis, len(header)) if shown else ()),
            )
        )
    limit = view.most and max(view.most, _LEAST)
    page.table(Table((*head, *columns, *tail), drawn[:limit]))
    if limit and len(drawn) > limit:
        page.line(f" … {len(drawn) - limit:,} more rows: --all")
        page.line()


def _sums(columns: list[Column], rows: list[_Row]) -> tuple[str, ...]:
    """Add up the cells that count something, over rows that are alike in all others."""
    found = []
    for at, column in enumerate(columns):
        values = [row.cells[at] for row in rows]
        counts = [int(value) for value in values if value.isdecimal()]
        is_count = column.header in {"dead", "nan, inf"}
        found.append(str(sum(counts)) if is_count else values[0])
    return tuple(found)


def _numbers(one: Distribution | None, axis: Axis, width: int) -> tuple[str, ...]:
    if one is None:
        return ("-", "-", "-", "")
    return number(one.min), number(one.median), number(one.max), axis.draw(one, width)


def _sorted(rows: list[_Row], view: View) -> list[_Row]:
    def value(row: _Row) -> float:
        one = row.numbers
        if view.sort == "dead":
            return row.weight
        if one is None or one.min is None or one.max is None or one.median is None:
            return float("-inf")
        if view.sort == "spread":
            return one.max - one.min
        return {"min": one.min, "median": one.median, "max": one.max}.get(view.sort or "", 0.0)

    if view.sort is None:
        return rows
    if view.sort == "name":
        return sorted(rows, key=lambda row: (natural(row.root), natural(row.name)))
    if view.sort == "min":
        return sorted(rows, key=value)
    return sorted(rows, key=value, reverse=True)


def _groups(rows: Sequence[_Row], view: View) -> list[tuple[str, tuple[int, ...]]]:
    """Say which rows become one, with its name."""
    if view.most is None or view.sort not in {None, "name"} or len(rows) <= view.most:
        return [(row.name, (at,)) for at, row in enumerate(rows)]
    groups = grouped(rows, lambda row: row.name, lambda row: (row.root, row.alike))
    return [
        (f"{group.name}  ×{len(group.numbers):,}" if len(group.numbers) > 1 else group.name,
         group.numbers)
        for group in groups
    ]  # fmt: skip


def _add_tensors(page: Page, tensors: tuple[Tensor, ...], view: View) -> None:
    order = sorted(tensors, key=lambda one: (natural(one.root), natural(one.name)))
    if view.sort == "size":
        order = sorted(tensors, key=lambda one: -one.nbytes)
    has_roots = len({one.root for one in tensors}) > 1
    has_dtypes = len({one.dtype for one in tensors}) > 1
    has_ties = any(one.tied for one in tensors)
    columns = (
        *(Column("root", is_name=True),) * has_roots,
        Column("tensor", is_name=True),
        Column("shape", goes=1),
        *(Column("dtype", goes=2),) * has_dtypes,
        Column("size", is_right=True, goes=3),
        *(Column("tied to", is_name=True, goes=4),) * has_ties,
    )
    rows = [
        _Row(one.root, printable(one.name), (), (one.shape, one.dtype, one.tied), None)
        for one in order
    ]
    drawn = []
    for name, chosen in _groups(rows, view):
        first = order[chosen[0]]
        drawn.append(
            (
                *(printable(first.root),) * has_roots,
                name,
                _shape(first.shape),
                *(first.dtype,) * has_dtypes,
                size(sum(order[at].nbytes for at in chosen)),
                *(printable(first.tied),) * has_ties,
            )
        )
    limit = view.most and max(view.most, _LEAST)
    page.table(Table(columns, drawn[:limit]))
    if limit and len(drawn) > limit:
        page.line(f" … {len(drawn) - limit:,} more rows: --all")
        page.line()


def _add_contents(page: Page, report: Report, view: View) -> None:
    """Add a line or two for each state dict, and one for each of what is there beside them."""
    most = _LEAST if view.most else _MOST_LISTED
    roots = [(_label(root.root) or "state dict", root) for root in report.roots[:most]]
    entries = [(_label(one.path), printable(one.summary)) for one in report.entries[:most]]
    labels = [label for label, _ in (*roots, *entries)]
    is_only = len(roots) == 1
    labels += ["together"] * (len(roots) > 1)
    width = max((size for label in labels if (size := cells(label)) <= _LONGEST_LABEL), default=0)
    for label, root in roots:
        count = many(root.tensors, "tensor")
        normalized = many(root.normalized, "layer") if root.normalized else "no weight norm"
        summary = f"{normalized}, {count}, {root.parameters:,} parameters"
        if is_only:
            alone = f"{count}, {normalized}"
            summary = f"{normalized}{_common(report)}" if root.normalized else alone
        holder = f"{printable(root.holder)}, " if root.holder else ""
        _labelled(page, (label, "bold"), width, f"{holder}{summary}")
    if len(report.roots) > most:
        flag = "--json" if view.most is None else "--all"
        page.line(f" … {len(report.roots) - most:,} more: {flag}")
    if not report.roots:
        page.line(" no tensors")
    elif not is_only:
        _labelled(page, "together", width, f"{many(len(report.layers), 'layer')}{_common(report)}")
    if report.roots:
        _labelled(page, "", width, _parameters(report))
    for label, summary in entries:
        _labelled(page, (label, "dim"), width, (summary, "dim"))
    if len(report.entries) > most:
        page.line(f"  and {len(report.entries) - most:,} more; --json lists them all", hang=4)


def _common(report: Report) -> str:
    """Say what is the same of all layers, and stands in no column: ` · dim 0 · float32 · ...`."""
    layers = report.layers
    dims = {"whole tensor" if layer.dim is None else f"dim {layer.dim}" for layer in layers}
    spelled = {f'{_SPELLINGS[layer.naming]} ("{layer.naming}" names)' for layer in layers}
    facts = (dims, {layer.dtype for layer in layers}, spelled)
    return "".join(f" · {min(found)}" for found in facts if len(found) == 1)


def _label(path: str) -> str:
    """Show a place, on a terminal in no more than a line: without its middle if need be."""
    name, screen = printable(path), width_of_screen()
    is_long = screen is not None and cells(name) > screen - 2
    return shortened(name, screen - 2, "…") if screen is not None and is_long else name


def _parameters(report: Report) -> str:
    counts = report.parameters
    text = f"{counts.before:,} parameters"
    return f"{text}, {counts.after:,} once folded ({counts.change:+,})" if counts.change else text


def _labelled(page: Page, label: Part, width: int, text: Part) -> None:
    """Add a line with a label in front, or above where it is long."""
    taken = cells(label if isinstance(label, str) else label[0])
    if taken > width:
        page.line(" ", label)
        label, taken = "", 0
    page.line(" ", label, " " * (width - taken + 2), text, hang=width + 3)


def _add_code(page: Page, report: Report) -> None:
    """Add what PyTorch would refuse to load, and what it would run."""
    if report.unsafe:
        names = printable(few(report.unsafe, _MOST_LISTED))
        page.line()
        page.line(" torch.load(weights_only=True) refuses: ", (names, "yellow"), hang=3)
    for call in report.would_run[:_MOST_LISTED]:
        place = f"  ({printable(call.where)})" if call.where else ""
        page.line(
            " torch.load ",
            ("would run: ", "bold red"),
            (printable(call.call), "red"),
            place,
            hang=3,
        )


def add_next(page: Page, report: Report, view: View) -> None:
    """Add what could be typed next."""
    typed: list[tuple[str, str]] = []
    if has_cut(report.checkpoint):  # which cannot be typed as it is shown
        return
    source = Path(report.checkpoint)
    checkpoint = path_word(report.checkpoint)
    new = partial(_new, source, is_remote=report.remote is not None)
    if report.layers:
        typed.append(("fold it", f"wn remove {checkpoint} {new('folded')}"))
    elif report.normalizable:
        typed.append(("apply it", f"wn apply {checkpoint} {new('normalized')}"))
    if report.tensors is None and report.norms is None:
        if view.most and not view.sort and len(report.layers) > view.most:
            typed.append(("all layers", f"wn inspect {checkpoint} --all"))
        if report.layers and not any(one.ratio for one in report.statistics or ()):
            typed.append(("g over ‖v‖", f"wn inspect {checkpoint} --stats"))
        if report.roots:
            typed.append(("every tensor", f"wn inspect {checkpoint} --tensors"))
    if typed:
        page.line()
        page.table(Table((Column("", style="dim"), Column("")), typed))


def _new(source: Path, what: str, *, is_remote: bool) -> str:
    """Name a file or folder that is not there yet."""
    is_folder = source.is_dir() or (is_remote and source.suffix.lower() not in SUFFIXES)
    stem, suffix = (source.name, "") if is_folder else (source.stem, source.suffix)
    return path_word(free_path(Path(f"{stem}-{what}{suffix}")))


def note_text(report: Report, note: Note) -> str:
    """Return a note's message, with the place where several state dicts may have the same names."""
    message = in_shell(note.message)
    if len(report.roots) > 1 and note.where and note.where not in message:
        subject = message.partition(" ")[0]
        begins_with_it = note.where.endswith(f".{subject}")
        said = message.removeprefix(subject) if begins_with_it else f": {message}"
        return printable(f"{note.where}{said}")
    return printable(message)
