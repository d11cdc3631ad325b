"""Which state dict of one checkpoint is which of another's, and how their names meet. Pure.

A tensor goes by its **plain name** here: that of the weight where it is normalized, so that both
spellings and the folded weight meet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.prefixes import Fit, Names, PrefixMap, Tops, best_fit
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError, few
from wncli.hints import option
from wncli.plan.narrowing import named, no_such_root
from wncli.plan.survey import Survey

#: As many pairs of state dicts are compared, which come to as many names, or to so many times all.
_MOST_PAIRS = 1 << 10
_MOST_NAMES = 1 << 2
_MOST_VISITS = 1 << 18
#: As many are named of what could be meant.
_MOST_WAYS = 4


def plain_tensors(found: Survey) -> dict[str, Pair | TensorSpec]:
    """Give what a state dict holds by plain names, in its order; stale weights are passed over."""
    by_name: dict[str, Pair] = {}
    for pair in found.pairs:
        by_name |= dict.fromkeys((spec.name for spec in pair.tensors), pair)
    held: dict[str, Pair | TensorSpec] = {}
    for spec in found.state_dict.tensors:
        pair_of = by_name.get(spec.name)
        held[pair_of.weight if pair_of else spec.name] = pair_of or spec
    return held


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


def pair_up(
    our_checkpoint: Checkpoint,
    ours: Sequence[Survey],
    their_checkpoint: Checkpoint,
    theirs: Sequence[Survey],
) -> dict[str, tuple[str, PrefixMap]]:
    """Which state dict of ours each of theirs means: root to root, and how the names meet.

    The same path comes first, then one that reads the same, then the most names in common; each of
    ours is meant once.

    Raises:
        UsageError: several would do equally well, and nothing says which is meant.
    """
    tops = Tops.of(found.state_dict.root for found in (*ours, *theirs))
    names = {found.state_dict.root: Names(plain_tensors(found), tops) for found in ours}
    wanted = {found.state_dict.root: Names(plain_tensors(found), tops) for found in theirs}
    counts: dict[tuple[str, str], Fit] = {}
    paired: dict[str, tuple[str, PrefixMap]] = {}
    places = {found.state_dict.keys: found.state_dict.root for found in ours}
    same = {
        found.state_dict.root: places[found.state_dict.keys]
        for found in theirs
        if found.state_dict.keys in places
    }
    alike = [root for root in wanted if root in names and root not in same]
    taken = set(same.values())
    same |= {root: root for root in alike if root not in taken}
    for their_root, our_root in same.items():
        fit = best_fit(names[our_root], wanted[their_root])
        if fit.rivals:
            raise _several_prefixes(our_checkpoint, their_checkpoint, our_root, their_root, fit)
        if fit.matched:
            paired[their_root] = our_root, fit.prefixes
    met = {our_root for our_root, _ in paired.values()}
    ours_left = [root for root in names if root not in met]
    theirs_left = [root for root in wanted if root not in paired]
    if not _can_be_compared([names[root] for root in ours_left],
                            [wanted[root] for root in theirs_left]):  # fmt: skip
        raise _too_many(our_checkpoint, their_checkpoint, ours_left, theirs_left)
    for their_root in theirs_left:
        for our_root in ours_left:
            fit = best_fit(names[our_root], wanted[their_root])
            if fit.matched:
                counts[our_root, their_root] = fit
    while counts:
        most = max(fit.matched for fit in counts.values())
        best = [pair for pair, fit in counts.items() if fit.matched == most]
        our, their = best[0]
        mine = [one for one, other in best if other == their]
        yours = [other for one, other in best if one == our]
        is_plain = len(wanted) == 1 and wanted.keys().isdisjoint(mine)
        ways = mine if is_plain else [f"{one}={their}" for one in mine]
        _refuse_rivals(our_checkpoint, mine, ways)
        _refuse_rivals(their_checkpoint, yours, [f"{our}={other}" for other in yours])
        fit = counts[our, their]
        if fit.rivals:
            raise _several_prefixes(our_checkpoint, their_checkpoint, our, their, fit)
        paired[their] = our, fit.prefixes
        counts = {
            (one, other): offer
            for (one, other), offer in counts.items()
            if one != our and other != their
        }
    return paired


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
        hint=option("--only", f"{ours[0]}={theirs[0]}"),
    )


def _several_prefixes(
    our_checkpoint: Checkpoint, their_checkpoint: Checkpoint, our: str, their: str, fit: Fit
) -> UsageError:
    """Make the refusal of names that several prefixes would lead to the others equally well."""
    ways = [
        (join(our, strip[:-1]) if strip else our, join(their, add[:-1]) if add else their)
        for strip, add in fit.rivals
    ]
    ours, theirs = (dict.fromkeys(way[side] for way in ways) for side in (0, 1))
    is_ours = len(ours) > 1
    checkpoint, other = (our_checkpoint, their_checkpoint)[:: 1 if is_ours else -1]
    hints = [
        one if len(theirs) == 1 and one and not named(their_checkpoint, one) else f"{one}={two}"
        for one, two in ways
    ]
    return UsageError(
        checkpoint.name,
        f"several prefixes of the names fit {other.name} equally well",
        expected="one of them",
        found=few([root or "the top" for root in (ours if is_ours else theirs)], _MOST_WAYS),
        hint=" or ".join(option("--only", way) for way in hints[:_MOST_WAYS]),
    )


def _refuse_rivals(checkpoint: Checkpoint, equal: Sequence[str], ways: Sequence[str]) -> None:
    if len(equal) > 1:
        raise UsageError(
            checkpoint.name,
            "several state dicts could be meant",
            expected="one that has the names of the other side",
            found=", ".join(root or "the top" for root in equal),
            hint=" or ".join(option("--only", way) for way in ways),
        )
