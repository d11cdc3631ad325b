"""Loads a checkpoint of any spelling, format and place into a live model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wncli.checkpoint.prefixes import PrefixMap, unwrap
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WeightNormError, few
from wncli.notes import Note
from wncli.parallel import Advance, run_tasks
from wncli.plan.actions import Action, Compose, Copy, Decompose, Part, Plan, Renormalize, Respell
from wncli.plan.guards import refuse_growth
from wncli.plan.like import plan_like
from wncli.plan.lower import lower
from wncli.plan.request import Request
from wncli.pytorch.actions import Executor
from wncli.pytorch.givens import Given, InMemory, Tensors, of_module, opened
from wncli.pytorch.modules import refresh, refuse_other
from wncli.pytorch.refusals import in_python
from wncli.pytorch.rehearsal import Judgement, rehearse
from wncli.pytorch.results import NEW_PARAMETERS, Loaded
from wncli.pytorch.sharded import box_of, distributed_like
from wncli.pytorch.tensors import TORCH_DTYPES, is_distributed
from wncli.report import Layer, make_report

_EXTRA_STATE = "_extra_state"
#: What the model's own judgement says better.
_SAID_BY_THE_MODEL = {"missing", "unexpected", "shape-mismatch", "moved"}
#: As many names are shown.
_NAMED = 5


@in_python("only", "strict", "assign")
def load_weights(
    model: nn.Module,
    checkpoint: Given,
    *,
    only: str | None = None,
    strict: bool = True,
    assign: bool = False,
) -> Loaded:
    """Load a checkpoint into a model, whichever of both is normalized, in whichever spelling.

    What the model's layers want is composed, decomposed or renamed; then the model's own
    `load_state_dict` loads it. Prefixes of wrappers and roots are added or taken off. On a refusal
    the model is what it was, bit for bit.

    Args:
        model: any module, also in `torch.compile`, `DataParallel` or DDP, or after `fully_shard`:
            then each rank reads its rows.
        checkpoint: the path of anything that `wn` reads, what `torch.load` gives, or a module.
        only: the root of the state dict that is meant, as `generator`, or a prefix of names.
        strict: whether all names have to meet; else `missing` and `unexpected` list the others.
        assign: whether tensors become the model's parameters, as they are in the checkpoint, rather
            than being copied into those it has: for models on the meta device.

    Returns:
        What met, and what was done on the way.

    Raises:
        FileError: a file cannot be read.
        FormatError: it is no checkpoint, or its bytes are not those that were written.
        UsageError: `only` names nothing, or several state dicts could be meant.
        WeightNormError: nothing meets, names or shapes do not, a layer has no direction, or tensors
            would stay on the meta device.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> wn.load_weights(model, torch.nn.Linear(3, 2).state_dict())
        <Loaded: 1 layer changed on the way>
    """
    refuse_other(model)
    target = of_module(model)
    _refuse_meta(model, target, assign=assign)
    with opened(checkpoint, owned=assign) as given:
        request = Request.parse((), (), only)
        plan = plan_like(given.checkpoint, target.checkpoint, request, partial=True)
        loading = _Loading(given, target, plan, assign=assign)
        judged = rehearse(model, loading.shapes(), loading.versions())
        extra = loading.extra_state()
        judged = Judgement(
            tuple(name for name in judged.missing if name not in extra), judged.unexpected
        )
        if strict:
            _refuse_unmet(given, judged)
        made = loading.tensors()
        made.update(extra)
        _load(model, made, loading.versions(), strict=strict, assign=assign)
    refresh(model)
    notes = [note for note in plan.notes if note.code not in _SAID_BY_THE_MODEL]
    notes += loading.notes
    notes += [NEW_PARAMETERS] if assign else []
    return Loaded(judged.missing, judged.unexpected, tuple(_changed(plan)), tuple(notes))


def _changed(plan: Plan) -> Iterator[Layer]:
    """Give the layers that are not in the model as they are in the checkpoint."""
    for (_, action), layer in zip(plan.changes, make_report(plan, ()).layers, strict=True):
        is_same = isinstance(action, Respell) and (
            action.halves.naming,
            action.halves.g_shape,
        ) == (action.pair.naming, action.pair.g.shape)
        if not is_same:
            yield layer


def _load(
    model: nn.Module,
    made: Mapping[str, object],
    versions: Mapping[str, object] | None,
    *,
    strict: bool,
    assign: bool,
) -> None:
    """Have the model load what it has judged already."""
    state_dict = OrderedDict(made)
    if versions is not None:
        state_dict._metadata = dict(versions)  # type: ignore[attr-defined]  # noqa: SLF001
    more = {"assign": True} if assign else {}  # which not every model's own method knows
    with torch.inference_mode(mode=False):
        model.load_state_dict(state_dict, strict=strict, **more)


class _Wanted(NamedTuple):
    """A tensor for the model: the state dict and the action that it is made by."""

    part: Part
    action: Action
    spec: TensorSpec  # as it will be


class _Loading:
    """What goes to the model, by the model's names."""

    def __init__(self, given: Tensors, target: InMemory, plan: Plan, *, assign: bool) -> None:
        self.given = given
        self.target = target
        self.assign = assign
        self.parts = plan.parts
        self.notes: list[Note] = []
        self.wanted: dict[str, _Wanted] = {}
        self.known = {spec.name: spec for spec in target.top.tensors}
        for part in plan.parts:
            for action in (*part.actions, *_left_over(part)):
                for tensor in lower(action).tensors:
                    spec = tensor.source._replace(
                        name=tensor.name, dtype=tensor.dtype, shape=tensor.shape
                    )
                    self.wanted.setdefault(tensor.name, _Wanted(part, action, spec))
        #: Names of the model, and those that they are tied to where the checkpoint has just these.
        self.ties = self._ties()
        used = [(spec, None) for one in self._actions() for spec in one.action.sources]
        refuse_growth(given.checkpoint, used, lambda _: "")

    def _actions(self) -> Iterator[_Wanted]:
        seen: set[int] = set()
        for wanted in self.wanted.values():
            if id(wanted.action) not in seen:
                seen.add(id(wanted.action))
                yield wanted

    def _ties(self) -> dict[str, str]:
        first: dict[object, str] = {}
        for name in self.wanted:
            if name in self.known and self.known[name].numel:
                first.setdefault(self.known[name].view, name)
        return {
            name: first[spec.view]
            for name, spec in self.known.items()
            if name not in self.wanted and spec.view in first
        }

    def shapes(self) -> dict[str, Tensor]:
        """Return what would be loaded, without numbers."""
        found = {}
        for name, wanted in self.wanted.items():
            dtype = TORCH_DTYPES.get(wanted.spec.dtype, torch.uint8)
            found[name] = torch.empty(wanted.spec.shape, dtype=dtype, device="meta")
        found.update({name: found[other] for name, other in self.ties.items()})
        return found

    def versions(self) -> Mapping[str, object] | None:
        """Return the versions of modules that the checkpoint has, by the model's paths."""
        found: dict[str, object] = {}
        is_known = False
        for part in self.parts:
            versions = self.given.metadata(part.state_dict.keys)
            prefixes = _prefixes(part)
            for path, about in (versions or {}).items():
                is_known = True
                renamed = prefixes.rename(f"{path}." if path else "")
                if renamed is not None:
                    found[renamed.removesuffix(".")] = about
        return found if is_known else None

    def extra_state(self) -> dict[str, object]:
        """Return the extra state of modules, where the model has such.

        Raises:
            FormatError: that of a file is no plain data.
        """
        taken = {name for name in self.target.top.others if name.endswith(_EXTRA_STATE)}
        found = {}
        for part in self.parts:
            prefixes = _prefixes(part)
            for name in part.state_dict.others:
                renamed = prefixes.rename(name)
                if renamed in taken:
                    found[renamed] = self.given.value(part.state_dict.keys, name)
        return found

    def tensors(self) -> dict[str, object]:
        """Return what is to be loaded.

        Raises:
            FormatError: a file's bytes are not those that were written.
            WeightNormError: a norm that its dtype cannot hold, or a direction that is undefined.
        """
        actions = list(self._actions())
        whole = [one for one in actions if not self._is_sharded(one)]
        kept = [one for one in whole if isinstance(one.action, (Copy, Respell))]
        changed = [one for one in whole if not isinstance(one.action, (Copy, Respell))]
        self.given.prepare(
            [spec for one in kept for spec in one.action.sources],
            [spec for one in changed for spec in one.action.sources],
        )
        if len(whole) < len(actions):
            self._note_unchecked(actions)
        executors = {id(part): self._executor(part) for part in self.parts}

        def make(one: _Wanted, advance: Advance) -> dict[str, Tensor]:
            with torch.inference_mode(mode=False), torch.no_grad():
                made = self._made(executors[id(one.part)], one)
            advance(0)
            return made

        nbytes = sum(one.spec.nbytes for one in changed)
        results = run_tasks(make, actions, nbytes=nbytes, jobs=None, progress=lambda _: None)
        tensors = {name: made for result in results for name, made in result.items()}
        found: dict[str, object] = {name: tensors[name] for name in self.wanted}
        found.update({name: found[other] for name, other in self.ties.items()})
        return self._as_parameters(found) if self.assign else found

    def _executor(self, part: Part) -> Executor:
        keys = part.state_dict.keys
        return Executor(
            self.given.checkpoint.name, lambda spec: self.given.tensor(keys, spec), self.notes
        )

    def _made(self, executor: Executor, one: _Wanted) -> dict[str, Tensor]:
        action = one.action
        boxes = {
            name: box_of(self._held(name))
            for tensor in lower(action).tensors
            if is_distributed(self._held(name := tensor.name))
        }
        if not boxes:
            return executor.tensors(action, self._split_in(action))
        box = boxes.get(one_name(action))
        if box and not box.is_empty:
            match action:
                case Compose(pair) if box.narrows_only(pair.dim, pair.shape):
                    part = box.of_pair(pair, pair.dim or 0)
                    made = executor.tensors(action._replace(pair=part))
                    return {n: distributed_like(self._held(n), t) for n, t in made.items()}
                case Decompose(weight, dim) if box.narrows_only(dim, weight.shape):
                    rows = box.of_spec(weight, dim or 0)
                    shape = tuple(
                        s if n != dim else rows.shape[n]
                        for n, s in enumerate(action.halves.g_shape)
                    )
                    halves = action.halves._replace(g_shape=shape)
                    own = action._replace(weight=rows, halves=halves)
                    made = executor.tensors(own, self._split_in(action))
                    return {n: distributed_like(self._held(n), t) for n, t in made.items()}
        made = executor.tensors(action, self._split_in(action))
        return {
            name: distributed_like(self._held(name), boxes[name].of(tensor).clone())
            if name in boxes and not is_distributed(tensor)
            else tensor
            for name, tensor in made.items()
        }

    def _held(self, name: str) -> object:
        """Return the model's tensor of this name, if it has one."""
        return self.target.state_dicts[()].get(name)

    def _is_sharded(self, one: _Wanted) -> bool:
        return any(is_distributed(self._held(tensor.name)) for tensor in lower(one.action).tensors)

    def _note_unchecked(self, actions: Iterable[_Wanted]) -> None:
        recorded = [
            spec
            for one in actions
            for spec in one.action.sources
            if spec.storage.crc is not None and self._is_sharded(one)
        ]
        if recorded:
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
            if not isinstance(held, nn.Parameter) or not isinstance(tensor, Tensor):
                result[name] = tensor
                continue
            if id(held) not in made:
                made[id(held)] = nn.Parameter(tensor.detach(), requires_grad=held.requires_grad)
            result[name] = made[id(held)]
        return result


def one_name(action: Action) -> str:
    """Return the name of the tensor that has the shape of the weight."""
    return lower(action).tensors[-1].name


def _prefixes(part: Part) -> PrefixMap:
    """Return what leads from the names of a part to the model's, as its first tensor shows."""
    for action in part.actions:
        source = action.sources[0].name
        wanted = lower(action).weight
        if not isinstance(action, (Copy, Decompose)):
            source = action.pair.weight
        ours, theirs = source.split("."), wanted.split(".")
        while ours and theirs and ours[-1] == theirs[-1]:
            ours.pop()
            theirs.pop()
        strip, add = (".".join([*parts, ""]) for parts in (ours, theirs))
        return PrefixMap(strip if ours else "", add if theirs else "")
    return PrefixMap()


def _left_over(part: Part) -> list[Copy]:
    """Give what the plan has no place for the name that it would have: hooks may know it."""
    used = {spec.name for action in part.actions for spec in action.sources}
    prefixes = _prefixes(part)
    made = {tensor.name for action in part.actions for tensor in lower(action).tensors}
    left = []
    for spec in part.state_dict.tensors:
        if spec.name in used:
            continue
        name = prefixes.rename(spec.name) or unwrap(spec.name)
        if name not in made:
            left.append(Copy(spec, name))
    return left


# -- refusals -----------------------------------------------------------------------------------


def _refuse_meta(model: nn.Module, target: InMemory, *, assign: bool) -> None:
    """Refuse to leave tensors without numbers, which nothing would say before they are used.

    Raises:
        WeightNormError: that is so.
    """
    loaded = {id(value) for value in target.state_dicts[()].values()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    on_meta = [(n, t) for n, t in tensors if not is_lazy(t) and t.device.type == "meta"]
    if on_meta and not assign:
        raise WeightNormError(
            f"the model: {on_meta[0][0]}",
            "this tensor is on the meta device, and cannot be copied into",
            expected="tensors with numbers",
            found=f"{len(on_meta)} on the meta device: {few([name for name, _ in on_meta])}",
            hint="assign=True",
        )
    outside = [name for name, tensor in on_meta if id(tensor) not in loaded]
    if outside:
        raise WeightNormError(
            f"the model: {outside[0]}",
            "this tensor is on the meta device, and in no state dict that could give it numbers",
            expected="nothing on the meta device but what a state dict has",
            found=f"{len(outside)}: {few(outside)}",
            hint="make the model on its device, or these buffers after it",
        )


def _refuse_unmet(given: Tensors, judged: Judgement) -> None:
    """Refuse names that do not meet, as `load_state_dict` does once it has loaded all others.

    Raises:
        WeightNormError: that is so.
    """
    said = [
        f"{len(names)} {word}: {few(names, _NAMED)}"
        for word, names in (("missing", judged.missing), ("unexpected", judged.unexpected))
        if names
    ]
    if said:
        raise WeightNormError(
            given.checkpoint.name,
            "this does not fit the model",
            expected="the same tensors, but for weight norm, prefixes and roots",
            found="; ".join(said),
            hint="strict=False",
        )
