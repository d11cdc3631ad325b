"""How the tensors of two checkpoints meet: roots, and prefixes that are put on or taken off. Pure.

A tensor goes by its **plain name** here: that of the weight where it is normalized, so that both
spellings and the folded weight meet.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError
from wncli.hints import option
from wncli.plan.survey import Survey

#: What DataParallel and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: As many prefixes are tried.
_PROBES = 16
#: As many modules deep they are looked for, in names of so many characters and no more.
_DEEPEST = 32
_LONGEST = 500
#: Endings of names that are looked up on the other side; of more names, some are taken.
_MOST_ENDINGS = 1 << 17
#: As many pairs of state dicts are compared, which come to as many names, or to so many times all.
_MOST_PAIRS = 1 << 10
_MOST_NAMES = 1 << 2
_MOST_VISITS = 1 << 18


class Meeting(NamedTuple):
    """Names of one side meet those of the other when `off` is taken off and `on` put on."""

    off: str = ""
    on: str = ""

    def rename(self, name: str) -> str | None:
        """The name on the other side; None for a name without the prefix."""
        return self.on + name[len(self.off) :] if name.startswith(self.off) else None

    @property
    def words(self) -> str:
        """What is done to the names, for people; empty where it is nothing."""
        done = [f"{self.off!r} taken off"] if self.off else []
        done += [f"{self.on!r} put on"] if self.on else []
        return ", ".join(done)


def plain_tensors(found: Survey) -> dict[str, Pair | TensorSpec]:
    """What a state dict holds by plain names, in its order; stale weights are passed over."""
    by_name: dict[str, Pair] = {}
    for pair in found.pairs:
        by_name |= dict.fromkeys((spec.name for spec in pair.tensors), pair)
    held: dict[str, Pair | TensorSpec] = {}
    for spec in found.state_dict.tensors:
        pair_of = by_name.get(spec.name)
        held[pair_of.weight if pair_of else spec.name] = pair_of or spec
    return held


class _Tops(NamedTuple):
    """Prefixes that roots make, each with its place in the order of preference."""

    wanted: dict[str, int]
    longest: int

    @classmethod
    def of(cls, roots: Iterable[str]) -> _Tops:
        """Those of these roots."""
        tops = dict.fromkeys(f"{root}." for root in roots if root)
        wanted = {top: place for place, top in enumerate(tops)}
        return cls(wanted, max(map(len, wanted), default=0))


class _Names:
    """The names of one state dict, and those among `tops` that stand before any of them.

    What is done with a prefix costs no more than the names that begin with it.
    """

    def __init__(self, names: Collection[str], tops: _Tops) -> None:
        self.all = dict.fromkeys(names)
        self.wanted, self.longest = tops

    @cached_property
    def sorted(self) -> list[str]:
        """All names; whoever finds that all meet as they are needs no order."""
        return sorted(self.all)

    @cached_property
    def wrapper(self) -> str:
        """The wrappers' prefix that all names have in common."""
        return _wrapper(self.all)

    @cached_property
    def tops(self) -> list[str]:
        """The tops before whole names."""
        return self._tops_behind(0)

    @cached_property
    def inner_tops(self) -> list[str]:
        """The tops behind the wrapper."""
        return self._tops_behind(len(self.wrapper)) if self.wrapper else self.tops

    def _tops_behind(self, cut: int) -> list[str]:
        found = {
            name[cut:start]
            for name in (self.all if self.wanted else ())
            for start in _starts(name, cut)
            if start - cut <= self.longest and name[cut:start] in self.wanted
        }
        return sorted(found, key=self.wanted.__getitem__)

    def __len__(self) -> int:
        return len(self.all)

    def starting_with(self, prefix: str) -> Collection[str]:
        """The names that begin with a prefix, which ends with a dot or is empty."""
        if not prefix:
            return self.all
        end = f"{prefix[:-1]}/"  # which comes next to the dot
        return self.sorted[bisect_left(self.sorted, prefix) : bisect_left(self.sorted, end)]

    def wrappers_below(self, top: str) -> list[str]:
        """The wrappers' prefix below a prefix of names, if any has both."""
        below = [name[len(top) :] for name in self.starting_with(top)] if top else []
        return [wrapper] if (wrapper := _wrapper(below)) else []


def meet(names: Collection[str], others: Collection[str], roots: Iterable[str]) -> Meeting:
    """The prefixes that make most of `names` meet `others`; none where none does better.

    Wrappers and the `roots` are tried, and any other prefix if with it one side meets in full.
    """
    tops = _Tops.of(roots)
    return _meet(_Names(names, tops), _Names(others, tops))[0]


def _meet(names: _Names, others: _Names) -> tuple[Meeting, int]:
    """What `meet` gives for these, and how many names then meet."""
    best, most = Meeting(), _count(Meeting(), names, others)
    if most == len(others) or not len(names):
        return best, most
    ours, theirs = names.wrapper, others.wrapper
    usual = [Meeting(ours, theirs), Meeting(ours), Meeting("", theirs)]
    usual += [Meeting(ours + top, theirs) for top in names.inner_tops]
    usual += [
        Meeting(top + inner, theirs) for top in names.tops for inner in names.wrappers_below(top)
    ]
    usual += [Meeting(ours, top + theirs) for top in others.tops]
    usual += [
        Meeting(ours, top + inner) for top in others.tops for inner in others.wrappers_below(top)
    ]
    for meeting in usual:
        count = _count(meeting, names, others)
        if count > most:
            best, most = meeting, count
    probed = {meeting: _count(meeting, names, others) for meeting in _probes(names, others)}
    full = max(probed.values(), default=0)
    if full > most and full in (len(others), len(names)):
        fitting = [meeting for meeting, count in probed.items() if count == full]
        if len(fitting) == 1:  # of several, none is more likely meant than the others
            return fitting[0], full
    return best, most


def split_only(
    only: str | None, ours: Collection[str], theirs: Collection[str]
) -> tuple[str | None, str | None]:
    """What `--only ROOT`, or `--only OURS=THEIRS`, names on each side; None takes all there.

    Raises:
        UsageError: neither side has such a root.
    """
    if only is None:
        return None, None
    if only in ours or only in theirs:
        return only if only in ours else None, only if only in theirs else None
    for equals in re.finditer("=", only):
        our, their = only[: equals.start()], only[equals.end() :]
        if our in ours and their in theirs:
            return our, their
    known = dict.fromkeys(root or "the top" for root in (*ours, *theirs))
    raise UsageError(
        f"--only {only}",
        "there is no state dict of this name",
        expected=f"one of: {', '.join(known)}" if known else "a checkpoint with a state dict",
    )


def pair_up(
    our_checkpoint: Checkpoint,
    ours: Sequence[Survey],
    their_checkpoint: Checkpoint,
    theirs: Sequence[Survey],
) -> dict[str, tuple[str, Meeting]]:
    """Which state dict of ours each of theirs means: root to root, and how the names meet.

    The same path comes first, then one that reads the same, then the most names in common; each of
    ours is meant once.

    Raises:
        UsageError: several would do equally well, and nothing says which is meant.
    """
    tops = _Tops.of(found.state_dict.root for found in (*ours, *theirs))
    names = {found.state_dict.root: _Names(plain_tensors(found), tops) for found in ours}
    wanted = {found.state_dict.root: _Names(plain_tensors(found), tops) for found in theirs}
    counts: dict[tuple[str, str], tuple[int, Meeting]] = {}
    paired: dict[str, tuple[str, Meeting]] = {}
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
        meeting, count = _meet(names[our_root], wanted[their_root])
        if count:
            paired[their_root] = our_root, meeting
    met = {our_root for our_root, _ in paired.values()}
    ours_left = [root for root in names if root not in met]
    theirs_left = [root for root in wanted if root not in paired]
    if not _can_be_compared([names[root] for root in ours_left],
                            [wanted[root] for root in theirs_left]):  # fmt: skip
        raise _too_many(our_checkpoint, their_checkpoint, ours_left, theirs_left)
    for their_root in theirs_left:
        for our_root in ours_left:
            meeting, count = _meet(names[our_root], wanted[their_root])
            if count:
                counts[our_root, their_root] = count, meeting
    while counts:
        most = max(count for count, _ in counts.values())
        best = [pair for pair, (count, _) in counts.items() if count == most]
        our, their = best[0]
        mine = [one for one, other in best if other == their]
        yours = [other for one, other in best if one == our]
        is_plain = len(wanted) == 1 and wanted.keys().isdisjoint(mine)
        ways = mine if is_plain else [f"{one}={their}" for one in mine]
        _refuse_rivals(our_checkpoint, mine, ways)
        _refuse_rivals(their_checkpoint, yours, [f"{our}={other}" for other in yours])
        paired[their] = our, counts[our, their][1]
        counts = {
            (one, other): offer
            for (one, other), offer in counts.items()
            if one != our and other != their
        }
    return paired


def _can_be_compared(ours: Sequence[_Names], theirs: Sequence[_Names]) -> bool:
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
        str(our_checkpoint.path),
        "there are too many state dicts to find out which is meant by which",
        expected="state dicts at the same places, or few others",
        found=f"{len(ours):,} others here, {len(theirs):,} in {their_checkpoint.path}",
        hint=option("--only", f"{ours[0]}={theirs[0]}"),
    )


def _refuse_rivals(checkpoint: Checkpoint, equal: Sequence[str], ways: Sequence[str]) -> None:
    if len(equal) > 1:
        raise UsageError(
            str(checkpoint.path),
            "several state dicts could be meant",
            expected="one that has the names of the other side",
            found=", ".join(root or "the top" for root in equal),
            hint=" or ".join(option("--only", way) for way in ways),
        )


def _count(meeting: Meeting, names: _Names, others: _Names) -> int:
    off, on = meeting
    before, after = names.starting_with(off), others.starting_with(on)
    if len(before) > len(after):
        return sum(off + name[len(on) :] in names.all for name in after)
    return sum(on + name[len(off) :] in others.all for name in before)


def _wrapper(names: Collection[str]) -> str:
    """The wrappers' prefix that all names have in common."""
    prefix = ""
    while names:
        more = next(
            (w for w in _WRAPPERS if all(name.startswith(w, len(prefix)) for name in names)), ""
        )
        if not more:
            break
        prefix += more
    return prefix


def _probes(names: _Names, others: _Names) -> list[Meeting]:
    """Prefixes that make single names meet, those that do so most often first."""
    short = [name for name in names.all if len(name) <= _LONGEST]
    endings = sum(name.count(".", 0, _LONGEST) + 1 for name in short)
    probing = short[:: 1 + endings // _MOST_ENDINGS]
    ends: dict[str, list[str]] = {name[start:]: [] for name in probing for start in _starts(name)}
    for other in others.all:
        for start in _starts(other) if len(other) <= _LONGEST else ():
            prefixes = ends.get(other[start:])
            if prefixes is not None and len(prefixes) < _PROBES:
                prefixes.append(other[:start])
    votes: Counter[Meeting] = Counter()
    for name in probing:
        start = next((start for start in _starts(name) if ends[name[start:]]), len(name))
        for on in ends.get(name[start:], []):
            votes[Meeting(name[:start], on)] += 1
    return [meeting for meeting, _ in votes.most_common(_PROBES)]


def _starts(name: str, begin: int = 0) -> list[int]:
    """Where the dotted endings of a name begin, the longest first; of many, the first ones."""
    starts = [begin]
    while len(starts) < _DEEPEST and (dot := name.find(".", starts[-1])) >= 0:
        starts.append(dot + 1)
    return starts
