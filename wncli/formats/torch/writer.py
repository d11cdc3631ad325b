"""Makes the content of a torch file: the input's tree with its tensors exchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from wncli.checkpoint.checkpoint import aliases
from wncli.checkpoint.keys import Key, Keys, Position, shown
from wncli.checkpoint.layout import Content
from wncli.checkpoint.output import Output, OutputStateDict
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Dict, Node, entries_of
from wncli.formats.pickles.writer import Edits
from wncli.formats.torch.beside import respell_beside
from wncli.formats.torch.build import Build
from wncli.formats.torch.keys import key_of
from wncli.formats.torch.versions import copied, renamed_metadata, set_metadata
from wncli.hints import REFERENCE, phrase
from wncli.notes import Note

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


class EditedTree(NamedTuple):
    """What a checkpoint becomes, as a tree: `root` with the `edits` to its mappings and lists.

    `build` has made its new tensors.
    """

    root: Node
    protocol: int
    edits: Edits
    build: Build
    notes: tuple[Note, ...]


def torch_content(output: Output) -> TorchContent:
    """Make the pickle of the output, whatever the input's format.

    Raises:
        FormatError: a tensor's dtype does not exist in PyTorch.
    """
    made = edited_tree(output, "torch files")
    pickle, contents = made.build.finish(made.root, made.protocol, made.edits)
    names = [
        tensor.name
        for part in output.state_dicts
        for result in part.results
        for tensor in result.tensors
    ]
    return TorchContent(pickle, tuple(names), contents, made.notes)


def edited_tree(output: Output, files: str) -> EditedTree:
    """Put the tensors of an output into the input's tree, or into one of their own.

    Args:
        output: what to make a tree of.
        files: what holds it, in a note on what that has no place for.

    Raises:
        FormatError: a tensor's dtype does not exist in PyTorch.
    """
    tree = output.checkpoint.tree
    build = Build(tree, elsewhere=output.elsewhere)
    left = tree.without(output.drop) if tree else {}
    beside = respell_beside(output, left)
    edits: dict[int, list[Node]] = dict(left)
    state_dicts: dict[Keys, Node] = {}
    edited: dict[int, OutputStateDict] = {}
    together = _by_target(output)
    for part in output.state_dicts:
        node = tree.mappings.get(part.state_dict.keys) if tree and not part.is_filled else None
        if len(together[part.keys]) > 1:
            if part is not together[part.keys][0]:
                continue
            items, metadata = build.joined(together[part.keys], left)
            state_dicts[part.keys] = build.mapping(items, metadata)
            if node is not None and not output.alone:
                edits[id(node)] = items
                set_metadata(node, metadata, edits)
            continue
        if node is None:
            if output.alone or tree is None:
                state_dicts[part.keys] = build.flat(part)
            continue
        entries = left[id(node)] if id(node) in left else entries_of(node) or []
        first = edited.setdefault(id(node), part)
        differs = first is not part and first.results != part.results
        if differs:  # one mapping under two keys, which is to become two
            node = copied(node, part)
        else:
            set_metadata(node, renamed_metadata(part, node), edits)
        state_dicts[part.keys] = node
        if differs or first is part:
            edits[id(node)] = build.state_dict(part, entries)
    if tree and not output.alone:
        root, protocol = tree.root, tree.protocol
    else:
        root = _nested(state_dicts, edits, output.checkpoint.name)
        protocol = tree.protocol if tree else _DEFAULT_PROTOCOL
    notes = (*_lost_metadata(output, files), *_lost_entries(output), *beside)
    return EditedTree(root, protocol, edits, build, notes)


def _by_target(output: Output) -> dict[Keys, list[OutputStateDict]]:
    """Return the parts by the path at which they are to stand."""
    found: dict[Keys, list[OutputStateDict]] = {}
    for part in output.state_dicts:
        found.setdefault(part.keys, []).append(part)
    return found


def _nested(
    state_dicts: Mapping[Keys, Node], edits: dict[int, list[Node]], where: str, above: Keys = ()
) -> Node:
    """State dicts in plain dicts, lists and tuples, each at its path below `above`.

    Raises:
        FormatError: a list would have to have items that are none of them.
    """
    own = state_dicts.get(())
    below: dict[Key, dict[Keys, Node]] = {}
    for keys, node in state_dicts.items():
        if keys:
            below.setdefault(keys[0], {})[keys[1:]] = node
    items = {key: _nested(inner, edits, where, (*above, key)) for key, inner in below.items()}
    positions = [key for key in items if isinstance(key, Position)]
    if positions:
        return _listed(items, positions, where, above)
    if own is None:
        return Dict(list(items.items()))
    if items:  # one state dict inside another
        entries = edits[id(own)] if id(own) in edits else entries_of(own) or []
        kept = [(key, value) for key, value in entries if key_of(key, 0) not in items]
        own = replace(own)
        edits[id(own)] = [*kept, *items.items()]
    return own


def _listed(
    items: Mapping[Key, Node], positions: Sequence[Position], where: str, above: Keys
) -> Node:
    """Return the list or tuple of these items, which has to be all that is in it."""
    size = positions[0].of
    if len(positions) < size:
        kind = "tuple" if positions[0].in_tuple else "list"
        missing = next(n for n in range(size) if Position(n) not in items)
        raise FormatError(
            where,
            phrase(
                "{} has its state dict in a {} at {}, and there is nothing to write as item {}"
                " of it",
                REFERENCE,
                kind,
                shown(above) or "the top",
                f"{missing:,}",
            ),
            expected=f"a {kind} of state dicts that all have their counterparts here",
            found=f"{len(positions):,} of {size:,} items",
            hint=phrase("take as {} a file with the state dict alone, without the list", REFERENCE),
        )
    ordered = [items[position] for position in sorted(positions, key=lambda place: place.number)]
    return tuple(ordered) if positions[0].in_tuple else ordered


def _lost_entries(output: Output) -> list[Note]:
    """Return what was beside or in the state dicts that are written by themselves."""
    tree = output.checkpoint.tree
    mapped = [
        part
        for part in output.state_dicts
        if tree and part.keeps_others and part.state_dict.keys in tree.mappings
    ]
    lost = output.left_out(mapped) if output.alone or tree is None else []
    if not lost:
        return []
    return [Note("left-out", f"left out: {', '.join(lost)}")]


def _lost_metadata(output: Output, files: str) -> list[Note]:
    """Return what safetensors metadata says, and these files have no place for."""
    checkpoint = output.checkpoint
    own = [part.state_dict for part in output.state_dicts if not part.is_filled]
    ties = {name for state_dict in own for name in aliases(checkpoint, state_dict)}
    metadata = checkpoint.metadata or {}
    lost = [k for k, v in metadata.items() if k not in ties and (k, v) != ("format", "pt")]
    if not lost:
        return []
    message = f"{files} hold no safetensors metadata; left out: {', '.join(lost)}"
    return [Note("left-out", message, checkpoint.name, is_warning=True)]
