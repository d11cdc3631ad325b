"""Finds the weight-normalized layers of a live model, in both spellings, through its wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from wncli.checkpoint.naming import Naming, join
from wncli.errors import UsageError, WeightNormError, few
from wncli.notes import Note
from wncli.pytorch.givens import InMemory
from wncli.pytorch.results import NEW_PARAMETERS, WRAP_AGAIN
from wncli.pytorch.tensors import is_distributed

#: What puts itself before the names of a model, and the attribute that the model is then.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # torch.compile's, which must not be imported for its sake
    "DataParallel": "module",
    "DistributedDataParallel": "module",
}
#: What shards a model's parameters: `fully_shard` puts it among a module's classes.
_SHARDED = {"FSDPModule", "FullyShardedDataParallel"}


class Layer(NamedTuple):
    """A parameter of a live module that weight norm gives, and what it is made from.

    `dim` is None for the norm of the whole tensor. `hook` is that of `torch.nn.utils.weight_norm`;
    None where the parameter is parametrized.
    """

    name: str
    module: nn.Module
    parameter: str
    dim: int | None
    g: Tensor
    v: Tensor
    hook: WeightNorm | None

    @property
    def naming(self) -> Naming:
        """The spelling."""
        return "hook" if self.hook else "parametrized"


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model in wrappers; these pass attributes on, but not all."""
    while (inner := _WRAPPERS.get(type(model).__name__)) and model._modules.get(inner) is not None:  # noqa: SLF001
        model = model._modules[inner]  # type: ignore[assignment]  # noqa: SLF001
    return model


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give each module once, with its path, in which wrappers have no part."""
    known: set[int] = set()
    left = [("", model)]
    while left:
        path, module = left.pop()
        module = unwrapped(module)
        if id(module) in known:
            continue
        known.add(id(module))
        yield path, module
        children = module._modules.items()  # noqa: SLF001 - what a wrapper passes on is not its own
        left += [
            (join(path, name), child)
            for name, child in reversed(children)
            if child is not None and name != "parametrizations"
        ]


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return each module once, in no order: `Module.modules` spells all paths on its way."""
    found = {id(model): model}
    left = [model]
    while left:
        for child in left.pop()._modules.values():  # noqa: SLF001
            if child is not None and id(child) not in found:
                found[id(child)] = child
                left.append(child)
    return list(found.values())


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Return the normalized layers by the full names of their weights."""
    return {layer.name: layer for path, module in walk(model) for layer in _in_module(path, module)}


def _in_module(path: str, module: nn.Module) -> Iterator[Layer]:
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001
        if isinstance(hook, WeightNorm):
            g, v = (getattr(module, f"{hook.name}_{half}") for half in "gv")
            name = join(path, hook.name)
            yield Layer(name, module, hook.name, _dim(hook.dim), g, v, hook)
    for parameter, chain in _parametrizations(module):
        first = chain[0]
        if len(chain) == 1 and isinstance(first, _WeightNorm):
            g, v = chain.original0, chain.original1
            name = join(path, parameter)
            yield Layer(name, module, parameter, _dim(first.dim), g, v, None)  # type: ignore[arg-type]


def _dim(dim: int) -> int | None:
    return None if dim == -1 else dim


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    found = module._modules.get("parametrizations")  # noqa: SLF001
    for parameter, chain in found.items() if isinstance(found, nn.ModuleDict) else ():
        if isinstance(chain, nn.ModuleList) and len(chain):
            yield parameter, chain


def parameters_of(model: nn.Module) -> InMemory:
    """Give the parameters of a model, and what parametrizes them, as a state dict.

    A parameter that modules share has the name that it has first.
    """
    found: dict[str, object] = {}
    for path, module in walk(model):
        own = [("", module)]
        own += [
            (f"parametrizations.{parameter}.{inner}".rstrip("."), part)
            for parameter, chain in _parametrizations(module)
            for inner, part in chain.named_modules()
        ]
        for below, part in own:
            held = part._parameters | (part._buffers if below else {})  # noqa: SLF001
            for name, tensor in held.items():
                if tensor is not None:
                    found[join(path, join(below, name))] = tensor
    return InMemory("the model", {(): found})


def of_new_parameters(model: nn.Module) -> list[Note]:
    """Say who holds the parameters that a model had before."""
    is_wrapped = any(_is_kind(kind, "DistributedDataParallel") for kind in _kinds(model))
    return [NEW_PARAMETERS, WRAP_AGAIN] if is_wrapped else [NEW_PARAMETERS]


def refuse_other(model: object) -> nn.Module:
    """Refuse what is no module, or one that cannot be changed.

    Raises:
        UsageError: that is so.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            "model", "this is no module", expected="a torch.nn.Module", found=type(model).__name__
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(
            "model",
            "a TorchScript module cannot be changed",
            expected="the module that it was made from",
            found=type(model).__name__,
        )
    return model


def refuse_stacked(model: object, weights: Iterable[str]) -> None:
    """Refuse to compose or to split what has more than weight norm: it would be without the rest.

    What has tensors of its own the planner sees; what has none, as a mere function, this alone.

    Args:
        model: whose weights they are; what is no module shows none of its functions.
        weights: full names, as the model's state dict has them.

    Raises:
        WeightNormError: one is such.
    """
    weights = tuple(weights)
    modules = model.named_modules() if weights and isinstance(model, nn.Module) else ()
    stacked = {
        join(path, parameter)
        for path, module in modules
        for parameter, chain in _parametrizations(module)
        if len(chain) > 1 and isinstance(chain[0], _WeightNorm)
    }
    for name in weights:
        if name in stacked:
            raise WeightNormError(
                f"the model: {name}",
                "this weight has another parametrization on top of weight norm, which a plain one"
                " does not go through",
                expected="weight norm alone",
                hint="torch.nn.utils.parametrize.remove_parametrizations makes it a plain weight",
            )


def refuse_sharded(model: nn.Module, what: str) -> None:
    """Refuse a model whose parameters are in parts on several ranks.

    Raises:
        WeightNormError: that is so.
    """
    parts = [
        join(path, name)
        for path, module in walk(model)
        for name, held in module._parameters.items()  # noqa: SLF001
        if is_distributed(held)
    ]
    parts += [
        join(path, f"parametrizations.{parameter}")
        for path, module in walk(model)
        for parameter, chain in _parametrizations(module)
        if any(map(is_distributed, chain.parameters()))
    ]
    sharded = [module for _, module in walk(model) if _is_kind(type(module), *_SHARDED)]
    if parts or sharded:
        raise WeightNormError(
            f"the model: {parts[0] if parts else type(sharded[0]).__name__}",
            "its parameters are sharded: each rank has a part of them",
            expected="whole parameters",
            found=f"{len(parts)} DTensors: {few(parts)}" if parts else "",
            hint=f"call {what} before fully_shard",
        )


def _kinds(model: nn.Module) -> set[type]:
    return set(map(type, modules_of(model)))


def _is_kind(kind: type, *names: str) -> bool:
    return any(base.__name__ in names for base in kind.__mro__)


def refuse_flattened(model: nn.Module) -> None:
    """Refuse a model whose state dict takes all ranks to be made.

    Raises:
        WeightNormError: that is so.
    """
    flattening = {kind for kind in _kinds(model) if _is_kind(kind, "FullyShardedDataParallel")}
    for path, module in walk(model) if flattening else ():
        if type(module) in flattening:
            raise WeightNormError(
                f"the model: {path or type(module).__name__}",
                "FSDP has flattened its parameters",
                expected="a model before that, or one after fully_shard",
                hint="call load_weights before FullyShardedDataParallel",
            )


def refuse_inference(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse tensors of inference mode, which train and change nowhere else.

    Raises:
        WeightNormError: one is such.
    """
    for name, tensor in tensors:
        if not is_lazy(tensor) and tensor.is_inference():
            raise WeightNormError(
                f"the model: {name}",
                "this tensor was made in inference mode, and neither trains nor changes outside it",
                expected="a model made outside torch.inference_mode",
                hint="copy.deepcopy(model) outside of it makes one",
            )


def lazy_in(model: nn.Module) -> list[str]:
    """List the parameters that get their shapes with the first forward."""
    return [
        join(path, name)
        for path, module in walk(model)
        for name, held in module._parameters.items()  # noqa: SLF001
        if held is not None and is_lazy(held)
    ]


def refresh(model: nn.Module) -> None:
    """Make the weights of hooks anew from g and v, without a graph: else they are those of before.

    As leaves they can be copied, too (`copy.deepcopy`). Of DTensors only the next forward makes
    any, which has them whole.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for path, module in walk(model):
            for layer in _in_module(path, module) if module._forward_pre_hooks else ():  # noqa: SLF001
                if layer.hook and not (is_distributed(layer.g) or is_distributed(layer.v)):
                    setattr(module, layer.parameter, layer.hook.compute_weight(module))
