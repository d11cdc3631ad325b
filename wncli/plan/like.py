"""Decides how a checkpoint gets the structure of another: `wn convert --like`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Halves, Pair
from wncli.checkpoint.prefixes import describe
from wncli.checkpoint.tensors import NORMALIZABLE, TensorSpec
from wncli.errors import FormatError, UsageError, WeightNormError, few
from wncli.hints import REFERENCE, Text, either, given, parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.actions import Action, Compose, Copy, Decompose, Part, Plan, Renormalize, Respell
from wncli.plan.filling import parts_to_fill
from wncli.plan.guards import refuse_expansion
from wncli.plan.narrowing import drop_notes, dropped, is_whole, named, narrowing_notes
from wncli.plan.open_dims import assume, common_axes, settle, settled_by
from wncli.plan.pairing import (
    Meeting,
    Place,
    pair_up,
    split_only,
    without_counterpart,
)
from wncli.plan.request import Request, listing, renaming_notes, restored, surveys_of
from wncli.plan.survey import Survey, survey
from wncli.plan.ungathered import refuse_ungathered

#: As many names are listed in a message.
_NAMED = 5


@dataclass(slots=True)
class _Fit:
    """What meets and what does not, by full paths."""

    axes: tuple[int, ...] = ()
    matched: int = 0
    ours: int = 0
    theirs: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    misshapen: list[Place] = field(default_factory=list)


def plan_like(
    checkpoint: Checkpoint,
    reference: Checkpoint,
    request: Request,
    *,
    partial: bool,
    fill: bool = False,
) -> Plan:
    """Compose, decompose and rename so that names and shapes are those of `reference`.

    With `partial`, what does not fit is left out instead of refused; with `fill`, what is left out
    or missing is `reference`'s own.

    Raises:
        UsageError: a root that matches nothing, rules that have no place here, or several state
            dicts of which each could be meant.
        FormatError: `reference` holds no state dict.
        WeightNormError: tensors are missing, unexpected or of other shapes.
    """
    for name, rules in (("layers", request.layers), ("exclude", request.exclude)):
        if rules and not all(rule.has_dim for rule in rules):
            raise UsageError(
                given(**{name: [rules[0].text]}),
                phrase("{} takes every layer as {} has it", parameter("like"), REFERENCE),
                hint=phrase("leave {} out", parameter(name)),
            )
    our_only, their_only = split_only(request.only, checkpoint, reference)
    ours = surveys_of(checkpoint, request._replace(only=our_only))
    ours = [assume(found) for found in ours]
    theirs = [
        assume(settle(survey(sd.stored or sd), request.layers, request.dim))
        for sd in named(reference, their_only)
    ]
    if not theirs:
        raise FormatError(
            reference.name,
            "no state dict was found",
            expected=phrase("a checkpoint as {}", REFERENCE),
        )
    refuse_ungathered(checkpoint, ours)
    refuse_ungathered(reference, theirs)
    meetings = pair_up(checkpoint, ours, reference, theirs)
    fit = _Fit(axes=common_axes([*ours, *theirs]))
    parts = []
    notes = list(checkpoint.notes)
    sources = Counter(meeting.ours.state_dict.keys for meeting in meetings)
    targets = Counter(meeting.theirs.state_dict.keys for meeting in meetings)
    for meeting in meetings:
        state_dict, keys = meeting.ours.state_dict, meeting.theirs.state_dict.keys
        whole = is_whole(state_dict) and sources[state_dict.keys] == targets[keys] == 1
        parts.append(Part(state_dict, _actions(checkpoint, meeting, fit), keys, whole))
        notes += _renaming_notes(meeting)
    without = without_counterpart(theirs, [(m.theirs, m.names.values()) for m in meetings])
    fit.missing += [join(*place) for place in without]
    met = [(meeting.ours, meeting.names) for meeting in meetings]
    roots = {found.state_dict.root for found, _ in met}
    concerned = [found for found in ours if found.state_dict.root in roots or not roots]
    fit.unexpected += [join(*place) for place in without_counterpart(concerned, met)]
    fit.ours = sum(len(found.plain) for found in ours)
    fit.theirs = sum(len(wanted.plain) for wanted in theirs)
    _judge(checkpoint, reference, fit, partial=partial or fill)
    notes += [note for found in ours for note in narrowing_notes(checkpoint, found.state_dict)]
    drop = dropped(checkpoint, request.drop)
    notes += drop_notes(checkpoint, drop)
    notes += renaming_notes(checkpoint, request._replace(only=our_only))
    notes.append(Note("matched", f"{fit.matched:,} tensors match those of {reference.name}", ""))
    lacking = {*without, *fit.misshapen} if fill else set()
    tied = _tied(checkpoint, meetings, theirs, lacking, fit.axes)
    lacking -= tied.keys()
    notes += _misfit_notes(fit, tied, fill=fill)
    alone = request.only is not None or not _same_places(checkpoint, ours, parts)
    filled = (*restored(tied.values()), *parts_to_fill(checkpoint, reference, theirs, lacking))
    alone = alone or not _fill_in_place(checkpoint, parts, filled)
    return Plan("convert", checkpoint, (*restored(parts), *filled), alone, drop, tuple(notes))


def _tied(
    checkpoint: Checkpoint,
    meetings: Sequence[Meeting],
    theirs: Sequence[Survey],
    lacking: set[Place],
    axes: Sequence[int],
) -> dict[Place, Part]:
    """Make of what meets also what REFERENCE ties to it, and is `lacking`: by root and plain name.

    Loaded into one parameter, REFERENCE's own would take the place of the checkpoint's.
    """
    met: dict[tuple[object, ...], tuple[Meeting, Pair | TensorSpec]] = {}
    for meeting in meetings if lacking else ():
        held, others = meeting.ours.plain, meeting.theirs.plain
        for own, name in meeting.names.items():
            if (meeting.theirs.state_dict.root, name) not in lacking:
                met.setdefault(_views(others[name]), (meeting, held[own]))
    parts: dict[Place, Part] = {}
    for wanted in theirs if met else ():
        for name, target in wanted.plain.items():
            place = wanted.state_dict.root, name
            if place not in lacking or not target.numel or _views(target) not in met:
                continue
            meeting, source = met[_views(target)]
            state_dict = meeting.ours.state_dict
            source = _settled(checkpoint, source, target, axes)
            action = _action(checkpoint, state_dict.root, source, target, name)
            if action:
                keys = wanted.state_dict.keys
                parts[place] = Part(state_dict, (action,), keys, keeps_others=False)
    return parts


def _views(item: Pair | TensorSpec) -> tuple[object, ...]:
    """Return what is the same for weights that are tied."""
    return (item.g.view, item.v.view) if isinstance(item, Pair) else item.view


def _misfit_notes(fit: _Fit, tied: Collection[Place], *, fill: bool) -> list[Note]:
    """Note what does not meet, and what becomes of it; `tied` is made of what does."""
    notes = []
    names = [join(*place) for place in tied]
    if names:
        message = phrase("made of what {} ties them to: {}", REFERENCE, few(names, _NAMED))
        notes.append(Note("reference-ties", message, names[0]))
    known = set(names)
    missing = [name for name in fit.missing if name not in known]
    mismatched = zip(fit.mismatched, fit.misshapen, strict=True)
    for code, left in (
        ("missing", missing),
        ("unexpected", fit.unexpected),
        ("shape-mismatch", [text for text, place in mismatched if place not in tied]),
    ):
        if left:
            is_filled = fill and code != "unexpected"
            words = (_FILLED if is_filled else _WORDS)[code]
            message = phrase("{}: {}", words, few(left, _NAMED))
            notes.append(Note("filled" if is_filled else code, message, left[0], is_warning=True))
    return notes


def _fill_in_place(checkpoint: Checkpoint, parts: Sequence[Part], filled: Sequence[Part]) -> bool:
    """Whether what is filled in goes to state dicts that stay, each of which is one mapping."""
    mappings = checkpoint.tree.mappings if checkpoint.tree else {}
    own = {part.keys for part in parts}
    different = {id(mappings.get(part.state_dict.keys, part)) for part in parts}
    return not filled or (len(different) == len(parts) and all(part.keys in own for part in filled))


_WORDS = {
    "missing": phrase("{} has, and this checkpoint has not", REFERENCE),
    "unexpected": phrase("left out, as {} has no place for it", REFERENCE),
    "shape-mismatch": phrase("left out, as it has another shape than {}", REFERENCE),
}
_FILLED = {
    "missing": phrase("taken from {}, as this checkpoint has it not", REFERENCE),
    "shape-mismatch": phrase("taken from {}, as it has another shape here", REFERENCE),
}


def _same_places(checkpoint: Checkpoint, ours: Sequence[Survey], parts: Sequence[Part]) -> bool:
    """Whether every state dict stays where it is, so that the rest of the file can stay too.

    One mapping under two keys has to become the same under both.
    """
    becomes: dict[int, tuple[Action, ...]] = {}
    mappings = checkpoint.tree.mappings if checkpoint.tree else {}
    return len(parts) == len(ours) and all(
        part.keys == part.state_dict.keys
        and not part.state_dict.holder
        and becomes.setdefault(id(mappings.get(part.keys, part)), part.actions) == part.actions
        for part in parts
    )


def _actions(checkpoint: Checkpoint, meeting: Meeting, fit: _Fit) -> tuple[Action, ...]:
    root = meeting.theirs.state_dict.root
    held = meeting.ours.plain
    by_name = {name: held[own] for own, name in meeting.names.items()}
    actions: list[Action] = []
    for name, target in meeting.theirs.plain.items():
        source = by_name.get(name)
        if source is None:
            continue
        if source.shape == target.shape:
            source = _settled(checkpoint, source, target, fit.axes)
        action = _action(checkpoint, meeting.ours.state_dict.root, source, target, name)
        if action is None:
            shapes = f"{list(source.shape)}, not {list(target.shape)}"
            fit.mismatched.append(f"{join(root, name)} {shapes}")
            fit.misshapen.append((root, name))
            continue
        fit.matched += 1
        actions.append(action)
    return tuple(actions)


def _action(
    checkpoint: Checkpoint,
    root: str,
    source: Pair | TensorSpec,
    target: Pair | TensorSpec,
    name: str,
) -> Action | None:
    """Return what makes `source` like `target`; None where their shapes differ."""
    if source.shape != target.shape:
        return None
    if isinstance(target, TensorSpec):
        if isinstance(source, TensorSpec):
            return Copy(source, name)
        _refuse_expansion(checkpoint, root, source.v)
        return Compose(source, name)
    halves = Halves(target.weight, target.g.name, target.v.name, target.naming, target.g.shape)
    if isinstance(source, TensorSpec):
        if source.dtype not in NORMALIZABLE:
            raise WeightNormError(
                f"{checkpoint.name}: {source.name}",
                phrase(
                    "a {} tensor cannot be normalized, as {} has it", source.dtype.label, REFERENCE
                ),
                expected="float64, float32, float16 or bfloat16",
            )
        for spec in (source, source._replace(shape=halves.g_shape)):
            _refuse_expansion(checkpoint, root, spec)
        return Decompose(source, target.dim, halves)
    if source.dim == target.dim or source.g.shape == target.g.shape:
        return Respell(source, halves)
    _refuse_expansion(checkpoint, root, source.v)
    return Renormalize(source, target.dim, halves)


def _settled(
    checkpoint: Checkpoint,
    source: Pair | TensorSpec,
    target: Pair | TensorSpec,
    axes: Sequence[int],
) -> Pair | TensorSpec:
    """Return a pair along the dim that REFERENCE shows, where its own g does not.

    `axes` are the dims that all g can be along of which that is so.

    Raises:
        WeightNormError: neither g shows it.
    """
    opened = [item for item in (source, target) if isinstance(item, Pair) and item.axes]
    if not opened or (len(opened) > 1 and opened[0].axes == opened[1].axes):
        return source  # g and v go where theirs are, whatever the dim
    if isinstance(source, Pair) and isinstance(target, Pair) and not target.axes:
        settled = settled_by(source, target.dim)
        if settled:
            return settled
    (pair, *_) = opened
    raise WeightNormError(
        f"{checkpoint.name}: {pair.weight}",
        f"{pair.g.name} {list(pair.g.shape)} fits several dims of {pair.v.name}"
        f" {list(pair.v.shape)}, and the other side does not show which",
        expected=f"one of {', '.join(map(str, pair.axes))}",
        hint=either(setting(dim=axis) for axis in axes),
    )


def _refuse_expansion(checkpoint: Checkpoint, root: str, spec: TensorSpec) -> None:
    path = join(root, spec.name)
    refuse_expansion(checkpoint, spec, partial=True, drop=[path])


def _judge(checkpoint: Checkpoint, reference: Checkpoint, fit: _Fit, *, partial: bool) -> None:
    bad = [
        f"{len(names):,} {word} ({few(names, _NAMED)})"
        for word, names in (
            ("missing", fit.missing),
            ("unexpected", fit.unexpected),
            ("of another shape", fit.mismatched),
        )
        if names
    ]
    if fit.matched and (partial or not bad):
        return
    expected = "the same tensors, but for weight norm, prefixes and roots"
    found = "; ".join((f"{fit.matched:,} that match", *bad))
    hint = phrase("{} writes those that match", setting(partial=True))
    if fit.missing or fit.mismatched:
        hint = phrase("{}, {} takes the others from {}", hint, setting(fill=True), REFERENCE)
    met = fit.matched + len(fit.mismatched)
    is_another = 2 * met < min(fit.ours, fit.theirs) or not met
    if is_another:
        # What few of the names meet is another model, or one whose names were changed.
        expected = f"names as in {reference.name}: {few(fit.missing)}"
        found = f"{fit.matched:,} that match; here: {few(fit.unexpected)}"
    if is_another or not fit.matched:
        hint = phrase("{}{}{}", listing(checkpoint), Text("; ", " && "), listing(reference))
    raise WeightNormError(
        checkpoint.name,
        f"this does not fit {reference.name}",
        expected=expected,
        found=found,
        hint=hint,
    )


def _renaming_notes(meeting: Meeting) -> list[Note]:
    found, wanted = meeting.ours.state_dict, meeting.theirs.state_dict
    root = wanted.root
    done = describe(meeting.names)
    notes = [Note("renamed", done, root)] if done else []
    if found.keys != wanted.keys:
        moved = f"the state dict at {found.root or 'the top'} is written at {root or 'the top'}"
        if found.root == root:
            moved += ", under another kind of key or in another kind of holder"
        notes.append(Note("moved", moved, root))
    return notes
