"""Lays out a safetensors file, byte for byte as the reference writer orders it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wncli.checkpoint import aliases, refuse_expansion
from wncli.errors import FormatError, UsageError
from wncli.layout import Content, Elements, Layout, Magnitude, Product, Slot
from wncli.naming import join
from wncli.notes import Note
from wncli.plan import Compose, Copy, Decompose, Part, Plan, is_dropped
from wncli.tensors import DType, row_major

#: dtype alignment descending, as `tensor.rs` ranks them.
_RANK = {dtype: -place for place, dtype in enumerate(DType)}


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: DType
    shape: tuple[int, ...]
    content: Content
    tie: object
    #: It stood in the input's metadata only, as another name of a stored tensor.
    is_alias: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.bits // 8


def lay_out_safetensors(plan: Plan) -> tuple[Layout, tuple[Note, ...]]:
    """Lay out the plan's one state dict; the notes say what the format has no place for.

    Tied tensors are written once, and the metadata leads from the other names to the one that is
    kept, as `safetensors.torch.save_model` does and `load_model` expects.

    Raises:
        UsageError: there is not exactly one state dict.
        FormatError: a tensor's dtype does not exist in the format.
    """
    part = _only_part(plan)
    for action in part.actions:
        for spec in action.sources:
            refuse_expansion(plan.checkpoint, spec)
    metadata = dict(plan.checkpoint.metadata or {})
    if plan.checkpoint.tree is not None:
        metadata.setdefault("format", "pt")
    kept: dict[object, _Tensor] = {}
    tied: dict[str, str] = {}
    recorded = aliases(plan.checkpoint, part.state_dict)
    named = sorted(_tensors(part, recorded), key=lambda tensor: (tensor.is_alias, tensor.name))
    for tensor in named:
        first = kept.setdefault(tensor.tie, tensor)
        if first is not tensor:
            tied[tensor.name] = first.name
    for tensor in kept.values():
        if tensor.name == "__metadata__" or not tensor.name.isprintable():
            _check_name(plan, tensor.name)
        if tensor.dtype.safetensors is None:
            raise FormatError(
                f"{plan.checkpoint.path}: {tensor.name}",
                f"safetensors has no {tensor.dtype.label}",
                hint="--format torch keeps it",
            )
    tensors = sorted(kept.values(), key=lambda tensor: (_RANK[tensor.dtype], tensor.name))
    metadata = {k: v for k, v in metadata.items() if k not in recorded or tied.get(k) == v}
    layout = _lay_out(tensors, metadata | tied or None)
    return layout, tuple(_losses(plan, part, tied))


def _check_name(plan: Plan, name: str) -> None:
    """A tensor's name must be text, and not what the format has for its metadata."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        problem = "the name is no text (a lone surrogate)"
    else:
        if name != "__metadata__":
            return
        problem = "safetensors keeps this name for its metadata"
    where = f"{plan.checkpoint.path}: {name}"
    raise FormatError(where, problem, hint="--format torch keeps it")


def _only_part(plan: Plan) -> Part:
    roots = [part.state_dict.root for part in plan.parts]
    if len(roots) == 1:
        return plan.parts[0]
    raise UsageError(
        str(plan.checkpoint.path),
        "safetensors holds one state dict" if roots else "there is no state dict to write",
        expected="one state dict",
        found=f"{len(roots)}: {', '.join(root or 'the top' for root in roots)}" if roots else "",
        hint=" or ".join(f"--only {root}" for root in roots if root),
    )


def _tensors(part: Part, recorded: set[str]) -> list[_Tensor]:
    """What the actions leave; `recorded` are the names that the input had in its metadata only."""
    found: list[_Tensor] = []
    for action in part.actions:
        alias = any(spec.name in recorded for spec in action.sources)
        match action:
            case Copy(spec):
                tie: object = spec.view if spec.numel or recorded else spec.name
                found.append(_Tensor(spec.name, spec.dtype, spec.shape, Elements(spec), tie, alias))
            case Decompose(weight, dim, _, g, v):
                # The place of v's slot is not known yet: `_lay_out` puts it in.
                magnitude = Magnitude(action, -1, 0, row_major(weight.shape))
                tie = ("g", weight.view, dim)
                found.append(_Tensor(g, weight.dtype, action.g_shape, magnitude, tie, alias))
                tie = ("v", weight.view, dim)
                found.append(_Tensor(v, weight.dtype, weight.shape, Elements(weight), tie, alias))
            case Compose(pair):
                tie = (pair.g.view, pair.v.view)
                product = Product(pair)
                found.append(_Tensor(pair.weight, pair.dtype, pair.v.shape, product, tie, alias))
    return found


def _lay_out(tensors: list[_Tensor], metadata: Mapping[str, str] | None) -> Layout:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for tensor in tensors:
        end = place + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [place, end],
        }
        place = end
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    fixed = struct.pack("<Q", len(raw)) + raw
    offsets: dict[object, int] = {}
    offset = len(fixed)
    for tensor in tensors:
        offsets[tensor.tie] = offset
        offset += tensor.nbytes
    slots = []
    for tensor in tensors:
        content = tensor.content
        if isinstance(content, Magnitude):
            weight = content.action.weight
            content = replace(content, direction=offsets["v", weight.view, content.action.dim])
        slots.append(Slot(offsets[tensor.tie], tensor.nbytes, content))
    return Layout(offset, tuple(slots), ((0, fixed),))


def _losses(plan: Plan, part: Part, tied: Mapping[str, str]) -> list[Note]:
    notes = [
        Note("tied", f"{name} is tied to {first}, and stored once; the metadata says so", name)
        for name, first in tied.items()
    ]
    root = part.state_dict.root
    lost = [entry.path for entry in plan.checkpoint.entries]
    lost += [sd.root for sd in plan.checkpoint.state_dicts if sd.root != root]
    lost += [join(root, name) for name in part.state_dict.others]
    lost = [path for path in lost if not is_dropped(path, plan.drop)]
    if lost:
        notes.append(
            Note(
                "left-out",
                f"safetensors holds one state dict; left out: {', '.join(lost)}",
                str(plan.checkpoint.path),
                is_warning=plan.only is None,
            )
        )
    return notes
