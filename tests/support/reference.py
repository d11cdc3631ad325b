"""How PyTorch and safetensors read a file, and whether two things that they read are the same."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tests.support.oracles import bits

#: Elements; an expanded tensor can have more than any memory, and is known by what it expands.
_MANY = 1 << 20


def read(path: Path) -> Any:  # noqa: ANN401 - whatever is in there
    """What the library of the format makes of a file, an index and its shards taken together.

    Raises:
        Exception: it refuses the file.
    """
    start = path.read_bytes()[:9]
    if path.name.endswith(".index.json"):
        weight_map = json.loads(path.read_bytes())["weight_map"]
        shards = {file: read(path.with_name(file)) for file in set(weight_map.values())}
        return {name: shards[file][name] for name, file in weight_map.items()}
    if start.startswith((b"PK", b"\x80")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    return safetensors.torch.load(path.read_bytes())


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def stored(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file as they are: dtype, shape and bytes."""
    return dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]


def state_dict_at(value: Any, root: str) -> dict[str, Tensor] | None:  # noqa: ANN401
    """The tensors under a root, by name; None where there is no mapping."""
    for key in root.split(".") if root else ():
        if isinstance(value, (list, tuple)) and key.isdecimal():
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        return None
    found = {name: part for name, part in value.items() if isinstance(part, Tensor)}
    return {name: part for name, part in found.items() if isinstance(name, str)}


def same_tensor(one: Tensor, other: Tensor, *, strided: bool) -> bool:
    """Whether dtype, shape and every bit are equal; with `strided`, memory's layout as well."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if strided and (
        one.stride() != other.stride()
        or one.storage_offset() != other.storage_offset()
        or one.requires_grad != other.requires_grad
        or type(one) is not type(other)
    ):
        return False
    if one.numel() > _MANY:
        return not strided or _storage(one) == _storage(other)
    return bits(one) == bits(other)


def _storage(tensor: Tensor) -> bytes:
    return bytes(tensor.untyped_storage().tolist())


class Likeness:
    """Holds two trees against each other, and which of their tensors share storages."""

    def __init__(self) -> None:
        self.met: dict[int, Any] = {}
        self.partners: dict[int, int] = {}
        self.alive: list[Any] = []

    def same(self, one: Any, other: Any) -> bool:  # noqa: ANN401
        """Whether both are of one type and hold the same, in the same order."""
        if type(one) is not type(other):
            return False
        if isinstance(one, (Mapping, Tensor, Sequence)) and not isinstance(one, (str, bytes)):
            if id(one) in self.met:
                return self.met[id(one)] is other
            self.met[id(one)] = other
            self.alive.append(one)
        return self.same_content(one, other)

    def same_content(self, one: Any, other: Any) -> bool:  # noqa: ANN401
        """Whether two of one type hold the same."""
        if isinstance(one, Tensor):
            return same_tensor(one, other, strided=True) and self.same_storage(one, other)
        if isinstance(one, Mapping):  # which may have attributes, such as `_metadata`
            attributes = [[*getattr(part, "__dict__", {}).items()] for part in (one, other)]
            return self.same_all([*one.items()], [*other.items()]) and self.same_all(*attributes)
        if isinstance(one, (list, tuple)):
            return self.same_all(one, other)
        if isinstance(one, torch.TypedStorage):  # which is not to be compared, or shown
            one, other = one._untyped_storage.tolist(), other._untyped_storage.tolist()
        return bool(one == other) or (isinstance(one, float) and math.isnan(one + other))

    def same_all(self, ones: Sequence[Any], others: Sequence[Any]) -> bool:
        """Whether two sequences hold the same."""
        return len(ones) == len(others) and all(map(self.same, ones, others))

    def same_storage(self, one: Tensor, other: Tensor) -> bool:
        """Whether tensors that share a storage here also share one there, and only they."""
        if not one.numel():
            return True
        pair = one.untyped_storage().data_ptr(), other.untyped_storage().data_ptr()
        return self.partners.setdefault(pair[0], pair[1]) == pair[1]
