"""Finds what a plain `torch.load` would run: the calls in a pickle that do more than make values.

Where one stands is told as `--drop` takes it, by the entry of the file that it is part of.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from wncli.checkpoint.checkpoint import DangerousCall, Entry
from wncli.checkpoint.keys import Keys
from wncli.errors import shortened
from wncli.formats.pickles.nodes import Call, Node, SetItems, entries_of, set_entries_of
from wncli.formats.pickles.reader import Pickle
from wncli.formats.torch.code_execution import PLAIN, find_running, handed_by, parts_of
from wncli.formats.torch.keys import items_of, spelled
from wncli.formats.torch.tree import TorchTree

#: In as many places one call is looked for, to leave it out.
_MOST_PLACES = 16
#: Characters of the place of a call, which each call of an entry tells.
_LONGEST = 200


def find_calls(
    pickles: Sequence[Pickle], tree: TorchTree | None, entries: Iterable[Entry] = ()
) -> tuple[DangerousCall, ...]:
    """Return what loading these pickles would run, in the order in which it would.

    Args:
        pickles: all that the file has.
        tree: what is in the first of them.
        entries: those of the tree.
    """
    nodes = {id(node): node for pickled in pickles for node in find_running(pickled)}
    if not nodes:
        return ()
    called = {id(node.function) for node in nodes.values() if isinstance(node, Call)}
    places = dict(_walk(tree, (tree.root,), frozenset(), nodes)) if tree else {}
    listed = {entry.keys for entry in entries}
    texts: dict[Keys, str] = {}  # one for all calls of an entry, whose name can be long

    def where(keys: Keys) -> str:
        if tree is None:
            return ""
        keys = _entry(keys, listed, tree)
        if keys not in texts:
            texts[keys] = shortened(tree.text(keys), _LONGEST)
        return texts[keys]

    return tuple(
        DangerousCall(spelled(node), where(places.get(key, ())), node, is_shown=key not in called)
        for key, node in nodes.items()
    )


def calls_left(
    tree: TorchTree, calls: Sequence[DangerousCall], roots: Iterable[Node], drop: Collection[Keys]
) -> list[DangerousCall]:
    """Those of `calls` that are part of what stands at `roots`, when `drop` is left out of it."""
    found = dict(_walk(tree, roots, drop, {id(call.node) for call in calls}))
    return [call for call in calls if id(call.node) in found]


def entries_to_drop(
    tree: TorchTree,
    calls: Iterable[DangerousCall],
    roots: Iterable[Node],
    drop: Collection[Keys],
    listed: Collection[Keys],
) -> list[str]:
    """Say what to leave out beside `drop`, for none of `calls` to be part of what `roots` hold.

    Empty where that is nothing that can be left out, or more than anybody would type.
    """
    wanted = {id(call.node) for call in calls}
    roots = tuple(roots)
    found: dict[Keys, None] = {}
    for _ in range(_MOST_PLACES):
        places = dict(_walk(tree, roots, {*drop, *found}, wanted))
        if not places:
            return list(map(tree.text, found))
        more = dict.fromkeys(_entry(path, listed, tree) for path in places.values())
        if () in more or found.keys() >= more.keys():
            break
        found |= more
    return []


def _entry(keys: Keys, listed: Collection[Keys], tree: TorchTree) -> Keys:
    """Give the entry that a path leads into, or the member of a state dict where none is listed."""
    for length in range(len(keys)):
        if keys[:length] in listed:
            return keys[:length]
    for length in range(len(keys) - 1, -1, -1):
        if keys[:length] in tree.mappings:
            return keys[: length + 1]
    return keys


def _members(node: Node, own: Keys) -> Iterator[tuple[Node, Keys]]:
    """Return the items of a container at `own`, each with its path, a mapping's with their keys.

    Also those that others took the place of, which are made all the same.
    """
    items = node if isinstance(node, list) else entries_of(node) or []
    for item, (key, _) in zip(items, items_of(node), strict=True):
        yield item, (*own, key)
    every = [] if isinstance(node, list) else set_entries_of(node) or []
    if len(every) > len(items):
        yield from ((entry, (*own, entry[0])) for entry in every if isinstance(entry[0], str))


def _walk(
    tree: TorchTree, roots: Iterable[Node], drop: Collection[Keys], wanted: Collection[int]
) -> Iterator[tuple[int, Keys]]:
    """Find which of the `wanted` nodes can be reached, by id, with the entry that each is in."""
    paths: dict[int, Keys] = {}
    for path, node in tree.containers.items():
        paths.setdefault(id(node), path)
    for keys in drop:  # which may be in what is not listed
        paths.setdefault(id(tree.container(keys[:-1])), keys[:-1])
    seen: set[int] = set()
    stack: list[tuple[Node, Keys]] = [(root, paths.get(id(root), ())) for root in roots]
    while stack:
        node, path = stack.pop()
        if type(node) in PLAIN or id(node) in seen:
            continue
        seen.add(id(node))
        if id(node) in wanted:
            yield id(node), path
        own = paths.get(id(node))
        if own is None or isinstance(node, tuple):  # of which no item can be dropped
            stack += [(part, path) for part in parts_of(node)]
            continue
        stack += [(item, inner) for item, inner in _members(node, own) if inner not in drop]
        if isinstance(node, Call):
            stack += [(part, own) for part in _own_parts(node)]


def _own_parts(call: Call) -> Iterator[Node]:
    """Return what a call is made of, but for the items that are set on its result."""
    yield from (call.function, call.args, call.keywords)
    for effect in call.effects:
        if not isinstance(effect, SetItems):
            yield from handed_by(effect)
