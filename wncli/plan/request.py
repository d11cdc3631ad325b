"""What a request is about: the state dicts, pairs and rules that commands begin with. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.keys import Keys, Position
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Pair
from wncli.errors import WeightNormError
from wncli.hints import either, inspecting, phrase, setting
from wncli.notes import Note
from wncli.plan.actions import Action, Command, Compose, Copy, Part, Plan
from wncli.plan.narrowing import (
    drop_notes,
    dropped,
    is_whole,
    narrowing_notes,
    state_dicts_left,
)
from wncli.plan.open_dims import common_axes, refuse_other_dim, settle
from wncli.plan.renames import RenameRule, rename_all, rename_notes
from wncli.plan.renaming import from_the_file
from wncli.plan.rules import (
    Candidate,
    Rule,
    check_exclusions,
    choose_pairs,
    glob_of,
    parse_exclusions,
    parse_layers,
    rule_texts,
)
from wncli.plan.survey import OPEN_DIM, LookAlike, Survey, survey


class Request(NamedTuple):
    """What a user asked for, whichever the command; see the commands' options."""

    layers: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    only: str | None = None
    drop: frozenset[str] = frozenset()
    rename: tuple[RenameRule, ...] = ()
    dim: int | None = None

    @classmethod
    def parse(
        cls,
        layers: Iterable[str],
        exclude: Iterable[str],
        only: str | None,
        drop: Iterable[str] = (),
        *,
        with_dims: bool = False,
    ) -> Request:
        """Read the rules.

        Raises:
            UsageError: a rule cannot be read.
        """
        return cls(
            parse_layers(rule_texts("layers", layers), with_dims=with_dims),
            parse_exclusions(rule_texts("exclude", exclude)),
            only,
            frozenset(rule_texts("drop", drop)),
        )

    def wants(self, weight: str) -> bool:
        """Whether the rules take the weight of this full name."""
        rules = self.layers
        return (not rules or any(rule.matches(weight) for rule in rules)) and not any(
            rule.matches(weight) for rule in self.exclude
        )


def surveys_of(checkpoint: Checkpoint, request: Request) -> list[Survey]:
    """Survey the state dicts that `--only` and `--drop` leave, their names as `--rename` has them.

    `-x` is checked against these.

    Raises:
        UsageError: a root, an entry or a rule that matches nothing.
    """
    drop = dropped(checkpoint, request.drop)
    left = state_dicts_left(checkpoint, request.only, drop)
    kept = [
        settle(survey(found), request.layers, request.dim)
        for found in rename_all(checkpoint, left, request.rename)
    ]
    names = [s.name for found in kept for s in found.state_dict.tensors]
    names += [pair.weight for found in kept for pair in found.pairs]
    names += [alike.weight for found in kept for alike in found.look_alikes]
    check_exclusions(request.exclude, names, listing(checkpoint))
    return kept


def listing(checkpoint: Checkpoint) -> str:
    """Return what to type to see all names."""
    return inspecting(checkpoint.name, tensors=True)


def chosen_pairs(
    checkpoint: Checkpoint, surveys: Sequence[Survey], request: Request
) -> dict[tuple[str, str], Pair]:
    """Return the pairs that the rules take, by root and full name of the weight.

    Raises:
        UsageError: an `-l` rule matches nothing.
    """
    pairs = {
        Candidate(found.state_dict.root, pair.weight, len(pair.v.shape), by_default=True): pair
        for found in surveys
        for pair in found.pairs
    }
    others = look_alike_reasons(surveys)
    for found in surveys if request.layers else ():  # what a rule can miss
        halves = found.halves()
        for spec in found.state_dict.tensors:
            if spec.name not in halves:
                others.setdefault(spec.name, "is not normalized")
    rules = request.layers, request.exclude
    chosen = choose_pairs(list(pairs), *rules, others, listing(checkpoint))
    for item, rule in chosen.items():
        refuse_other_dim(pairs[item], rule)
    return {(item.root, item.weight): pairs[item] for item in chosen}


def look_alike_reasons(surveys: Sequence[Survey]) -> dict[str, str]:
    """Why what only looks like weight norm cannot be chosen, by the name of its weight."""
    return {alike.weight: alike.message for found in surveys for alike in found.look_alikes}


def pass_look_alikes(
    checkpoint: Checkpoint, surveys: Sequence[Survey], request: Request
) -> list[Note]:
    """Note what only looks like weight norm, where it may be passed over.

    Raises:
        WeightNormError: the rules take something that is meant as weight norm and is broken.
    """
    notes = []
    for found in surveys:
        for alike in found.look_alikes:
            if alike.is_broken and request.wants(alike.weight):
                raise _refuse_look_alike(checkpoint, found, alike, common_axes(surveys))
            notes.append(_look_alike_note(found, alike))
    return notes


def look_alike_notes(surveys: Sequence[Survey]) -> list[Note]:
    """Note all that only looks like weight norm."""
    return [_look_alike_note(found, alike) for found in surveys for alike in found.look_alikes]


def parts_of(
    surveys: Sequence[Survey],
    actions: Mapping[tuple[str, str], Action],
    drop: frozenset[Keys],
    *,
    alone: bool,
) -> tuple[Part, ...]:
    """One action per output layer; every tensor that none uses up is copied under its name."""
    by_source: dict[str, dict[str, Action]] = {}
    for (root, _), action in actions.items():
        by_source.setdefault(root, {}).update((spec.name, action) for spec in action.sources)
    gone: dict[Keys, list[int]] = {}
    for *holder, last in drop:
        if isinstance(last, Position):
            gone.setdefault(tuple(holder), []).append(last.number)
    for numbers in gone.values():
        numbers.sort()
    parts = []
    for found in surveys:
        own = by_source.get(found.state_dict.root, {})
        ordered: dict[int, Action] = {}
        for spec in found.state_dict.tensors:
            action = own.get(spec.name) or Copy(spec, spec.name)
            ordered.setdefault(id(action), action)
        target = () if alone else _after(gone, found.state_dict.keys)
        whole = is_whole(found.state_dict)
        parts.append(Part(found.state_dict, tuple(ordered.values()), target, whole))
    return tuple(parts)


def _after(gone: Mapping[Keys, Sequence[int]], keys: Keys) -> Keys:
    """Move the path of what is at `keys` up, once items before it are gone from the lists.

    `gone` are their numbers, ascending, by the path of the list.
    """
    return tuple(
        replace(key, number=key.number - bisect_left(gone[keys[:place]], key.number))
        if isinstance(key, Position) and keys[:place] in gone
        else key
        for place, key in enumerate(keys)
    )


def stale_notes(pairs: Mapping[tuple[str, str], Pair], what_becomes: str) -> list[Note]:
    """Warn of each weight that stands beside its own g and v."""
    return [
        Note(
            "stale-weight",
            f"{pair.weight} stands beside its own g and v, which are what counts{what_becomes}",
            join(root, pair.weight),
            is_warning=True,
        )
        for (root, _), pair in pairs.items()
        if pair.stale
    ]


def _refuse_look_alike(
    checkpoint: Checkpoint, found: Survey, alike: LookAlike, axes: Sequence[int]
) -> WeightNormError:
    root = found.state_dict.root
    return WeightNormError(
        f"{checkpoint.name}: {root + ': ' if root else ''}{alike.weight}",
        alike.message,
        expected="a g and a v of one layer, in one spelling, g keeping one axis of v",
        found=", ".join(alike.names),
        hint=either(setting(dim=axis) for axis in axes)
        if alike.code == OPEN_DIM and axes
        else phrase("{} leaves this layer as it is", setting(exclude=[glob_of(alike.weight)])),
    )


def _look_alike_note(found: Survey, alike: LookAlike) -> Note:
    return Note(
        alike.code,
        f"{alike.weight} {alike.message}",
        join(found.state_dict.root, alike.weight),
        is_warning=alike.is_broken,
    )


def make_plan(  # noqa: PLR0913, PLR0917 - what a plan is made of
    command: Command,
    checkpoint: Checkpoint,
    request: Request,
    surveys: Sequence[Survey],
    actions: dict[tuple[str, str], Action],
    notes: Sequence[Note],
) -> Plan:
    """Make the plan of a request from the actions on its layers."""
    alone = request.only is not None
    drop = dropped(checkpoint, request.drop)
    parts = parts_of(surveys, actions, drop, alone=alone)
    if command == "inspect":  # which shows the names as they are without the prefix
        return Plan(command, checkpoint, parts, alone, drop, tuple(notes))
    left = [note for found in surveys for note in narrowing_notes(checkpoint, found.state_dict)]
    left += drop_notes(checkpoint, drop) + renaming_notes(checkpoint, request)
    return Plan(command, checkpoint, restored(parts), alone, drop, (*notes, *left))


def renaming_notes(checkpoint: Checkpoint, request: Request) -> list[Note]:
    """Note what each `--rename` rule renames."""
    if not request.rename:
        return []
    drop = dropped(checkpoint, request.drop)
    return rename_notes(state_dicts_left(checkpoint, request.only, drop), request.rename)


def restored(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return the parts with the names that the file has for what they are made from."""
    found = []
    for part in parts:
        state_dict, actions = from_the_file(part.state_dict, part.actions)
        found.append(part._replace(state_dict=state_dict, actions=actions))
    return tuple(found)


def composing(chosen: dict[tuple[str, str], Pair]) -> dict[tuple[str, str], Action]:
    """Fold each chosen pair into its weight."""
    return {key: Compose(pair, pair.weight) for key, pair in chosen.items()}
