"""The `--rename OLD=NEW` rules: what each `*` of OLD takes stands where NEW has its own. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.naming import Half, join, pair_names, read_half
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError, few
from wncli.hints import given, inspecting, phrase, setting
from wncli.notes import Note
from wncli.plan.rules import rule_texts

#: OLD and NEW; the `=` of a `[=]` is OLD's own.
_RULE = re.compile(r"((?:\[=]|[^=])*)=(.*)", re.DOTALL)
#: What a glob is made of: a class of characters, or one character.
_PART = re.compile(r"\[!?]?[^]]*]|.", re.DOTALL)


class RenameRule(NamedTuple):
    """One rule as it was typed: the globs between the `*` of OLD, and the texts between NEW's.

    Each glob comes with the number of characters that it matches.
    """

    text: str
    pieces: tuple[tuple[re.Pattern[str], int], ...]
    new: tuple[str, ...]

    def rename(self, name: str) -> str | None:
        """Return the new name; None where OLD does not match. Each `*` takes as little as it can.

        Not a regular expression of them all: names come from strangers, and can be long.
        """
        (first, length), *others = self.pieces
        if not first.match(name) or (not others and len(name) != length):
            return None
        place, taken = length, []
        for number, (piece, size) in enumerate(others, 2):
            if number == len(self.pieces):
                start = len(name) - size
                found = piece.match(name, start) if start >= place else None
            else:
                found = piece.search(name, place)
            if not found:
                return None
            taken.append(name[place : found.start()])
            place = found.end()
        pairs = zip(self.new, [*taken, ""], strict=True)
        return "".join(text + group for text, group in pairs)


def parse_renames(texts: Iterable[str]) -> tuple[RenameRule, ...]:
    """Read `OLD=NEW` rules.

    Raises:
        UsageError: a rule has no `=`, no OLD or no NEW, or another number of `*` on each side.
    """
    return tuple(map(_parse, rule_texts("rename", texts)))


def _parse(text: str) -> RenameRule:
    match = _RULE.fullmatch(text)
    if not match or not match[1] or not match[2]:
        raise UsageError(
            given(rename=[text]), "not a rule", expected="OLD=NEW, as 'decoder.*=dec.*'"
        )
    sides: list[list[list[str]]] = [[[]], [[]]]
    for side, glob in zip(sides, match.groups(), strict=True):
        for part in _PART.findall(glob):
            if part == "*":
                side.append([])
            else:
                side[-1].append(part)
    old, new = sides
    if len(old) != len(new):
        raise UsageError(
            given(rename=[text]),
            "each * of OLD stands for what the * of NEW at its place becomes",
            expected="as many * in NEW as in OLD",
            found=f"{len(old) - 1} and {len(new) - 1}",
        )
    globs = ("".join(piece) for piece in old)
    pieces = (re.compile(fnmatch.translate(glob)[:-2]) for glob in globs)  # without \Z
    return RenameRule(
        text,
        tuple(zip(pieces, map(len, old), strict=True)),
        tuple("".join(map(_literal, piece)) for piece in new),
    )


def _literal(part: str) -> str:
    """Return the character that a `[=]` or `[*]` of NEW stands for."""
    return part[1] if len(part) == 3 else part  # noqa: PLR2004 - and its brackets


def rename_all(
    checkpoint: Checkpoint, state_dicts: Sequence[StateDict], rules: Sequence[RenameRule]
) -> tuple[StateDict, ...]:
    """Give the tensors the names that the rules make of theirs; the first that matches wins.

    Raises:
        UsageError: a rule matches nothing, or two tensors would have one name.
    """
    if not rules:
        return tuple(state_dicts)
    found = tuple(_renamed(checkpoint, state_dict, rules) for state_dict in state_dicts)
    uses = _uses(state_dicts, rules)
    for rule in rules:
        if not uses[rule.text]:
            names = [spec.name for state_dict in state_dicts for spec in state_dict.tensors]
            raise UsageError(
                given(rename=[rule.text]),
                "the rule matches no name that is left to it",
                expected=f"a name or glob, such as {few(names)}" if names else "",
                hint=inspecting(checkpoint.name, tensors=True),
            )
    return found


def rename_notes(state_dicts: Sequence[StateDict], rules: Sequence[RenameRule]) -> list[Note]:
    """Note what each rule renames, of state dicts before it."""
    notes = []
    for text, names in _uses(state_dicts, rules).items():
        old, new = next(iter(names.items()))
        count = "1 name" if len(names) == 1 else f"{len(names):,} names"
        message = phrase("{}: {}, {} is {}", given(rename=[text]), count, old, new)
        notes.append(Note("renamed", message))
    return notes


def _uses(
    state_dicts: Sequence[StateDict], rules: Sequence[RenameRule]
) -> dict[str, dict[str, str]]:
    """Return what each rule renames, and to what, by the rule's text."""
    uses: dict[str, dict[str, str]] = {rule.text: {} for rule in rules}
    for state_dict in state_dicts:
        halves = _halves(state_dict)
        for spec in state_dict.tensors:
            rule, new = _first(spec.name, halves, rules)
            if rule:
                uses[rule.text][spec.name] = new
    return uses


def _renamed(
    checkpoint: Checkpoint, state_dict: StateDict, rules: Sequence[RenameRule]
) -> StateDict:
    halves = _halves(state_dict)
    names: dict[str, str] = dict.fromkeys(state_dict.others, "what is no tensor")
    tensors: list[TensorSpec] = []
    for spec in state_dict.tensors:
        _, new = _first(spec.name, halves, rules)
        other = names.setdefault(new, spec.name)
        if other != spec.name:
            stored = state_dict.stored or state_dict
            origin = stored.tensors[len(tensors)].name
            raise UsageError(
                f"{checkpoint.name}: {new}",
                "two tensors would have this name",
                found=f"{other} and {spec.name}",
                hint=setting(drop=[join(stored.root, origin)]),
            )
        tensors.append(spec._replace(name=new))
    return state_dict._replace(tensors=tuple(tensors), stored=state_dict.stored or state_dict)


def _halves(state_dict: StateDict) -> dict[str, Half]:
    """Return what names spell that have both g and v; these go by the weight's own name too."""
    names = {spec.name for spec in state_dict.tensors}
    found = {name: half for name in names if (half := read_half(name))}
    return {
        name: half
        for name, half in found.items()
        if names.issuperset(pair_names(half.weight, half.naming))
    }


def _first(
    name: str, halves: Mapping[str, Half], rules: Sequence[RenameRule]
) -> tuple[RenameRule | None, str]:
    """Return the first rule that matches, and what it makes of the name."""
    half = halves.get(name)
    for rule in rules:
        new = rule.rename(name)
        if new is None and half and (weight := rule.rename(half.weight)) is not None:
            new = pair_names(weight, half.naming)["gv".index(half.role)]
        if new is not None:
            return rule, new
    return None, name
