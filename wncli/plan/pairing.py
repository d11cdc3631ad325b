"""Which state dict of one checkpoint is which of another's, and how their names meet. Pure.

A tensor goes by its plain name here (`Survey.plain`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.keys import Key
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.prefixes import Fit, Names, Tops, best_fit
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError, few
from wncli.hints import either, setting
from wncli.plan.narrowing import named, no_such_root
from wncli.plan.survey import Survey

#: As many pairs of state dicts are compared, which come to as many names, or to so many times all.
_MOST_PAIRS = 1 << 10
_MOST_NAMES = 1 << 2
_MOST_VISITS = 1 << 18
#: As many are named of what could be meant.
_MOST_WAYS = 4


def split_only(
    only: str | None, ours: Checkpoint, theirs: Checkpoint
) -> tuple[str | None, str | None]:
    """Return what `--only ROOT`, or `--only OURS=THEIRS`, names on each side; None takes all there.

    A dotted prefix of names is as good as a root; where one side has a root of this name, it means
    no prefix on the other.

    Raises:
        UsageError: neither side has such a root.
    """
    if only is None:
        return None, None
    sides = [any(sd.root == only for sd in side.state_dicts) for side in (ours, theirs)]
    if not any(sides):
        sides = [bool(named(side, only)) for side in (ours, theirs)]
    if any(sides):
        return only if sides[0] else None, only if sides[1] else None
    for equals in re.finditer("=", only):
        our, their = only[: equals.start()], only[equals.end() :]
        if named(ours, our) and named(theirs, their):
            return our, their
    raise no_such_root(only, (ours, theirs))


#: A root, and a tensor's name below it.
Place = tuple[str, str]


class Meeting(NamedTuple):
    """A state dict of ours and one of theirs, and which plain name of ours is which of theirs."""

    ours: Survey
    theirs: Survey
    names: Mapping[str, str]


def without_counterpart(
    surveys: Sequence[Survey], met: Sequence[tuple[Survey, Iterable[str]]]
) -> list[Place]:
    """Return the plain names of one side that meet none of the other."""
    taken: dict[str, set[str]] = {}
    for found, names in met:
        taken.setdefault(found.state_dict.root, set()).update(names)
    return [
        (root, name)
        for found in surveys
        for root in (found.state_dict.root,)
        for name in found.plain
        if name not in taken.get(root, ())
    ]


def pair_up(
    our_checkpoint: Checkpoint,
    ours: Sequence[Survey],
    their_checkpoint: Checkpoint,
    theirs: Sequence[Survey],
) -> tuple[Meeting, ...]:
    """Find which state dicts mean each other, and how their names meet.

    As a rule each of theirs means one of ours. Where more names meet so, the names are taken with
    their roots: several state dicts then are one flat one on the other side.

    Raises:
        UsageError: several would do equally well, and nothing says which is meant.
    """
    tops = Tops.of(found.state_dict.root for found in (*ours, *theirs))
    held = {found.state_dict.root: found.plain for found in ours}
    others = {found.state_dict.root: found.plain for found in theirs}
    pairing = _Pairing(
        our_checkpoint,
        their_checkpoint,
        {root: Names(tensors, tops) for root, tensors in held.items()},
        {root: Names(tensors, tops) for root, tensors in others.items()},
        held,
        others,
    )
    found: list[Meeting] = []
    refusal: UsageError | None = None
    try:
        by_root = pairing.by_root(ours, theirs)
    except UsageError as error:
        refusal = error
    else:
        ours_by_root = {found.state_dict.root: found for found in ours}
        for survey in theirs:
            root = survey.state_dict.root
            if root in by_root:
                our_root, fit = by_root[root]
                names = fit.names_met(pairing.ours[our_root], pairing.theirs[root])
                found.append(Meeting(ours_by_root[our_root], survey, names))
    fewer = min(sum(map(len, side.values())) for side in (pairing.ours, pairing.theirs))
    met = sum(len(meeting.names) for meeting in found)
    if len(ours) + len(theirs) > 2 and met < fewer:  # noqa: PLR2004 - there are several of one
        joined = _across(ours, theirs)
        met_joined = sum(len(meeting.names) for meeting in joined)
        if met_joined > met and (refusal is None or 2 * met_joined > fewer):
            return joined
    if refusal:
        raise refusal
    return tuple(found)


def _across(ours: Sequence[Survey], theirs: Sequence[Survey]) -> tuple[Meeting, ...]:
    """Have all names meet with their roots before them; nothing where several prefixes would do."""
    sides: list[dict[str, tuple[int, str]]] = []
    for surveys in (ours, theirs):
        places: dict[str, tuple[int, str]] = {}
        for number, found in enumerate(surveys):
            for name in found.plain:
                places.setdefault(join(found.state_dict.root, name), (number, name))
        sides.append(places)
    our_places, their_places = sides
    names, others = (Names(places, Tops.of(())) for places in sides)
    fit = best_fit(names, others)
    met: dict[tuple[int, int], dict[str, str]] = {}
    for full, other in fit.names_met(names, others).items() if not fit.rivals else ():
        (our, own), (their, name) = our_places[full], their_places[other]
        met.setdefault((their, our), {})[own] = name
    return tuple(
        Meeting(ours[our], theirs[their], own) for (their, our), own in sorted(met.items())
    )


class _Pairing(NamedTuple):
    """Both sides' names by root, and what they are the plain names of."""

    our_checkpoint: Checkpoint
    their_checkpoint: Checkpoint
    ours: Mapping[str, Names]
    theirs: Mapping[str, Names]
    our_tensors: Mapping[str, Mapping[str, Pair | TensorSpec]]
    their_tensors: Mapping[str, Mapping[str, Pair | TensorSpec]]

    def by_root(
        self, ours: Sequence[Survey], theirs: Sequence[Survey]
    ) -> dict[str, tuple[str, Fit]]:
        """Which state dict of ours each of theirs means: root to root, and how the names meet.

        The same path comes first, then one that reads the same, then the same last part of a path,
        then the most names in common; each of ours is meant once.

        Raises:
            UsageError: several would do equally well, and nothing says which is meant.
        """
        paired: dict[str, tuple[str, Fit]] = {}
        places = {found.state_dict.keys: found.state_dict.root for found in ours}
        same = {
            found.state_dict.root: places[found.state_dict.keys]
            for found in theirs
            if found.state_dict.keys in places
        }
        alike = [root for root in self.theirs if root in self.ours and root not in same]
        taken = set(same.values())
        same |= {root: root for root in alike if root not in taken}
        for their_root, our_root in same.items():
            fit = best_fit(self.ours[our_root], self.theirs[their_root])
            fit = self.settled(our_root, their_root, fit)
            if fit.matched:
                paired[their_root] = our_root, fit
        by_name = self.add_by_last_part(paired, ours, theirs)
        met = {our_root for our_root, _ in paired.values()}
        self.add_by_count(
            paired,
            [root for root in self.ours if root not in met],
            [root for root in self.theirs if root not in paired],
            only_same=by_name,
        )
        return paired

    def add_by_last_part(
        self,
        paired: dict[str, tuple[str, Fit]],
        ours: Sequence[Survey],
        theirs: Sequence[Survey],
    ) -> bool:
        """Pair what stands under one key, below other keys: `net.decoder` is `decoder`."""
        before = len(paired)
        met = {our_root for our_root, _ in paired.values()}
        by_last: list[dict[Key, list[str]]] = [{}, {}]
        for side, surveys, gone in ((0, ours, met), (1, theirs, paired)):
            for found in surveys:
                state_dict = found.state_dict
                if state_dict.keys and state_dict.root not in gone:
                    by_last[side].setdefault(state_dict.keys[-1], []).append(state_dict.root)
        for last, our_roots in by_last[0].items():
            their_roots = by_last[1].get(last, [])
            if len(our_roots) != 1 or len(their_roots) != 1:
                continue
            (our,), (their,) = our_roots, their_roots
            fit = best_fit(self.ours[our], self.theirs[their])
            least = min(len(self.ours[our]), len(self.theirs[their]))
            if 2 * fit.matched > least and not fit.rivals:
                paired[their] = our, fit
        return len(paired) > before

    def add_by_count(
        self,
        paired: dict[str, tuple[str, Fit]],
        ours_left: list[str],
        theirs_left: list[str],
        *,
        only_same: bool,
    ) -> None:
        """Pair what has the most names in common; or `only_same` names, but for wrappers.

        Where other roots meet by what they are called, less is not enough for one called otherwise.

        Raises:
            UsageError: several would do equally well, and nothing says which is meant.
        """
        if not _can_be_compared([self.ours[root] for root in ours_left],
                                [self.theirs[root] for root in theirs_left]):  # fmt: skip
            raise _too_many(self.our_checkpoint, self.their_checkpoint, ours_left, theirs_left)
        fits: dict[tuple[str, str], Fit] = {}
        for their_root in theirs_left:
            for our_root in ours_left:
                fit = best_fit(self.ours[our_root], self.theirs[their_root])
                sizes = {len(self.ours[our_root]), len(self.theirs[their_root])}
                is_same = fit.is_plain and sizes == {fit.matched}
                if fit.matched and (is_same or not only_same):
                    fits[our_root, their_root] = fit
        while fits:
            most = max(fit.matched for fit in fits.values())
            best = [pair for pair, fit in fits.items() if fit.matched == most]
            if len(best) > 1:
                alike = {pair: self.alike(*pair, fits[pair]) for pair in best}
                best = [pair for pair in best if alike[pair] == max(alike.values())]
            our, their = best[0]
            mine = [one for one, other in best if other == their]
            yours = [other for one, other in best if one == our]
            is_plain = len(self.theirs) == 1 and self.theirs.keys().isdisjoint(mine)
            ways = mine if is_plain else [f"{one}={their}" for one in mine]
            _refuse_rivals(self.our_checkpoint, mine, ways)
            _refuse_rivals(self.their_checkpoint, yours, [f"{our}={other}" for other in yours])
            paired[their] = our, self.settled(our, their, fits[our, their])
            fits = {
                (one, other): offer
                for (one, other), offer in fits.items()
                if one != our and other != their
            }

    def alike(self, our: str, their: str, fit: Fit) -> int:
        """Count the names that meet which have one shape on both sides."""
        ours, theirs = self.our_tensors[our], self.their_tensors[their]
        names = fit.names_met(self.ours[our], self.theirs[their])
        return sum(ours[name].shape == theirs[other].shape for name, other in names.items())

    def settled(self, our: str, their: str, fit: Fit) -> Fit:
        """Return the fit by one prefix: of several that lead to as many names, by the shapes.

        Raises:
            UsageError: these are the same, and nothing says which is meant.
        """
        if not fit.rivals:
            return fit
        ways = {prefixes: fit._replace(prefixes=prefixes, rivals=()) for prefixes in fit.rivals}
        alike = {prefixes: self.alike(our, their, way) for prefixes, way in ways.items()}
        best = [prefixes for prefixes in ways if alike[prefixes] == max(alike.values())]
        if len(best) > 1:
            raise self.several_prefixes(our, their, fit._replace(rivals=tuple(best)))
        return ways[best[0]]

    def several_prefixes(self, our: str, their: str, fit: Fit) -> UsageError:
        """Make the refusal of names that several prefixes lead to the others equally well."""
        rivals: Iterable[tuple[str, str]] = fit.rivals
        if fit.is_unwrapped:
            ours_of, theirs_of = self.ours[our].with_wrappers, self.theirs[their].with_wrappers
            rivals = [(ours_of(strip), theirs_of(add)) for strip, add in rivals]
        ways = [
            (join(our, strip[:-1]) if strip else our, join(their, add[:-1]) if add else their)
            for strip, add in rivals
        ]
        ours, theirs = (dict.fromkeys(way[side] for way in ways) for side in (0, 1))
        is_ours = len(ours) > 1
        checkpoint, other = (self.our_checkpoint, self.their_checkpoint)[:: 1 if is_ours else -1]
        hints = [
            one
            if len(theirs) == 1 and one and not named(self.their_checkpoint, one)
            else f"{one}={two}"
            for one, two in ways
        ]
        return UsageError(
            checkpoint.name,
            f"several prefixes of the names fit {other.name} equally well",
            expected="one of them",
            found=few([root or "the top" for root in (ours if is_ours else theirs)], _MOST_WAYS),
            hint=either(setting(only=way) for way in hints[:_MOST_WAYS]),
        )


def _can_be_compared(ours: Sequence[Names], theirs: Sequence[Names]) -> bool:
    """Whether each of ours can be compared with each of theirs, in proportion to what they hold."""
    pairs = len(ours) * len(theirs)
    one, other = sum(map(len, ours)), sum(map(len, theirs))
    visits = one * len(theirs) + other * len(ours)
    return pairs <= _MOST_PAIRS and visits <= max(_MOST_NAMES * (one + other), _MOST_VISITS)


def _too_many(
    our_checkpoint: Checkpoint, their_checkpoint: Checkpoint, ours: Sequence[str],
    theirs: Sequence[str],
) -> UsageError:  # fmt: skip
    return UsageError(
        our_checkpoint.name,
        "there are too many state dicts to find out which is meant by which",
        expected="state dicts at the same places, or few others",
        found=f"{len(ours):,} others here, {len(theirs):,} in {their_checkpoint.name}",
        hint=setting(only=f"{ours[0]}={theirs[0]}"),
    )


def _refuse_rivals(checkpoint: Checkpoint, equal: Sequence[str], ways: Sequence[str]) -> None:
    if len(equal) > 1:
        raise UsageError(
            checkpoint.name,
            "several state dicts could be meant",
            expected="one that has the names of the other side",
            found=", ".join(root or "the top" for root in equal),
            hint=either(setting(only=way) for way in ways),
        )
