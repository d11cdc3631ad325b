"""Says what stands out in a checkpoint's names before one converts it: copies, wrappers, roots."""

from __future__ import annotations

from collections.abc import Sequence

from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.keys import Keys
from wncli.checkpoint.naming import join
from wncli.checkpoint.prefixes import unwrap
from wncli.errors import few
from wncli.hints import REFERENCE, either, parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.survey import Survey

#: As many names, and so deep, are searched for copies of one model.
_MOST_NAMES = 20_000
_DEEPEST = 3
#: Copies have as many names at least.
_LEAST = 3
#: As many copies are named.
_MOST_COPIES = 3


def name_notes(surveys: Sequence[Survey]) -> list[Note]:
    """Note copies under several prefixes, wrappers, and roots that could be one state dict."""
    notes = [note for found in surveys for note in _copies(found)]
    names = [spec.name for found in surveys for spec in found.state_dict.tensors]
    wrapped = [name for name in names if unwrap(name) != name]
    if wrapped:
        message = phrase(
            "{} and compare see past the wrappers, convert {} takes them off: {} is {}",
            parameter("like"),
            setting(flatten=True),
            wrapped[0],
            unwrap(wrapped[0]),
        )
        notes.append(Note("wrappers", message))
    return notes + _roots(surveys)


def _copies(found: Survey) -> list[Note]:
    """Note which prefixes have the same names below them, of a state dict that they make up."""
    state_dict = found.state_dict
    if not _LEAST < len(state_dict.tensors) <= _MOST_NAMES:
        return []
    names = list(found.plain)
    below: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".", _DEEPEST)
        for depth in range(1, len(parts)):
            below.setdefault(".".join(parts[:depth]), []).append(".".join(parts[depth:]))
    groups: dict[frozenset[str], list[str]] = {}
    for prefix, rest in below.items():
        is_model = len(rest) >= _LEAST and any("." in name for name in rest)
        # Layers have numbers, and so has what is below a list of them.
        is_layer = any(part.isdigit() for part in prefix.split("."))
        is_list = all(name.partition(".")[0].isdigit() for name in rest)
        if is_model and not is_layer and not is_list:
            groups.setdefault(frozenset(rest), []).append(prefix)
    for same, prefixes in sorted(groups.items(), key=lambda group: -len(group[0])):
        if len(prefixes) > 1 and 2 * len(same) * len(prefixes) > len(names):
            paths = [join(state_dict.root, prefix) for prefix in prefixes]
            message = phrase(
                "the same names are below {}: {} takes one",
                few(paths, _MOST_COPIES),
                either(setting(only=path) for path in paths[:_MOST_COPIES]),
            )
            return [Note("copies", message, state_dict.root)]
    return []


def _roots(surveys: Sequence[Survey]) -> list[Note]:
    """Note state dicts side by side that are different networks."""
    beside: dict[Keys, list[StateDict]] = {}
    for found in surveys:
        if found.state_dict.keys:
            beside.setdefault(found.state_dict.keys[:-1], []).append(found.state_dict)
    for state_dicts in beside.values():
        if len({frozenset(spec.name for spec in sd.tensors) for sd in state_dicts}) > 1:
            roots = [f"{state_dict.root}." for state_dict in state_dicts]
            message = phrase(
                "convert {} makes one state dict of these, with {} before the names; "
                "so does {} where {} has one",
                setting(flatten=True),
                few(roots),
                parameter("like"),
                REFERENCE,
            )
            return [Note("roots", message)]
    return []
