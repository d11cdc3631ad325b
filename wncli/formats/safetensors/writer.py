"""Lays out a safetensors file, byte for byte as the reference writer orders it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import aliases, refuse_expansion
from wncli.checkpoint.layout import Content, Elements, Layout, Magnitude, Product, Slot
from wncli.checkpoint.naming import join
from wncli.checkpoint.tensors import DType, TensorSpec, row_major
from wncli.errors import FormatError, UsageError
from wncli.formats.safetensors.reader import TIE_MARK, is_tie
from wncli.hints import option
from wncli.notes import Note
from wncli.plan.actions import Compose, Copy, Decompose, Part, Plan, Renormalize, Respell, left_out
from wncli.plan.ungathered import SHARDING_INFO

#: dtype alignment descending, as `tensor.rs` ranks them.
_RANK = {dtype: -place for place, dtype in enumerate(DType)}


class _Tensor(NamedTuple):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    content: Content
    tie: object
    #: It stood in the input's metadata only, as another name of a stored tensor.
    is_alias: bool
    #: Of a magnitude: the tie of its direction, whose place is known once all have theirs.
    direction: object = None

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
            path = join(part.state_dict.root, spec.name)
            refuse_expansion(plan.checkpoint, spec, option("--drop", path))
    # What a shard says of the place of its tensors in whole ones is true of no other tensors.
    metadata = {k: v for k, v in (plan.checkpoint.metadata or {}).items() if k != SHARDING_INFO}
    if plan.checkpoint.tree is not None:
        metadata.setdefault("format", "pt")
    kept: dict[object, _Tensor] = {}
    tied: dict[str, str] = {}
    recorded = aliases(plan.checkpoint, part.state_dict)
    named = sorted(_tensors(part, recorded), key=_order_of_keeping)
    for tensor in named:
        first = kept.setdefault(tensor.tie, tensor)
        if first is not tensor:
            tied[tensor.name] = first.name
    for tensor in named:
        if tensor.name == "__metadata__" or not tensor.name.isprintable():
            _check_name(plan, tensor.name)
    for tensor in kept.values():
        if tensor.dtype.safetensors is None:
            raise FormatError(
                f"{plan.checkpoint.path}: {tensor.name}",
                f"safetensors has no {tensor.dtype.label}",
                hint="--format torch keeps it",
            )
    tensors = sorted(kept.values(), key=lambda tensor: (_RANK[tensor.dtype], tensor.name))
    origins = {
        spec.name: spec.storage.key for spec in part.state_dict.tensors if spec.name in recorded
    }
    metadata = {
        name: text
        for name, text in metadata.items()
        if not name.startswith(TIE_MARK) and (text != origins.get(name) or tied.get(name) == text)
    }
    layout = _lay_out(tensors, metadata | _records(tied, tensors, metadata) or None)
    return layout, tuple(_losses(plan, tied))


def _records(
    tied: Mapping[str, str], tensors: Sequence[_Tensor], metadata: Mapping[str, str]
) -> dict[str, str]:
    """The entries of ties, as `save_model` writes them; one that reads like a text is marked too.

    As there, what the metadata says already under such a name stays.
    """
    has_bare = any("." not in tensor.name for tensor in tensors)
    found: dict[str, str] = {}
    for name, kept in tied.items():
        is_free = metadata.get(name, kept) == kept
        if is_free:
            found[name] = kept
        if not is_free or not is_tie(name, kept, has_bare=has_bare):
            found[TIE_MARK + name] = kept
    return found


def _order_of_keeping(tensor: _Tensor) -> tuple[bool, bool, str]:
    """Of tied names the first is kept; the metadata says `format` of the file, not of a tensor."""
    return tensor.is_alias, tensor.name != "format", tensor.name


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
        hint=" or ".join(option("--only", root) for root in roots),
    )


def _tensors(part: Part, recorded: set[str]) -> list[_Tensor]:
    """What the actions leave; `recorded` are the names that the input had in its metadata only."""
    found: list[_Tensor] = []
    for action in part.actions:
        alias = any(spec.name in recorded for spec in action.sources)
        match action:
            case Copy(spec, name):
                found.append(_kept(spec, name, spec.shape, recorded))
            case Respell(pair, halves):
                found.append(_kept(pair.g, halves.g, halves.g_shape, recorded))
                found.append(_kept(pair.v, halves.v, pair.v.shape, recorded))
            case Decompose(weight, dim, halves):
                g: object = ("g", weight.view, dim)
                v: object = ("v", weight.view, dim)
                shape = halves.g_shape
                magnitude = Magnitude(weight, dim, math.prod(shape), -1, 0, row_major(weight.shape))
                found += [
                    _Tensor(halves.g, weight.dtype, shape, magnitude, g, alias, v),
                    _Tensor(halves.v, weight.dtype, weight.shape, Elements(weight), v, alias),
                ]
            case Compose(pair, name):
                tie = (pair.g.view, pair.v.view)
                shape = pair.v.shape
                found.append(_Tensor(name, pair.dtype, shape, Product(pair), tie, alias))
            case Renormalize(pair, dim, halves):
                v = (pair.g.view, pair.v.view)
                g = ("g", v, dim)
                weight = pair.v._replace(name=pair.weight, dtype=pair.dtype)
                magnitude = Magnitude(
                    weight, dim, math.prod(halves.g_shape), -1, 0, row_major(weight.shape),
                    of_output=True,
                )  # fmt: skip
                found += [
                    _Tensor(halves.g, pair.dtype, halves.g_shape, magnitude, g, alias, v),
                    _Tensor(halves.v, pair.dtype, pair.v.shape, Product(pair), v, alias),
                ]
    return found


def _kept(spec: TensorSpec, name: str, shape: tuple[int, ...], recorded: set[str]) -> _Tensor:
    tie = (spec.view, shape) if spec.numel or recorded else name
    dtype = spec.dtype
    if dtype is DType.F4X2 and shape:  # torch counts bytes of two elements, safetensors elements
        dtype, shape = DType.F4, (*shape[:-1], 2 * shape[-1])
    return _Tensor(name, dtype, shape, Elements(spec), tie, spec.name in recorded)


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
            content = content._replace(direction=offsets[tensor.direction])
        slots.append(Slot(offsets[tensor.tie], tensor.nbytes, content))
    names = tuple(tensor.name for tensor in tensors)
    return Layout(offset, names, tuple(slots), ((0, fixed),))


def _losses(plan: Plan, tied: Mapping[str, str]) -> list[Note]:
    notes = [
        Note("tied", f"{name} is tied to {first}, and stored once; the metadata says so", name)
        for name, first in tied.items()
    ]
    if SHARDING_INFO in (plan.checkpoint.metadata or {}):
        notes.append(Note("left-out", f"left out of the metadata: {SHARDING_INFO}"))
    lost = left_out(plan)
    if lost:
        notes.append(
            Note(
                "left-out",
                f"safetensors holds one state dict; left out: {', '.join(lost)}",
                str(plan.checkpoint.path),
                is_warning=not plan.alone,
            )
        )
    return notes
