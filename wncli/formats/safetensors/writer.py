"""Lays out a safetensors file, byte for byte as the reference writer orders it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import SHARDING_INFO, Checkpoint, aliases
from wncli.checkpoint.layout import Layout, Magnitude, Slot
from wncli.checkpoint.output import Output, OutputStateDict, OutputTensor
from wncli.checkpoint.tensors import DType
from wncli.errors import FormatError
from wncli.formats.safetensors.reader import TIE_MARK, is_tie
from wncli.hints import phrase, setting
from wncli.notes import Note

#: dtype alignment descending, as `tensor.rs` ranks them.
_RANK = {dtype: -place for place, dtype in enumerate(DType)}


class _Named(NamedTuple):
    tensor: OutputTensor
    #: It was in the input's metadata only, as another name of a stored tensor.
    is_alias: bool
    #: Of a magnitude: the tie of its direction, whose place is known once all have theirs.
    direction: object

    @property
    def preference(self) -> tuple[bool, bool, str]:
        """Of tied names the first is kept; what says `format` of the file says it of no tensor."""
        return self.is_alias, self.tensor.name != "format", self.tensor.name


def lay_out_safetensors(output: Output) -> tuple[Layout, tuple[Note, ...]]:
    """Lay out the state dict that all parts make; the notes say what the format has no place for.

    Tied tensors are written once, and the metadata leads from the other names to the one that is
    kept, as `safetensors.torch.save_model` does and `load_model` expects.

    Raises:
        FormatError: a tensor's dtype does not exist in the format.
    """
    checkpoint, parts = output.checkpoint, output.state_dicts
    # What a shard says of the place of its tensors in whole ones is true of no other tensors.
    metadata = {k: v for k, v in (checkpoint.metadata or {}).items() if k != SHARDING_INFO}
    if checkpoint.tree is not None:
        metadata.setdefault("format", "pt")
    kept: dict[object, _Named] = {}
    tied: dict[str, str] = {}
    own = [part for part in parts if not part.is_filled]
    recorded = {name for part in own for name in aliases(checkpoint, part.state_dict)}
    named = sorted(
        (one for part in parts for one in _tensors(part, set() if part.is_filled else recorded)),
        key=lambda one: one.preference,
    )
    for one in named:
        first = kept.setdefault(one.tensor.tie, one)
        if first is not one:
            tied[one.tensor.name] = first.tensor.name
    for one in named:
        if one.tensor.name == "__metadata__" or not one.tensor.name.isprintable():
            _check_name(checkpoint, one.tensor.name)
    for tensor, *_ in kept.values():
        if tensor.dtype.safetensors is None:
            raise FormatError(
                f"{checkpoint.name}: {tensor.name}",
                f"safetensors has no {tensor.dtype.label}",
                hint=phrase("{} keeps it", setting(format="torch")),
            )
    stored = sorted(kept.values(), key=lambda one: (_RANK[one.tensor.dtype], one.tensor.name))
    origins = {
        spec.name: spec.storage.key
        for part in own
        for spec in part.state_dict.tensors
        if spec.name in recorded
    }
    metadata = {
        name: text
        for name, text in metadata.items()
        if not name.startswith(TIE_MARK) and (text != origins.get(name) or tied.get(name) == text)
    }
    layout = _lay_out(stored, metadata | _records(tied, stored, metadata) or None)
    return layout, tuple(_losses(output, tied))


def _records(
    tied: Mapping[str, str], stored: Sequence[_Named], metadata: Mapping[str, str]
) -> dict[str, str]:
    """Record ties as `save_model` writes them; one that reads like a text is marked too.

    As there, what the metadata says already under such a name stays.
    """
    has_bare = any("." not in one.tensor.name for one in stored)
    found: dict[str, str] = {}
    for name, kept in tied.items():
        is_free = metadata.get(name, kept) == kept
        if is_free:
            found[name] = kept
        if not is_free or not is_tie(name, kept, has_bare=has_bare):
            found[TIE_MARK + name] = kept
    return found


def _check_name(checkpoint: Checkpoint, name: str) -> None:
    """Refuse a name that is no text, or that the format has for its metadata."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        problem = "the name is no text (a lone surrogate)"
    else:
        if name != "__metadata__":
            return
        problem = "safetensors keeps this name for its metadata"
    where = f"{checkpoint.name}: {name}"
    raise FormatError(where, problem, hint=phrase("{} keeps it", setting(format="torch")))


def _tensors(part: OutputStateDict, recorded: set[str]) -> Iterator[_Named]:
    """Give the tensors as the format has them.

    `recorded` are the names that the input had in its metadata only.
    """
    for result in part.results:
        is_alias = any(spec.name in recorded for spec in result.sources)
        direction = result.tensors[-1].tie
        for tensor in result.tensors:
            if not result.is_kept:
                yield _Named(tensor, is_alias, direction)
                continue
            dtype, shape, tie = tensor.dtype, tensor.shape, tensor.tie
            if recorded and not tensor.numel:  # what has no elements is tied only if it was before
                tie = tensor.source.view, shape
            if dtype is DType.F4X2 and shape:  # torch counts bytes of two elements
                dtype, shape = DType.F4, (*shape[:-1], 2 * shape[-1])
            named = tensor._replace(dtype=dtype, shape=shape, tie=tie)
            yield _Named(named, tensor.source.name in recorded, direction)


def _lay_out(stored: Sequence[_Named], metadata: Mapping[str, str] | None) -> Layout:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for tensor, *_ in stored:
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
    for tensor, *_ in stored:
        offsets[tensor.tie] = offset
        offset += tensor.nbytes
    slots = []
    for tensor, _, direction in stored:
        content = tensor.content
        if isinstance(content, Magnitude):
            content = content._replace(direction=offsets[direction])
        slots.append(Slot(offsets[tensor.tie], tensor.nbytes, content))
    names = tuple(tensor.name for tensor, *_ in stored)
    return Layout(offset, names, tuple(slots), ((0, fixed),))


def _losses(output: Output, tied: Mapping[str, str]) -> list[Note]:
    notes = [
        Note("tied", f"{name} is tied to {first}, and stored once; the metadata says so", name)
        for name, first in tied.items()
    ]
    if SHARDING_INFO in (output.checkpoint.metadata or {}):
        notes.append(Note("left-out", f"left out of the metadata: {SHARDING_INFO}"))
    lost = output.left_out()
    if lost:
        notes.append(
            Note(
                "left-out",
                f"safetensors holds one state dict; left out: {', '.join(lost)}",
                output.checkpoint.name,
                is_warning=not output.alone,
            )
        )
    return notes
