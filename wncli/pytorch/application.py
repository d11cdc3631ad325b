"""Normalizes the weights of a live model: v is the weight, in its own memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from wncli.checkpoint.naming import Naming, join, split
from wncli.errors import UsageError, WeightNormError, few
from wncli.hints import parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.actions import Decompose
from wncli.plan.apply import plan_apply
from wncli.plan.like import plan_like
from wncli.plan.request import Request
from wncli.plan.rules import glob_of
from wncli.pytorch.arithmetic import Split, decompose
from wncli.pytorch.givens import Given, InMemory, opened
from wncli.pytorch.modules import (
    lazy_in,
    of_new_parameters,
    parameters_of,
    refuse_inference,
    refuse_other,
    refuse_sharded,
    walk,
)
from wncli.pytorch.refusals import check_dim, check_naming, in_python
from wncli.pytorch.results import Layers
from wncli.pytorch.tensors import is_run_of_memory


class _Weight(NamedTuple):
    """A parameter that is to be normalized."""

    name: str
    module: nn.Module
    parameter: str
    held: Parameter
    dim: int | None
    naming: Naming


@in_python("layers", "exclude", "dim", "naming")
def apply_weight_norm(  # noqa: PLR0913 - the command's options
    model: nn.Module,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = 0,
    naming: Naming = "parametrized",
    like: Given | None = None,
) -> Layers:
    """Normalize weights of a model with PyTorch's own hooks or parametrizations, g being exact.

    v has the weight's memory; an all-zero slice gets g = 0 and a unit direction in a copy of it.

    Args:
        model: any module, also in `torch.compile`, `DataParallel` or DDP.
        layers: `GLOB` or `GLOB=DIM` rules, the first match wins; without any, every floating
            `weight` of two or more dimensions that is not normalized already.
        exclude: globs of layers to leave alone.
        dim: the dim of layers whose rule has none; None for the norm of the whole tensor.
        naming: `"parametrized"` (`torch.nn.utils.parametrizations.weight_norm`) or `"hook"`
            (`torch.nn.utils.weight_norm`).
        like: a checkpoint's path, a state dict, or a module, whose layers, dims and spelling to
            take.

    Returns:
        The full names of the weights that have been normalized.

    Raises:
        FileError: `like` cannot be read.
        FormatError: it is no checkpoint.
        UsageError: a rule matches nothing, or matches what is normalized already.
        WeightNormError: a weight is tied to another, has no shape yet, is no floating tensor, has
            no such dim or a norm that its dtype cannot hold, or the model is sharded; nothing
            has changed.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv1d(4, 8, 3), torch.nn.Linear(8, 2))
        >>> wn.apply_weight_norm(model, layers=["0"])
        <1 layer: 0.weight; an optimizer made before holds the old parameters: make it again>
    """
    refuse_other(model)
    check_naming(naming)
    check_dim(dim)
    refuse_sharded(model, "apply_weight_norm")
    request = Request.parse(layers, exclude, None, with_dims=True)
    described = parameters_of(model)
    if like is None:
        _refuse_lazy(model, request)
        plan = plan_apply(described.checkpoint, request, dim, naming)
    else:
        _refuse_rules(request)
        with opened(like) as reference:
            plan = plan_like(described.checkpoint, reference.checkpoint, Request(), partial=True)
    actions = [action for _, action in plan.changes if isinstance(action, Decompose)]
    chosen = _found(model, actions)
    _refuse_tied(described, chosen)
    _refuse_taken(chosen)
    refuse_inference((weight.name, weight.held) for weight in chosen)
    notes: list[Note] = []
    with torch.inference_mode(mode=False), torch.no_grad():
        made = [_split(described, weight, notes) for weight in chosen]
        for weight, parts in zip(chosen, made, strict=True):
            _normalize(weight, parts)
    notes += of_new_parameters(model) if chosen else []
    return Layers((weight.name for weight in chosen), notes)


def _found(model: nn.Module, actions: list[Decompose]) -> list[_Weight]:
    wanted = {action.weight.name: action for action in actions}
    found = []
    for path, module in walk(model):
        for name, held in module._parameters.items():  # noqa: SLF001
            action = wanted.get(join(path, name))
            if action and held is not None:
                naming = action.halves.naming
                found.append(_Weight(join(path, name), module, name, held, action.dim, naming))
    order = {name: number for number, name in enumerate(wanted)}
    return sorted(found, key=lambda weight: order[weight.name])


def _split(described: InMemory, weight: _Weight, notes: list[Note]) -> Split:
    found = decompose(described.checkpoint.name, weight.name, weight.held, weight.dim)
    notes += found.notes
    return found


def _normalize(weight: _Weight, parts: Split) -> None:
    """Have PyTorch set all up for a weight without numbers, and give it g and v."""
    module, name, held = weight.module, weight.parameter, weight.held
    g, v = (Parameter(part, requires_grad=held.requires_grad) for part in (parts.g, parts.v))
    dim = -1 if weight.dim is None else weight.dim
    if weight.naming == "parametrized":
        empty = Parameter(torch.empty_like(held, device="meta"), requires_grad=held.requires_grad)
        module._parameters[name] = empty  # noqa: SLF001
        weight_norm(module, name, dim)
        chain = module.get_submodule(f"parametrizations.{name}")
        chain.original0, chain.original1 = g, v
        return
    # As `WeightNorm.apply`, which warns that it is deprecated, and computes g with rounding errors.
    del module._parameters[name]  # noqa: SLF001
    module.register_parameter(f"{name}_g", g)
    module.register_parameter(f"{name}_v", v)
    hook = WeightNorm(name, dim)
    setattr(module, name, hook.compute_weight(module))
    module.register_forward_pre_hook(hook)


# -- refusals -----------------------------------------------------------------------------------


def _refuse_rules(request: Request) -> None:
    for name, rules in (("layers", request.layers), ("exclude", request.exclude)):
        if rules:
            raise UsageError(
                name,
                phrase("{} takes the layers of the checkpoint that it names", parameter("like")),
                hint="leave one out",
            )


def _refuse_lazy(model: nn.Module, request: Request) -> None:
    for name in lazy_in(model):
        is_named = any(rule.matches(name) for rule in request.layers)
        if request.wants(name) and (is_named or split(name)[1] == "weight"):
            raise WeightNormError(
                f"the model: {name}",
                "this parameter has no shape before the first forward",
                expected="a parameter with a shape",
                hint="run a batch through the model first",
            )


def _refuse_taken(chosen: list[_Weight]) -> None:
    """Refuse to give g and v names that the module has for something else."""
    for weight in chosen:
        for name in [f"{weight.parameter}_{half}" for half in "gv"]:
            if weight.naming == "hook" and hasattr(weight.module, name):
                raise WeightNormError(
                    f"the model: {weight.name}",
                    f"its module has an attribute {name} already",
                    expected="a module without one",
                    found=f"a {type(getattr(weight.module, name)).__name__}",
                    hint=setting(naming="parametrized"),
                )


def _refuse_tied(described: InMemory, chosen: list[_Weight]) -> None:
    """Refuse to untie: g and v of the one would be no parameters of the other."""
    places: dict[int, list[str]] = {}
    for name, held in described.state_dicts[()].items():
        if isinstance(held, Parameter):
            places.setdefault(_identity(held), []).append(name)
    ours = {weight.name for weight in chosen}
    for weight in chosen:
        names = places[_identity(weight.held)]
        if len(names) > 1:
            raise WeightNormError(
                f"the model: {weight.name}",
                "this parameter is tied, and would not be afterwards",
                expected="a parameter of one module",
                found=few(names),
                hint=phrase(
                    "{} leaves this layer alone",
                    setting(exclude=[glob_of(name) for name in names if name in ours]),
                ),
            )


def _identity(held: Tensor) -> int:
    """Return what tied parameters have in common: the object, or its memory."""
    is_lazy = torch.nn.parameter.is_lazy(held)
    is_there = not is_lazy and held.device.type != "meta" and is_run_of_memory(held)
    return held.data_ptr() if is_there and held.numel() else id(held)
