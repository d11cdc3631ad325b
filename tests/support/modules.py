"""Pickled modules: written by hand, and read as the state dicts in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.oracles import bits
from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError
from wncli.formats.open import open_checkpoint
from wncli.formats.pickles.nodes import Built, Call, Dict, Global, Node, PersistentId
from wncli.storage.source import Sources

Bits = tuple[str, tuple[int, ...], bytes]


def read(spec: TensorSpec, sources: Sources) -> Tensor:
    """The tensor that a spec leads to."""
    storage = spec.storage
    raw = sources[storage.file].read_at(storage.offset, storage.nbytes, spec.name)
    dtype: torch.dtype = getattr(torch, spec.dtype.torch or "")
    flat = torch.frombuffer(bytearray(raw), dtype=dtype) if raw else torch.empty(0, dtype=dtype)
    return flat.as_strided(spec.shape, spec.strides, spec.offset)


def opened(path: Path) -> tuple[Checkpoint, dict[str, list[tuple[str, Bits]]]]:
    """The checkpoint, and each of its state dicts: names, dtypes, shapes and bytes, in order."""
    with open_checkpoint(path) as (checkpoint, sources):
        return checkpoint, {
            found.root: [(spec.name, bits(read(spec, sources))) for spec in found.tensors]
            for found in checkpoint.state_dicts
        }


def expected(state: dict[str, Tensor]) -> list[tuple[str, Bits]]:
    return [(name, bits(tensor)) for name, tensor in state.items()]


def found_in(path: Path) -> tuple[StateDict, ...]:
    with open_checkpoint(path) as (checkpoint, _):
        return checkpoint.state_dicts


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught, open_checkpoint(path):
        pass
    return str(caught.value)


def module(modules: list[tuple[Node, Node]], parameters: Node = None) -> Call:
    state = Dict(
        [
            ("_parameters", Dict(parameters or [])),
            ("_buffers", Dict()),
            ("_modules", Dict(modules)),
        ]
    )
    return Call("NEWOBJ", Global("m", "M"), (), effects=[Built(state)])


def weight() -> Call:
    pid = PersistentId(("storage", Global("torch", "FloatStorage"), "0", "cpu", 4))
    hooks = Call("REDUCE", Global("collections", "OrderedDict"), ())
    args = (pid, 0, (2, 2), (2, 1), False, hooks)
    return Call("REDUCE", Global("torch._utils", "_rebuild_tensor_v2"), args)
