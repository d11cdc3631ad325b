"""Carries out a comparison: streams both sides of every weight, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from wncli.analysis.comparison import Comparison, TensorDifference
from wncli.arithmetic.ulps import Difference, Tolerance
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WeightNormError
from wncli.hints import phrase, setting
from wncli.parallel import Advance, run_tasks
from wncli.plan.rules import glob_of
from wncli.report import Parameters
from wncli.streaming.effective import aligned_runs, are_comparable

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.plan.compare import ComparePlan, Counterparts
    from wncli.storage.source import Sources

#: The largest absolute and relative difference and that in ulps, and whether all is within.
_Found = tuple[float, float, float, bool]


def compare_weights(  # noqa: PLR0913, PLR0917 - two checkpoints, and how
    plan: ComparePlan,
    a: Sources,
    b: Sources,
    tolerance: Tolerance,
    progress: Callable[[int, int], None] | None,
    jobs: int | None,
) -> Comparison:
    """Hold all counterparts against each other.

    Args:
        plan: what is compared with what.
        a: the files of one checkpoint.
        b: the files of the other.
        tolerance: what still counts as equal.
        progress: called with the bytes that have been compared and those that there are.
        jobs: threads at most.

    Raises:
        WeightNormError: a slice of v is all zero under a g that is not.
    """
    tied: dict[object, list[Counterparts]] = {}
    for item in plan.counterparts:
        tied.setdefault((_view(item.a), _view(item.b)), []).append(item)
    different = [items[0] for items in tied.values()]
    total = sum(item.a.numel * item.a.dtype.bits // 8 for item in different)

    def difference(item: Counterparts, advance: Advance) -> tuple[_Found, list[Note]]:
        found = Difference(item.a.dtype, item.b.dtype, tolerance)
        notes: list[Note] = []
        if not are_comparable(item.a.dtype, item.b.dtype):
            found.be_incomparable()
        else:
            try:
                for one, other in aligned_runs(((a, item.a), (b, item.b)), notes):
                    found.add(one, other)
                    advance(one.nbytes)
            except WeightNormError as error:  # of B, maybe: the rules speak of A's names
                error.hint = phrase(
                    "{} leaves this layer out", setting(exclude=[glob_of(item.name)])
                )
                raise
        return (found.absolute, found.relative, found.ulps, found.within), notes

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    results = run_tasks(difference, different, nbytes=total, jobs=jobs, progress=report)
    found = [
        _result(item, numbers)
        for items, (numbers, _) in zip(tied.values(), results, strict=True)
        for item in items
    ]
    tensors = sorted(
        found, key=lambda tensor: (tensor.within, -tensor.max_ulps, -tensor.max_absolute)
    )
    notes = dict.fromkeys(note for _, noted in results for note in noted)
    return Comparison(
        plan.a.name, plan.b.name, tolerance.rtol, tolerance.atol,
        Parameters(plan.stored_in_a, plan.stored_in_b), tuple(tensors),
        tuple(join(*place) for place in plan.only_in_a),
        tuple(join(*place) for place in plan.only_in_b),
        tuple(f"{join(*place)} {shapes}" for place, shapes in plan.misshapen),
        (*plan.notes, *notes),
    )  # fmt: skip


def _view(item: Pair | TensorSpec) -> object:
    """Return what tied weights have in common."""
    return (item.g.view, item.v.view, item.dim) if isinstance(item, Pair) else item.view


def _result(item: Counterparts, found: _Found) -> TensorDifference:
    absolute, relative, ulps, within = found
    return TensorDifference(
        item.root, item.name, item.a.shape, item.a.dtype.label, item.b.dtype.label,
        absolute, relative, ulps, within,
    )  # fmt: skip
