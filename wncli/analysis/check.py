"""Reads all of a checkpoint, and finds what is damaged or will not compute.

Findings have the codes `would-run`, `checksum`, `unreadable`, `nan`, `inf`, `zero-slices`,
`zero-direction`, `overflow`, `stale-weight`, and those of what only looks like weight norm or like
whole tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wncli.analysis.damage import damaged_members
from wncli.arithmetic.dtypes import numpy_dtype
from wncli.arithmetic.norms import Norms, unwarned
from wncli.arithmetic.ulps import Difference, Tolerance
from wncli.checkpoint.naming import join
from wncli.checkpoint.tensors import DType, Storage
from wncli.errors import FormatError, WeightNormError
from wncli.formats.torch.archive import damage_note
from wncli.hints import inspecting, phrase
from wncli.notes import Note
from wncli.parallel import Advance, Progress
from wncli.plan.actions import Compose
from wncli.plan.guards import refuse_expansion, refuse_growth
from wncli.storage.source import expect
from wncli.streaming.blocks import TensorBlocks
from wncli.streaming.effective import aligned_runs, runs_of
from wncli.streaming.fold import sums_of_squares
from wncli.streaming.reference import norms_of, slices_named
from wncli.team import ALONE, Team, run_shared

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.plan.actions import Plan
    from wncli.storage.source import Sources


def check(
    plan: Plan,
    sources: Sources,
    progress: Progress | None,
    jobs: int | None,
    team: Team = ALONE,
) -> tuple[Note, ...]:
    """Read everything that an inspection's plan is about, and the whole of every zip.

    What tied tensors share is read once, on one of the ranks of `team`.

    Returns:
        The findings; none where all is sound.

    Raises:
        FormatError: expanded tensors would take out of all proportion to read.
    """
    tensors = [(part.state_dict.root, spec) for part in plan.parts
               for spec in part.state_dict.tensors]  # fmt: skip
    views = {spec.view: spec for _, spec in tensors}
    without = phrase("{} lists it without reading it", inspecting(plan.checkpoint.name))
    for spec in views.values():
        refuse_expansion(plan.checkpoint, spec, without)
    refuse_growth(plan.checkpoint, ((spec, None) for spec in views.values()), lambda _: without)
    total = sum(spec.nbytes for spec in views.values())

    def look(spec: TensorSpec, advance: Advance) -> tuple[int, int] | str:
        try:
            return _numbers(sources, spec)
        except FormatError as error:
            return error.problem
        finally:
            advance(spec.nbytes)

    def look_at_pair(pair: Pair, _: Advance) -> list[_Finding]:
        halves = {part.view for part in (pair.g, pair.v, pair.stale) if part}
        if errors.keys() & halves:
            return []
        is_odd = any(sum(numbers[half.view]) for half in (pair.g, pair.v))
        return list(_pair(sources, pair, is_odd=is_odd))

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
    for number, source in enumerate(sources):
        expect(sources, [Storage("", 0, source.nbytes, file=number)])  # nearly all of it
    for source, members in zip(sources, damaged_members(sources, jobs, team), strict=True):
        known = {note.where for note in found if note.code == "checksum"}
        file = Path(source.name).name if len(sources) > 1 else ""
        found += [damage_note(member, file) for member in members if member not in known]
    counts = run_shared(
        team, look, list(views.values()), sizes=[spec.nbytes for spec in views.values()],
        jobs=jobs, progress=report, unpack=lambda n: n if isinstance(n, str) else (n[0], n[1]),
    )  # fmt: skip
    looked_at = dict(zip(views, counts, strict=True))
    errors = {view: n for view, n in looked_at.items() if isinstance(n, str)}
    numbers = {v: (0, 0) if isinstance(n, str) else n for v, n in looked_at.items()}
    found += [
        Note(
            "unreadable",
            f"{spec.name} cannot be read: {errors[spec.view]}",
            join(root, spec.name),
            is_warning=True,
        )
        for root, spec in tensors
        if spec.view in errors
    ]
    found += [
        Note(
            kind.lower(),
            f"{spec.name} has {count:,} {kind}",
            join(root, spec.name),
            is_warning=True,
        )
        for root, spec in tensors
        for kind, count in zip(("NaN", "Inf"), numbers[spec.view], strict=True)
        if count
    ]
    different = {_view(pair): pair for _, pair in pairs}
    looked = run_shared(
        team, look_at_pair, list(different.values()),
        sizes=[pair.v.nbytes for pair in different.values()], jobs=jobs, progress=report,
        unpack=lambda findings: [_Finding(*finding) for finding in findings],
    )  # fmt: skip
    of_pairs = dict(zip(different, looked, strict=True))
    found += [
        Note(
            finding.code,
            f"{finding.before}{pair.v.name if finding.is_of_v else pair.weight}{finding.after}",
            join(root, pair.weight),
            is_warning=True,
        )
        for root, pair in pairs
        for finding in of_pairs[_view(pair)]
    ]
    return tuple(found)


class _Finding(NamedTuple):
    """What is wrong with a pair, and all that are tied to it: what is said of v, or of the weight.

    Its name stands between `before` and `after`.
    """

    code: str
    before: str
    after: str
    is_of_v: bool = False


def _view(pair: Pair) -> object:
    """Return what tied pairs have in common."""
    return pair.g.view, pair.v.view, pair.dim, pair.stale.view if pair.stale else None


def _numbers(sources: Sources, spec: TensorSpec) -> tuple[int, int]:
    """How many NaN and Inf there are."""
    nans = infinities = 0
    for run in runs_of(sources, spec, []):
        if run.dtype.kind not in "fcV" or run.dtype.type is np.void:
            continue
        finite = np.isfinite(run)
        if not finite.all():
            bad = run[~finite]
            nans += int(np.isnan(bad).sum())
            infinities += int(np.isinf(bad).sum())
    return nans, infinities


def _pair(sources: Sources, pair: Pair, *, is_odd: bool) -> Iterator[_Finding]:
    """Return what is wrong with a pair; `is_odd` says that g or v has NaN or Inf."""
    blocks = TensorBlocks(sources[pair.v.storage.file], pair.v, pair.dim)
    wide = DType.F64 in (pair.g.dtype, pair.v.dtype)
    norms = norms_of(blocks, None if wide else sums_of_squares(blocks), wide=wide)
    count = len(norms.high)
    zero = np.flatnonzero(norms.high == 0) if pair.v.numel else np.empty(0, np.int64)
    if zero.size:
        after = " is all zero: PyTorch computes NaN"
        yield _Finding("zero-slices", f"{slices_named(zero, count)} of ", after, is_of_v=True)
    yield from _overflowing(norms, pair)
    try:
        products = [np.flatnonzero(~np.isfinite(run)).size for run in runs_of(sources, pair, [])]
    except WeightNormError as error:
        slices, _, of_v = error.problem.partition(" of ")
        after = of_v.removeprefix(pair.v.name)
        yield _Finding("zero-direction", f"{slices} of ", after, is_of_v=True)
        return
    if sum(products) and not is_odd:
        before = f"{sum(products):,} elements of "
        yield _Finding("overflow", before, f" are beyond {pair.dtype.label}")
    if pair.stale:
        yield _Finding("stale-weight", "", _stale(sources, pair, pair.stale))


def _overflowing(norms: Norms, pair: Pair) -> Iterator[_Finding]:
    """PyTorch keeps the norm of v in v's dtype, but for some devices and dtypes."""
    beyond = np.flatnonzero(norms.overflowing(unwarned(norms.rounded)(numpy_dtype(pair.v.dtype))))
    if beyond.size:
        before = f"the norm of {slices_named(beyond, len(norms.high))} of "
        after = f" is beyond {pair.v.dtype.label}: PyTorch may compute 0"
        yield _Finding("overflow", before, after, is_of_v=True)


def _stale(sources: Sources, pair: Pair, stale: TensorSpec) -> str:
    message = " stands beside its own g and v, which are what counts"
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
