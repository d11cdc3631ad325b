"""Reads all of a checkpoint, and finds what is damaged or will not compute.

Findings have the codes `would-run`, `checksum`, `nan`, `inf`, `zero-slices`, `zero-direction`,
`overflow`, `stale-weight`, and those of what only looks like weight norm or like whole tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from wncli.blocks import TensorBlocks, numpy_dtype
from wncli.crew import Advance
from wncli.difference import Difference, Tolerance
from wncli.effective import aligned_runs, runs_of
from wncli.errors import WeightNormError
from wncli.formats.torch_archive import damage_note, damaged_members
from wncli.naming import join
from wncli.norms import Norms, unwarned
from wncli.notes import Note
from wncli.plan import Compose
from wncli.streams import norms_of, slices_named
from wncli.tensors import DType
from wncli.workers import map_shared

if TYPE_CHECKING:
    from wncli.formats.files import Sources
    from wncli.plan import Plan
    from wncli.survey import Pair
    from wncli.tensors import TensorSpec

Progress = Callable[[int, int], None]


def check(plan: Plan, sources: Sources, progress: Progress | None) -> tuple[Note, ...]:
    """Read everything that an inspection's plan is about, and the whole of every zip.

    Returns:
        The findings; none where all is sound.
    """
    tensors = [(part.state_dict.root, spec) for part in plan.parts
               for spec in part.state_dict.tensors]  # fmt: skip
    total = sum(spec.nbytes for _, spec in tensors)

    def look(item: tuple[str, TensorSpec], advance: Advance) -> list[Note]:
        root, spec = item
        found = _numbers(sources, spec, join(root, spec.name))
        advance(spec.nbytes)
        return found

    def look_at_pair(item: tuple[str, Pair], _: Advance) -> list[Note]:
        return list(_pair(sources, odd, *item))

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    pairs = [(root, action.pair) for root, action in plan.changes if isinstance(action, Compose)]
    found = [note for note in plan.notes if note.is_warning and note.code != "stale-weight"]
    found += [
        Note("would-run", f"torch.load would run {call.call}", call.where, is_warning=True)
        for call in plan.checkpoint.would_run
        if call.is_shown
    ]
    for source in sources:
        known = {note.where for note in found if note.code == "checksum"}
        file = source.path.name if len(sources) > 1 else ""
        damaged = [member for member in damaged_members(source) if member not in known]
        found += [damage_note(member, file) for member in damaged]
    numbers = map_shared(look, tensors, total, report)
    odd = {(root, spec.name) for (root, spec), notes in zip(tensors, numbers, strict=True) if notes}
    found += chain(*numbers, *map_shared(look_at_pair, pairs, total, report))
    return tuple(found)


def _numbers(sources: Sources, spec: TensorSpec, where: str) -> list[Note]:
    """Counts of NaN and Inf."""
    nans = infinities = 0
    for run in runs_of(sources, spec, []):
        if run.dtype.kind not in "fcV" or run.dtype.type is np.void:
            continue
        finite = np.isfinite(run)
        if not finite.all():
            bad = run[~finite]
            nans += int(np.isnan(bad).sum())
            infinities += int(np.isinf(bad).sum())
    return [
        Note(kind.lower(), f"{spec.name} has {count:,} {kind}", where, is_warning=True)
        for kind, count in (("NaN", nans), ("Inf", infinities))
        if count
    ]


def _pair(sources: Sources, odd: set[tuple[str, str]], root: str, pair: Pair) -> Iterator[Note]:
    """What is wrong with a pair; `odd` are the tensors that have NaN or Inf, with their roots."""
    where = join(root, pair.weight)

    def finding(code: str, message: str) -> Note:
        return Note(code, message, where, is_warning=True)

    blocks = TensorBlocks(sources[pair.v.storage.file], pair.v, pair.dim)
    norms = norms_of(blocks, wide=DType.F64 in (pair.g.dtype, pair.v.dtype))
    count = len(norms.high)
    zero = np.flatnonzero(norms.high == 0) if pair.v.numel else np.empty(0, np.int64)
    if zero.size:
        message = f"{slices_named(zero, count)} of {pair.v.name} is all zero: PyTorch computes NaN"
        yield finding("zero-slices", message)
    yield from _overflowing(norms, pair, finding)
    try:
        products = [np.flatnonzero(~np.isfinite(run)).size for run in runs_of(sources, pair, [])]
    except WeightNormError as error:
        yield finding("zero-direction", error.problem)
        return
    if sum(products) and odd.isdisjoint((root, half.name) for half in (pair.g, pair.v)):
        message = f"{sum(products):,} elements of {pair.weight} are beyond {pair.dtype.label}"
        yield finding("overflow", message)
    if pair.stale:
        yield finding("stale-weight", _stale(sources, pair, pair.stale))


def _overflowing(norms: Norms, pair: Pair, finding: Callable[[str, str], Note]) -> Iterator[Note]:
    """PyTorch keeps the norm of v in v's dtype, but for some devices and dtypes."""
    beyond = np.flatnonzero(norms.overflowing(unwarned(norms.rounded)(numpy_dtype(pair.v.dtype))))
    if beyond.size:
        norm = f"the norm of {slices_named(beyond, len(norms.high))} of {pair.v.name}"
        message = f"{norm} is beyond {pair.v.dtype.label}: PyTorch may compute 0"
        yield finding("overflow", message)


def _stale(sources: Sources, pair: Pair, stale: TensorSpec) -> str:
    message = f"{pair.weight} stands beside its own g and v, which are what counts"
    if stale.shape != pair.shape:
        return f"{message}, in another shape"
    difference = Difference(stale.dtype, pair.dtype, Tolerance())
    try:
        for one, other in aligned_runs(((sources, stale), (sources, pair)), []):
            difference.add(one, other)
    except WeightNormError:
        return message
    if difference.within:
        return f"{message}, and equals them"
    return f"{message}, and differs from them by up to {difference.absolute:.3g}"
