"""Makes the pickle of a torch file from a plan: the input's tree with its tensors exchanged."""

from __future__ import annotations

from typing import NamedTuple

from wncli.checkpoint import aliases
from wncli.formats.pickles.nodes import (
    Dict,
    Node,
    entries_of,
)
from wncli.formats.torch_beside import respell_beside
from wncli.formats.torch_build import Build
from wncli.layout import Content
from wncli.notes import Note
from wncli.plan import Plan, left_out, results_of

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
    beside = respell_beside(plan, edits)
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
    notes = (*_lost_metadata(plan), *_lost_entries(plan), *beside)
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
