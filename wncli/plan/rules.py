"""The `-l` and `-x` rules: globs over full names and module paths; `*` crosses dots."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from wncli.checkpoint.naming import split
from wncli.errors import UsageError, shortened
from wncli.hints import Text, either, given, setting

_NO_DIM = "none"
#: As many names are searched for one that a rule may have meant, as many near it are tried,
#: as many are offered, and so much these have in common with it, of 1.
_MOST_COMPARED, _MOST_TRIED, _MOST_OFFERED, _ALIKE = 5000, 20, 3, 0.5
_WILDCARDS = re.compile(r"[*?]|\[.*\]")
#: A glob and the dim behind it; the `=` of a `[=]` is the glob's.
_WITH_DIM = re.compile(r"(.*)=([^]=]*)", re.DOTALL)


def glob_of(name: str) -> str:
    """Give the glob that matches this name, and is no `GLOB=DIM`; what nobody can type is a `?`."""
    escaped = re.sub(r"[][*?=]", lambda found: f"[{found[0]}]", name)
    return re.sub("[\\0\ud800-\udfff]", "?", escaped)


def is_glob(text: str) -> bool:
    """Whether a text has wildcards."""
    return bool(_WILDCARDS.search(text))


class Rule(NamedTuple):
    """One `-l` or `-x` rule as it was typed; `has_dim` tells `=none` from no dim at all."""

    text: str
    glob: str
    has_dim: bool = False
    dim: int | None = None

    def matches(self, weight: str) -> bool:
        """Whether the glob matches the weight's full name, or its module path."""
        return self.matches_name(weight) or self.matches_module(weight)

    def matches_name(self, weight: str) -> bool:
        """Whether the glob matches the weight's full name."""
        return fnmatch.fnmatchcase(weight, self.glob)

    def matches_module(self, weight: str) -> bool:
        """Whether the glob matches the module that the weight belongs to."""
        module = split(weight)[0]
        return bool(module) and fnmatch.fnmatchcase(module, self.glob)

    def names_parameter(self, weight: str) -> bool:
        """Whether the glob speaks of this parameter, not just of all that is in a module.

        `*.bias`, `lstm.weight_hh*` and a module in full do; `*` and `decoder.*` don't.
        """
        if not is_glob(self.glob):
            module, parameter = split(weight)
            return self.glob == weight or (self.glob == module and parameter == "weight")
        if self.glob == glob_of(weight):
            return True
        last = self.glob.rpartition(".")[2]
        speaks = bool(_WILDCARDS.sub("", last))
        return speaks and self.matches_name(weight) and fnmatch.fnmatchcase(split(weight)[1], last)


def parse_dim(text: str, where: str) -> int | None:
    """Return a dim as it is typed: a whole number, or none.

    Raises:
        UsageError: it is neither.
    """
    if text.lower() == _NO_DIM:
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            where,
            f"{text!r} is not a dim",
            expected="a whole number from 0, or none for the whole tensor",
        ) from None


def rule_texts(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """One text by itself is meant as one rule, not as its letters.

    Raises:
        UsageError: these are no texts.
    """
    if isinstance(texts, str):
        return (texts,)
    if isinstance(texts, Iterable):
        found = tuple(texts)
        if all(isinstance(text, str) for text in found):
            return found
    raise UsageError(
        name, "these are no rules", expected="a list of texts", found=shortened(repr(texts), 100)
    )


def parse_layers(texts: Iterable[str], *, with_dims: bool) -> tuple[Rule, ...]:
    """Read `GLOB` or, `with_dims`, `GLOB=DIM` rules.

    Raises:
        UsageError: a rule is empty, or its dim is none, or no dim is wanted here.
    """
    return tuple(_parse_layer(text, with_dims=with_dims) for text in texts)


def _parse_layer(text: str, *, with_dims: bool) -> Rule:
    where = given(layers=[text])
    match = _WITH_DIM.fullmatch(text)
    glob = match[1] if match else text
    if not glob:
        raise UsageError(
            where, "the rule is empty", expected="a layer's name, or a glob like 'ups.*'"
        )
    if not match:
        return Rule(text, glob)
    is_dim = re.fullmatch(rf"-?\d+|{_NO_DIM}", match[2], re.IGNORECASE)
    if with_dims and not is_dim:
        raise UsageError(
            where,
            f"{match[2]!r} is not a dim",
            expected="a whole number from 0, or none for the whole tensor",
            hint=setting(layers=[re.sub(r"\[=]|=", "[=]", text)]),
        )
    if not with_dims:
        raise UsageError(
            where,
            "no dim can be chosen here: it is read off g's shape",
            hint=setting(layers=[glob if is_dim else re.sub(r"\[=]|=", "[=]", text)]),
        )
    return Rule(text, glob, has_dim=True, dim=parse_dim(match[2], where))


def parse_exclusions(texts: Iterable[str]) -> tuple[Rule, ...]:
    """Read `-x` rules, which are globs alone.

    Raises:
        UsageError: a rule is empty.
    """
    for text in texts:
        if not text:
            where = Text("exclude=['']", "-x")
            raise UsageError(where, "the rule is empty", expected="a layer's name, or a glob")
    return tuple(Rule(text, text) for text in texts)


class Candidate(NamedTuple):
    """A weight that rules can choose: `weight` is its full name in the state dict at `root`.

    `rank` is its number of dimensions; `by_default` tells whether it is meant when no rule names
    it in full.
    """

    root: str
    weight: str
    rank: int
    by_default: bool


Chosen = dict[Candidate, Rule | None]


def choose_pairs(
    pairs: Sequence[Candidate],
    layers: Sequence[Rule],
    exclude: Sequence[Rule],
    others: Mapping[str, str],
    listing: str = "",
) -> Chosen:
    """Of the normalized weights, those that the rules take; without `-l` all.

    `others` says of further names why they cannot be chosen, `listing` is the command that lists
    all names.

    Raises:
        UsageError: an `-l` rule matches nothing.
    """
    return _choose(
        pairs,
        layers,
        exclude,
        lambda rule: [pair for pair in pairs if rule.matches(pair.weight)],
        others,
        listing,
    )


def choose_weights(
    weights: Sequence[Candidate],
    layers: Sequence[Rule],
    exclude: Sequence[Rule],
    others: Mapping[str, str],
    listing: str = "",
) -> Chosen:
    """Of the plain tensors, those that the rules take; without `-l` those meant by default.

    A rule takes what it matches of the default weights. It takes other parameters where it names
    them, as `lstm.weight_hh_l0` and `*.bias` do, or where it matches no default weight, as
    `lstm.*`. Vectors are taken only by a rule that matches nothing wider, so that `*.weight` does
    not reach for the gains of normalization layers. `others` says of further names why they
    cannot be chosen, `listing` is the command that lists all names.

    Raises:
        UsageError: an `-l` rule matches nothing.
    """

    def matched(rule: Rule) -> list[Candidate]:
        found = [item for item in weights if rule.matches(item.weight)]
        named = {item: None for item in found if rule.names_parameter(item.weight)}
        wide = [item for item in found if item.rank > 1]
        meant = [item for item in wide if item.by_default or item in named]
        return meant or wide or list(named)

    defaults = [item for item in weights if item.by_default]
    return _choose(weights if layers else defaults, layers, exclude, matched, others, listing)


def _choose(  # noqa: PLR0913, PLR0917 - what the two above have in common
    offered: Sequence[Candidate],
    layers: Sequence[Rule],
    exclude: Sequence[Rule],
    matched: Callable[[Rule], list[Candidate]],
    others: Mapping[str, str],
    listing: str,
) -> Chosen:
    def takes(rule: Rule) -> bool:
        return bool(matched(rule))

    taken: Chosen = {} if layers else dict.fromkeys(offered)
    for rule in layers:
        found = matched(rule)
        if not found:
            names = [item.weight for item in offered]
            raise _no_match("layers", rule, names, takes, others, listing)
        for item in found:
            taken.setdefault(item, rule)
    return {
        item: taken[item]
        for item in offered
        if item in taken and not any(rule.matches(item.weight) for rule in exclude)
    }


def check_exclusions(exclude: Iterable[Rule], names: Sequence[str], listing: str = "") -> None:
    """Hold each `-x` rule against everything in the checkpoint, normalized or not.

    `listing` is the command that lists all names.

    Raises:
        UsageError: a rule matches nothing.
    """
    for rule in exclude:
        if not any(map(rule.matches, names)):

            def takes(near: Rule) -> bool:
                return any(map(near.matches, names))

            raise _no_match("exclude", rule, names, takes, {}, listing)


def _no_match(  # noqa: PLR0913, PLR0917 - what such a rule is compared with
    name: Literal["layers", "exclude"],
    rule: Rule,
    names: Sequence[str],
    takes: Callable[[Rule], bool],
    others: Mapping[str, str],
    listing: str,
) -> UsageError:
    """Refuse a rule that matches nothing: say why it cannot, and which names come near it.

    Of these, those are shown that a rule `takes`.
    """
    reason = next((f"{name} {why}" for name, why in others.items() if rule.matches(name)), "")
    known = list(dict.fromkeys(part for name in names for part in (name, split(name)[0]) if part))
    offered = [glob_of(name) for name in names if rule.matches(name)] or _near(rule.glob, known)
    # Each is held against all names.
    globs = [glob for glob in offered[:_MOST_TRIED] if takes(Rule(glob, glob))][:_MOST_OFFERED]
    dim = rule.text[len(rule.glob) :]
    return UsageError(
        given(**{name: [rule.text]}),
        reason or "the rule matches nothing that could be chosen here",
        expected=f"a name or glob, such as {', '.join(known[:3])}" if known else "",
        hint=either(setting(**{name: [f"{glob}{dim}"]}) for glob in globs) or listing,
    )


def _near(glob: str, known: Sequence[str]) -> list[str]:
    """Return globs that may be meant, the best first: of names, and of all that is below a module.

    `known` are names of weights and of their modules.
    """
    known = known[:_MOST_COMPARED]
    dots = ((name, place.start()) for name in known for place in re.finditer(r"\.", name))
    parents = dict.fromkeys(name[:end] for name, end in dots)
    globs = {name: f"{glob_of(name)}.*" for name in parents}
    if not glob.endswith(".*"):
        globs |= {name: glob_of(name) for name in known}
    wanted = glob.removesuffix(".*")
    if wanted in globs:
        return [globs[wanted]]
    alike = difflib.SequenceMatcher(b=wanted)
    scores: dict[str, float] = {}
    for name in globs:
        alike.set_seq1(name)
        if alike.real_quick_ratio() >= _ALIKE and alike.quick_ratio() >= _ALIKE:
            scores[name] = alike.ratio()
    near = sorted((name for name in scores if scores[name] >= _ALIKE), key=lambda n: -scores[n])
    text = glob.strip("*.").lower()
    near = near or [name for name in known if text and text in name.lower()]
    return [globs.get(name) or glob_of(name) for name in near]
