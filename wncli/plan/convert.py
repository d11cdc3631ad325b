"""Plans `convert`: keep all numbers, and spell the chosen pairs otherwise."""

from __future__ import annotations

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import Naming
from wncli.checkpoint.pairs import Halves, Pair
from wncli.errors import UsageError
from wncli.hints import either, given, setting
from wncli.notes import Note
from wncli.plan.actions import Action, Plan, Respell
from wncli.plan.guards import refuse_taken_names
from wncli.plan.request import (
    Request,
    chosen_pairs,
    look_alike_notes,
    make_plan,
    pass_look_alikes,
    stale_notes,
    surveys_of,
)
from wncli.plan.ungathered import refuse_ungathered


def plan_convert(checkpoint: Checkpoint, request: Request, naming: Naming | None = None) -> Plan:
    """Keep all numbers; where `naming` is given, spell the chosen pairs so.

    Raises:
        UsageError: a rule or root that matches nothing, or rules without a spelling to give.
        WeightNormError: what is chosen only looks like a pair, or the names are taken.
    """
    surveys = surveys_of(checkpoint, request)
    refuse_ungathered(checkpoint, surveys)
    if naming is None:
        if request.dim is not None:
            raise UsageError(
                given(dim=request.dim),
                "convert asks for the dims of layers only to spell them otherwise",
                hint=either(setting(naming=one) for one in ("hook", "parametrized")),
            )
        for name, rules in (("layers", request.layers), ("exclude", request.exclude)):
            if rules:
                raise UsageError(
                    given(**{name: [rules[0].text]}),
                    "convert chooses layers only to spell them otherwise",
                    hint=either(setting(naming=one) for one in ("hook", "parametrized")),
                )
        notes = [*checkpoint.notes, *look_alike_notes(surveys)]
        return make_plan("convert", checkpoint, request, surveys, {}, notes)
    notes = [*checkpoint.notes, *pass_look_alikes(checkpoint, surveys, request)]
    chosen = chosen_pairs(checkpoint, surveys, request)
    actions: dict[tuple[str, str], Action] = {}
    respelled: dict[tuple[str, str], Pair] = {}
    for (root, weight), pair in chosen.items():
        halves = Halves.of(weight, pair.v.shape, pair.dim, naming)
        if (halves.naming, halves.g_shape) != (pair.naming, pair.g.shape):
            actions[root, weight] = Respell(pair, halves)
            respelled[root, weight] = pair
    refuse_taken_names(checkpoint, surveys, actions)
    if not chosen:
        notes.append(Note("no-weight-norm", "there is no weight norm to spell otherwise"))
    elif not actions:
        notes.append(Note("same-naming", f"every layer has {naming} names already"))
    notes += stale_notes(respelled, ": left out")
    return make_plan("convert", checkpoint, request, surveys, actions, notes)
