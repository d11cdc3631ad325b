"""How the tensors of two checkpoints meet: roots, and prefixes that are put on or taken off. Pure.

A tensor goes by its **plain name** here: that of the weight where it is normalized, so that both
spellings and the folded weight meet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from wncli.checkpoint import Checkpoint
from wncli.errors import UsageError
from wncli.hints import option
from wncli.survey import Pair, Survey
from wncli.tensors import TensorSpec

#: What DataParallel and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: As many prefixes are tried.
_PROBES = 16
#: As many modules deep they are looked for.
_DEEPEST = 32


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


def meet(names: Collection[str], others: Collection[str], roots: Iterable[str]) -> Meeting:
    """The prefixes that make most of `names` meet `others`; none where none does better.

    Wrappers and the `roots` are tried, and any other prefix if with it one side meets in full.
    """
    known = set(others)
    best, most = Meeting(), _count(Meeting(), names, known)
    if most == len(known) or not names or not others:
        return best
    ours, theirs = _wrapper(names), _wrapper(others)
    tops = ["", *(f"{root}." for root in roots if root)]
    usual = [Meeting(ours, theirs), Meeting(ours), Meeting("", theirs)]
    usual += [Meeting(ours + top, theirs) for top in tops]
    usual += [Meeting(top + inner, theirs) for top in tops for inner in _wrappers_below(names, top)]
    usual += [Meeting(ours, top + theirs) for top in tops]
    usual += [Meeting(ours, top + inner) for top in tops for inner in _wrappers_below(others, top)]
    for meeting in usual:
        count = _count(meeting, names, known)
        if count > most:
            best, most = meeting, count
    probed = {meeting: _count(meeting, names, known) for meeting in _probes(names, others)}
    full = max(probed.values(), default=0)
    if full > most and full in (len(known), len(names)):
        fitting = [meeting for meeting, count in probed.items() if count == full]
        if len(fitting) == 1:  # of several, none is more likely meant than the others
            return fitting[0]
    return best


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
    roots = [found.state_dict.root for found in (*ours, *theirs)]
    names = {found.state_dict.root: plain_tensors(found).keys() for found in ours}
    wanted = {found.state_dict.root: plain_tensors(found).keys() for found in theirs}
    counts: dict[tuple[str, str], tuple[int, Meeting]] = {}
    paired: dict[str, tuple[str, Meeting]] = {}
    places = {found.state_dict.keys: found.state_dict.root for found in ours}
    same = {
        found.state_dict.root: places[found.state_dict.keys]
        for found in theirs
        if found.state_dict.keys in places
    }
    alike = [root for root in wanted if root in names and root not in same]
    same |= {root: root for root in alike if root not in same.values()}
    for their_root, our_root in same.items():
        meeting = meet(names[our_root], wanted[their_root], roots)
        if _count(meeting, names[our_root], set(wanted[their_root])):
            paired[their_root] = our_root, meeting
    met = {our_root for our_root, _ in paired.values()}
    for their_root in [root for root in wanted if root not in paired]:
        for our_root in [root for root in names if root not in met]:
            meeting = meet(names[our_root], wanted[their_root], roots)
            count = _count(meeting, names[our_root], set(wanted[their_root]))
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


def _refuse_rivals(checkpoint: Checkpoint, equal: Sequence[str], ways: Sequence[str]) -> None:
    if len(equal) > 1:
        raise UsageError(
            str(checkpoint.path),
            "several state dicts could be meant",
            expected="one that has the names of the other side",
            found=", ".join(root or "the top" for root in equal),
            hint=" or ".join(option("--only", way) for way in ways),
        )


def _count(meeting: Meeting, names: Iterable[str], others: set[str]) -> int:
    return sum(meeting.rename(name) in others for name in names)


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


def _wrappers_below(names: Collection[str], top: str) -> list[str]:
    """The wrappers' prefix below a root that stands before names, if any has both."""
    below = [name.removeprefix(top) for name in names if top and name.startswith(top)]
    return [wrapper] if (wrapper := _wrapper(below)) else []


def _probes(names: Iterable[str], others: Iterable[str]) -> list[Meeting]:
    """Prefixes that make single names meet, those that do so most often first."""
    ends: dict[str, list[str]] = {}
    for other in others:
        for start in _starts(other):
            prefixes = ends.setdefault(other[start:], [])
            if len(prefixes) < _PROBES:
                prefixes.append(other[:start])
    votes: Counter[Meeting] = Counter()
    for name in names:
        start = next((start for start in _starts(name) if name[start:] in ends), len(name))
        for on in ends.get(name[start:], []):
            votes[Meeting(name[:start], on)] += 1
    return [meeting for meeting, _ in votes.most_common(_PROBES)]


def _starts(name: str) -> list[int]:
    """Where the dotted endings of a name begin, the longest first; of many, the first ones."""
    starts = [0]
    while len(starts) < _DEEPEST and (dot := name.find(".", starts[-1])) >= 0:
        starts.append(dot + 1)
    return starts
