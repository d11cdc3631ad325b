"""What goes by a model's parameters beside its state dicts: optimizers, and lists by position."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from wncli.checkpoint.keys import Keys, Position, is_within
from wncli.checkpoint.output import Output
from wncli.errors import FormatError, few
from wncli.formats.pickles.nodes import Node
from wncli.formats.torch.fitting import Fitting
from wncli.formats.torch.keys import items_of
from wncli.formats.torch.optimizers import Optimizer, read_optimizer, respell
from wncli.formats.torch.tensors import read_tensor
from wncli.formats.torch.tree import TorchTree
from wncli.hints import phrase, setting
from wncli.notes import Note

#: What torch_ema calls its lists of tensors (`torch_ema/ema.py`, `state_dict`).
_EMA = ("shadow_params", "collected_params")
#: What else is in an EMA that is nothing but one.
_PLAIN = (list, tuple, int, float, type(None))


class _Item(NamedTuple):
    """An item of a mapping or list: where it is, and what `--drop` leaves out without harm."""

    path: Keys
    node: Node
    droppable: Keys


def respell_beside(output: Output, edits: dict[int, list[Node]]) -> list[Note]:
    """Respell what names parameters, in `edits`; notes on that, and on what no longer fits."""
    tree = output.checkpoint.tree
    if tree is None or output.alone:
        return []
    fitting = Fitting.of(output)
    if not fitting.is_changed:
        return []
    items = [item for item in _items(tree) if not is_within(item.path, output.drop)]
    entries = {entry.keys for entry in output.checkpoint.entries if entry.kind == "optimizer"}
    notes = _optimizer_notes(tree, items, entries, fitting, edits)
    return [*notes, *_list_notes(tree, items, fitting)]


def _items(tree: TorchTree) -> Iterator[_Item]:
    """All items that are looked at; those of a list, or of an EMA, are left out together."""
    seen: set[int] = set()
    for path, node in tree.containers.items():
        if path in tree.mappings and id(node) in seen:  # a state dict at another root too
            continue
        seen.add(id(node))
        members = dict(items_of(node))
        together = isinstance(node, (list, tuple)) or (
            _EMA[0] in members and all(isinstance(item, _PLAIN) for item in members.values())
        )
        for key, value in members.items():
            own = (*path, key)
            yield _Item(own, value, path if together and path else own)


def _optimizer_notes(
    tree: TorchTree,
    items: Sequence[_Item],
    entries: Collection[Keys],
    fitting: Fitting,
    edits: dict[int, list[Node]],
) -> list[Note]:
    """Note each optimizer once, and those of an entry together of which the same is true."""
    told: dict[int, tuple[str, bool]] = {}
    verdicts: dict[Keys, dict[Keys, tuple[str, bool]]] = {}
    known_as: dict[int, Optimizer | None] = {}
    for item in items:
        if id(item.node) not in known_as:
            known_as[id(item.node)] = read_optimizer(item.node)
        optimizer = known_as[id(item.node)]
        if optimizer is None:
            continue
        if id(item.node) not in told:
            told[id(item.node)] = _judge(optimizer, fitting, edits)
        above = (item.path[:length] for length in range(len(item.path), 0, -1))
        entry = next((path for path in above if path in entries), item.droppable)
        of_entry = verdicts.setdefault(entry, {})
        known = of_entry.get(item.droppable)
        if known is None or not known[1]:
            of_entry[item.droppable] = told[id(item.node)]
    notes = []
    for entry, found in verdicts.items():
        together = {entry: next(iter(found.values()))} if len(set(found.values())) == 1 else found
        for keys, (words, is_warning) in together.items():
            path = tree.text(keys)
            message = f"the optimizer state {path!r} {words}"
            if is_warning:
                message = phrase("{}; {} leaves it out", message, setting(drop=[path]))
            notes.append(Note("optimizer", message, path, is_warning=is_warning))
    return notes


def _judge(
    optimizer: Optimizer, fitting: Fitting, edits: dict[int, list[Node]]
) -> tuple[str, bool]:
    """Respell an optimizer; what is to be said of it, and whether that is a warning."""
    found = fitting.new_names(optimizer.names)
    respelled = {name: new for name, new in found.items() if new is not None and new != name}
    unknown = [name for name in optimizer.names if name not in found]
    if len({respelled.get(name, name) for name in optimizer.names}) < len(optimizer.names):
        respelled = {}  # a new name is taken already
    if respelled:
        respell(optimizer, respelled, edits)
    words = ""
    if found and not unknown and all(name == new for name, new in found.items()):
        words = "stays valid: none of its parameters is changed"
    elif optimizer.by_number:
        if fitting.keeps_order:
            words = "stays valid: its parameters keep their number and order"
    elif not found:
        return "is kept as it is: the parameters that it names are in no state dict here", True
    elif all(respelled.get(name, name) == new for name, new in found.items()):
        words = "stays valid: it has the new names of g and v"
        if unknown:
            words = f"is kept and fits, but for names that no state dict here has: {few(unknown)}"
    return (words, False) if words else ("is kept, but no longer fits the changed parameters", True)


def _list_notes(tree: TorchTree, items: Sequence[_Item], fitting: Fitting) -> list[Note]:
    """Warn of each list of tensors that stand for parameters which are others now."""
    notes: dict[Keys, Note] = {}
    fits: dict[tuple[int, bool], bool] = {(id(node), whole): True
        for node in tree.mappings.values() for whole in (False, True)}  # fmt: skip
    for item in items:
        is_whole = item.path[-1] in _EMA
        known = id(item.node), is_whole
        if known not in fits:
            shapes = _shapes(tree, item)
            meant = fitting.meant_by(shapes) if len(shapes) > 1 else []
            fits[known] = all(fate.keeps_order for fate in meant)
            if shapes and is_whole and not meant:
                fits[known] = fitting.keeps_order
        if fits[known]:
            continue
        path = tree.text(item.droppable)
        notes[item.droppable] = Note(
            "by-position",
            phrase(
                "the tensors in {} stand for parameters by position, and no longer fit the changed"
                " ones; {} leaves them out",
                repr(path),
                setting(drop=[path]),
            ),
            path,
            is_warning=True,
        )
    return list(notes.values())


def _shapes(tree: TorchTree, item: _Item) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors in a list, or under the numbers from 0 on; else none."""
    members = dict(items_of(item.node))
    numbers = [key.number if isinstance(key, Position) else key for key in members]
    if numbers != list(range(len(members))):
        return []
    shapes = []
    for node in members.values():
        try:
            spec = read_tensor(node, tree.references, tree.text(item.path), "")
        except FormatError:  # nobody has asked for this tensor
            return []
        if spec is None:
            return []
        shapes.append(spec.shape)
    return shapes
