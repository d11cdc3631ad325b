"""How the tensors of two checkpoints meet: roots, and prefixes that are put on or taken off. Pure.

A tensor goes by its **plain name** here: that of the weight where it is normalized, so that both
spellings and the folded weight meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from wncli.checkpoint import Checkpoint
from wncli.errors import UsageError
from wncli.survey import Pair, Survey
from wncli.tensors import TensorSpec

#: What DataParallel and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: As many names of a state dict are tried when a prefix is looked for.
_PROBES = 8


@dataclass(frozen=True, slots=True)
class Meeting:
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
    for meeting in _probes(names, others):
        count = _count(meeting, names, known)
        if count > most and count in (len(known), len(names)):
            best, most = meeting, count
    return best


def pair_up(ours: Sequence[Survey], theirs: Sequence[Survey]) -> dict[str, tuple[str, Meeting]]:
    """Which state dict of ours each of theirs means: root to root, and how the names meet.

    The same root comes first, then the most names in common; one of ours is meant once.
    """
    roots = [found.state_dict.root for found in (*ours, *theirs)]
    names = {found.state_dict.root: plain_tensors(found).keys() for found in ours}
    wanted = {found.state_dict.root: plain_tensors(found).keys() for found in theirs}
    offers = []
    for order, (their_root, their_names) in enumerate(wanted.items()):
        for our_root, our_names in names.items():
            meeting = meet(our_names, their_names, roots)
            count = _count(meeting, our_names, set(their_names))
            if count:
                same = our_root == their_root
                offers.append((not same, -count, order, our_root, their_root, meeting))
    paired: dict[str, tuple[str, Meeting]] = {}
    taken: set[str] = set()
    for *_, our_root, their_root, meeting in sorted(offers, key=lambda offer: offer[:3]):
        if their_root not in paired and our_root not in taken:
            paired[their_root] = (our_root, meeting)
            taken.add(our_root)
    return paired


def refuse_ambiguity(
    checkpoint: Checkpoint, ours: Sequence[Survey], theirs: Sequence[Survey], taken: Collection[str]
) -> None:
    """Where theirs is one state dict and several of ours meet it equally well, ask which is meant.

    `taken` are the roots of ours that were paired.

    Raises:
        UsageError: several of ours could be meant, and none stands at the same root.
    """
    if len(theirs) != 1 or not taken or theirs[0].state_dict.root in taken:
        return
    wanted = set(plain_tensors(theirs[0]))
    roots = [found.state_dict.root for found in (*ours, *theirs)]
    counts = {}
    for found in ours:
        names = plain_tensors(found).keys()
        counts[found.state_dict.root] = _count(meet(names, wanted, roots), names, wanted)
    equal = [root for root, count in counts.items() if count == max(counts.values())]
    if len(equal) > 1:
        raise UsageError(
            str(checkpoint.path),
            "several state dicts could be meant",
            expected="one that has the names of the other side",
            found=", ".join(root or "the top" for root in equal),
            hint=" or ".join(f"--only {root or repr('')}" for root in equal),
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


def _probes(names: Collection[str], others: Collection[str]) -> list[Meeting]:
    """Prefixes that make single names meet."""
    found: dict[Meeting, None] = {}
    for other in list(others)[:_PROBES]:
        for name in names:
            if name.endswith(f".{other}"):
                found[Meeting(off=name[: -len(other)])] = None
            elif other.endswith(f".{name}"):
                found[Meeting(on=other[: -len(name)])] = None
    return list(found)
