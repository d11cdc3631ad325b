"""Lists and describes what is in a torch file's tree beside its state dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from wncli.checkpoint.checkpoint import Entry
from wncli.checkpoint.keys import Key, Keys, shown_key
from wncli.formats.pickles.nodes import Built, Call, Dict, Node, Set, Unread, entries_of
from wncli.formats.torch.keys import items_of
from wncli.formats.torch.modules import ModuleReader, NameBudget, holder_of
from wncli.formats.torch.optimizers import count_parameters, is_optimizer
from wncli.formats.torch.tensors import called_name, read_tensor
from wncli.formats.torch.tree import References

#: What is shown as something else is shown already has a mark, from the third on with a number.
_SECOND = 2
#: What a path, or an entry, counts for beside its characters: about what it takes in memory.
_PLACE = 64


@dataclass(slots=True)
class Paths:
    """How the paths of a tree are shown, each in a way of its own."""

    budget: NameBudget
    #: How often something was to be shown so.
    taken: dict[str, int] = field(default_factory=dict)
    shown: dict[Keys, str] = field(default_factory=dict)

    def name(self, keys: Keys, path: str) -> str:
        """Show a path, with a mark where another reads the same, as keys can have dots."""
        self.budget.spend(len(path) + _PLACE)
        name = path
        while name in self.taken:
            self.taken[path] += 1
            number = self.taken[path]
            name = f"{path}'{number if number > _SECOND else ''}"
        self.taken[name] = 1
        self.shown[keys] = name
        return name


@dataclass(slots=True)
class EntryLister:
    """Describes what is no state dict; what is shared is looked at once."""

    modules: ModuleReader
    references: References
    where: str
    paths: Paths
    #: The kinds and summaries of entries, by the ids of their nodes.
    summaries: dict[int, tuple[str, str]] = field(default_factory=dict)

    def entries(self, path: Keys, node: Node, *, is_state_dict: bool) -> Iterator[Entry]:
        """List the members of a container that have no name yet."""
        above = f"{self.paths.shown[path]}." if self.paths.shown[path] else ""
        for key, value, is_taken in self.unnamed(path, node, is_state_dict=is_state_dict):
            keys, name = (*path, key), above + shown_key(key)
            if is_taken:
                self.paths.taken.setdefault(name, 1)
            yield self.entry(self.paths.name(keys, name), value, keys)

    def unnamed(
        self, path: Keys, node: Node, *, is_state_dict: bool
    ) -> list[tuple[Key, Node, bool]]:
        """Give the members of a container that are neither state dicts nor hold some.

        Of a state dict only those that have no name in it, as their keys are no text; and whether
        something in it has a name that reads the same.
        """
        if is_state_dict and all(isinstance(key, str) for key, _ in entries_of(node) or []):
            return []
        members = dict(items_of(node))  # of a key that was set twice, the last is what counts
        return [
            (key, value, is_state_dict and shown_key(key) in members)
            for key, value in members.items()
            if not (is_state_dict and isinstance(key, str)) and (*path, key) not in self.paths.shown
        ]

    def entry(self, path: str, value: Node, keys: Keys) -> Entry:
        """Describe something that is no state dict."""
        found = self.summaries.get(id(value))
        if found is None:
            found = self.summaries[id(value)] = self.summary(path, value)
        return Entry(path, *found, keys)

    def summary(self, path: str, value: Node) -> tuple[str, str]:
        """Return the kind of an entry, and what to say of it."""
        spec = read_tensor(value, self.references, path, self.where)
        if spec:
            return "tensor", f"{spec.dtype.label} tensor {list(spec.shape)}"
        optimizers = _optimizers(value)
        if optimizers:
            count = sum(optimizers)
            what = "optimizer" if len(optimizers) == 1 else f"{len(optimizers)} optimizers"
            plural = "s" if count != 1 else ""
            return "optimizer", f"{what}, state of {count} parameter{plural}"
        if isinstance(value, Call):
            if self.modules.module(value):
                return "object", f"{holder_of(value)} without tensors"
            name = called_name(value) or "object"
            built = [e.state for e in value.effects if isinstance(e, Built)]
            items = entries_of(value) or (entries_of(built[0]) if built else None)
            return "object", f"{name}, {_items(items)}" if items else name
        return "value", _summary(value)


def _optimizers(node: Node, depth: int = 3) -> list[int]:
    """How many parameters each optimizer has that `node` is, or consists of, as a dict or list.

    Beside each there can be its name, as in the pairs of StyleTTS 2's `MultiOptimizer`.
    """
    if depth == 0:
        return []
    members: Iterable[Node]
    if isinstance(node, (list, tuple)):
        members = [member for member in node if not isinstance(member, str)]
    else:
        values = dict(items_of(node))
        named = {key: value for key, value in values.items() if isinstance(key, str)}
        if is_optimizer(named):
            return [count_parameters(named)]
        members = values.values()
    found: list[int] = []
    seen: set[int] = set()
    for member in members:
        if id(member) in seen:
            continue
        seen.add(id(member))
        counts = _optimizers(member, depth - 1)
        if not counts:
            return []
        found += counts
    return found


def _items(items: Sequence[tuple[Node, Node]]) -> str:
    return f"{len(items)} item{'s' if len(items) != 1 else ''}"


def _summary(value: Node) -> str:
    if isinstance(value, Dict):
        return f"dict, {_items(value.entries)}"
    if isinstance(value, (list, tuple, Set)):
        size = len(value.items if isinstance(value, Set) else value)
        return f"{type(value).__name__.lower()}, {size} item{'s' if size != 1 else ''}"
    if isinstance(value, (str, bytes)):
        shown = repr(value[:40])
        return shown if len(value) <= 40 else f"{shown}… ({len(value)} characters)"  # noqa: PLR2004
    if isinstance(value, Unread):
        return f"{value.kind.__name__}, {value.nbytes:,} bytes"
    if isinstance(value, int) and value.bit_length() > 128:  # noqa: PLR2004
        return f"int of {value.bit_length()} bits"
    return repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__
