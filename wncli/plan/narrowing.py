"""What `--only` and `--drop` leave of a checkpoint: by root, entry, or dotted prefix. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys, is_within
from wncli.checkpoint.naming import join
from wncli.errors import UsageError, few
from wncli.hints import either, given, inspecting, parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.rules import is_glob

#: As many names are searched for a prefix that may have been meant, and as many are shown.
_MOST_SEARCHED = 5000
_MOST_NEAR = 3


def named(checkpoint: Checkpoint, only: str | None) -> tuple[StateDict, ...]:
    """Return the state dicts that `only` names: a root's, or the tensors below a dotted prefix.

    The prefix is taken off the names. None names all state dicts.
    """
    if only is None:
        return checkpoint.state_dicts
    whole = tuple(sd for sd in checkpoint.state_dicts if sd.root == only)
    return whole or tuple(
        _below(state_dict, prefix)
        for state_dict, prefix in _prefixed(checkpoint, only)
        if any(spec.name.startswith(prefix) for spec in state_dict.tensors)
    )


def state_dicts_left(
    checkpoint: Checkpoint, only: str | None, drop: frozenset[Keys]
) -> tuple[StateDict, ...]:
    """Return the state dicts that `--only` and `--drop` leave.

    Raises:
        UsageError: a root that matches nothing, or is left out.
    """
    found = named(checkpoint, only)
    if only is not None and not found:
        raise no_such_root(only, (checkpoint,))
    left = tuple(
        _without(state_dict, drop) for state_dict in found if not is_within(state_dict.keys, drop)
    )
    if only is not None and not left:
        raise UsageError(
            given(only=only), phrase("{} leaves this state dict out", parameter("drop"))
        )
    return left


def dropped(checkpoint: Checkpoint, drop: frozenset[str]) -> frozenset[Keys]:
    """Find where that stands which `--drop` names: an entry, or all below a prefix of names.

    What is neither is a glob over entries, roots and the full paths of tensors.

    Raises:
        UsageError: an entry that is not there.
    """
    found: frozenset[Keys] = frozenset()
    tensors = {spec.name for sd in checkpoint.state_dicts for spec in sd.tensors if drop}
    for path in sorted(drop):
        is_tensor = not checkpoint.tree and path in tensors
        meant = frozenset[Keys]({(path,)} if is_tensor else ())
        meant = meant or _dropped_by(checkpoint, path) or _globbed(checkpoint, path)
        found |= meant
        if meant:
            continue
        near = [one for one in near_prefixes(checkpoint, path) if _dropped_by(checkpoint, one)]
        known = [entry.path for entry in checkpoint.entries]
        known += [sd.root for sd in checkpoint.state_dicts if sd.root] or sorted(tensors)[:5]
        raise UsageError(
            given(drop=[path]),
            "it matches no entry and no tensor"
            if is_glob(path)
            else "there is no entry of this name",
            expected=f"such as {', '.join(known)}" if known else "",
            hint=either(setting(drop=[prefix]) for prefix in near) or inspecting(checkpoint.name),
        )
    return found


def no_such_root(only: str, checkpoints: tuple[Checkpoint, ...]) -> UsageError:
    """Make the refusal of an `--only` that names nothing in any of these."""
    known = dict.fromkeys(sd.root or "the top" for one in checkpoints for sd in one.state_dicts)
    near = dict.fromkeys(prefix for one in checkpoints for prefix in near_prefixes(one, only))
    return UsageError(
        given(only=only),
        "there is no state dict of this name",
        expected=f"one of: {', '.join(known)}, or a prefix of names in it"
        if known
        else "a checkpoint with a state dict",
        hint=either(setting(only=prefix) for prefix in near),
    )


def near_prefixes(checkpoint: Checkpoint, text: str) -> list[str]:
    """Return roots that `text` is a part of, and prefixes of names that end so."""
    wanted = text.strip("*.")
    found: dict[str, None] = {}
    if wanted and wanted != text and named(checkpoint, wanted):
        found[wanted] = None
    for state_dict in checkpoint.state_dicts if wanted else ():
        if f".{wanted}." in f".{state_dict.root}.":
            found[state_dict.root] = None
        for spec in state_dict.tensors[:_MOST_SEARCHED]:
            place = f".{spec.name}".find(f".{wanted}.")
            if place >= 0:
                found[join(state_dict.root, spec.name[: place + len(wanted)])] = None
            if len(found) >= _MOST_NEAR:
                return list(found)
    return list(found)


def is_whole(state_dict: StateDict) -> bool:
    """Whether it is all of its state dict, not what is below a prefix."""
    return state_dict.stored is None or state_dict.stored.keys == state_dict.keys


def narrowing_notes(checkpoint: Checkpoint, state_dict: StateDict) -> list[Note]:
    """Note which tensors of its state dict a prefix leaves out."""
    stored = state_dict.stored
    if stored is None or is_whole(state_dict):
        return []
    prefix = f"{state_dict.keys[-1]}."
    whole = next(sd for sd in checkpoint.state_dicts if sd.keys == stored.keys)
    names = [spec.name for spec in whole.tensors if not spec.name.startswith(prefix)]
    message = f"left out, as they are not below {state_dict.root}: {few(names)}"
    return [Note("left-out", message, stored.root)] if names else []


def drop_notes(checkpoint: Checkpoint, drop: frozenset[Keys]) -> list[Note]:
    """Note which tensors are taken out of state dicts that stay."""
    staying = [sd for sd in checkpoint.state_dicts if drop and not is_within(sd.keys, drop)]
    gone = [
        (sd.root, [spec.name for spec in sd.tensors if (*sd.keys, spec.name) in drop])
        for sd in staying
    ]
    return [Note("left-out", f"dropped: {few(names)}", root) for root, names in gone if names]


def _prefixed(checkpoint: Checkpoint, path: str) -> Iterator[tuple[StateDict, str]]:
    """Give the state dicts in which `path` can be a prefix of names, and that prefix."""
    for state_dict in checkpoint.state_dicts:
        root = f"{state_dict.root}." if state_dict.root else ""
        if path.startswith(root) and len(path) > len(root):
            yield state_dict, f"{path[len(root) :]}."


def _below(state_dict: StateDict, prefix: str) -> StateDict:
    inside = tuple(spec for spec in state_dict.tensors if spec.name.startswith(prefix))
    stored = state_dict._replace(
        tensors=inside, parts=tuple(name for name in state_dict.parts if name.startswith(prefix))
    )
    return StateDict(
        join(state_dict.root, prefix[:-1]),
        tuple(spec._replace(name=spec.name[len(prefix) :]) for spec in inside),
        holder=state_dict.holder,
        keys=(*state_dict.keys, prefix[:-1]),
        parts=stored.parts,
        stored=stored,
    )


def _without(state_dict: StateDict, drop: frozenset[Keys]) -> StateDict:
    """Leave out the tensors that are in `drop`, by their names in the file."""
    stored = state_dict.stored or state_dict
    if not drop:
        return state_dict
    kept = [(*stored.keys, spec.name) not in drop for spec in stored.tensors]
    seen = tuple(spec for spec, is_kept in zip(state_dict.tensors, kept, strict=True) if is_kept)
    if state_dict.stored is None:
        return state_dict._replace(tensors=seen)
    left = tuple(spec for spec, is_kept in zip(stored.tensors, kept, strict=True) if is_kept)
    return state_dict._replace(tensors=seen, stored=stored._replace(tensors=left))


def _dropped_by(checkpoint: Checkpoint, path: str) -> frozenset[Keys]:
    """Find where the items stand that a path shows, or else a prefix of names."""
    shown = checkpoint.tree.named(path) if checkpoint.tree else frozenset[Keys]()
    return shown or frozenset(_below_prefix(checkpoint, path))


def _below_prefix(checkpoint: Checkpoint, path: str) -> Iterator[Keys]:
    """Give where names with a prefix stand, on all paths that lead to their mapping."""
    for state_dict, prefix in _prefixed(checkpoint, path):
        names = [spec.name for spec in state_dict.tensors] + list(state_dict.others)
        yield from _places(checkpoint, state_dict, [n for n in names if n.startswith(prefix)])


def _globbed(checkpoint: Checkpoint, glob: str) -> frozenset[Keys]:
    """Find where that stands whose path a glob matches."""
    if not is_glob(glob):
        return frozenset()
    matches = re.compile(fnmatch.translate(glob)).match
    found: set[Keys] = set()
    tree = checkpoint.tree
    if tree:
        listed = [entry.path for entry in checkpoint.entries]
        listed += [state_dict.root for state_dict in checkpoint.state_dicts if state_dict.root]
        found.update(*(tree.named(path) for path in filter(matches, listed)))
    for state_dict in checkpoint.state_dicts:
        if not is_within(state_dict.keys, found):
            names = [spec.name for spec in state_dict.tensors] + list(state_dict.others)
            matching = [name for name in names if matches(join(state_dict.root, name))]
            found.update(_places(checkpoint, state_dict, matching))
    return frozenset(found)


def _places(checkpoint: Checkpoint, state_dict: StateDict, names: Iterable[str]) -> Iterator[Keys]:
    """Give where items of a state dict stand, on all paths that lead to their mapping."""
    mappings = checkpoint.tree.mappings if checkpoint.tree else {}
    node = mappings.get(state_dict.keys)
    if checkpoint.tree and node is None:  # an object, of which nothing can be taken
        return
    places = [keys for keys, other in mappings.items() if other is node] or [state_dict.keys]
    yield from ((*keys, name) for name in names for keys in places)
