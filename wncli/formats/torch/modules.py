"""Reads whole pickled modules as the state dicts that they would give.

Source: PyTorch `torch/nn/modules/module.py` (`state_dict`, `_save_to_state_dict`). What a class
makes of it in code of its own, such as `get_extra_state`, cannot be known from a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from wncli.checkpoint.checkpoint import StateDict
from wncli.checkpoint.keys import shown_key
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Added, Built, Call, Node, Set, entries_of
from wncli.formats.torch.keys import find_ambiguous, items_of, spelled
from wncli.formats.torch.tensors import called_name, is_part, read_tensor
from wncli.formats.torch.tree import References

#: PyTorch makes state dicts by recursion, which Python ends about here.
_DEEPEST_MODULE = 1000

#: What names may be made up of, in characters: for any file, and for each byte of its pickle.
_NAMES = 1 << 22
_NAMES_PER_BYTE = 16
#: What a tensor counts for beside its name: what it takes in memory, and in time.
TENSOR = 128
#: What an item of a mapping counts for that is looked through for each of its owners.
ITEM = 8

_STATE = frozenset({"_parameters", "_buffers", "_modules"})
#: What `Module.__setstate__` sets where an old file lacks it; a parameter of this name goes then.
_SET = "_is_full_backward_hook"


@dataclass(slots=True)
class NameBudget:
    """How many characters of names may still be made up from what a file shares between paths.

    A few doubly shared levels would otherwise spell more names than any memory holds.
    """

    where: str
    left: int

    def spend(self, characters: int) -> None:
        """Count so many characters.

        Raises:
            FormatError: they are more than files have whose content was not made to explode.
        """
        self.left -= characters
        if self.left < 0:
            raise FormatError(
                self.where,
                "what the file shares between its entries would unfold into too many names",
                expected="names in proportion to the file",
                hint="load it with torch.load where its code is, and save its state_dict()",
            )


def budget_for(where: str, nbytes: int) -> NameBudget:
    """Return what a pickle of so many bytes may spell; `where` is the file."""
    return NameBudget(where, _NAMES + _NAMES_PER_BYTE * nbytes)


class Module(NamedTuple):
    """What a module keeps: its tensors by name, in the order of the state dict, and submodules.

    `others` are keys among them that are no text, as they are shown.
    """

    tensors: tuple[tuple[str, Node], ...]
    modules: tuple[tuple[str, Node], ...]
    others: tuple[str, ...] = ()


@dataclass(eq=False, repr=False, slots=True)
class ModuleReader:
    """Unfolds the modules of one tree; each is read once, wherever it is shared.

    `read` tells what the module at a node keeps, and is None where that is no module.
    """

    read: Callable[[Node], Module | None]
    references: References
    budget: NameBudget
    known: dict[int, Module | None] = field(default_factory=dict)

    def module(self, node: Node) -> Module | None:
        """Return what this node keeps, or None where it is no module."""
        if not isinstance(node, Call):
            return None
        if id(node) not in self.known:
            self.known[id(node)] = self.read(node)
        return self.known[id(node)]

    def state_dict(self, top: Node, holder: str) -> StateDict:
        """Return what `state_dict()` of the module at `top` would give, in its order.

        Its root is left empty; `holder` is what to call the module.

        Raises:
            FormatError: a module holds itself, or modules unfold without bound.
        """
        found: dict[str, TensorSpec | None] = {}
        parts: list[str] = []
        open_modules: set[int] = set()
        stack: list[tuple[str, Node, bool]] = [("", top, False)]
        while stack:
            prefix, node, is_done = stack.pop()
            module = self.module(node)
            if is_done:
                open_modules.remove(id(node))
            elif module is None:
                found[prefix[:-1]] = None
            else:
                self.refuse_endless(node, prefix, open_modules)
                open_modules.add(id(node))
                stack.append((prefix, node, True))
                for key, value in module.tensors:
                    name = prefix + key
                    self.budget.spend(len(name) + TENSOR)
                    found[name] = read_tensor(value, self.references, name, self.budget.where)
                    if is_part(value):
                        parts.append(name)
                for key in module.others:
                    self.budget.spend(len(prefix) + len(key))
                    found[prefix + key] = None
                inner = [(f"{prefix}{key}.", value, False) for key, value in module.modules]
                self.budget.spend(sum(len(path) for path, _, _ in inner))
                stack.extend(reversed(inner))
        return StateDict(
            "",
            tuple(spec for spec in found.values() if spec),
            tuple(name for name, spec in found.items() if not spec),
            holder,
            tuple(parts),
        )

    def refuse_endless(self, node: Node, prefix: str, open_modules: set[int]) -> None:
        """Refuse a module that is inside itself, or too deep."""
        if id(node) in open_modules or len(open_modules) >= _DEEPEST_MODULE:
            within_itself = id(node) in open_modules
            raise FormatError(
                self.budget.where,
                f"the module {prefix[:60]!r} stands inside itself"
                if within_itself
                else "its modules are nested too deeply",
                expected=f"modules inside modules, at most {_DEEPEST_MODULE} levels deep",
            )


def holder_of(node: Node) -> str:
    """Return what to call a whole module."""
    name = called_name(node) if isinstance(node, Call) else ""
    return f"{name}, a whole module" if name else "a whole module"


def read_module(node: Node, budget: NameBudget) -> Module | None:
    """Return what the pickled module at `node` keeps, or None where it is none.

    Raises:
        FormatError: something of it may be named by a call, so that nobody can tell what is.
    """
    if not isinstance(node, Call):
        return None
    attributes: dict[str, Node] = {}
    made: Node = None
    for effect in node.effects:
        if isinstance(effect, Built):
            # with __slots__, the state is a pair: the dict, and the slots
            parts = effect.state if isinstance(effect.state, tuple) else (effect.state,)
            for part in parts:
                made = made or find_ambiguous(part)
                attributes |= _named(part, budget) or {}
    kept = [attributes[name] for name in _STATE if name in attributes]
    for mapping in kept:
        made = made or find_ambiguous(mapping)
    if kept and made:
        raise FormatError(
            budget.where,
            f"a module has a key that a call makes: {spelled(made)}",
            expected="names as text",
            hint="load it with PyTorch and save it again",
        )
    if len(kept) < len(_STATE):
        return None
    if _SET not in attributes and any(_SET in (_named(one, budget) or {}) for one in kept):
        raise FormatError(
            budget.where,
            f"a module has a parameter that PyTorch takes for its attribute {_SET}",
            hint="load it with PyTorch and save it again",
        )
    parameters, buffers, modules = (
        _named(attributes[name], budget) for name in ("_parameters", "_buffers", "_modules")
    )
    if parameters is None or buffers is None or modules is None:
        return None
    passing = _texts(attributes.get("_non_persistent_buffers_set"), budget)
    lasting = {key: value for key, value in buffers.items() if key not in passing}
    tensors = [*parameters.items(), *lasting.items()]
    return Module(
        tuple((key, value) for key, value in tensors if value is not None),
        tuple((key, value) for key, value in modules.items() if value is not None),
        tuple(
            shown_key(key)
            for name in ("_parameters", "_buffers", "_modules")
            for key, value in items_of(attributes[name])
            if not isinstance(key, str) and value is not None
        ),
    )


def _named(node: Node, budget: NameBudget) -> dict[str, Node] | None:
    """Return the items of a mapping that are named by text; None for anything else."""
    entries = entries_of(node)
    if entries is None:
        return None
    budget.spend(ITEM * len(entries))
    return {key: value for key, value in entries if isinstance(key, str)}


def _texts(node: Node, budget: NameBudget) -> set[str]:
    """Return the texts in a set, as any protocol writes one."""
    items: list[Node] = []
    if isinstance(node, Set):
        items += node.items
    elif isinstance(node, Call):
        items += [item for part in node.args if isinstance(part, list) for item in part]
        for effect in node.effects:
            if isinstance(effect, Added):
                items += effect.items
    budget.spend(ITEM * len(items))
    return {item for item in items if isinstance(item, str)}
