"""Plans `apply`: split the chosen weights into g and v."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.dims import resolve_dim
from wncli.checkpoint.naming import Naming
from wncli.checkpoint.pairs import Halves, is_plain_weight
from wncli.checkpoint.tensors import NORMALIZABLE, TensorSpec
from wncli.errors import WeightNormError, WnError
from wncli.hints import given, parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.actions import Action, Decompose, Plan
from wncli.plan.guards import refuse_expansion, refuse_taken_names
from wncli.plan.request import (
    Request,
    listing,
    look_alike_notes,
    look_alike_reasons,
    make_plan,
    surveys_of,
)
from wncli.plan.rules import Candidate, Chosen, choose_weights, glob_of
from wncli.plan.survey import Survey
from wncli.plan.ungathered import refuse_ungathered


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
    refuse_taken_names(checkpoint, surveys, actions)
    notes = list(checkpoint.notes)
    notes += [] if request.layers or not actions else [_default_note(len(actions))]
    notes += _last_axis_notes(chosen, dim)
    notes += look_alike_notes(surveys)
    return make_plan("apply", checkpoint, request, surveys, actions, notes)


def _candidate(root: str, spec: TensorSpec) -> Candidate:
    return Candidate(root, spec.name, len(spec.shape), by_default=is_plain_weight(spec))


def _decompose(
    checkpoint: Checkpoint, spec: TensorSpec, dim: int | None, naming: Naming
) -> Decompose:
    where = f"{checkpoint.name}: {spec.name}"
    refuse_expansion(checkpoint, spec, exclude=[glob_of(spec.name)])
    if spec.dtype not in NORMALIZABLE:
        raise WeightNormError(
            where,
            f"a {spec.dtype.label} tensor cannot be normalized",
            expected="float64, float32, float16 or bfloat16",
            found=f"{spec.dtype.label} {list(spec.shape)}",
            hint=phrase("{} leaves it alone", setting(exclude=[glob_of(spec.name)])),
        )
    try:
        resolved = resolve_dim(dim, len(spec.shape), where)
    except WnError as error:
        error.hint = phrase("{} leaves this layer alone", setting(exclude=[glob_of(spec.name)]))
        raise
    halves = Halves.of(spec.name, spec.shape, resolved, naming)
    g = spec._replace(shape=halves.g_shape)  # which a weight without elements can have many of
    refuse_expansion(checkpoint, g, exclude=[glob_of(spec.name)])
    return Decompose(spec, resolved, halves)


def _spellings(surveys: Sequence[Survey]) -> dict[str, Naming]:
    """Say what `auto` means under each root: the spelling there, else anywhere, else hook."""
    anywhere: Naming = next((p.naming for found in surveys for p in found.pairs), "hook")
    return {
        found.state_dict.root: found.pairs[0].naming if found.pairs else anywhere
        for found in surveys
    }


def _last_axis_notes(chosen: Chosen, dim: int | None) -> list[Note]:
    """Note what -1 is, which in NumPy would be an axis."""
    typed: dict[str, set[int]] = {}
    for item, rule in chosen.items():
        own = rule is not None and rule.has_dim
        if (rule.dim if rule and own else dim) == -1:
            spelled = given(layers=[rule.text]) if rule and own else given(dim=-1)
            typed.setdefault(spelled, set()).add(item.rank - 1)
    message = "{}: the whole tensor, as in torch; the last axis is {}"
    return [
        Note("whole-tensor", phrase(message, spelled, " or ".join(map(str, sorted(axes)))))
        for spelled, axes in typed.items()
    ]


def _default_note(count: int) -> Note:
    return Note(
        "default-selection",
        phrase(
            "without {}, every floating weight of two or more dimensions was taken ({})",
            parameter("layers"),
            str(count),
        ),
    )
