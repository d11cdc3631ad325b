"""Whether what refers to parameters by number or by name still fits them after a plan. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wncli.checkpoint.naming import read_half, split
from wncli.checkpoint.output import Output, OutputStateDict, Result
from wncli.checkpoint.prefixes import PrefixMap, find_prefix_map
from wncli.checkpoint.tensors import TensorSpec

#: As many times are prefixes looked for, and as many state dicts compared with a list of tensors.
_MOST = 64
#: State dicts have at most so many tensors for each parameter, buffers being the others.
_BUFFERS = 8

Shape = tuple[int, ...]


class Fate(NamedTuple):
    """What becomes of one state dict's tensors.

    `names` are the new ones by the old; None where a tensor goes, or its values or shape do.
    `shapes` are those of all its tensors, `changed` of those without their old name. `keeps_order`
    tells whether the parameters keep number, shapes and order.
    """

    root: str
    names: Mapping[str, str | None]
    shapes: tuple[Shape, ...]
    changed: tuple[Shape, ...]
    keeps_order: bool


@dataclass(slots=True)
class Fitting:
    """What becomes of the parameters of a whole checkpoint."""

    fates: tuple[Fate, ...]
    keeps_order: bool
    #: What becomes of the tensors of each name, whichever state dict they stand in.
    by_name: dict[str, set[str | None]] = field(default_factory=dict)
    searches_left: int = _MOST

    @classmethod
    def of(cls, output: Output) -> Fitting:
        """Read it off an output; tensors that are left out by name count as changed."""
        before = {found.root: found.tensors for found in output.checkpoint.state_dicts}
        fates = tuple(
            _fate(part, before.get(part.state_dict.root, part.state_dict.tensors))
            for part in output.state_dicts
        )
        keeps_order = all(fate.keeps_order for fate in fates)
        fitting = cls(fates, keeps_order)
        for fate in fates:
            for old, new in fate.names.items():
                fitting.by_name.setdefault(old, set()).add(new)
        return fitting

    @property
    def is_changed(self) -> bool:
        """Whether anything goes by another name, or place, than before."""
        return not self.keeps_order or any(fate.changed for fate in self.fates)

    def new_names(self, names: Sequence[str]) -> dict[str, str | None]:
        """Return what the parameters are to be called that something else knows by `names`.

        None where one is changed, or becomes several things; names that lead to no tensor are left
        out. The names can have the root, a wrapper or another common prefix more than the state
        dict's, or less.
        """
        found = {name: set(self.by_name[name]) for name in names if name in self.by_name}
        others = [name for name in names if name not in found]
        for fate in self.fates if others else ():
            if not self.searches_left:
                break
            self.searches_left -= 1
            prefixes = find_prefix_map(others, fate.names.keys(), [fate.root, split(fate.root)[1]])
            for name in others:
                if results := _follow(name, prefixes, fate):
                    found.setdefault(name, set()).update(results)
        return {
            name: next(iter(results)) if len(results) == 1 else None
            for name, results in found.items()
        }

    def meant_by(self, shapes: Sequence[Shape]) -> list[Fate]:
        """Give the changed state dicts whose parameters, changed ones included, have these shapes.

        Parameters have the order of the state dict, which has buffers among them.
        """
        changed = [fate for fate in self.fates[:_MOST] if fate.changed]
        return [
            fate
            for fate in changed
            if len(shapes) * _BUFFERS >= len(fate.shapes)
            and _are_among(fate.changed, shapes)
            and _are_among(shapes, fate.shapes)
        ]


def _fate(part: OutputStateDict, held: Iterable[TensorSpec]) -> Fate:
    used = (spec for result in part.results for spec in result.sources)
    tensors = tuple({spec.name: spec for spec in (*held, *used)}.values())
    names: dict[str, str | None] = dict.fromkeys(spec.name for spec in tensors)
    for result in part.results:
        for tensor in result.tensors if result.is_kept else ():
            if tensor.shape == tensor.source.shape:
                names[tensor.source.name] = tensor.name
    return Fate(
        part.state_dict.root,
        names,
        tuple(spec.shape for spec in tensors),
        tuple(spec.shape for spec in tensors if names[spec.name] != spec.name),
        _keeps_parameters(part, tensors, names),
    )


def _follow(name: str, prefixes: PrefixMap, fate: Fate) -> set[str | None]:
    """Give what becomes of the tensor that `name` leads to, under the same prefix; else nothing."""
    own = prefixes.rename(name)
    if own is None or own not in fate.names:
        return set()
    new = fate.names[own]
    if new is None or not new.startswith(prefixes.add):
        return {None}
    return {prefixes.strip + new[len(prefixes.add) :]}


def _are_among(some: Iterable[Shape], every: Iterable[Shape]) -> bool:
    """Whether `some` is what is left of `every` without some of its items."""
    left = iter(every)
    return all(item in left for item in some)


def _keeps_parameters(
    part: OutputStateDict, tensors: Sequence[TensorSpec], names: Mapping[str, str | None]
) -> bool:
    """Whether the parameters keep number, shapes and order, which is how optimizers know them.

    Both spellings have g and v behind the module's other parameters; but the parametrized ones
    come behind those of its children too.
    """
    if any(names[spec.name] is None and _can_be_trained(spec) for spec in tensors):
        return False
    place = {spec.name: number for number, spec in enumerate(tensors)}
    places = [min(place[spec.name] for spec in result.sources) for result in part.results]
    if places != sorted(places):
        return False
    modules = sorted({split(result.weight)[0] for result in part.results})

    def has_children(module: str) -> bool:
        below = f"{module}." if module else "\0"  # at the top, any module is one
        place = bisect_left(modules, below)
        return place < len(modules) and (not module or modules[place].startswith(below))

    return not any(
        _is_respelled(result) and has_children(split(result.weight)[0]) for result in part.results
    )


def _is_respelled(result: Result) -> bool:
    old = read_half(result.home.name)
    return bool(result.is_kept and result.naming and old and old.naming != result.naming)


def _can_be_trained(spec: TensorSpec) -> bool:
    return not spec.dtype.label.startswith(("int", "uint", "bool"))
