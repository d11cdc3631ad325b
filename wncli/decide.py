"""Decides what a command does to each tensor, with every refusal that specs allow. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from wncli.checkpoint import Checkpoint, DangerousCall, refuse_expansion
from wncli.dims import resolve_dim
from wncli.errors import FormatError, UsageError, WeightNormError, WnError, few
from wncli.hints import glob_of, option
from wncli.keys import Keys
from wncli.naming import Naming, split
from wncli.notes import Note
from wncli.plan import Action, Command, Compose, Copy, Decompose, Halves, Plan, Respell
from wncli.scope import (
    Request,
    chosen_pairs,
    dropped,
    listing,
    look_alike_notes,
    look_alike_reasons,
    parts_of,
    pass_look_alikes,
    stale_notes,
    surveys_of,
)
from wncli.selection import Candidate, choose_weights
from wncli.survey import Pair, Survey
from wncli.tensors import NORMALIZABLE, TensorSpec
from wncli.ungathered import refuse_ungathered, ungathered_notes

if TYPE_CHECKING:
    from wncli.formats.pickles.nodes import Node
    from wncli.formats.torch_tree import TorchTree

#: As many state dicts are looked through for one without calls.
_MOST_TRIED = 16


def plan_inspect(checkpoint: Checkpoint, request: Request) -> Plan:
    """What removal would find: the chosen pairs as they stand, nothing refused.

    Raises:
        UsageError: a rule or root that matches nothing.
    """
    surveys = surveys_of(checkpoint, request)
    chosen = chosen_pairs(checkpoint, surveys, request)
    notes = [*checkpoint.notes, *ungathered_notes(checkpoint, surveys)]
    notes += [*look_alike_notes(surveys), *stale_notes(chosen, "")]
    return _plan("inspect", checkpoint, request, surveys, _composing(chosen), notes)


def plan_remove(checkpoint: Checkpoint, request: Request) -> Plan:
    """Fold the chosen pairs.

    Raises:
        UsageError: a rule or root that matches nothing.
        WeightNormError: what is chosen only looks like a pair, or half of one is missing.
    """
    surveys = surveys_of(checkpoint, request)
    refuse_ungathered(checkpoint, surveys)
    notes = [*checkpoint.notes, *pass_look_alikes(checkpoint, surveys, request)]
    chosen = chosen_pairs(checkpoint, surveys, request)
    for pair in chosen.values():
        refuse_expansion(checkpoint, pair.v, option("-x", glob_of(pair.weight)))
    return _plan("remove", checkpoint, request, surveys, _composing(chosen), notes)


def plan_convert(checkpoint: Checkpoint, request: Request, naming: Naming | None = None) -> Plan:
    """Keep all numbers; where `naming` is given, spell the chosen pairs so.

    Raises:
        UsageError: a rule or root that matches nothing, or rules without a spelling to give.
        WeightNormError: what is chosen only looks like a pair, or the names are taken.
    """
    surveys = surveys_of(checkpoint, request)
    refuse_ungathered(checkpoint, surveys)
    if naming is None:
        for option, rules in (("-l", request.layers), ("-x", request.exclude)):
            if rules:
                raise UsageError(
                    f"{option} {rules[0].text}",
                    "convert chooses layers only to spell them otherwise",
                    hint="--naming hook or --naming parametrized",
                )
        notes = [*checkpoint.notes, *look_alike_notes(surveys)]
        return _plan("convert", checkpoint, request, surveys, {}, notes)
    notes = [*checkpoint.notes, *pass_look_alikes(checkpoint, surveys, request)]
    chosen = chosen_pairs(checkpoint, surveys, request)
    actions: dict[tuple[str, str], Action] = {}
    respelled: dict[tuple[str, str], Pair] = {}
    for (root, weight), pair in chosen.items():
        halves = Halves.of(weight, pair.v.shape, pair.dim, naming)
        if (halves.naming, halves.g_shape) != (pair.naming, pair.g.shape):
            actions[root, weight] = Respell(pair, halves)
            respelled[root, weight] = pair
    _refuse_taken_names(checkpoint, surveys, actions)
    if not chosen:
        notes.append(Note("no-weight-norm", "there is no weight norm to spell otherwise"))
    elif not actions:
        notes.append(Note("same-naming", f"every layer is spelled {naming} already"))
    notes += stale_notes(respelled, ": left out")
    return _plan("convert", checkpoint, request, surveys, actions, notes)


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
    surveys = surveys_of(checkpoint, request)
    refuse_ungathered(checkpoint, surveys)
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
    others |= look_alike_reasons(surveys)
    for item in specs:
        if item.rank < 2:  # noqa: PLR2004 - a vector
            reason = f"has {'one dimension' if item.rank else 'no dimensions'}"
            others.setdefault(item.weight, f"{reason}, and is taken only by its full name")
    chosen = choose_weights(
        list(specs), request.layers, request.exclude, others, listing(checkpoint)
    )
    spelling = _spellings(surveys) if naming == "auto" else {}
    actions: dict[tuple[str, str], Action] = {}
    for item, rule in chosen.items():
        wanted = rule.dim if rule and rule.has_dim else dim
        spelled = naming if naming != "auto" else spelling[item.root]
        actions[item.root, item.weight] = _decompose(checkpoint, specs[item], wanted, spelled)
    _refuse_taken_names(checkpoint, surveys, actions)
    notes = list(checkpoint.notes)
    notes += [] if request.layers or not actions else [_default_note(len(actions))]
    notes += look_alike_notes(surveys)
    return _plan("apply", checkpoint, request, surveys, actions, notes)


def refuse_ambiguity(checkpoint: Checkpoint) -> None:
    """Nothing is made of, or said of, a file that may mean other tensors to PyTorch.

    Raises:
        FormatError: what is in it cannot be told without running it.
    """
    for note in checkpoint.notes:
        if note.code == "ambiguous":
            raise FormatError(
                str(checkpoint.path),
                note.message,
                expected="tensors and keys as torch.save writes them",
                hint="load it with PyTorch and save it again",
            )


def refuse_damage(checkpoint: Checkpoint) -> None:
    """Nothing is made of what is known to have changed since it was written.

    Raises:
        FormatError: a part of the file that says what is in it is damaged.
    """
    for note in checkpoint.notes:
        if note.code == "checksum":
            raise FormatError(
                str(checkpoint.path),
                note.message,
                expected="the bytes that were written",
                hint="copy or download the file again",
            )


def refuse_calls(plan: Plan) -> None:
    """Nothing is made of a file that runs something when it is loaded, unless that is left out.

    Raises:
        FormatError: what is to be written holds such calls, or the file makes them on the way.
    """
    checkpoint = plan.checkpoint
    left = list(checkpoint.would_run)
    if not left:
        return
    from wncli.formats.torch_calls import calls_left

    if plan.alone and not checkpoint.shards:
        tree = checkpoint.tree
        left = calls_left(tree, left, _roots_of_parts(plan, tree), plan.drop) if tree else []
    elif checkpoint.tree and plan.drop:
        tree = checkpoint.tree
        kept, reachable = (
            {id(call) for call in calls_left(tree, left, (tree.root,), drop)}
            for drop in (plan.drop, frozenset[Keys]())
        )
        left = [call for call in left if id(call) in kept or id(call) not in reachable]
    if not left:
        return
    shown = [call for call in left if call.is_shown] or left
    raise FormatError(
        str(checkpoint.path),
        "loading this file with torch.load runs more than it takes to make tensors",
        expected="tensors and values",
        found=f"would run: {few(list(dict.fromkeys(call.call for call in shown)))}",
        hint=_without_calls(plan, left),
    )


def _without_calls(plan: Plan, left: Sequence[DangerousCall]) -> str:
    """What to type to leave these calls out."""
    from wncli.formats.torch_calls import calls_left, entries_to_drop

    checkpoint = plan.checkpoint
    if checkpoint.shards:
        return ""
    tree = checkpoint.tree
    if tree and all(call.where for call in left):
        roots = _roots_of_parts(plan, tree) if plan.alone else [tree.root]
        listed = {entry.keys for entry in checkpoint.entries}
        entries = entries_to_drop(tree, left, roots, plan.drop, listed)
        return " ".join(option("--drop", entry) for entry in entries)
    clean = [
        option("--only", found.root)
        for found in checkpoint.state_dicts[:_MOST_TRIED]
        if not (
            tree
            and not found.holder
            and calls_left(tree, left, (tree.mappings[found.keys],), frozenset())
        )
    ]
    return f"{' or '.join(clean)} takes a state dict alone" if clean else ""


def _roots_of_parts(plan: Plan, tree: TorchTree) -> list[Node]:
    """Where the state dicts stand which are written by themselves."""
    return [
        tree.mappings[part.state_dict.keys]
        for part in plan.parts
        if part.state_dict.keys in tree.mappings and not part.state_dict.holder
    ]


def refuse_objects(plan: Plan) -> None:
    """A module's tensors can be read without its class, but no module be made of others.

    Args:
        plan: what is to be written to a torch file.

    Raises:
        UsageError: an object that is no state dict would have to be written back as itself.
    """
    held = [part for part in plan.parts if part.state_dict.holder]
    has_others = len(held) < len(plan.parts) or any(
        entry.kind == "tensor" for entry in plan.checkpoint.entries
    )
    for part in held:
        changes = any(not isinstance(action, Copy) for action in part.actions)
        if plan.alone or (has_others and not changes):
            continue
        root = part.state_dict.root
        raise UsageError(
            f"{plan.checkpoint.path}: {root}" if root else str(plan.checkpoint.path),
            f"this is {part.state_dict.holder}, which cannot be written back as itself",
            expected="a state dict, which can be read off it",
            hint=f"{option('--only', root)} writes that",
        )


def _plan(  # noqa: PLR0913, PLR0917 - what a plan is made of
    command: Command,
    checkpoint: Checkpoint,
    request: Request,
    surveys: Sequence[Survey],
    actions: dict[tuple[str, str], Action],
    notes: Sequence[Note],
) -> Plan:
    alone = request.only is not None
    drop = dropped(checkpoint, request)
    parts = parts_of(surveys, actions, drop, alone=alone)
    return Plan(command, checkpoint, parts, alone, drop, tuple(notes))


def _composing(chosen: dict[tuple[str, str], Pair]) -> dict[tuple[str, str], Action]:
    return {key: Compose(pair, pair.weight) for key, pair in chosen.items()}


def _refuse_taken_names(
    checkpoint: Checkpoint, surveys: Sequence[Survey], actions: dict[tuple[str, str], Action]
) -> None:
    """Hold the names that are to be given against those that stay."""
    names = {(found.state_dict.root, s.name) for found in surveys for s in found.state_dict.tensors}
    names |= {(found.state_dict.root, o) for found in surveys for o in found.state_dict.others}
    for (root, weight), action in actions.items():
        if not isinstance(action, (Decompose, Respell)):
            continue
        own = {spec.name for spec in action.sources}
        for name in (action.halves.g, action.halves.v):
            if (root, name) in names and name not in own:
                raise WeightNormError(
                    f"{checkpoint.path}: {weight}",
                    f"the name {name} is taken already",
                    hint=f"{option('-x', glob_of(weight))} leaves this layer alone",
                )


def _candidate(root: str, spec: TensorSpec) -> Candidate:
    rank = len(spec.shape)
    default = spec.dtype in NORMALIZABLE and rank > 1 and split(spec.name)[1] == "weight"
    return Candidate(root, spec.name, rank, by_default=default)


def _decompose(
    checkpoint: Checkpoint, spec: TensorSpec, dim: int | None, naming: Naming
) -> Decompose:
    where = f"{checkpoint.path}: {spec.name}"
    refuse_expansion(checkpoint, spec, option("-x", glob_of(spec.name)))
    if spec.dtype not in NORMALIZABLE:
        raise WeightNormError(
            where,
            f"a {spec.dtype.label} tensor cannot be normalized",
            expected="float64, float32, float16 or bfloat16",
            found=f"{spec.dtype.label} {list(spec.shape)}",
            hint=f"{option('-x', glob_of(spec.name))} leaves it alone",
        )
    try:
        resolved = resolve_dim(dim, len(spec.shape), where)
    except WnError as error:
        error.hint = f"{option('-x', glob_of(spec.name))} leaves this layer alone"
        raise
    halves = Halves.of(spec.name, spec.shape, resolved, naming)
    g = spec._replace(shape=halves.g_shape)  # which a weight without elements can have many of
    refuse_expansion(checkpoint, g, option("-x", glob_of(spec.name)))
    return Decompose(spec, resolved, halves)


def _spellings(surveys: Sequence[Survey]) -> dict[str, Naming]:
    """What `auto` means under each root: the spelling found there, else anywhere, else hook."""
    anywhere: Naming = next((p.naming for found in surveys for p in found.pairs), "hook")
    return {
        found.state_dict.root: found.pairs[0].naming if found.pairs else anywhere
        for found in surveys
    }


def _default_note(count: int) -> Note:
    return Note(
        "default-selection",
        f"without -l, every floating weight of two or more dimensions was taken ({count})",
    )
