"""Opens a folder of safetensors shards that `torch.distributed.checkpoint` wrote, without an index.

The header of each says where its boxes are in the whole tensors. Source: PyTorch
`torch/distributed/checkpoint/hf_storage.py`, `_hf_utils.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from wncli.checkpoint.checkpoint import SHARDING_INFO, Checkpoint, StateDict
from wncli.checkpoint.parts import Chunk, Item, PartedTensor, Parts
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, count_elements, row_major
from wncli.errors import FileError, FormatError, few
from wncli.formats.dcp.boxes import covers
from wncli.formats.dcp.files import Files
from wncli.formats.dcp.items import Run
from wncli.formats.dcp.source import PartedSource
from wncli.formats.distributed import SHARD
from wncli.formats.safetensors.reader import read_safetensors
from wncli.formats.strict_json import parse_object

_OFFSETS = "saved_offsets"
#: What the headers say of the shards themselves.
_OWN = frozenset({SHARDING_INFO, "DCP_VERSION"})


@dataclass(slots=True)
class _Gathered:
    """A tensor so far: its chunks, and how far they reach along each axis."""

    dtype: DType
    reach: list[int]
    chunks: list[Chunk] = field(default_factory=list)


def open_shards_of_ranks(
    folder: Path,
    names: Sequence[str],
    stack: ExitStack,
    open_file: Callable[[Path], FileIO],
) -> tuple[Checkpoint, tuple[PartedSource]]:
    """Open shards of all ranks; `stack` closes them.

    Args:
        folder: where they are.
        names: of the shards.
        stack: keeps them open.
        open_file: opens a regular file for reading.

    Raises:
        FileError: one is missing, or cannot be read.
        FormatError: one is no shard, or their boxes do not make whole tensors.
    """
    names = sorted(names)
    _refuse_missing(folder, names)
    files = Files(folder, names, open_file)
    stack.callback(files.close)
    gathered: dict[str, _Gathered] = {}
    metadata: dict[str, str] = {}
    for number in range(len(names)):
        with files.use(number) as file:
            shard = read_safetensors(file)
        header = shard.metadata or {}
        places = _places(header, shard.name)
        for state_dict in shard.state_dicts:
            for spec in state_dict.tensors:
                _gather(gathered, spec, number, places, shard.name)
        metadata |= {key: text for key, text in header.items() if key not in _OWN}
    source = PartedSource(str(folder), files, _find)
    entries = {name: _whole(name, found, folder) for name, found in gathered.items()}
    tensors = tuple(_place(entry, source) for entry in entries.values())
    parts = Parts(files.names, entries, source.append_files(), is_safetensors=True)
    made = Checkpoint(
        str(folder),
        "safetensors, distributed",
        sum(files.sizes),
        (StateDict("", tensors),) if tensors else (),
        metadata=metadata,
        parts=parts,
    )
    return made, (source,)


def _find(_tensor: PartedTensor, chunk: Chunk) -> Run:
    return Run(chunk.item.offset, chunk.item.nbytes, None)


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    """Refuse shards of which one is missing, as far as their names tell."""
    ranks = {int(match[1]) for name in names if (match := SHARD.fullmatch(name))}
    missing = next(rank for rank in itertools.count(1) if rank not in ranks)
    if missing < max(ranks):
        raise FileError(
            str(folder),
            f"shards of a distributed checkpoint are missing: those of rank {missing}",
            expected=f"the shards of all ranks from 1 to {max(ranks)}",
            found=few(names),
            hint="copy or download the rest into this directory",
        )


def _broken(where: str, problem: str, expected: str = "", found: str = "") -> FormatError:
    return FormatError(
        where,
        f"not a valid shard of a distributed checkpoint: {problem}",
        expected=expected,
        found=found,
        hint="copy or download the whole directory again",
    )


def _places(header: dict[str, str] | Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    text = header.get(SHARDING_INFO)
    if text is None:
        raise _broken(where, f"its header has no {SHARDING_INFO}")
    return parse_object(
        text.encode("utf-8", "surrogatepass"), SHARDING_INFO, partial(_broken, where)
    )


def _gather(
    gathered: dict[str, _Gathered],
    spec: TensorSpec,
    number: int,
    places: dict[str, Any],
    where: str,
) -> None:
    """Add the box of a tensor that a shard has."""
    about = places.get(spec.name)
    offsets = about.get(_OFFSETS) if isinstance(about, dict) else None
    is_place = (
        isinstance(offsets, list)
        and len(offsets) == len(spec.shape)
        and all(type(offset) is int and 0 <= offset < 1 << 62 for offset in offsets)
    )
    if offsets is None or not is_place:
        raise _broken(
            where,
            f"{SHARDING_INFO} says no place of {spec.name!r}",
            f'{{"{_OFFSETS}": [{", ".join("…" * len(spec.shape))}]}}',
            repr(about)[:200],
        )
    if not spec.dtype.itemsize:
        raise _broken(
            where, f"{spec.name!r} has several elements in a byte", found=spec.dtype.label
        )
    ends = [offset + size for offset, size in zip(offsets, spec.shape, strict=True)]
    known = gathered.setdefault(spec.name, _Gathered(spec.dtype, ends))
    if known.dtype is not spec.dtype or len(known.reach) != len(ends):
        raise _broken(
            where,
            f"{spec.name!r} is another than in the shards before",
            f"{known.dtype.label} of {len(known.reach)} dims",
            f"{spec.dtype.label} of {len(ends)}",
        )
    known.reach = list(map(max, known.reach, ends))
    item = Item(number, spec.storage.offset, spec.storage.nbytes)
    known.chunks.append(Chunk(tuple(offsets), spec.shape, item))


def _whole(name: str, found: _Gathered, folder: Path) -> PartedTensor:
    shape, chunks = tuple(found.reach), tuple(found.chunks)
    numel = count_elements(shape)
    if numel is None or not covers(shape, chunks):
        shown = [f"{list(chunk.sizes)} from {list(chunk.offsets)} on" for chunk in chunks[:4]]
        raise _broken(
            str(folder),
            f"the boxes of {name!r} overlap, or leave gaps",
            f"boxes that cover {list(shape)}",
            "; ".join(shown),
        )
    return PartedTensor(name, None, found.dtype, shape, chunks)


def _place(entry: PartedTensor, source: PartedSource) -> TensorSpec:
    nbytes = (count_elements(entry.shape) or 0) * entry.dtype.itemsize
    storage = Storage(entry.name, source.append(entry, nbytes), nbytes)
    return TensorSpec(entry.name, entry.dtype, entry.shape, storage, 0, row_major(entry.shape))
