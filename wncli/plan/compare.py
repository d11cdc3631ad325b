"""Decides which tensors of two checkpoints are compared: `wn compare`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.prefixes import describe
from wncli.checkpoint.tensors import DType, TensorSpec
from wncli.errors import FormatError, UsageError, WeightNormError
from wncli.hints import Text, inspecting, phrase, setting
from wncli.notes import Note
from wncli.plan.guards import refuse_expansion, refuse_growth
from wncli.plan.narrowing import named
from wncli.plan.open_dims import assume, settled_by
from wncli.plan.pairing import (
    Place,
    pair_up,
    split_only,
    without_counterpart,
)
from wncli.plan.request import Request, listing, look_alike_notes
from wncli.plan.rules import Candidate, check_exclusions, choose_pairs, glob_of
from wncli.plan.survey import Survey, survey
from wncli.plan.ungathered import refuse_ungathered


class Counterparts(NamedTuple):
    """Two tensors of one shape that mean the same weight; `name` is A's, below `root`."""

    root: str
    name: str
    a: Pair | TensorSpec
    b: Pair | TensorSpec


class ComparePlan(NamedTuple):
    """What is compared with what; the rest by root and name, with both shapes where they differ.

    `stored_in_a` and `stored_in_b` count the elements of all tensors, tied ones once.
    """

    a: Checkpoint
    b: Checkpoint
    counterparts: tuple[Counterparts, ...]
    only_in_a: tuple[Place, ...]
    only_in_b: tuple[Place, ...]
    misshapen: tuple[tuple[Place, str], ...]
    notes: tuple[Note, ...]
    stored_in_a: int
    stored_in_b: int


def plan_compare(a: Checkpoint, b: Checkpoint, request: Request) -> ComparePlan:
    """Find each weight's counterpart, whatever its format, spelling, root or prefix.

    Raises:
        UsageError: a rule or root that matches nothing, or several state dicts of which each could
            be meant.
        FormatError: a checkpoint holds no state dict.
    """
    ours, theirs = _surveys(a, b, request)
    refuse_ungathered(a, ours)
    refuse_ungathered(b, theirs)
    meetings = pair_up(a, ours, b, theirs)
    counterparts: list[Counterparts] = []
    misshapen: list[tuple[Place, str]] = []
    notes = [*a.notes, *b.notes, *look_alike_notes(ours)]
    for meeting in meetings:
        our_root = meeting.ours.state_dict.root
        if done := describe(meeting.names):
            notes.append(Note("renamed", done, our_root))
        held, others = meeting.ours.plain, meeting.theirs.plain
        for own, name in meeting.names.items():
            one, other = _settled(held[own], others[name]), _settled(others[name], held[own])
            if _shape(one) == _shape(other):
                counterparts.append(Counterparts(our_root, own, one, other))
            else:
                shapes = f"{list(one.shape)} and {list(other.shape)}"
                misshapen.append(((our_root, own), shapes))
    only_in_a = without_counterpart(ours, [(m.ours, m.names) for m in meetings])
    only_in_b = without_counterpart(theirs, [(m.theirs, m.names.values()) for m in meetings])
    plan = ComparePlan(
        a, b, tuple(counterparts), tuple(only_in_a), tuple(only_in_b), tuple(misshapen),
        tuple(notes), _stored(ours), _stored(theirs),
    )  # fmt: skip
    plan = _chosen(plan, request)
    for item in plan.counterparts:
        _refuse_open_dims(plan, item)
        for checkpoint, side in ((a, item.a), (b, item.b)):
            refuse_expansion(checkpoint, _largest(side), exclude=[glob_of(item.name)])
    refuse_growth(a, ((_largest(item.a), item) for item in plan.counterparts), _without)
    refuse_growth(b, ((_largest(item.b), item) for item in plan.counterparts), _without)
    return plan


def _settled(side: Pair | TensorSpec, other: Pair | TensorSpec) -> Pair | TensorSpec:
    """Return a pair along the dim that the other side shows, where its own g does not."""
    if not isinstance(side, Pair) or not isinstance(other, Pair) or other.axes:
        return side
    return settled_by(side, other.dim) or side


def _refuse_open_dims(plan: ComparePlan, item: Counterparts) -> None:
    """Refuse to compare a weight whose g, a vector, neither side shows the dim of.

    Raises:
        WeightNormError: that is so.
    """
    opened = [side for side in (item.a, item.b) if isinstance(side, Pair) and side.axes]
    is_both = len(opened) > 1 and opened[0].axes == opened[1].axes  # compared along the first
    if opened and not is_both:
        (pair,) = opened[:1]
        raise WeightNormError(
            f"{plan.a.name}: {item.name}",
            f"{pair.g.name} {list(pair.g.shape)} fits several dims of {pair.v.name}"
            f" {list(pair.v.shape)}, and the other side does not show which",
            hint=phrase("{} leaves this layer out", _without([item])),
        )


def _without(items: Iterable[Counterparts]) -> str:
    return setting(exclude=[glob_of(item.name) for item in items])


def _largest(side: Pair | TensorSpec) -> TensorSpec:
    return side.v if isinstance(side, Pair) else side


def _surveys(a: Checkpoint, b: Checkpoint, request: Request) -> tuple[list[Survey], list[Survey]]:
    sides = []
    for checkpoint, only in zip((a, b), split_only(request.only, a, b), strict=True):
        if not checkpoint.state_dicts:
            raise FormatError(
                checkpoint.name,
                "no state dict was found",
                expected="a mapping of names to tensors",
                hint=inspecting(checkpoint.name),
            )
        sides.append([assume(survey(found)) for found in named(checkpoint, only)])
    return sides[0], sides[1]


def _shape(item: Pair | TensorSpec) -> tuple[int, ...]:
    """Return the shape in elements; torch counts bytes where two elements make one."""
    if item.dtype is DType.F4X2 and item.shape:
        return (*item.shape[:-1], 2 * item.shape[-1])
    return item.shape


def _stored(surveys: Sequence[Survey]) -> int:
    """Elements that are stored, tied tensors counted once."""
    counts = {spec.view: spec.numel for found in surveys for spec in found.state_dict.tensors}
    return sum(counts.values())


def _chosen(plan: ComparePlan, request: Request) -> ComparePlan:
    """Apply the rules; they speak of A's names, and of names that are B's alone."""
    if not (request.layers or request.exclude):
        return plan
    items = {
        Candidate(c.root, c.name, len(c.a.shape), by_default=True): c for c in plan.counterparts
    }
    misshapen = [place for place, _ in plan.misshapen]
    alone = [name for _, name in (*plan.only_in_a, *plan.only_in_b, *misshapen)]
    names = [*(item.weight for item in items), *alone]
    check_exclusions(request.exclude, names, listing(plan.a))
    # A rule may speak of what stands on one side only: that is a difference, and no mistake.
    rules = [rule for rule in request.layers if not any(map(rule.matches, alone))]
    taken = [item for item in items if request.wants(item.weight)]
    choose_pairs(list(items), rules, (), {}, listing(plan.a))

    def left(places: Sequence[Place]) -> tuple[Place, ...]:
        return tuple(place for place in places if request.wants(place[1]))

    if not (taken or any(map(request.wants, alone))):
        raise UsageError(Text("exclude", "-x"), "the rules leave nothing to compare")
    return plan._replace(
        counterparts=tuple(items[item] for item in taken),
        only_in_a=left(plan.only_in_a),
        only_in_b=left(plan.only_in_b),
        misshapen=tuple(item for item in plan.misshapen if request.wants(item[0][1])),
    )
