"""Decides what a command does to each tensor, with every refusal that specs allow. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wncli.checkpoint import Checkpoint, refuse_expansion
from wncli.dims import resolve_dim
from wncli.errors import UsageError, WeightNormError, WnError
from wncli.naming import Naming, join, pair_names, split
from wncli.notes import Note
from wncli.plan import Action, Compose, Copy, Decompose, Part, Plan, is_dropped
from wncli.selection import (
    Candidate,
    Rule,
    check_exclusions,
    choose_pairs,
    choose_weights,
    parse_exclusions,
    parse_layers,
)
from wncli.survey import LookAlike, Pair, Survey, survey
from wncli.tensors import NORMALIZABLE, TensorSpec


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked for, whichever the command; see the commands' options."""

    layers: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    only: str | None = None
    drop: frozenset[str] = frozenset()

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
            parse_layers(_several(layers), with_dims=with_dims),
            parse_exclusions(_several(exclude)),
            only,
            frozenset(_several(drop)),
        )


def _several(texts: Iterable[str]) -> Iterable[str]:
    """One text by itself is meant as one rule, not as its letters."""
    return (texts,) if isinstance(texts, str) else texts


def plan_inspect(checkpoint: Checkpoint, request: Request) -> Plan:
    """What removal would find: the chosen pairs as they stand, nothing refused.

    Raises:
        UsageError: a rule or root that matches nothing.
    """
    surveys = _surveys(checkpoint, request)
    chosen = _chosen_pairs(surveys, request)
    notes = _module_notes(checkpoint)
    notes += [_look_alike_note(s, alike) for s in surveys for alike in s.look_alikes]
    notes += [_stale_note(root, pair) for root, pair in chosen if pair.stale]
    parts = _parts(surveys, {(root, pair.weight): Compose(pair) for root, pair in chosen})
    return Plan("inspect", checkpoint, parts, request.only, request.drop, tuple(notes))


def plan_remove(checkpoint: Checkpoint, request: Request) -> Plan:
    """Fold the chosen pairs.

    Raises:
        UsageError: a rule or root that matches nothing.
        WeightNormError: what is chosen only looks like a pair, or half of one is missing.
    """
    surveys = _surveys(checkpoint, request)
    notes = _module_notes(checkpoint)
    for found in surveys:
        for alike in found.look_alikes:
            if alike.is_broken and _wanted(alike.weight, request):
                raise _refuse_look_alike(checkpoint, found, alike)
            notes.append(_look_alike_note(found, alike))
    chosen = _chosen_pairs(surveys, request)
    for _, pair in chosen:
        refuse_expansion(checkpoint, pair.v)
    actions = {(root, pair.weight): Compose(pair) for root, pair in chosen}
    parts = _parts(surveys, actions)
    return Plan("remove", checkpoint, parts, request.only, request.drop, tuple(notes))


def plan_apply(
    checkpoint: Checkpoint,
    request: Request,
    dim: int | None = 0,
    naming: Literal["auto"] | Naming = "auto",
) -> Plan:
    """Split the chosen weights.

    Raises:
        UsageError: a rule or root that matches nothing, or only what is normalized already.
        WeightNormError: a chosen weight has no such dim, or a dtype without weight norm, or the
            names of its g and v are taken.
    """
    surveys = _surveys(checkpoint, request)
    specs: dict[Candidate, TensorSpec] = {}
    for found in surveys:
        taken = found.halves() | {pair.weight for pair in found.pairs}
        for spec in found.state_dict.tensors:
            if spec.name not in taken:
                specs[_candidate(found.state_dict.root, spec)] = spec
    others = {
        name: f"is normalized already, as {pair.g.name} and {pair.v.name}"
        for found in surveys
        for pair in found.pairs
        for name in (pair.weight, pair.g.name, pair.v.name)
    }
    others |= _look_alike_reasons(surveys)
    for item in specs:
        if item.rank < 2:  # noqa: PLR2004 - a vector
            reason = f"has {'one dimension' if item.rank else 'no dimensions'}"
            others.setdefault(item.weight, f"{reason}; -l {item.weight} in full takes it")
    chosen = choose_weights(list(specs), request.layers, request.exclude, others)
    spelling = _spellings(surveys) if naming == "auto" else {}
    names = {(f.state_dict.root, s.name) for f in surveys for s in f.state_dict.tensors}
    actions: dict[tuple[str, str], Action] = {}
    for item, rule in chosen.items():
        wanted = rule.dim if rule and rule.has_dim else dim
        spelled = naming if naming != "auto" else spelling[item.root]
        action = _decompose(checkpoint, specs[item], wanted, spelled)
        for name in (action.g, action.v):
            if (item.root, name) in names:
                raise WeightNormError(
                    f"{checkpoint.path}: {item.weight}",
                    f"the name {name} is taken already",
                    hint=f"-x {item.weight} leaves this layer alone",
                )
        actions[item.root, item.weight] = action
    notes = _module_notes(checkpoint)
    notes += [] if request.layers or not actions else [_default_note(len(actions))]
    notes += [_look_alike_note(s, alike) for s in surveys for alike in s.look_alikes]
    parts = _parts(surveys, actions)
    return Plan("apply", checkpoint, parts, request.only, request.drop, tuple(notes))


def _surveys(checkpoint: Checkpoint, request: Request) -> list[Survey]:
    """Survey the state dicts that `--only` and `--drop` leave, and hold `-x` against them."""
    state_dicts = checkpoint.state_dicts
    roots = [state_dict.root for state_dict in state_dicts]
    if request.only is not None:
        if request.only not in roots:
            raise _no_root(checkpoint, request.only)
        if is_dropped(request.only, request.drop):
            raise UsageError(f"--only {request.only}", "--drop leaves this state dict out")
        state_dicts = tuple(sd for sd in state_dicts if sd.root == request.only)
    kept = []
    for state_dict in state_dicts:
        root = state_dict.root
        if is_dropped(root, request.drop):
            continue
        tensors = tuple(s for s in state_dict.tensors if join(root, s.name) not in request.drop)
        kept.append(survey(replace(state_dict, tensors=tensors)))
    _check_drops(checkpoint, request.drop)
    names = [s.name for found in kept for s in found.state_dict.tensors]
    names += [pair.weight for found in kept for pair in found.pairs]
    names += [alike.weight for found in kept for alike in found.look_alikes]
    check_exclusions(request.exclude, names)
    return kept


def _check_drops(checkpoint: Checkpoint, drop: frozenset[str]) -> None:
    tensors = {spec.name for sd in checkpoint.state_dicts for spec in sd.tensors if drop}
    tree = checkpoint.tree
    for path in sorted(drop):
        if tree.has_entry(path) if tree else path in tensors:
            continue
        known = [entry.path for entry in checkpoint.entries]
        known += [sd.root for sd in checkpoint.state_dicts if sd.root] or sorted(tensors)[:5]
        raise UsageError(
            f"--drop {path}",
            "there is no entry of this name",
            expected=f"such as {', '.join(known)}" if known else "",
            hint="wn inspect CHECKPOINT lists the entries",
        )


def _no_root(checkpoint: Checkpoint, only: str) -> UsageError:
    """The refusal of an `--only` that is no root of the checkpoint."""
    roots = [state_dict.root or "the top" for state_dict in checkpoint.state_dicts]
    return UsageError(
        f"--only {only}",
        "there is no state dict of this name",
        expected=f"one of: {', '.join(roots)}" if roots else "a checkpoint with a state dict",
    )


def _chosen_pairs(surveys: Sequence[Survey], request: Request) -> list[tuple[str, Pair]]:
    pairs = {
        Candidate(found.state_dict.root, pair.weight, len(pair.v.shape), by_default=True): pair
        for found in surveys
        for pair in found.pairs
    }
    others = _look_alike_reasons(surveys)
    for found in surveys:
        halves = found.halves()
        for spec in found.state_dict.tensors:
            if spec.name not in halves:
                others.setdefault(spec.name, "is not normalized")
    chosen = choose_pairs(list(pairs), request.layers, request.exclude, others)
    return [(item.root, pairs[item]) for item in chosen]


def _look_alike_reasons(surveys: Sequence[Survey]) -> dict[str, str]:
    """Why what only looks like weight norm cannot be chosen, by the name of its weight."""
    return {alike.weight: alike.message for found in surveys for alike in found.look_alikes}


def _candidate(root: str, spec: TensorSpec) -> Candidate:
    rank = len(spec.shape)
    default = spec.dtype in NORMALIZABLE and rank > 1 and split(spec.name)[1] == "weight"
    return Candidate(root, spec.name, rank, by_default=default)


def _parts(
    surveys: Sequence[Survey], actions: Mapping[tuple[str, str], Action]
) -> tuple[Part, ...]:
    """One action per output layer; every tensor that none uses up is copied."""
    parts = []
    for found in surveys:
        root = found.state_dict.root
        by_source = {
            spec.name: action
            for (place, _), action in actions.items()
            if place == root
            for spec in action.sources
        }
        ordered: dict[int, Action] = {}
        for spec in found.state_dict.tensors:
            action = by_source.get(spec.name) or Copy(spec)
            ordered.setdefault(id(action), action)
        parts.append(Part(found.state_dict, tuple(ordered.values())))
    return tuple(parts)


def _decompose(
    checkpoint: Checkpoint, spec: TensorSpec, dim: int | None, naming: Naming
) -> Decompose:
    where = f"{checkpoint.path}: {spec.name}"
    refuse_expansion(checkpoint, spec)
    if spec.dtype not in NORMALIZABLE:
        raise WeightNormError(
            where,
            f"a {spec.dtype.label} tensor cannot be normalized",
            expected="float64, float32, float16 or bfloat16",
            found=f"{spec.dtype.label} {list(spec.shape)}",
            hint=f"-x {spec.name} leaves it alone",
        )
    try:
        resolved = resolve_dim(dim, len(spec.shape), where)
    except WnError as error:
        error.hint = f"-l {spec.name}=DIM with another dim, or -x {spec.name}"
        raise
    g, v = pair_names(spec.name, naming)
    return Decompose(spec, resolved, naming, g, v)


def _spellings(surveys: Sequence[Survey]) -> dict[str, Naming]:
    """What `auto` means under each root: the spelling found there, else anywhere, else hook."""
    anywhere: Naming = next((p.naming for found in surveys for p in found.pairs), "hook")
    return {
        found.state_dict.root: found.pairs[0].naming if found.pairs else anywhere
        for found in surveys
    }


def _wanted(weight: str, request: Request) -> bool:
    rules = request.layers
    return (not rules or any(rule.matches(weight) for rule in rules)) and not any(
        rule.matches(weight) for rule in request.exclude
    )


def _refuse_look_alike(checkpoint: Checkpoint, found: Survey, alike: LookAlike) -> WeightNormError:
    root = found.state_dict.root
    return WeightNormError(
        f"{checkpoint.path}: {root + ': ' if root else ''}{alike.weight}",
        alike.message,
        expected="a g and a v of one layer, in one spelling, g keeping one axis of v",
        found=", ".join(alike.names),
        hint=f"-x {alike.weight} leaves this layer as it is",
    )


def _look_alike_note(found: Survey, alike: LookAlike) -> Note:
    return Note(
        alike.code,
        f"{alike.weight} {alike.message}",
        join(found.state_dict.root, alike.weight),
        is_warning=alike.is_broken,
    )


def _stale_note(root: str, pair: Pair) -> Note:
    return Note(
        "stale-weight",
        f"{pair.weight} stands beside its own g and v, which are what counts",
        join(root, pair.weight),
        is_warning=True,
    )


def _module_notes(checkpoint: Checkpoint) -> list[Note]:
    return [
        Note(
            "module",
            f"{entry.path} is a whole pickled module, which is not looked into; save its"
            " state_dict() to have it read",
            entry.path,
            is_warning=True,
        )
        for entry in checkpoint.entries
        if entry.kind == "module"
    ]


def _default_note(count: int) -> Note:
    return Note(
        "default-selection",
        f"without -l, every floating weight of two or more dimensions was taken ({count})",
    )
