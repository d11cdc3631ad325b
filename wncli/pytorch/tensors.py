"""What the planner sees of torch tensors, and the bytes of those that the CPU can read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wncli.arithmetic.torch_tensors import bytes_of
from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys, shown
from wncli.checkpoint.tensors import DType, Storage, TensorSpec, row_major
from wncli.storage.source import truncated

#: The element types by PyTorch's names; older versions of it have fewer.
TORCH_DTYPES = {
    dtype: getattr(torch, dtype.torch)
    for dtype in DType
    if dtype.torch and hasattr(torch, dtype.torch)
}
_DTYPES = {named: dtype for dtype, named in TORCH_DTYPES.items()}
#: More than any memory: what is in memory already is out of no proportion.
_ANY_SIZE = 1 << 62


def is_distributed(tensor: object) -> bool:
    """Whether this is a DTensor, of which each rank has a part."""
    if type(tensor) in {Tensor, nn.Parameter}:  # as most are: an attribute is looked up long
        return False
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_run_of_memory(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are its storage's.

    Sparse and nested ones have none, and wrappers of other tensors one that means nothing.
    """
    is_plain = type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
    return is_plain and tensor.layout is torch.strided and not tensor.is_nested


def kind_of(tensor: object) -> str:
    """Say what kind of tensor this is, of which one cannot be copied into another; else nothing."""
    if not isinstance(tensor, Tensor) or is_lazy(tensor):
        return ""
    if is_distributed(tensor):
        return "distributed"
    if tensor.is_quantized:
        return "quantized"
    return "dense" if tensor.layout is torch.strided else "sparse"


def describe(name: str, tensor: object, file: int = 0) -> TensorSpec | None:
    """Describe a tensor; None for what is none, or has no shape yet.

    Tensors of one storage have the same one here. Those that are no run of memory, as DTensors and
    sparse ones, have each their own.
    """
    if not isinstance(tensor, Tensor) or is_lazy(tensor) or tensor.dtype not in _DTYPES:
        return None
    dtype, shape, device = _DTYPES[tensor.dtype], tuple(tensor.shape), str(tensor.device)
    if not is_run_of_memory(tensor):
        storage = Storage(f"object {id(tensor)}", 0, _ANY_SIZE, location=device, file=file)
        return TensorSpec(name, dtype, shape, storage, 0, row_major(shape))
    held = tensor.untyped_storage()
    storage = Storage(f"{held._cdata}", 0, held.nbytes(), location=device, file=file)  # noqa: SLF001 - what tells storages on the meta device apart, too
    offset = int(tensor.storage_offset())
    return TensorSpec(name, dtype, shape, storage, offset, tuple(tensor.stride()))


def describe_all(named: Mapping[str, object], keys: Keys = ()) -> StateDict:
    """Describe a state dict; what is no tensor is among its `others`."""
    found = {name: describe(name, value) for name, value in named.items()}
    tensors = tuple(spec for spec in found.values() if spec)
    others = tuple(name for name, spec in found.items() if spec is None)
    return StateDict(shown(keys), tensors, others, keys=keys)


def in_memory(name: str, *state_dicts: StateDict) -> Checkpoint:
    """Make what the planner takes for an opened file; `name` is what messages call it."""
    return Checkpoint(name, "in memory", _ANY_SIZE, state_dicts)


class MemorySource:
    """The storage of a tensor on the CPU, read as a file is; `name` is what refusals call it."""

    def __init__(self, name: str, tensor: Tensor, number: int = 0) -> None:
        self.name = name
        self.number = number
        self.data = bytes_of(tensor)
        self.nbytes = len(self.data)

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        self._refuse_beyond(offset + nbytes, what)
        return bytes(self.data[offset : offset + nbytes])

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        self._refuse_beyond(offset + len(buffer), what)
        buffer[:] = self.data[offset : offset + len(buffer)]

    def _refuse_beyond(self, end: int, what: str) -> None:
        if end > self.nbytes:
            raise truncated(self, what, end)

    def close(self) -> None:
        """Leave the tensor to whom it belongs."""
