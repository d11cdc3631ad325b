"""Reads and lays out safetensors: a length, a JSON header, then the tensors without gaps.

Source: safetensors `safetensors/src/tensor.rs` and the format's README.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, count_elements, row_major
from wncli.errors import FormatError
from wncli.formats.strict_json import parse_object
from wncli.storage.source import Source, truncated

_LENGTH = struct.Struct("<Q")
#: The reference reader's own limit, in bytes.
_LONGEST_HEADER = 100_000_000
#: Twice what the largest models have in all their shards; each takes about a kilobyte of memory.
_MOST_TENSORS = 200_000
_METADATA = "__metadata__"
#: Begins the keys of ties that `wn` records once more, as they read like any other text.
TIE_MARK = "wn.tie:"
_MEMBERS = {"dtype", "shape", "data_offsets"}
_CODES = {dtype.safetensors: dtype for dtype in DType if dtype.safetensors}


def looks_like_safetensors(start: bytes, nbytes: int) -> bool:
    """Whether a file that begins so can only be meant as safetensors: a length, then an object."""
    if len(start) <= _LENGTH.size:
        return False
    (length,) = _LENGTH.unpack_from(start)
    return start[_LENGTH.size :].lstrip(b" \t\r\n")[:1] == b"{" and (
        length <= _LONGEST_HEADER or length <= nbytes
    )


def read_safetensors(source: Source) -> Checkpoint:
    """Open a safetensors file.

    Raises:
        FormatError: a rule of the format is broken; the message names it.
    """
    (length,) = _LENGTH.unpack(source.read_at(0, _LENGTH.size, "the header's length"))
    if length > _LONGEST_HEADER:
        raise _broken(
            source, "the header is too long", f"up to {_LONGEST_HEADER:,} bytes", f"{length:,}"
        )
    raw = source.read_at(_LENGTH.size, length, "the header")
    listed = raw.count(b'"data_offsets"')
    if listed > _MOST_TENSORS:
        raise FormatError(
            source.name,
            "the header lists more tensors than any model has",
            expected=f"up to {_MOST_TENSORS:,}",
            found=f"{listed:,}",
        )
    header = _parse(source, raw)
    metadata = _metadata(source, header.pop(_METADATA, None))
    data = _LENGTH.size + length
    tensors = [_tensor(source, name, entry, data) for name, entry in header.items()]
    _check_cover(source, tensors, data)
    tensors += tied(tensors, metadata or {})
    state_dicts = (StateDict("", tuple(tensors)),) if tensors else ()
    return Checkpoint(source.name, "safetensors", source.nbytes, state_dicts, metadata=metadata)


def _broken(source: Source, problem: str, expected: str = "", found: str = "") -> FormatError:
    return FormatError(
        source.name, f"not a valid safetensors file: {problem}", expected=expected, found=found
    )


def _parse(source: Source, raw: bytes) -> dict[str, Any]:
    def count(text: str) -> int:
        if text.startswith("-"):
            raise _broken(source, f"the header holds {text}, which is no count")
        return int(text)

    return parse_object(raw, "the header", partial(_broken, source), count if b"-" in raw else None)


def _metadata(source: Source, found: Any) -> dict[str, str] | None:  # noqa: ANN401 - any JSON
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise _broken(source, f"{_METADATA} must map names to text")
    return found


def _tensor(source: Source, name: str, entry: Any, data: int) -> TensorSpec:  # noqa: ANN401
    if not isinstance(entry, dict) or set(entry) != _MEMBERS:
        raise _broken(source, f"tensor {name!r} needs dtype, shape and data_offsets")
    dtype = _CODES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _broken(source, f"tensor {name!r} has the unknown dtype {entry['dtype']!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or not _are_counts(offsets):
        raise _broken(source, f"tensor {name!r} has a size or offset that is no count")
    if len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004
        raise _broken(source, f"tensor {name!r} needs two ascending offsets", found=str(offsets))
    begin, end = offsets
    sizes = tuple(shape)
    numel = count_elements(sizes)
    if numel is None:
        raise _broken(source, f"tensor {name!r} has more elements than 64 bits can count")
    if numel * dtype.bits != (end - begin) * 8:
        raise _broken(
            source,
            f"tensor {name!r} does not fill its bytes",
            f"{numel * dtype.bits / 8:g} bytes for {numel} elements of {entry['dtype']}",
            f"{end - begin} bytes",
        )
    storage = Storage(name, data + begin, end - begin, None, "cpu", source.number)
    return TensorSpec(name, dtype, sizes, storage, 0, row_major(sizes))


def _are_counts(values: Any) -> bool:  # noqa: ANN401
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110 - a generator would take twice as long, for every tensor
        if type(value) is not int or not 0 <= value < 1 << 64:
            return False
    return True


def tied(tensors: Iterable[TensorSpec], metadata: Mapping[str, str]) -> list[TensorSpec]:
    """Return the tensors that the metadata records as others by another name.

    Source: safetensors `save_model` (`bindings/python/py_src/safetensors/torch.py`) writes
    `{removed: kept}` among what else the metadata says, and huggingface_hub does so in an index;
    nothing reads it. An entry is such a record only where its key reads as the name of a tensor
    (`is_tie`), or where it is marked as one.
    """
    known = {spec.name: spec for spec in tensors}
    has_bare = any("." not in name for name in known)
    records = {
        name: kept
        for name, kept in metadata.items()
        if kept in known and is_tie(name, kept, has_bare=has_bare)
    }
    marked = {
        name.removeprefix(TIE_MARK): kept
        for name, kept in metadata.items()
        if kept in known and name.startswith(TIE_MARK)
    }
    ties = records | marked
    return [known[kept]._replace(name=name) for name, kept in ties.items() if name not in known]


def is_tie(name: str, kept: str, *, has_bare: bool) -> bool:
    """Whether `{name: kept}` can only mean a tie: a parameter of the same name in another module.

    As `lm_head.weight` and `wte.weight`. Without a module it is the name of a tensor only where
    others have none either (`has_bare`). Every other text may stand there for its own sake.
    """
    module, _, own = name.rpartition(".")
    return own == kept.rpartition(".")[2] and name != "format" and (bool(module) or has_bare)


def _check_cover(source: Source, tensors: list[TensorSpec], data: int) -> None:
    """Refuse tensors that do not cover the file to its end, without holes or overlaps."""
    place = data
    for spec in sorted(tensors, key=lambda spec: (spec.storage.offset, spec.storage.nbytes)):
        if spec.storage.offset != place:
            raise _broken(
                source,
                f"tensor {spec.name!r} leaves a hole or overlaps",
                f"data_offsets from {place - data}",
                f"from {spec.storage.offset - data}",
            )
        place += spec.storage.nbytes
    if place > source.nbytes:
        raise truncated(source, "the tensors", place)
    if place < source.nbytes:
        raise _broken(
            source, "bytes follow the last tensor", f"{place:,} bytes", f"{source.nbytes:,} bytes"
        )
