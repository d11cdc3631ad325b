"""Folds the weight norm of a live model, and leaves plain parameters."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import Parameter

from wncli.checkpoint.pairs import Pair
from wncli.errors import UsageError
from wncli.hints import given as as_given
from wncli.notes import Note
from wncli.plan.actions import Compose
from wncli.plan.remove import plan_remove
from wncli.plan.request import Request
from wncli.pytorch.arithmetic import Numbers, compose, refuse_without_direction
from wncli.pytorch.modules import (
    Layer,
    layers_of,
    of_new_parameters,
    parameters_of,
    refuse_other,
    refuse_sharded,
)
from wncli.pytorch.refusals import in_python
from wncli.pytorch.results import Layers


@in_python("layers", "exclude")
def remove_weight_norm(
    model: nn.Module, *, layers: Iterable[str] = (), exclude: Iterable[str] = ()
) -> Layers:
    """Fold g and v of a model's layers into plain parameters, whichever function normalized them.

    Each parameter has the device, dtype, memory format and `requires_grad` of before. Hooks,
    parametrizations, their classes and loading hooks are gone. Other parametrizations stay.

    Args:
        model: any module, also in `torch.compile`, `DataParallel` or DDP.
        layers: globs over full names and module paths; all normalized layers where there is none.
        exclude: globs of layers to leave alone.

    Returns:
        The full names of the weights that have been folded; of a plain model, none.

    Raises:
        UsageError: a rule matches nothing.
        WeightNormError: a layer has no direction, or the model is sharded; nothing has changed.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> wn.remove_weight_norm(model)
        <1 layer: weight; an optimizer made before holds the old parameters: make it again>
        >>> wn.remove_weight_norm(model)
        <no layers>
    """
    refuse_other(model)
    refuse_sharded(model, "remove_weight_norm")
    request = Request.parse(layers, exclude, None, with_dims=True)
    chosen, notes = _choose(model, request)
    for layer, pair in chosen:
        refuse_without_direction("the model", pair, layer.g, layer.v)
    names = [layer.name for layer, _ in chosen]
    chosen.reverse()
    ties = Counter(_identity(layer) for layer, _ in chosen)
    made: dict[tuple[int, int], Parameter] = {}
    with torch.inference_mode(mode=False), torch.no_grad():
        while chosen:  # one after the other, and what a layer had is let go of then
            layer, pair = chosen.pop()
            weight = made.get(_identity(layer))
            if weight is None:
                weight = _folded(layer, pair, notes)
            if ties[_identity(layer)] > 1:
                made[_identity(layer)] = weight
            _put_in_place(layer, weight)
    return Layers(names, [*notes, *(of_new_parameters(model) if names else [])])


def _identity(layer: Layer) -> tuple[int, int]:
    """Return what layers have in common that are made from the same g and v."""
    return id(layer.g), id(layer.v)


def _choose(model: nn.Module, request: Request) -> tuple[list[tuple[Layer, Pair]], list[Note]]:
    """Return the layers that the rules take, and what there is to know of the others."""
    plan = plan_remove(parameters_of(model).checkpoint, request)
    live = layers_of(model)
    notes = [note for note in plan.notes if not note.is_warning]
    chosen: list[tuple[Layer, Pair]] = []
    for _, action in plan.changes:
        assert isinstance(action, Compose)  # noqa: S101 - that is what removal plans
        layer = live.get(action.name)
        if layer:
            chosen.append((layer, action.pair._replace(dim=layer.dim)))
        elif request.layers:
            raise UsageError(
                as_given(
                    layers=[rule.text for rule in request.layers if rule.matches(action.name)]
                ),
                f"{action.name} is normalized by code of its own, not by PyTorch's weight norm",
                expected="a layer of torch.nn.utils.weight_norm or its parametrization",
            )
        else:
            message = f"{action.name} is normalized by code of its own: left alone"
            notes.append(Note("own-code", message, action.name, is_warning=True))
    return chosen, notes


def _folded(layer: Layer, pair: Pair, notes: list[Note]) -> Parameter:
    weight, found = compose("the model", pair, Numbers(layer.g, layer.v))
    notes += found
    return Parameter(weight, requires_grad=layer.g.requires_grad or layer.v.requires_grad)


def _put_in_place(layer: Layer, weight: Parameter) -> None:
    """Make the weight a parameter of its module, and clear away what made it before."""
    module, name = layer.module, layer.parameter
    is_parameter = isinstance(layer.v, Parameter) or isinstance(layer.g, Parameter)
    if layer.hook:
        _remove_hook(layer, layer.hook)
    else:
        _remove_parametrization(module, name)
    _remove_loading_hook(module, name)
    if is_parameter:
        _register(module, name, weight)
    else:
        module.register_buffer(name, weight.detach())


def _remove_hook(layer: Layer, hook: object) -> None:
    module = layer.module
    for number, known in list(module._forward_pre_hooks.items()):  # noqa: SLF001
        if known is hook:
            del module._forward_pre_hooks[number]  # noqa: SLF001
            module._forward_pre_hooks_with_kwargs.pop(number, None)  # noqa: SLF001
    module.__dict__.pop(layer.parameter, None)
    for half in "gv":
        delattr(module, f"{layer.parameter}_{half}")


def _remove_parametrization(module: nn.Module, name: str) -> None:
    """Take the module's own class back; one that copies share is not changed."""
    chains = module._modules["parametrizations"]  # noqa: SLF001
    assert isinstance(chains, nn.ModuleDict)  # noqa: S101 - it has been found there
    del chains[name]
    made = type(module)
    if not len(chains):
        del module._modules["parametrizations"]  # noqa: SLF001
        module.__class__ = made.__bases__[0]
        return
    kept = {key: value for key, value in vars(made).items() if key not in {name, "__dict__"}}
    kept.pop("__weakref__", None)
    module.__class__ = type(made.__name__, made.__bases__, kept)


def _remove_loading_hook(module: nn.Module, name: str) -> None:
    """Remove what gives the older spelling's g and v the newer names in `load_state_dict`.

    Source: `_weight_norm_compat_hook` in `torch/nn/utils/parametrizations.py`.
    """
    for number, hook in list(module._load_state_dict_pre_hooks.items()):  # noqa: SLF001
        function = getattr(hook, "hook", hook)
        if getattr(function, "__name__", "") != "_weight_norm_compat_hook":
            continue
        if inspect.getclosurevars(function).nonlocals.get("name") == name:
            del module._load_state_dict_pre_hooks[number]  # noqa: SLF001


def _register(module: nn.Module, name: str, weight: Parameter) -> None:
    """Register a parameter where a plain module has it: optimizers know them by their order."""
    held = module._parameters  # noqa: SLF001
    setattr(module, name, weight)  # recurrent modules keep a list of theirs up to date so
    order = list(getattr(module, "_flat_weights_names", ()))
    bias = name.replace("weight", "bias")
    if not order and bias != name and bias in held:
        order = [name, bias]
    names = list(held)
    places = sorted(names.index(each) for each in order if each in held)
    for place, each in zip(places, [each for each in order if each in held], strict=True):
        names[place] = each
    ordered = {each: held.pop(each) for each in names}
    held.update(ordered)
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()  # noqa: SLF001
