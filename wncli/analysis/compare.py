"""Carries out a comparison: streams both sides of every weight, several at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from wncli.analysis.comparison import Comparison, TensorDifference
from wncli.arithmetic.movement import Moved, Movement, norm_of, share
from wncli.arithmetic.ulps import Difference, Largest, Tolerance
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair, storages_of
from wncli.checkpoint.tensors import DType, TensorSpec
from wncli.errors import WeightNormError
from wncli.hints import phrase, setting
from wncli.parallel import Advance
from wncli.plan.rules import glob_of
from wncli.report import Parameters
from wncli.storage.source import expect
from wncli.streaming.effective import aligned_runs, are_comparable
from wncli.team import ALONE, Json, Team, pack_note, run_shared, unpack_note

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.plan.compare import ComparePlan, Counterparts
    from wncli.storage.source import Sources


def compare_weights(  # noqa: PLR0913, PLR0917 - two checkpoints, and how
    plan: ComparePlan,
    a: Sources,
    b: Sources,
    tolerance: Tolerance,
    progress: Callable[[int, int], None] | None,
    jobs: int | None,
    team: Team = ALONE,
) -> Comparison:
    """Compare all counterparts.

    Args:
        plan: what is compared with what.
        a: the files of one checkpoint.
        b: the files of the other.
        tolerance: what still counts as equal.
        progress: called with the bytes that have been compared and those that there are.
        jobs: threads at most.
        team: the ranks that do it together.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    tied: dict[object, list[Counterparts]] = {}
    for item in plan.counterparts:
        tied.setdefault((_view(item.a), _view(item.b)), []).append(item)
    different = [items[0] for items in tied.values()]
    sizes = [item.a.numel * item.a.dtype.bits // 8 for item in different]
    total = sum(sizes)

    def compared(item: Counterparts, advance: Advance) -> _Found:
        return _compare(item, a, b, tolerance, advance)

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    expect(a, storages_of(item.a for item in different))
    expect(b, storages_of(item.b for item in different))
    results = run_shared(
        team, compared, different, sizes=sizes, jobs=jobs, progress=report,
        pack=_Found.pack, unpack=_Found.unpack,
    )  # fmt: skip
    found = [
        _result(item, one.difference, one.moved)
        for items, one in zip(tied.values(), results, strict=True)
        for item in items
    ]
    weights = [
        one.moved
        for item, one in zip(different, results, strict=True)
        if item.a.dtype.precision and item.b.dtype.precision
    ]
    change = share(
        norm_of(moved.change for moved in weights), norm_of(moved.before for moved in weights)
    )
    notes = dict.fromkeys(note for one in results for note in one.notes)
    return Comparison(
        plan.a.name, plan.b.name, tolerance.rtol, tolerance.atol,
        Parameters(plan.stored_in_a, plan.stored_in_b), tuple(sorted(found, key=_most_first)),
        tuple(join(*place) for place in plan.only_in_a),
        tuple(join(*place) for place in plan.only_in_b),
        tuple(f"{join(*place)} {shapes}" for place, shapes in plan.misshapen),
        (*plan.notes, *notes), change, plan.a.nbytes, plan.b.nbytes,
    )  # fmt: skip


class _Found(NamedTuple):
    """What comparing two tensors found."""

    difference: Largest
    moved: Moved
    notes: list[Note]

    def pack(self) -> Json:
        """Turn it into JSON."""
        return [self.difference, self.moved, [pack_note(note) for note in self.notes]]

    @classmethod
    def unpack(cls, packed: Json) -> _Found:
        """Turn it back."""
        difference, moved, notes = packed
        return cls(Largest(*difference), Moved(*moved), [unpack_note(note) for note in notes])


def _compare(
    item: Counterparts, a: Sources, b: Sources, tolerance: Tolerance, advance: Advance
) -> _Found:
    found = Difference(item.a.dtype, item.b.dtype, tolerance)
    movement = Movement(item.a.shape, _dim(item))
    dtypes = item.a.dtype, item.b.dtype
    has_numbers = are_comparable(*dtypes) and all(map(_is_number, dtypes))
    is_floating = has_numbers and all(dtype.precision for dtype in dtypes)
    notes: list[Note] = []
    if not are_comparable(item.a.dtype, item.b.dtype):
        found.be_incomparable()
    else:
        try:
            for one, other in aligned_runs(((a, item.a), (b, item.b)), notes):
                differ = found.add(one, other)
                if is_floating and differ:
                    movement.add(one, other, dtypes)
                elif is_floating:
                    movement.add_same(one, item.a.dtype)
                advance(one.nbytes)
        except WeightNormError as error:  # of B, maybe: the rules speak of A's names
            error.hint = phrase("{} leaves this layer out", setting(exclude=[glob_of(item.name)]))
            raise
    if found.ulps and has_numbers and not is_floating:
        # Their norms are no part of the total, and so not needed where nothing differs.
        for one, other in aligned_runs(((a, item.a), (b, item.b)), []):
            movement.add(one, other, dtypes)
    moved = movement.result()
    if found.ulps and not has_numbers:
        moved = moved._replace(change=math.nan)
    return _Found(found.largest(), moved, notes)


def _view(item: Pair | TensorSpec) -> object:
    """Return what tied weights have in common."""
    return (item.g.view, item.v.view, item.dim) if isinstance(item, Pair) else item.view


def _dim(item: Counterparts) -> int | None:
    """Return the dim along which a weight is normalized, in A where it is there."""
    return next((side.dim for side in (item.a, item.b) if isinstance(side, Pair)), None)


def _is_number(dtype: DType) -> bool:
    """Whether an element is a number, rather than bits or part of a byte."""
    return bool(dtype.itemsize and dtype.numpy)


def _result(item: Counterparts, found: Largest, moved: Moved) -> TensorDifference:
    is_normalized = isinstance(item.a, Pair) or isinstance(item.b, Pair)
    return TensorDifference(
        item.root, item.name, item.a.shape, item.a.dtype.label, item.b.dtype.label,
        found.absolute, found.relative, found.ulps, found.within, moved.share,
        moved.g_moved if is_normalized else None, moved.v_turned if is_normalized else None,
        found.needed_rtol, found.needed_atol,
    )  # fmt: skip


def _most_first(tensor: TensorDifference) -> tuple[bool, float, bool, bool, float]:
    """Sort by what has changed most, NaN first; then by what is further off."""
    change, ulps = tensor.change, tensor.max_ulps
    unknown = math.isnan(change), math.isnan(ulps)
    return (
        not unknown[0], 0.0 if unknown[0] else -change, tensor.within,
        not unknown[1], 0.0 if unknown[1] else -ulps,
    )  # fmt: skip
