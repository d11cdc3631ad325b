"""Makes the pickle of a torch file from a plan: the input's tree with its tensors exchanged."""

from __future__ import annotations

from typing import NamedTuple

from wncli.checkpoint import aliases
from wncli.formats.pickles.nodes import (
    Dict,
    Node,
    entries_of,
)
from wncli.formats.torch_build import Build
from wncli.layout import Content
from wncli.naming import split
from wncli.notes import Note
from wncli.plan import (
    Change,
    Compose,
    Copy,
    Part,
    Plan,
    Respell,
    is_dropped,
    left_out,
    results_of,
)

_DEFAULT_PROTOCOL = 2


class TorchContent(NamedTuple):
    """A torch file before it is laid out: the pickle, and what fills the storages it names.

    Storage number i (`data/i`) is filled with `contents[i]`; the `direction` of a `Magnitude`
    is such a number here.
    """

    pickle: bytes
    names: tuple[str, ...]
    contents: tuple[Content, ...]
    notes: tuple[Note, ...]


def torch_content(plan: Plan) -> TorchContent:
    """The pickle that carries out `plan`, whatever the input's format.

    Raises:
        FormatError: a tensor's dtype does not exist in PyTorch.
    """
    tree = plan.checkpoint.tree
    build = Build(tree, elsewhere=plan.elsewhere)
    edits = tree.without(plan.drop) if tree else {}
    state_dicts: dict[str, Node] = {}
    edited: set[int] = set()
    for part in plan.parts:
        node = tree.mappings.get(part.state_dict.root) if tree else None
        if node is None:
            if plan.alone or tree is None:
                state_dicts[part.root] = build.flat(part)
            continue
        state_dicts[part.root] = node
        if id(node) in edited:  # one mapping under two keys
            continue
        edited.add(id(node))
        entries = edits[id(node)] if id(node) in edits else entries_of(node) or []
        edits[id(node)] = build.state_dict(part, entries)
    if tree and not plan.alone:
        root, protocol = tree.root, tree.protocol
    else:
        root, protocol = _nest(state_dicts), tree.protocol if tree else _DEFAULT_PROTOCOL
    pickle, contents = build.finish(root, protocol, edits)
    names = [name for part in plan.parts for a in part.actions for name, _ in results_of(a)]
    notes = (*_lost_metadata(plan), *_lost_entries(plan), *_optimizer_notes(plan))
    return TorchContent(pickle, tuple(names), contents, notes)


def _nest(state_dicts: dict[str, Node]) -> Node:
    """State dicts in plain dicts, each where its root says."""
    top = Dict()
    for root, node in state_dicts.items():
        if not root:
            return node
        *path, last = root.split(".")
        place = top
        for key in path:
            inner = next((value for name, value in place.entries if name == key), None)
            if inner is None:
                inner = Dict()
                place.entries.append((key, inner))
            place = inner
        place.entries.append((last, node))
    return top


def _keeps_parameters(part: Part) -> bool:
    """Whether the parameters keep number, shapes and order, which is how optimizers know them.

    Both spellings have g and v behind the module's other parameters; but the parametrized ones
    come behind those of its children too.
    """
    kept = {spec.name for action in part.actions for spec in action.sources}
    if any(spec.name not in kept for spec in part.state_dict.tensors):
        return False
    parents: set[str] = set()
    for action in part.actions:
        module = split(action.name if isinstance(action, Copy) else _weight_of(action))[0]
        while module:
            module = split(module)[0]
            parents.add(module)
    return all(
        isinstance(action, Copy)
        or (
            isinstance(action, Respell)
            and action.halves.g_shape == action.pair.g.shape
            and (
                action.halves.naming == action.pair.naming
                or split(action.halves.weight)[0] not in parents
            )
        )
        for action in part.actions
    )


def _weight_of(change: Change) -> str:
    return change.name if isinstance(change, Compose) else change.halves.weight


def _lost_entries(plan: Plan) -> list[Note]:
    """What stood beside or in the state dicts that are written by themselves."""
    tree = plan.checkpoint.tree
    mapped = [part for part in plan.parts if tree and part.state_dict.root in tree.mappings]
    lost = left_out(plan, mapped) if plan.alone or tree is None else []
    if not lost:
        return []
    return [Note("left-out", f"left out: {', '.join(lost)}")]


def _lost_metadata(plan: Plan) -> list[Note]:
    """What safetensors metadata says, and torch files have no place for."""
    ties = {name for part in plan.parts for name in aliases(plan.checkpoint, part.state_dict)}
    metadata = plan.checkpoint.metadata or {}
    lost = [k for k, v in metadata.items() if k not in ties and (k, v) != ("format", "pt")]
    if not lost:
        return []
    message = f"torch files hold no safetensors metadata; left out: {', '.join(lost)}"
    return [Note("left-out", message, str(plan.checkpoint.path), is_warning=True)]


def _optimizer_notes(plan: Plan) -> list[Note]:
    """A word on each optimizer that comes along though its parameters have changed."""
    paths = [
        entry.path
        for entry in plan.checkpoint.entries
        if entry.kind == "optimizer" and not is_dropped(entry.path, plan.drop)
    ]
    if plan.alone or not paths or not plan.changes:
        return []
    if all(_keeps_parameters(part) for part in plan.parts):
        words = "stays valid: g and v keep their numbers and order"
        return [Note("optimizer", f"the optimizer state {path!r} {words}", path) for path in paths]
    return [
        Note(
            "optimizer",
            f"the optimizer state {path!r} is kept, but no longer fits the changed"
            f" parameters; --drop {path} leaves it out",
            path,
            is_warning=True,
        )
        for path in paths
    ]
