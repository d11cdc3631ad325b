"""Has a model judge a state dict before anything of it changes."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wncli.errors import WeightNormError
from wncli.pytorch.attributes import Attributes
from wncli.pytorch.modules import modules_of

#: What PyTorch raises for names and shapes, and what a model's own hooks may.
_REFUSALS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
#: Methods that may be put into a module itself.
_LOADING = ("load_state_dict", "_load_from_state_dict")
#: As many lines are shown of what it says.
_SHOWN = 8


class Judgement(NamedTuple):
    """What `load_state_dict` says of names: those that it misses, those that it does not know."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def rehearse(
    model: nn.Module, tensors: Mapping[str, Tensor], versions: Mapping[str, object] | None
) -> Judgement:
    """Load tensors without numbers into the model, its parameters being without numbers as well.

    All hooks run, and versions count. Whatever a module's attributes become is undone.

    Args:
        model: what is to be loaded into.
        tensors: by name, on the meta device.
        versions: those of the modules that the state dict is of.

    Raises:
        WeightNormError: the model refuses them whatever `strict` is.
    """
    made = OrderedDict(tensors)
    if versions is not None:
        made._metadata = dict(versions)  # type: ignore[attr-defined]  # noqa: SLF001
    with torch.inference_mode(mode=False), _without_numbers(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is told that nothing is copied
        try:
            found = model.load_state_dict(made, strict=False)
        except _REFUSALS as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise WeightNormError(
                "the model",
                "its load_state_dict refuses what would be loaded",
                expected="names, shapes and dtypes that it takes, whatever the numbers are",
                found=f"{type(error).__name__}: {'; '.join(lines[:_SHOWN])}",
            ) from error
    # A method of the model's own may return nothing.
    missing, unexpected = (getattr(found, f"{word}_keys", ()) for word in Judgement._fields)
    return Judgement(tuple(missing), tuple(unexpected))


def has_code_of_its_own(model: nn.Module) -> bool:
    """Whether anything but PyTorch's modules and hooks has a say in loading.

    Without, a state dict of the model's own names and shapes is one that it takes.
    """
    modules = modules_of(model)
    kinds = {type(module): module for module in modules}
    functions: list[object] = [model.load_state_dict]
    functions += [type(module)._load_from_state_dict for module in kinds.values()]  # noqa: SLF001
    for module in modules:
        functions += [vars(module)[name] for name in _LOADING if name in vars(module)]
        functions += module._load_state_dict_pre_hooks.values()  # noqa: SLF001
        functions += module._load_state_dict_post_hooks.values()  # noqa: SLF001
    return not all(_home(function).startswith("torch.") for function in functions)


@contextmanager
def _without_numbers(model: nn.Module) -> Iterator[None]:
    modules = modules_of(model)
    before = Attributes(model)
    try:
        for module in modules:
            for held in (module._parameters, module._buffers):  # noqa: SLF001
                for name, tensor in held.items():
                    if tensor is not None:
                        held[name] = _empty(tensor)  # type: ignore[assignment]
            for hooks in (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks):  # noqa: SLF001
                for number in [n for n, hook in hooks.items() if _moves_parameters(hook)]:
                    del hooks[number]
        yield
    finally:
        before.restore()


def _moves_parameters(hook: object) -> bool:
    """Whether a hook is one of FSDP's, which judge nothing, and look for their parts of tensors."""
    return _home(hook).startswith("torch.distributed.")


def _home(hook: object) -> str:
    """Return the module that a function is from."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", ""))


def _empty(tensor: Tensor) -> Tensor:
    if is_lazy(tensor):  # which gets its shape in loading
        return type(tensor)(device="meta", dtype=tensor.dtype)  # type: ignore[call-arg]
    found = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(found, requires_grad=False) if isinstance(tensor, nn.Parameter) else found
