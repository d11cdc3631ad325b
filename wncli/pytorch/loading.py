"""Loads a checkpoint of any spelling, format and place into a live model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import compress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wncli.errors import WeightNormError, few
from wncli.plan.actions import Decompose, Plan, Respell
from wncli.plan.like import plan_like
from wncli.plan.lower import lower
from wncli.plan.request import Request
from wncli.pytorch.arriving import Arriving
from wncli.pytorch.givens import Given, InMemory, Tensors, of_module, opened
from wncli.pytorch.memory import refuse_mapped
from wncli.pytorch.modules import (
    modules_of,
    of_new_parameters,
    refresh,
    refuse_flattened,
    refuse_inference,
    refuse_other,
    refuse_stacked,
)
from wncli.pytorch.refusals import in_python
from wncli.pytorch.rehearsal import Judgement, has_code_of_its_own, rehearse
from wncli.pytorch.results import Loaded
from wncli.report import Layer, make_report

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
        WeightNormError: nothing meets, names or shapes do not, a layer has no direction, tensors
            would stay on the meta device, or cannot be copied into.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> wn.load_weights(model, torch.nn.Linear(3, 2).state_dict())
        <Loaded: 1 layer changed on the way>
    """
    refuse_other(model)
    refuse_flattened(model)
    target = of_module(model)
    _refuse_meta(model, target, assign=assign)
    with opened(checkpoint, owned=assign) as given:
        request = Request.parse((), (), only)
        plan = plan_like(given.checkpoint, target.checkpoint, request, partial=True)
        changes = [action for _, action in plan.changes if not isinstance(action, Respell)]
        refuse_stacked(model, [lower(action).weight for action in changes])
        folded = [action for action in changes if not isinstance(action, Decompose)]
        refuse_stacked(checkpoint, [action.pair.weight for action in folded])
        arriving = Arriving(given, target, plan, assign=assign)
        _refuse_without_numbers(given, arriving)
        if not assign:
            _refuse_uncopied(target, arriving)
            refuse_mapped(target.state_dicts[()], given.sources)
        judged = Judgement((), ())
        is_foreseen = arriving.is_the_models_own and not has_code_of_its_own(model)
        if not is_foreseen:
            judged = rehearse(model, arriving.shapes(), arriving.versions)
        extra = arriving.extra_state()
        judged = Judgement(
            tuple(name for name in judged.missing if name not in extra), judged.unexpected
        )
        if strict:
            _refuse_unmet(given, judged)
        made = arriving.tensors(in_place=is_foreseen)
        made.update(extra)
        arriving.compose_in_place()
        _load(model, made, arriving.versions, strict=strict, assign=assign)
    refresh(model)
    notes = [note for note in plan.notes if note.code not in _SAID_BY_THE_MODEL]
    notes += arriving.notes
    notes += of_new_parameters(model) if assign else []
    return Loaded(judged.missing, judged.unexpected, tuple(_changed(plan)), tuple(notes))


def _changed(plan: Plan) -> Iterator[Layer]:
    """Give the layers that are not in the model as they are in the checkpoint."""
    changes = [action for _, action in plan.changes]
    changed = [not isinstance(action, Respell) or _is_respelled(action) for action in changes]
    if any(changed):
        yield from compress(make_report(plan, ()).layers, changed)


def _is_respelled(action: Respell) -> bool:
    halves, pair = action.halves, action.pair
    return (halves.naming, halves.g_shape) != (pair.naming, pair.g.shape)


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
    with torch.inference_mode(mode=False), _copying(made if not assign else {}):
        model.load_state_dict(state_dict, strict=strict, **more)


@contextmanager
def _copying(made: Mapping[str, object]) -> Iterator[None]:
    """Have plain tensors copied, also where PyTorch is set to swap parameters.

    What it cannot swap, as parameters that a view or a graph holds, it refuses in the middle.
    """
    future = torch.__future__
    swaps = future.get_swap_module_params_on_conversion()
    is_plain = all(type(tensor) in {Tensor, nn.Parameter} for tensor in made.values())
    future.set_swap_module_params_on_conversion(swaps and not (made and is_plain))
    try:
        yield
    finally:
        future.set_swap_module_params_on_conversion(swaps)


# -- refusals -----------------------------------------------------------------------------------


def _refuse_meta(model: nn.Module, target: InMemory, *, assign: bool) -> None:
    """Refuse to leave tensors without numbers, which nothing would say before they are used.

    Raises:
        WeightNormError: that is so.
    """
    held = [
        tensor
        for module in modules_of(model)
        for tensors in (module._parameters, module._buffers)  # noqa: SLF001
        for tensor in tensors.values()
    ]
    if not any(tensor is not None and tensor.is_meta for tensor in held):
        return
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


def _refuse_without_numbers(given: Tensors, arriving: Arriving) -> None:
    """Refuse tensors on the meta device, which nothing can be copied out of.

    Raises:
        WeightNormError: the checkpoint has such.
    """
    for spec in arriving.used:
        if spec.storage.location == "meta" and spec.numel:
            raise WeightNormError(
                f"{given.checkpoint.name}: {spec.name}",
                "this tensor is on the meta device, and has no numbers to load",
                expected="tensors with numbers",
            )


def _refuse_uncopied(target: InMemory, arriving: Arriving) -> None:
    """Refuse to copy into tensors that PyTorch does not write to.

    Raises:
        WeightNormError: the model has such.
    """
    written = [spec for name, spec in arriving.known.items()
               if name in arriving.specs or name in arriving.ties]  # fmt: skip
    refuse_inference((spec.name, target.tensor((), spec)) for spec in written)
    for spec in written:
        if any(not step and size > 1 for step, size in zip(spec.strides, spec.shape, strict=True)):
            raise WeightNormError(
                f"the model: {spec.name}",
                "several elements of this tensor are one in memory, and cannot be copied into",
                expected="a tensor with memory for each element",
                found=f"strides {spec.strides}",
                hint="assign=True",
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
