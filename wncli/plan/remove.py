"""Plans `remove`: fold the chosen pairs."""

from __future__ import annotations

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.plan.actions import Plan
from wncli.plan.guards import refuse_expansion
from wncli.plan.request import (
    Request,
    chosen_pairs,
    composing,
    make_plan,
    pass_look_alikes,
    surveys_of,
)
from wncli.plan.rules import glob_of
from wncli.plan.ungathered import refuse_ungathered


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
        refuse_expansion(checkpoint, pair.v, exclude=[glob_of(pair.weight)])
    return make_plan("remove", checkpoint, request, surveys, composing(chosen), notes)
