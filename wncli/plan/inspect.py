"""Plans `inspect`: what removal would find, nothing refused."""

from __future__ import annotations

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import few
from wncli.notes import Note
from wncli.plan.actions import Plan
from wncli.plan.name_notes import name_notes
from wncli.plan.request import (
    Request,
    chosen_pairs,
    composing,
    look_alike_notes,
    make_plan,
    stale_notes,
    surveys_of,
)
from wncli.plan.ungathered import ungathered_notes


def plan_inspect(checkpoint: Checkpoint, request: Request) -> Plan:
    """Return what removal would find: the chosen pairs as they stand, nothing refused.

    Raises:
        UsageError: a rule or root that matches nothing.
    """
    surveys = surveys_of(checkpoint, request)
    chosen = chosen_pairs(checkpoint, surveys, request)
    notes = [*checkpoint.notes, *ungathered_notes(checkpoint, surveys)]
    for found in (survey.state_dict for survey in surveys):
        if found.others:
            message = f"beside its tensors, and no dense ones: {few(found.others, 8)}"
            notes.append(Note("no-tensor", message, found.root))
    notes += [*look_alike_notes(surveys), *stale_notes(chosen, ""), *name_notes(surveys)]
    return make_plan("inspect", checkpoint, request, surveys, composing(chosen), notes)
