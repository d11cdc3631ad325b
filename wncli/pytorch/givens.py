"""What can be given as a checkpoint: a path, a state dict, or a module."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Protocol

from torch import Tensor, nn

from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Key, Keys
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError
from wncli.formats.open import open_checkpoint
from wncli.plan.guards import refuse_ambiguity, refuse_damage
from wncli.pytorch.files import InFiles
from wncli.pytorch.tensors import describe_all, in_memory
from wncli.storage.addresses import place_of
from wncli.storage.source import Sources

#: A path, what `torch.load` gives, or a model.
Given = str | os.PathLike[str] | Mapping[str, object] | nn.Module
#: As many mappings deep a state dict is looked for in what `torch.load` gives.
_DEEPEST = 4


class Tensors(Protocol):
    """A checkpoint and its tensors, wherever they are."""

    checkpoint: Checkpoint
    sources: Sources

    def tensor(self, keys: Keys, spec: TensorSpec) -> Tensor:
        """Return a tensor of the state dict at `keys`."""

    def prepare(self, as_they_are: Iterable[TensorSpec], read: Iterable[TensorSpec]) -> None:
        """Make ready what is used as it is, and what something is computed from."""

    def value(self, keys: Keys, name: str) -> object:
        """Return what is no tensor in the state dict at `keys`."""

    def metadata(self, keys: Keys) -> Mapping[str, object] | None:
        """Return the versions of modules that go with the state dict at `keys`."""


class InMemory:
    """State dicts in memory."""

    def __init__(self, name: str, state_dicts: Mapping[Keys, Mapping[str, object]]) -> None:
        self.state_dicts = state_dicts
        self.sources: Sources = ()
        described = [describe_all(named, keys) for keys, named in state_dicts.items()]
        self.checkpoint = in_memory(name, *described)

    @property
    def top(self) -> StateDict:
        """The one state dict of a model, or of a flat mapping."""
        return self.checkpoint.state_dicts[0]

    def tensor(self, keys: Keys, spec: TensorSpec) -> Tensor:
        """Return the very tensor that was given, or the rows of it that are described."""
        found = self.state_dicts[keys][spec.name]
        assert isinstance(found, Tensor)  # noqa: S101 - it has been described
        if tuple(found.shape) == spec.shape:
            return found
        return found.as_strided(spec.shape, spec.strides, spec.offset)

    def prepare(self, as_they_are: Iterable[TensorSpec], read: Iterable[TensorSpec]) -> None:
        """All is there."""

    def value(self, keys: Keys, name: str) -> object:
        """Return the very value that was given."""
        return self.state_dicts[keys][name]

    def metadata(self, keys: Keys) -> Mapping[str, object] | None:
        """Return what `Module.state_dict` has put beside the tensors."""
        found = getattr(self.state_dicts[keys], "_metadata", None)
        return deepcopy(dict(found)) if isinstance(found, Mapping) else None


def of_module(module: nn.Module) -> InMemory:
    """Give the state dict of a model, its parameters as they are."""
    return InMemory("the model", {(): module.state_dict(keep_vars=True)})


def of_mapping(given: Mapping[str, object]) -> InMemory:
    """Give the one state dict that a mapping is.

    Raises:
        UsageError: it is none, or no tensor is in it.
    """
    if not isinstance(given, Mapping):
        raise UsageError(
            "the state dict",
            "this is no state dict",
            expected="a mapping of names to tensors",
            found=f"a {type(given).__name__}",
            hint="give its state_dict()" if isinstance(given, nn.Module) else "",
        )
    if not any(isinstance(value, Tensor) for value in given.values()):
        raise UsageError(
            "the state dict",
            "there is no tensor in it",
            expected="a mapping of names to tensors",
            found=f"a mapping of {len(given)} other values",
        )
    _refuse_other_keys(given)
    return InMemory("the state dict", {(): given})


@contextmanager
def opened(given: object, *, owned: bool = False) -> Iterator[Tensors]:
    """Open whatever was given.

    Args:
        given: a path, a mapping, or a module.
        owned: what is used of files is to stay when they are closed.

    Raises:
        FileError: a file cannot be read.
        FormatError: it is no checkpoint.
        UsageError: it is none of these.
    """
    if isinstance(given, nn.Module):
        yield of_module(given)
        return
    if isinstance(given, Mapping):
        found = dict(_state_dicts(given, ()))
        if not found:
            of_mapping(given)
        for named in found.values():
            _refuse_other_keys(named)
        yield InMemory("the checkpoint", found)
        return
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError(
            "checkpoint",
            "this is no checkpoint",
            expected="a path, a state dict, or a module",
            found=f"a {type(given).__name__}",
        )
    with open_checkpoint(place_of(given)) as (checkpoint, sources):
        refuse_ambiguity(checkpoint)
        refuse_damage(checkpoint)
        yield InFiles(checkpoint, sources, owned=owned)


def _state_dicts(
    given: Mapping[str, object], keys: tuple[Key, ...]
) -> Iterator[tuple[Keys, Mapping[str, object]]]:
    """Find the mappings that have tensors, as in `torch.load` of a training checkpoint."""
    if any(isinstance(value, Tensor) for value in given.values()):
        yield keys, given
        return
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(key, (str, int)) and len(keys) < _DEEPEST:
            yield from _state_dicts(value, (*keys, key))


def _refuse_other_keys(named: Mapping[str, object]) -> None:
    odd = next((key for key in named if not isinstance(key, str)), None)
    if odd is not None:
        raise UsageError(
            "the state dict",
            "a key of it is no text",
            expected="names of tensors",
            found=repr(odd)[:100],
        )
