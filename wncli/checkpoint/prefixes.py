"""Prefixes that lead from the names of one state dict to those of another."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

#: What DataParallel and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: What else stands in names, between any two parts, and is none of the model's: FSDP's wrappers,
#: and that of activation checkpoints (`torch/distributed/algorithms/_checkpoint`).
_INNER_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
#: As many prefixes are tried.
_PROBES = 16
#: As many modules deep they are looked for, in names of so many characters and no more.
_DEEPEST = 32
_LONGEST = 500
#: What many layers have alike, and tells of no copies of a model.
_LAYERS_OWN = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
#: Endings of names that are looked up on the other side; of more names, some are taken.
_MOST_ENDINGS = 1 << 17


def unwrap(name: str) -> str:
    """Return a name without the wrappers that stand anywhere in it, but for its last part."""
    if "mod" not in name:  # as all wrappers have
        return name
    *modules, parameter = name.split(".")
    return ".".join([*(part for part in modules if part not in _INNER_WRAPPERS), parameter])


class PrefixMap(NamedTuple):
    """Leads from the names of one side to those of the other: `strip` goes, `add` is put on."""

    strip: str = ""
    add: str = ""

    def rename(self, name: str) -> str | None:
        """Return the name on the other side; None for a name without the prefix."""
        return self.add + name[len(self.strip) :] if name.startswith(self.strip) else None

    @property
    def description(self) -> str:
        """What is done to the names, for people; empty where it is nothing."""
        done = [f"{self.strip!r} taken off"] if self.strip else []
        done += [f"{self.add!r} put on"] if self.add else []
        return ", ".join(done)


class Fit(NamedTuple):
    """How many names some prefixes lead to one of the others.

    With `rivals`, each of these leads as many there, and nothing says which is meant.
    `is_unwrapped` says that the names meet without wrappers, wherever these stand in them.
    """

    prefixes: PrefixMap
    matched: int
    rivals: tuple[PrefixMap, ...] = ()
    is_unwrapped: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the prefixes are nothing but wrappers, and one pair of them alone would do."""
        return not self.rivals and all(unwrap(f"{prefix}x") == "x" for prefix in self.prefixes)

    def names_met(self, names: Names, others: Names) -> dict[str, str]:
        """Return the name on the other side for each that meets one."""
        if self.is_unwrapped:
            names, others = names.unwrapped, others.unwrapped
        strip, add = self.prefixes
        return {
            names.all[name]: others.all[other]
            for name in names.starting_with(strip)
            if (other := add + name[len(strip) :]) in others.all
        }


class Tops(NamedTuple):
    """Prefixes that roots make, each with its place in the order of preference."""

    wanted: dict[str, int]
    longest: int

    @classmethod
    def of(cls, roots: Iterable[str]) -> Tops:
        """Those of these roots."""
        tops = dict.fromkeys(f"{root}." for root in roots if root)
        wanted = {top: place for place, top in enumerate(tops)}
        return cls(wanted, max(map(len, wanted), default=0))


class Names:
    """The names of one state dict, and those among `tops` that stand before any of them.

    What is done with a prefix costs no more than the names that begin with it.
    """

    def __init__(self, names: Iterable[str], tops: Tops) -> None:
        #: Each name, and what it stands for: itself, or the name with wrappers.
        self.all = {name: name for name in names}
        self.wanted, self.longest = tops

    @cached_property
    def unwrapped(self) -> Names:
        """The names without wrappers; of those that are one then, the first."""
        found = Names((), Tops(self.wanted, self.longest))
        for name in self.all:
            found.all.setdefault(unwrap(name), name)
        return found

    @cached_property
    def has_wrappers(self) -> bool:
        """Whether wrappers stand in any name, wherever."""
        return any(unwrap(name) != name for name in self.all)

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
        """Return the names that begin with a prefix, which ends with a dot or is empty."""
        if not prefix:
            return self.all.keys()
        end = f"{prefix[:-1]}/"  # which comes next to the dot
        return self.sorted[bisect_left(self.sorted, prefix) : bisect_left(self.sorted, end)]

    def with_wrappers(self, prefix: str) -> str:
        """Return what stands in the names for a prefix of those without wrappers."""
        unwrapped = self.unwrapped
        name = next(iter(unwrapped.starting_with(prefix)), "") if prefix else ""
        stored = unwrapped.all.get(name, "")
        ways = (stored[:start] for start in _starts(stored))
        return next((way for way in ways if unwrap(f"{way}x") == f"{prefix}x"), prefix)

    def wrappers_below(self, top: str) -> list[str]:
        """Return the wrappers' prefix below a prefix of names, if any has both."""
        below = [name[len(top) :] for name in self.starting_with(top)] if top else []
        return [wrapper] if (wrapper := _wrapper(below)) else []


def find_prefix_map(
    names: Collection[str], others: Collection[str], roots: Iterable[str]
) -> PrefixMap:
    """Return the prefixes that make most of `names` meet `others`; none where none does better.

    Wrappers and the `roots` are tried, and any other prefix if with it one side meets in full.
    """
    tops = Tops.of(roots)
    return _best_prefixes(Names(names, tops), Names(others, tops), in_full=True).prefixes


def best_fit(names: Names, others: Names) -> Fit:
    """Find how most of the names meet one of the others: by prefixes, or without all wrappers."""
    fit = _best_prefixes(names, others)
    is_plain = fit.matched == len(others) and fit.is_plain
    if is_plain or not (names.has_wrappers or others.has_wrappers):
        return fit
    inner = _best_prefixes(names.unwrapped, others.unwrapped)
    # Of two copies of a model, one may have wrappers inside.
    has_rivals = inner.rivals and not fit.rivals and not fit.is_plain
    is_better = inner.matched > fit.matched or (has_rivals and inner.matched == fit.matched)
    return inner._replace(is_unwrapped=True) if is_better else fit


def _best_prefixes(names: Names, others: Names, *, in_full: bool = False) -> Fit:
    best, most = PrefixMap(), _count(PrefixMap(), names, others)
    if most == len(others) or not len(names):
        return Fit(best, most)
    ours, theirs = names.wrapper, others.wrapper
    usual = [PrefixMap(ours, theirs), PrefixMap(ours), PrefixMap("", theirs)]
    usual += [PrefixMap(ours + top, theirs) for top in names.inner_tops]
    usual += [
        PrefixMap(top + inner, theirs) for top in names.tops for inner in names.wrappers_below(top)
    ]
    usual += [PrefixMap(ours, top + theirs) for top in others.tops]
    usual += [
        PrefixMap(ours, top + inner) for top in others.tops for inner in others.wrappers_below(top)
    ]
    for prefixes in usual:
        count = _count(prefixes, names, others)
        if count > most:
            best, most = prefixes, count
    probed = {prefixes: _count(prefixes, names, others) for prefixes in _probes(names, others)}
    top = max(probed.values(), default=0)
    is_full = top in {len(others), len(names)}
    if top <= most or 2 * top <= min(len(others), len(names)) or (in_full and not is_full):
        return Fit(best, most)
    fitting = [prefixes for prefixes, count in probed.items() if count == top]
    if len(fitting) == 1:
        return Fit(fitting[0], top)
    # Of several, none is more likely meant than others; with all of them, much has to meet.
    is_much = 2 * top * len(fitting) > max(len(others), len(names))
    if is_much and (is_full or not most) and _is_model(fitting[0], names, others):
        return Fit(best, top, tuple(fitting))
    return Fit(best, most)


def _is_model(prefixes: PrefixMap, names: Names, others: Names) -> bool:
    """Whether more meets than a layer's own names, as `weight`, which all layers have."""
    strip, add = prefixes
    below = (name[len(strip) :] for name in names.starting_with(strip))
    return any(name not in _LAYERS_OWN and add + name in others.all for name in below)


def _count(prefixes: PrefixMap, names: Names, others: Names) -> int:
    strip, add = prefixes
    before, after = names.starting_with(strip), others.starting_with(add)
    if len(before) > len(after):
        return sum(strip + name[len(add) :] in names.all for name in after)
    return sum(add + name[len(strip) :] in others.all for name in before)


def _wrapper(names: Collection[str]) -> str:
    """Return the wrappers' prefix that all names have in common."""
    prefix = ""
    while names:
        more = next(
            (w for w in _WRAPPERS if all(name.startswith(w, len(prefix)) for name in names)), ""
        )
        if not more:
            break
        prefix += more
    return prefix


def _probes(names: Names, others: Names) -> list[PrefixMap]:
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
    votes: Counter[PrefixMap] = Counter()
    for name in probing:
        start = next((start for start in _starts(name) if ends[name[start:]]), len(name))
        for on in ends.get(name[start:], []):
            votes[PrefixMap(name[:start], on)] += 1
    return [prefixes for prefixes, _ in votes.most_common(_PROBES)]


def _starts(name: str, begin: int = 0) -> list[int]:
    """Where the dotted endings of a name begin, the longest first; of many, the first ones."""
    starts = [begin]
    while len(starts) < _DEEPEST and (dot := name.find(".", starts[-1])) >= 0:
        starts.append(dot + 1)
    return starts


def describe(names: Mapping[str, str]) -> str:
    """Say what is done to names that become others; empty where it is nothing."""
    if all(name == other for name, other in names.items()):
        return ""
    name, other = next(iter(names.items()))
    ends = {other[start:] for start in _starts(other)}
    start = next((start for start in _starts(name) if name[start:] in ends), len(name))
    prefixes = PrefixMap(name[:start], other[: len(other) - (len(name) - start)])
    if all(prefixes.rename(name) == other for name, other in names.items()):
        return f"prefix of the names: {prefixes.description}"
    return f"names without their wrappers, or with others: {name} is {other}"
