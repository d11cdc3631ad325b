"""State dicts in memory, folded, split, spelled otherwise, or made like another."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from wncli.checkpoint.naming import Naming
from wncli.notes import Note
from wncli.plan.actions import Part, Plan, Respell
from wncli.plan.apply import plan_apply
from wncli.plan.convert import plan_convert
from wncli.plan.like import plan_like
from wncli.plan.lower import lower
from wncli.plan.remove import plan_remove
from wncli.plan.request import Request
from wncli.pytorch.actions import Executor
from wncli.pytorch.givens import Given, InMemory, of_mapping, opened
from wncli.pytorch.modules import refuse_stacked
from wncli.pytorch.refusals import check_dim, check_naming, in_python


@in_python("layers", "exclude")
def fold(
    state_dict: Mapping[str, Tensor],
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Fold the magnitudes and directions of a state dict into plain weights.

    Args:
        state_dict: names and tensors, on any device.
        layers: globs over full names and module paths; all normalized layers where there is none.
        exclude: globs of layers to leave alone.

    Returns:
        A state dict in which all other tensors are the same objects.

    Raises:
        UsageError: a rule matches nothing.
        WeightNormError: a layer is no pair of g and v, or has no direction.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> list(wn.fold(model.state_dict()))
        ['bias', 'weight']
    """
    request = Request.parse(layers, exclude, None, with_dims=True)
    given = of_mapping(state_dict)
    return _carried_out(given, plan_remove(given.checkpoint, request))


@in_python("layers", "exclude", "dim")
def split(
    state_dict: Mapping[str, Tensor],
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = 0,
    naming: Literal["auto"] | Naming = "auto",
) -> dict[str, Tensor]:
    """Split the weights of a state dict into magnitude g and direction v.

    Args:
        state_dict: names and tensors, on any device.
        layers: `GLOB` or `GLOB=DIM` rules; without any, every floating `weight` of two or more
            dimensions that is not normalized already.
        exclude: globs of layers to leave alone.
        dim: the dim of layers whose rule has none; None for the norm of the whole tensor.
        naming: the spelling; `auto` takes that of the state dict, else hook.

    Returns:
        A state dict in which v is the weight itself, and all other tensors are the same objects.

    Raises:
        UsageError: a rule matches nothing.
        WeightNormError: a weight has no such dim, or a norm that its dtype cannot hold.

    Example:
        >>> made = wn.split(torch.nn.Linear(3, 2).state_dict(), naming="parametrized")
        >>> [(name, tuple(tensor.shape)) for name, tensor in made.items()][:1]
        [('parametrizations.weight.original0', (2, 1))]
    """
    check_naming(naming, "auto")
    check_dim(dim)
    request = Request.parse(layers, exclude, None, with_dims=True)
    given = of_mapping(state_dict)
    return _carried_out(given, plan_apply(given.checkpoint, request, dim, naming))


@in_python()
def respell(state_dict: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Give g and v the names of the other spelling; nothing is copied.

    Args:
        state_dict: names and tensors, on any device, DTensors too.
        naming: `"hook"` or `"parametrized"`.

    Returns:
        A state dict of the same tensors.

    Raises:
        UsageError: there is no such spelling.
        WeightNormError: a layer is no pair of g and v, or a name is taken.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> list(wn.respell(model.state_dict(), "hook"))
        ['bias', 'weight_g', 'weight_v']
    """
    check_naming(naming)
    given = of_mapping(state_dict)
    return _carried_out(given, plan_convert(given.checkpoint, Request(), naming))


@in_python()
def fit(state_dict: Mapping[str, Tensor], like: Given) -> dict[str, Tensor]:
    """Give a state dict the structure of another: names, spelling, which layers are normalized.

    Args:
        state_dict: names and tensors, on any device.
        like: a checkpoint's path, a state dict, or a module.

    Returns:
        A state dict that loads where that of `like` does.

    Raises:
        FileError: `like` cannot be read.
        FormatError: it is no checkpoint.
        WeightNormError: tensors are missing, unexpected or of other shapes.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> plain = torch.nn.Linear(3, 2).state_dict()
        >>> model.load_state_dict(wn.fit(plain, model))
        <All keys matched successfully>
    """
    given = of_mapping(state_dict)
    with opened(like) as reference:
        plan = plan_like(given.checkpoint, reference.checkpoint, Request(), partial=False)
        changes = [action for _, action in plan.changes if not isinstance(action, Respell)]
        refuse_stacked(like, [lower(action).weight for action in changes])
    return _carried_out(given, plan)


def _carried_out(given: InMemory, plan: Plan) -> dict[str, Tensor]:
    """Carry a plan out; what is no tensor goes with the state dict."""
    notes: list[Note] = []
    made: OrderedDict[str, Tensor] = OrderedDict()
    with torch.inference_mode(mode=False), torch.no_grad():
        for part in plan.parts:
            made.update(_made(given, part, notes))
    for name in given.top.others:
        made[name] = given.value((), name)  # type: ignore[assignment]
    metadata = given.metadata(())
    if metadata is not None:
        made._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001 - as Module.state_dict has it
    return made


def _made(given: InMemory, part: Part, notes: list[Note]) -> dict[str, Tensor]:
    keys = part.state_dict.keys
    executor = Executor(given.checkpoint.name, lambda spec: given.tensor(keys, spec), notes)
    made = {}
    for action in part.actions:
        made.update(executor.tensors(action))
    return made
