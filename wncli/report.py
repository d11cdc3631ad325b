"""What a command did or would do: counts, layers, notes; for people and, as JSON, for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

from wncli.checkpoint.naming import Naming, join, split
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WnError
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

SCHEMA = "wn/1"

LayerAction = Literal["none", "apply", "remove", "convert", "renormalize"]


def plain(value: Any) -> Any:  # noqa: ANN401 - of whatever a result holds
    """Return a result as a dict, and so all results in it."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if is_dataclass(value):
        return {field: plain(getattr(value, field)) for field in value.__dataclass_fields__}
    return value


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


@dataclass(frozen=True, slots=True)
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
        g: the magnitude's full name in the output where it is there, else in the checkpoint.
        v: the direction's, likewise.
        action: what becomes of it: `"none"`, `"apply"`, `"remove"`, `"convert"` where g and v get
            other names, or `"renormalize"` where it is split along another dim than before.
    """

    root: str
    module: str
    parameter: str
    dim: int | None
    naming: Naming
    shape: tuple[int, ...]
    dtype: str
    g: str
    v: str
    action: LayerAction


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
    """

    root: str
    name: str
    shape: tuple[int, ...]
    dtype: str


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


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a command.

    Attributes:
        command: its name.
        checkpoint: the path that was read.
        checkpoint_files: the names of its shards, where there are any.
        format: its format.
        output: the path that was written; None for `inspect`.
        output_format: the output's format.
        output_files: the names of the output's shards, where there are any.
        dry_run: whether nothing has been written.
        parameters: how many there are, before and after.
        layers: the layers that are, were or will be normalized.
        roots: the state dicts.
        entries: what else is in the checkpoint.
        unsafe: the names that a plain `torch.load` would import and `weights_only=True` refuses.
        would_run: the calls that a plain `torch.load` would make.
        notes: what should be known beside that.
        findings: what a check found; None where nobody asked for one.
        tensors: all that are stored; None where nobody asked for them.
        filled: the full paths of the tensors that REFERENCE was asked for.
    """

    command: Command
    checkpoint: str
    checkpoint_files: tuple[str, ...]
    format: str
    output: str | None
    output_format: str | None
    output_files: tuple[str, ...]
    dry_run: bool
    parameters: Parameters
    layers: tuple[Layer, ...]
    roots: tuple[Root, ...]
    entries: tuple[Other, ...]
    unsafe: tuple[str, ...]
    would_run: tuple[WouldRun, ...]
    notes: tuple[Note, ...]
    findings: tuple[Note, ...] | None = None
    tensors: tuple[Tensor, ...] | None = None
    filled: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values for `json.dumps`; new keys may come, none will go."""
        return {"schema": SCHEMA, **plain(self), "parameters": self.parameters.to_json()}


class NothingToDo(WnError):  # noqa: N818 - an outcome with exit code 1, not an error of the input
    """The request is sound, and nothing in the checkpoint answers to it; nothing was written.

    `report` is what there is to report all the same.
    """

    def __init__(self, where: str, problem: str, *, hint: str, report: Report) -> None:
        super().__init__(where, problem, hint=hint)
        self.report = report


def make_report(  # noqa: PLR0913 - what was done, and where
    plan: Plan,
    notes: tuple[Note, ...],
    output: str | None = None,
    output_format: str | None = None,
    output_files: tuple[str, ...] = (),
    *,
    dry_run: bool = False,
    tensors: bool = False,
    findings: tuple[Note, ...] | None = None,
) -> Report:
    """Report on a plan; `notes` are what was found beyond it."""
    checkpoint = plan.checkpoint
    own = [part for part in plan.parts if not part.is_filled]
    stored = [_stored(part.state_dict.tensors) for part in own]
    return Report(
        plan.command,
        checkpoint.name,
        tuple(shard.name for shard in checkpoint.shards),
        checkpoint.format,
        output,
        output_format,
        output_files,
        dry_run,
        _count(plan, stored),
        tuple(_layer(plan, root, action) for root, action in plan.changes),
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
        tuple(
            Tensor(part.state_dict.root, spec.name, spec.shape, spec.dtype.label)
            for part in plan.parts
            for spec in part.state_dict.tensors
        )
        if tensors
        else None,
        tuple(
            join(part.state_dict.root, spec.name)
            for part in plan.parts
            for spec in (part.state_dict.tensors if part.is_filled else ())
        ),
    )


def _layer(plan: Plan, root: str, change: Change) -> Layer:
    action: LayerAction = "none" if plan.command == "inspect" else "remove"
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
            action = "convert"
            weight, dim, dtype, shape = halves.weight, pair.dim, pair.dtype, pair.shape
            naming, g, v = halves.naming, halves.g, halves.v
        case Renormalize(pair, dim, halves):
            action = "renormalize"
            weight, dtype, shape = halves.weight, pair.dtype, pair.shape
            naming, g, v = halves.naming, halves.g, halves.v
    module, parameter = split(weight)
    return Layer(root, module, parameter, dim, naming, shape, dtype.label, g, v, action)


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
