"""What a checkpoint comes to for a live model: tensors, versions and extra state by its names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from wncli.checkpoint.keys import Keys
from wncli.checkpoint.output import OutputTensor
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.prefixes import PrefixMap, unwrap
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WeightNormError
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks
from wncli.plan.actions import Action, Compose, Copy, Decompose, Part, Plan, Renormalize, Respell
from wncli.plan.guards import refuse_growth, refuse_same_names
from wncli.plan.lower import lower, lower_plan
from wncli.pytorch.actions import Executor
from wncli.pytorch.givens import InMemory, Tensors
from wncli.pytorch.memory import alone
from wncli.pytorch.sharded import carry_out_in_part
from wncli.pytorch.tensors import TORCH_DTYPES, is_distributed, kind_of

_EXTRA_STATE = "_extra_state"

Item = TypeVar("Item", "_Item", "_InPlace")
Result = TypeVar("Result")


class _Item(NamedTuple):
    """An action, the part of the plan that it is in, and the tensors that it takes and leaves."""

    part: Part
    action: Action
    sources: tuple[TensorSpec, ...]
    tensors: tuple[OutputTensor, ...]

    @property
    def is_kept(self) -> bool:
        """Whether a tensor of it is the checkpoint's as it is; of a weight that is split, v."""
        return isinstance(self.action, (Copy, Respell, Decompose))

    @property
    def nbytes(self) -> int:
        """Of all that it leaves."""
        return sum(tensor.nbytes for tensor in self.tensors)


class _InPlace(NamedTuple):
    """A product, and the model's tensor of its name, in whose memory it is composed."""

    part: Part
    pair: Pair
    name: str
    target: Tensor

    @property
    def nbytes(self) -> int:
        """Of the product."""
        return self.target.nbytes


class Arriving:
    """What goes to a model.

    Args:
        given: the checkpoint.
        target: the model's own state dict.
        plan: what becomes of the checkpoint's tensors.
        assign: whether they become the model's own.

    Raises:
        FormatError: tensors over shared storages would come to many times their file.
        UsageError: two tensors would have one name.
    """

    def __init__(self, given: Tensors, target: InMemory, plan: Plan, *, assign: bool) -> None:
        self.given = given
        self.target = target
        self.assign = assign
        self.parts = plan.parts
        self.notes: list[Note] = []
        self.prefixes = {part.state_dict.keys: _prefixes(part) for part in plan.parts}
        self.items = list(self._all(plan))
        self.used = [spec for item in self.items for spec in item.sources]
        refuse_growth(given.checkpoint, [(spec, None) for spec in self.used], lambda _: "")
        self.specs = {tensor.name: tensor for item in self.items for tensor in item.tensors}
        self.known = {spec.name: spec for spec in target.top.tensors}
        #: Names of the model, and those that they are tied to where the checkpoint has just these.
        self.ties = self._ties()
        #: What is composed in the model's own memory, once nothing is refused any more.
        self.in_place: list[_InPlace] = []

    def _all(self, plan: Plan) -> Iterator[_Item]:
        """Give all actions, and a copy of each tensor that the plan has no place for.

        These get the names that they would have: the model's hooks may know them.
        """
        output = lower_plan(plan)
        refuse_same_names(output)
        for part, lowered in zip(plan.parts, output.state_dicts, strict=True):
            prefixes = self.prefixes[part.state_dict.keys]
            used = {spec.name for result in lowered.results for spec in result.sources}
            made = {tensor.name for result in lowered.results for tensor in result.tensors}
            for action, result in zip(part.actions, lowered.results, strict=True):
                yield _Item(part, action, result.sources, result.tensors)
            for spec in part.state_dict.tensors:
                if spec.name not in used:
                    name = prefixes.rename(spec.name) or unwrap(spec.name)
                    if name not in made:
                        copy = Copy(spec, name)
                        yield _Item(part, copy, (spec,), lower(copy).tensors)

    def _ties(self) -> dict[str, str]:
        first: dict[object, str] = {}
        for name in self.specs:
            if name in self.known and self.known[name].numel:
                first.setdefault(self.known[name].view, name)
        return {
            name: first[spec.view]
            for name, spec in self.known.items()
            if name not in self.specs and spec.view in first
        }

    @property
    def is_the_models_own(self) -> bool:
        """Whether the names and shapes are those of the model's state dict, and are all of it."""
        return (
            not self.target.top.others
            and {*self.specs, *self.ties} == self.known.keys()
            and all(self.known[name].shape == made.shape for name, made in self.specs.items())
        )

    def shapes(self) -> dict[str, Tensor]:
        """Return what would be loaded, without numbers."""
        found = {}
        for name, made in self.specs.items():
            dtype = TORCH_DTYPES.get(made.dtype, torch.uint8)
            found[name] = torch.empty(made.shape, dtype=dtype, device="meta")
        found.update({name: found[other] for name, other in self.ties.items()})
        return found

    @cached_property
    def versions(self) -> Mapping[str, object] | None:
        """The versions of modules that the checkpoint has, by the model's paths."""
        found: dict[str, object] = {}
        known = [(part, self.given.metadata(part.state_dict.keys)) for part in self.parts]
        for part, versions in known:
            prefixes = self.prefixes[part.state_dict.keys]
            for path, about in (versions or {}).items():
                renamed = prefixes.rename(f"{path}." if path else "")
                if renamed is not None:
                    found[renamed.removesuffix(".")] = about
        return found if any(versions is not None for _, versions in known) else None

    def extra_state(self) -> dict[str, object]:
        """Return the extra state of modules, where the model has such.

        Raises:
            FormatError: that of a file is no plain data.
        """
        taken = {name for name in self.target.top.others if name.endswith(_EXTRA_STATE)}
        found = {}
        for part in self.parts:
            keys = part.state_dict.keys
            for name in part.state_dict.others:
                renamed = self.prefixes[keys].rename(name)
                if renamed in taken:
                    found[renamed] = self.given.value(keys, name)
        return found

    def tensors(self, *, in_place: bool) -> dict[str, object]:
        """Return what is to be loaded.

        Args:
            in_place: PyTorch's own loading alone comes after this. What can be composed in the
                model's memory is judged, and left to `compose_in_place`.

        Raises:
            FormatError: a file's bytes are not those that were written.
            WeightNormError: a norm that its dtype cannot hold, a direction that is undefined, or a
                tensor of another kind than the model's.
        """
        whole = [item for item in self.items if not self._is_sharded(item)]
        self.given.prepare(
            [spec for item in whole if item.is_kept for spec in item.sources],
            [spec for item in whole if not item.is_kept for spec in item.sources],
        )
        if len(whole) < len(self.items):
            self._note_unchecked()
        executors = {part.state_dict.keys: self._executor(part) for part in self.parts}
        made: dict[str, object] = {}
        computed = []
        with torch.inference_mode(mode=False), torch.no_grad():
            for item in self.items:
                executor = executors[item.part.state_dict.keys]
                product = self._in_place(item) if in_place else None
                if product:
                    executor.judge(product.pair)
                    made[product.name] = product.target
                    self.in_place.append(product)
                elif isinstance(item.action, (Copy, Respell)) and not self._is_sharded(item):
                    made.update(executor.tensors(item.action))
                else:
                    computed.append(item)
        for result in self._computed(computed, executors):
            made.update(result)
        self._refuse_other_kinds(made)
        made.update({name: made[other] for name, other in self.ties.items()})
        return self._as_parameters(made) if self.assign else made

    def _computed(
        self, items: Sequence[_Item], executors: Mapping[Keys, Executor]
    ) -> list[dict[str, Tensor]]:
        """Compose and split, and take this rank's parts."""

        def compute(item: _Item, advance: Advance) -> dict[str, Tensor]:
            executor = executors[item.part.state_dict.keys]
            with torch.inference_mode(mode=False), torch.no_grad():
                split_in = self._split_in(item.action)
                if self._is_sharded(item):
                    held = {tensor.name: self._held(tensor.name) for tensor in item.tensors}
                    found = carry_out_in_part(executor, item.action, held, split_in)
                else:
                    found = executor.tensors(item.action, split_in)
            advance(0)
            return found

        return _on_all_cores(compute, items)

    def _in_place(self, item: _Item) -> _InPlace | None:
        """Give what is a product of what files have, where the model's memory for it is its own.

        The files are mapped for this alone: no model is in them.
        """
        if self.assign or not isinstance(item.action, Compose) or isinstance(self.given, InMemory):
            return None
        pair, name = item.action
        held = self._held(name)
        if not isinstance(held, Tensor) or type(held) not in {Tensor, nn.Parameter}:
            return None
        is_its_own = name in self._alone and kind_of(held) == "dense"
        return _InPlace(item.part, pair, name, held) if is_its_own else None

    @cached_property
    def _alone(self) -> set[str]:
        return alone(self.target.state_dicts[()])

    def compose_in_place(self) -> None:
        """Compose in the model's memory what `tensors` has left to this: a layer on each core."""

        def compose(product: _InPlace, advance: Advance) -> None:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._executor(product.part).compose(product.pair, product.target)
            advance(0)

        _on_all_cores(compose, self.in_place)

    def _refuse_other_kinds(self, found: Mapping[str, object]) -> None:
        """Refuse what PyTorch cannot copy into the tensor that the model has."""
        for name, tensor in found.items():
            kinds = kind_of(tensor), kind_of(self._held(name))
            if kinds[1] and kinds[0] != kinds[1]:
                raise WeightNormError(
                    f"{self.given.checkpoint.name}: {name}",
                    f"this is a {kinds[0]} tensor, and the model's is a {kinds[1]} one",
                    expected=f"a {kinds[1]} tensor",
                )

    def _executor(self, part: Part) -> Executor:
        keys = part.state_dict.keys

        def read(spec: TensorSpec) -> Tensor:
            return self.given.tensor(keys, spec)

        return Executor(self.given.checkpoint.name, read, self.notes)

    def _held(self, name: str) -> object:
        """Return the model's tensor of this name, if it has one."""
        return self.target.state_dicts[()].get(name)

    def _is_sharded(self, item: _Item) -> bool:
        return any(is_distributed(self._held(tensor.name)) for tensor in item.tensors)

    def _note_unchecked(self) -> None:
        sharded = [spec for item in self.items if self._is_sharded(item)
                   for spec in item.sources]  # fmt: skip
        if any(spec.storage.crc is not None for spec in sharded):
            message = "checksums were not compared: each rank reads its rows alone"
            self.notes.append(Note("unchecked", message, is_warning=True))

    def _split_in(self, action: Action) -> torch.dtype | None:
        """Return the dtype that a weight is cast to before it is split: that of the model's v."""
        if self.assign or not isinstance(action, (Decompose, Renormalize)):
            return None
        v = self.known.get(action.halves.v)
        return TORCH_DTYPES.get(v.dtype) if v else None

    def _as_parameters(self, found: Mapping[str, object]) -> dict[str, object]:
        """Make one parameter of each that is one in the model: assigned alone, ties would break."""
        made: dict[object, nn.Parameter] = {}
        result: dict[str, object] = {}
        for name, tensor in found.items():
            held = self._held(name)
            if isinstance(tensor, Tensor) and tensor.is_inference():
                tensor = tensor.clone()  # noqa: PLW2901 - what trains is no tensor of inference mode
            if not isinstance(held, nn.Parameter) or not isinstance(tensor, Tensor):
                result[name] = tensor
                continue
            if held.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
                raise WeightNormError(
                    f"{self.given.checkpoint.name}: {name}",
                    f"a {str(tensor.dtype).removeprefix('torch.')} tensor cannot be a parameter"
                    " that trains",
                    expected="a floating dtype",
                    hint="assign=False casts it",
                )
            if id(held) not in made:
                made[id(held)] = nn.Parameter(tensor.detach(), requires_grad=held.requires_grad)
            result[name] = made[id(held)]
        return result


def _on_all_cores(
    function: Callable[[Item, Advance], Result], items: Sequence[Item]
) -> list[Result]:
    nbytes = sum(item.nbytes for item in items)
    return run_tasks(function, items, nbytes=nbytes, jobs=None, progress=lambda _: None)


def _prefixes(part: Part) -> PrefixMap:
    """Return what leads from the names of a part to the model's, as its first tensor shows."""
    for action in part.actions:
        source = action.sources[0].name
        if not isinstance(action, (Copy, Decompose)):
            source = action.pair.weight
        ours, theirs = source.split("."), lower(action).weight.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        strip, add = (".".join([*parts, ""]) for parts in (ours, theirs))
        return PrefixMap(strip if ours else "", add if theirs else "")
    return PrefixMap()
