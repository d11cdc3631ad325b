"""What a command did or would do: counts, layers, notes; for people and, as JSON, for programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

import wncli
from wncli.checkpoint.naming import Naming, join, natural, split
from wncli.checkpoint.pairs import Pair, is_plain_weight
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError, WnError, printable
from wncli.notes import Note
from wncli.plan.actions import (
    Action,
    Change,
    Command,
    Compose,
    Copy,
    Decompose,
    Plan,
    Renormalize,
    Respell,
)
from wncli.statistics import Distribution, LayerStatistics, TensorNorms
from wncli.storage.addresses import Traffic

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from wncli.figures.bands import Quantity, Side

    #: Reads all elements of a tensor of the checkpoint.
    Reading = Callable[[TensorSpec], npt.NDArray[np.generic]]

SCHEMA = "wn/1"

LayerAction = Literal["none", "apply", "remove", "convert", "renormalize"]


def plain(value: Any) -> Any:  # noqa: ANN401 - of whatever a result holds
    """Return a result as a dict, and so all results in it, without what its `repr` leaves out."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if is_dataclass(value):
        return fields_of(value)
    return value


def fields_of(value: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the fields of a result."""
    fields = value.__dataclass_fields__.values()
    return {one.name: plain(getattr(value, one.name)) for one in fields if one.repr}


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers of elements, tied tensors counted once; buffers count too: files don't tell.

    Attributes:
        before: those in the checkpoint.
        after: those in the output, or for `inspect` what removal would leave.
    """

    before: int
    after: int

    @property
    def change(self) -> int:
        """The difference, negative where there are fewer."""
        return self.after - self.before

    def to_json(self) -> dict[str, int]:
        """Return the numbers and their difference."""
        return {"before": self.before, "after": self.after, "change": self.change}


@dataclass(frozen=True, slots=True, repr=False)
class Layer:
    """A layer that is, was or will be normalized.

    Attributes:
        root: where its state dict stands in the checkpoint, as `generator`; empty for the top.
        module: the path of its module in the state dict, as `ups.0`.
        parameter: the name of the weight in its module, as `weight`.
        dim: the dim that keeps its size in g; None for the norm of the whole tensor.
        naming: how g and v are spelled: `"hook"` or `"parametrized"`.
        shape: of the weight.
        dtype: of the weight, as `float32`.
        g_name: the magnitude's full name in the output where it is there, else in the checkpoint.
        v_name: the direction's, likewise.
        action: what becomes of it: `"none"`, `"apply"`, `"remove"`, `"convert"` where g and v get
            other names, or `"renormalize"` where it is split along another dim than before.
        pair: g and v in the checkpoint; None where it had none.
        reading: reads one of them.
    """

    root: str
    module: str
    parameter: str
    dim: int | None
    naming: Naming
    shape: tuple[int, ...]
    dtype: str
    g_name: str
    v_name: str
    action: LayerAction
    pair: Pair | None = field(default=None, repr=False, compare=False)
    reading: Reading | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Say it in one line, as `<Layer conv_pre.weight: 32 of 32x16x7, dim 0, float32, hook>`."""
        sizes = "x".join(map(str, self.shape))
        dim = "whole tensor" if self.dim is None else f"dim {self.dim}"
        done = "" if self.action == "none" else f", {self.action}"
        name = printable(join(self.root, self.name))
        return f"<Layer {name}: {self.slices} of {sizes}, {dim}, {self.dtype}, {self.naming}{done}>"

    @property
    def slices(self) -> int:
        """How many magnitudes it has: the size of the weight along dim, or 1."""
        return 1 if self.dim is None else self.shape[self.dim]

    @property
    def name(self) -> str:
        """The full name of the weight, the state dict key that it has once folded."""
        return join(self.module, self.parameter)

    @property
    def g(self) -> npt.NDArray[np.generic]:
        """The magnitude in the checkpoint, read when it is asked for.

        Raises:
            UsageError: it was not normalized.
            FileError: the checkpoint is not what it was any more.
        """
        return self._read("g")

    @property
    def v(self) -> npt.NDArray[np.generic]:
        """The direction in the checkpoint, read when it is asked for; raises as `g` does."""
        return self._read("v")

    def _read(self, what: Literal["g", "v"]) -> npt.NDArray[np.generic]:
        if self.pair is None or self.reading is None:
            raise UsageError(
                self.name,
                f"the checkpoint had no {what} of it",
                hint="inspect the output, whose layers have",
            )
        return self.reading(self.pair.g if what == "g" else self.pair.v)

    def to_json(self) -> dict[str, Any]:
        """Return what is known of it; `g` and `v` are their names."""
        known = {"name": self.name, **fields_of(self)}
        return {{"g_name": "g", "v_name": "v"}.get(key, key): known[key] for key in known}


class Layers(tuple[Layer, ...]):
    """The layers of a report: a tuple that also takes a layer's name, or its module's."""

    __slots__ = ()

    @overload
    def __getitem__(self, which: SupportsIndex | str) -> Layer: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, which: SupportsIndex | slice | str) -> Layer | tuple[Layer, ...]:
        """Return the layer of a number, or of a name, as `conv_pre` or `generator.conv_pre.weight`.

        Raises:
            KeyError: no layer has this name, or several have.
        """
        if not isinstance(which, str):
            return super().__getitem__(which)
        found = self._named(which)
        if len(found) == 1:
            return found[0]
        names = [join(layer.root, layer.name) for layer in found or self]
        named = names if found else get_close_matches(which, names) or names[:3]
        problem = "several layers have this name" if found else "no layer has this name"
        message = f"{which!r}: {problem}; there {'are' if found else 'is'} {', '.join(named)}"
        raise KeyError(message)

    def __contains__(self, which: object) -> bool:
        """Tell whether a layer is among them, or one of this name."""
        return bool(self._named(which)) if isinstance(which, str) else super().__contains__(which)

    def _named(self, name: str) -> list[Layer]:
        return [
            layer
            for layer in self
            if name in {layer.name, layer.module}
            or name in {join(layer.root, layer.name), join(layer.root, layer.module)}
        ]


@dataclass(frozen=True, slots=True)
class Root:
    """A state dict of the checkpoint.

    Attributes:
        root: where it stands, as `generator`; empty for the top.
        tensors: how many it has.
        parameters: the elements in them, tied tensors counted once.
        normalized: how many layers are normalized.
        holder: the object that it was read off, where it is one: a whole module.
    """

    root: str
    tensors: int
    parameters: int
    normalized: int
    holder: str


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the checkpoint.

    Attributes:
        root: where its state dict stands.
        name: its full name there.
        shape: its shape.
        dtype: its dtype, as `float32`.
        nbytes: the bytes of its elements.
        tied: the tensor before it that has the same elements; empty where none has.
    """

    root: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    tied: str


@dataclass(frozen=True, slots=True)
class Other:
    """Something in the checkpoint that is no state dict.

    Attributes:
        path: where it stands, as `drop` takes it.
        kind: `"optimizer"`, `"tensor"`, `"object"` or `"value"`.
        summary: what it is, in words.
    """

    path: str
    kind: str
    summary: str


@dataclass(frozen=True, slots=True)
class WouldRun:
    """A call that a plain `torch.load` would make.

    Attributes:
        call: the function and its arguments.
        where: the entry of the file that it is part of.
    """

    call: str
    where: str


@dataclass(frozen=True, slots=True, repr=False)
class Report:
    """The result of a command.

    Attributes:
        command: its name.
        checkpoint: the path that was read.
        checkpoint_files: the names of its shards, or of the files that its parts are in, if any.
        checkpoint_bytes: the size of it, or of all its shards.
        format: its format.
        output: the path that was written; None for `inspect`.
        output_format: the output's format.
        output_files: the names of the output's shards, where there are any.
        output_bytes: the size of what was written, or would be; None for `inspect`.
        dry_run: whether nothing has been written.
        seconds: how long it took.
        verified: how many weights were read back from disk and found equal to those of the
            checkpoint; None where nobody asked for it.
        parameters: how many there are, before and after.
        layers: the layers that are, were or will be normalized; also by name, as
            `report.layers["ups.0"]`.
        normalizable: how many weights could have weight norm, those that have it among them:
            floating, of two or more dimensions, called `weight`.
        roots: the state dicts.
        entries: what else is in the checkpoint.
        unsafe: the names that a plain `torch.load` would import and `weights_only=True` refuses.
        would_run: the calls that a plain `torch.load` would make.
        notes: what should be known beside that.
        findings: what a check found; None where nobody asked for one.
        tensors: all that are stored; None where nobody asked for them.
        filled: the full paths of the tensors that REFERENCE was asked for.
        statistics: the numbers of the layers; None where they were not read.
        norms: those of all tensors; None where nobody asked for them.
        remote: the requests and bytes that reading at a distance took; None where all was here.
    """

    command: Command
    checkpoint: str
    checkpoint_files: tuple[str, ...]
    checkpoint_bytes: int
    format: str
    output: str | None
    output_format: str | None
    output_files: tuple[str, ...]
    output_bytes: int | None
    dry_run: bool
    seconds: float = field(compare=False)
    verified: int | None
    parameters: Parameters
    layers: Layers
    normalizable: int
    roots: tuple[Root, ...]
    entries: tuple[Other, ...]
    unsafe: tuple[str, ...]
    would_run: tuple[WouldRun, ...]
    notes: tuple[Note, ...]
    findings: tuple[Note, ...] | None = None
    tensors: tuple[Tensor, ...] | None = None
    filled: tuple[str, ...] = ()
    statistics: tuple[LayerStatistics, ...] | None = None
    norms: tuple[TensorNorms, ...] | None = None
    remote: Traffic | None = None

    def __repr__(self) -> str:
        """Say it in one line."""
        to = f" -> {self.output!r}" if self.output is not None else ""
        count = len(self.layers)
        done = "normalized" if self.command == "inspect" else "changed"
        return (
            f"<Report {self.command} {self.checkpoint!r}{to}: {self.format}, {count:,} "
            f"layer{'s' * (count != 1)} {done}, {self.parameters.before:,} parameters>"
        )

    def _repr_html_(self) -> str:
        """Give a short table for a notebook."""
        from wncli.figures.tables import short_table

        could = f" of {self.normalizable:,}" if self.command == "inspect" else ""
        facts = (
            f"{self.command}: {self.format}, {len(self.layers):,}{could} layers, "
            f"{self.parameters.before:,} parameters"
        )
        title = self.checkpoint if self.output is None else f"{self.checkpoint} → {self.output}"
        rows = [
            {key: row[key] for key in row if key not in {"module", "parameter", "g_name", "v_name"}}
            for row in self.to_rows()
        ]
        return short_table(title, facts, rows)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a table as a list of dicts of the same keys, for `pandas.DataFrame` and the like.

        It has a row for each layer, with its statistics where they were read; where norms or
        tensors were asked for, one for each tensor instead.
        """
        if self.norms is not None:
            return [_norms_row(one) for one in self.norms]
        if self.tensors is not None:
            return [fields_of(one) for one in self.tensors]
        known = {(one.root, one.name): one for one in self.statistics or ()}
        rows = []
        for layer in self.layers:
            one = known.get((layer.root, layer.name))
            counts = {"dead": one.dead, "non_finite": one.non_finite} if one else _NO_COUNTS
            rows.append(
                {"root": layer.root, "name": layer.name, **fields_of(layer), "slices": layer.slices}
                | _summary("g", one.g if one else None)
                | _summary("ratio", one.ratio if one else None)
                | counts
            )
        return rows

    def side(self) -> Side:
        """Return what figures take: the numbers of the layers in the order of the model."""
        from wncli.figures.bands import Numbers, Side

        layers = list(self.layers)
        if self.format == "safetensors":  # which has the order of bytes, not of the model
            layers.sort(key=lambda layer: (natural(layer.root), natural(layer.name)))
        known = {(one.root, one.name): one for one in self.statistics or ()}
        has_roots = len({layer.root for layer in layers}) > 1
        found = []
        for layer in layers:
            name = layer.module if layer.parameter == "weight" and layer.module else layer.name
            one = known.get((layer.root, layer.name))
            shown = join(layer.root, name) if has_roots else name
            details = {
                "g": f"{layer.slices} of {'×'.join(map(str, layer.shape))}",
                "dim": "none" if layer.dim is None else str(layer.dim),
                "dtype": layer.dtype,
                "names": layer.naming,
            }
            g, ratio = (one.g, one.ratio) if one else (None, None)
            found.append(Numbers(shown, g, ratio, details))
        return Side(self.checkpoint, tuple(found))

    def plot(self, ax: Axes | None = None, *, ratio: bool = False) -> Axes:
        """Draw g layer by layer, from the least to the largest, with quartiles and median.

        Args:
            ax: Matplotlib's axes to draw into; without, those of a new figure of `pyplot`, which a
                notebook shows by itself.
            ratio: draw g / ||v||, which `inspect(..., statistics=True)` has read.

        Returns:
            The axes; `.figure.savefig("g.pdf")` writes them.

        Raises:
            UsageError: there are no such numbers, or Matplotlib is not installed.
        """
        from wncli.figures.bands import LABELS
        from wncli.figures.chart import draw

        quantity: Quantity = "ratio" if ratio else "g"
        side = self.side()
        if not side.has(quantity):
            problem = f"{LABELS[quantity]} was not read" if self.layers else "no weight norm"
            hint = f"wncli.inspect({self.checkpoint!r}, statistics=True).plot(ratio={ratio})"
            raise UsageError(
                self.checkpoint,
                f"there is nothing to plot: {problem}",
                hint=hint if self.layers else "",
            )
        return draw(side, ax, quantity)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values for `json.dumps`; new keys may come, none will go."""
        return {"schema": SCHEMA, "wn": wncli.__version__, **fields_of(self)}


_NO_COUNTS: dict[str, int | None] = {"dead": None, "non_finite": None}


def _summary(what: str, one: Distribution | None) -> dict[str, float | None]:
    """Return what a table has of a distribution; the same keys also where there is none."""
    keys = ("min", "median", "max")
    return {f"{what}_{key}": getattr(one, key) if one else None for key in keys}


def _norms_row(one: TensorNorms) -> dict[str, Any]:
    row = {"root": one.root, "name": one.name, "shape": one.shape, "p": one.p, "dim": one.dim}
    return row | {"slices": one.norms.count} | _summary("norm", one.norms)


class NothingToDo(WnError):  # noqa: N818 - an outcome with exit code 1, not an error of the input
    """The request is sound, and nothing in the checkpoint answers to it; nothing was written.

    `report` is what there is to report all the same.
    """

    def __init__(self, where: str, problem: str, *, hint: str, report: Report) -> None:
        super().__init__(where, problem, hint=hint)
        self.report = report


def make_report(  # noqa: PLR0913, PLR0917 - what was done, and where
    plan: Plan,
    notes: tuple[Note, ...],
    output: str | None = None,
    output_format: str | None = None,
    output_files: tuple[str, ...] = (),
    output_bytes: int | None = None,
    *,
    dry_run: bool = False,
    seconds: float = 0.0,
    verified: int | None = None,
    tensors: bool = False,
    findings: tuple[Note, ...] | None = None,
    statistics: tuple[LayerStatistics, ...] | None = None,
    norms: tuple[TensorNorms, ...] | None = None,
    reading: Reading | None = None,
    remote: Traffic | None = None,
) -> Report:
    """Report on a plan; `notes` are what was found beyond it."""
    checkpoint = plan.checkpoint
    own = [part for part in plan.parts if not part.is_filled]
    stored = [_stored(part.state_dict.tensors) for part in own]
    return Report(
        plan.command,
        checkpoint.name,
        tuple(shard.name for shard in checkpoint.shards)
        or (checkpoint.parts.files if checkpoint.parts else ()),
        checkpoint.nbytes,
        checkpoint.format,
        output,
        output_format,
        output_files,
        output_bytes,
        dry_run,
        seconds,
        verified,
        _count(plan, stored),
        Layers(_layer(plan, root, action, reading) for root, action in plan.changes),
        sum(_could_be_normalized(action) for part in own for action in part.actions),
        tuple(
            Root(
                part.state_dict.root,
                len(part.state_dict.tensors),
                sum(elements.values()),
                sum(isinstance(action, Compose) for action in part.actions),
                part.state_dict.holder,
            )
            for part, elements in {
                part.state_dict.keys: (part, elements)
                for part, elements in zip(own, stored, strict=True)
            }.values()
        ),
        tuple(Other(e.path, e.kind, e.summary) for e in checkpoint.entries),
        checkpoint.refused_names,
        tuple(WouldRun(call.call, call.where) for call in checkpoint.would_run if call.is_shown),
        (*plan.notes, *notes),
        findings,
        _tensors(plan) if tensors else None,
        tuple(
            join(part.state_dict.root, spec.name)
            for part in plan.parts
            for spec in (part.state_dict.tensors if part.is_filled else ())
        ),
        statistics,
        norms,
        remote,
    )


def _tensors(plan: Plan) -> tuple[Tensor, ...]:
    first: dict[object, str] = {}
    found = []
    for part in plan.parts:
        root = part.state_dict.root
        for spec in part.state_dict.tensors:
            name = join(root, spec.name)
            tied = first.setdefault(spec.view, name)
            tied = tied if tied != name and spec.numel else ""
            found.append(Tensor(root, spec.name, spec.shape, spec.dtype.label, spec.nbytes, tied))
    return tuple(found)


def _could_be_normalized(action: Action) -> bool:
    return is_plain_weight(action.tensor) if isinstance(action, Copy) else True


def _layer(plan: Plan, root: str, change: Change, reading: Reading | None) -> Layer:
    action: LayerAction = "none" if plan.command == "inspect" else "remove"
    pair: Pair | None = None
    match change:
        case Compose(pair):
            weight, dim, dtype = pair.weight, pair.dim, pair.dtype
            naming, g, v = pair.naming, pair.g.name, pair.v.name
            shape = pair.shape
        case Decompose(spec, dim, halves):
            action = "apply"
            weight, dtype, shape = halves.weight, spec.dtype, spec.shape
            naming, g, v = halves.naming, halves.g, halves.v
        case Respell(pair, halves):
            is_spelled = (halves.g, halves.v) == (pair.g.name, pair.v.name)
            action = "none" if is_spelled else "convert"
            weight, dim, dtype, shape = halves.weight, pair.dim, pair.dtype, pair.shape
            naming, g, v = halves.naming, halves.g, halves.v
        case Renormalize(pair, dim, halves):
            action = "renormalize"
            weight, dtype, shape = halves.weight, pair.dtype, pair.shape
            naming, g, v = halves.naming, halves.g, halves.v
    module, parameter = split(weight)
    return Layer(
        root, module, parameter, dim, naming, shape, dtype.label, g, v, action, pair, reading
    )  # fmt: skip


def _count(plan: Plan, stored: list[dict[object, int]]) -> Parameters:
    before: dict[object, int] = {}
    for elements in stored:
        before |= elements
    left: dict[object, int] = {}
    for part in plan.parts:
        for action in part.actions:
            _add(left, action)
    return Parameters(sum(before.values()), sum(left.values()))


def _stored(tensors: Iterable[TensorSpec]) -> dict[object, int]:
    """Elements of tensors by their place, so that tied ones are counted once."""
    return {spec.view: spec.numel for spec in tensors}


def _add(counts: dict[object, int], action: Action) -> None:
    match action:
        case Copy(tensor):
            counts[tensor.view] = tensor.numel
        case Respell(pair):
            counts[pair.g.view] = pair.g.numel
            counts[pair.v.view] = pair.v.numel
        case Decompose(weight, dim, halves):
            counts["g", weight.view, dim] = math.prod(halves.g_shape)
            counts["v", weight.view, dim] = weight.numel
        case Compose(pair):
            counts[pair.g.view, pair.v.view] = pair.v.numel
        case Renormalize(pair, dim, halves):
            counts["g", pair.g.view, pair.v.view, dim] = math.prod(halves.g_shape)
            counts[pair.g.view, pair.v.view] = pair.v.numel
