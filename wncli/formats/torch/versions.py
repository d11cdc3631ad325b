"""The `_metadata` of a state dict: what modules wrote of themselves, by their names.

Source: PyTorch `torch/nn/modules/module.py`. `state_dict` makes it an attribute of the OrderedDict,
and in `load_state_dict` a module finds there the version that it was saved by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from wncli.checkpoint.naming import join, read_half, split
from wncli.checkpoint.output import OutputStateDict
from wncli.formats.pickles.nodes import Built, Call, Dict, Node, entries_of
from wncli.formats.pickles.writer import Entries

_ATTRIBUTE = "_metadata"
#: As many modules deep are names followed.
_DEEPEST = 32


def renamed_metadata(part: OutputStateDict, node: Node) -> Entries | None:
    """Return the items of a state dict's `_metadata` by the names that its modules get."""
    metadata = _metadata_of(node)
    if metadata is None:
        return None
    entries = entries_of(metadata) or []
    modules = _modules(part)
    if all(old == new for old, new in modules.items()):
        return list(entries)
    renamed: dict[str, Node] = {}
    named = [(key, value) for key, value in entries if isinstance(key, str)]
    for key, value in named:
        if key in modules:
            renamed.setdefault(modules[key], value)
    for key, value in named:
        if key not in modules:
            renamed.setdefault(_follow(key, modules), value)
    return list(renamed.items())


def merged(several: Iterable[Entries | None]) -> Entries | None:
    """Put the items of several `_metadata` into one, the first of each name; None of none."""
    some = [entries for entries in several if entries is not None]
    found: dict[Node, Node] = {}
    for entries in some:
        for key, value in entries:
            found.setdefault(key, value)
    return list(found.items()) if some else None


def built_with(metadata: Entries) -> Built:
    """Make the state that gives an OrderedDict these items of `_metadata`."""
    return Built(Dict([(_ATTRIBUTE, Dict(metadata))]))


def set_metadata(node: Node, metadata: Entries | None, edits: dict[int, list[Node]]) -> None:
    """Add to `edits` that a state dict's `_metadata`, if it has one, is to have these items."""
    own = _metadata_of(node)
    if own is not None and metadata is not None:
        edits[id(own)] = metadata


def has_metadata(node: Node) -> bool:
    """Whether a state dict says of its modules which version saved them."""
    metadata = _metadata_of(node)
    return metadata is not None and bool(entries_of(metadata))


def copied(node: Node, part: OutputStateDict) -> Node:
    """Return the node of a state dict anew, with a `_metadata` of its own."""
    metadata = renamed_metadata(part, node)
    if metadata is None:
        return replace(node)
    effects = [
        Built(Dict([
            (key, Dict(metadata) if key == _ATTRIBUTE else value)
            for key, value in effect.state.entries
        ]))
        if isinstance(effect, Built) and isinstance(effect.state, Dict)
        else effect
        for effect in node.effects
    ]  # fmt: skip
    return replace(node, effects=effects)


def _metadata_of(node: Node) -> Node | None:
    for effect in node.effects if isinstance(node, Call) else ():
        state = effect.state if isinstance(effect, Built) else None
        for key, value in state.entries if isinstance(state, Dict) else ():
            if key == _ATTRIBUTE and entries_of(value) is not None:
                return value
    return None


def _modules(part: OutputStateDict) -> dict[str, str]:
    """Return what the modules are to be called that have tensors below them, where that is one."""
    modules: dict[str, str] = {}
    for result in part.results:
        old, new = result.home.name, result.weight
        half = read_half(old) if len(result.sources) > 1 else None
        old = split(half.weight if half else old)[0]
        new = split(new)[0]
        for _ in range(_DEEPEST):
            if old in modules:
                break
            modules[old] = new
            (old, one), (new, other) = split(old), split(new)
            if one != other or not one:
                break
    return modules


def _follow(module: str, modules: Mapping[str, str]) -> str:
    """Return what a module without tensors is to be called: as what it stands in."""
    above = module
    for _ in range(_DEEPEST):
        if not above:
            break
        above = split(above)[0]
        if above in modules:
            new = modules[above]
            return join(new, module[len(above) + 1 :] if above else module)
    return module
