"""A tensor in a torch pickle: the rebuild calls, read into specs and made from them.

Source: PyTorch `torch/_utils.py` (`_rebuild_tensor_v2` and its kin), `torch/serialization.py`
(`persistent_id`), `torch/_tensor.py` (`_rebuild_from_type_v2`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    ByteText,
    Call,
    Global,
    Node,
    PersistentId,
    brief,
    entries_of,
    is_called,
)
from wncli.tensors import DType, Storage, TensorSpec, count_elements, row_major

_TYPED = {dtype.torch_storage: dtype for dtype in DType if dtype.torch_storage}
_NAMED = {dtype.torch: dtype for dtype in DType if dtype.torch}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_REBUILDS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
#: Arguments of `_rebuild_tensor_v2` without what is rare.
_USUAL_ARGS = 6
#: As many calls can stand around a tensor: a Parameter of a subclass of a subclass.
_MOST_WRAPPED = 3


class StorageId(NamedTuple):
    """What the persistent id of a storage says; `dtype` is None for untyped storages (bytes).

    `view` is the legacy format's `(key, offset, numel)` of a part of another storage.
    """

    key: str
    dtype: DType | None
    location: str
    numel: int
    view: tuple[str, int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * (self.dtype.itemsize if self.dtype else 1)


def read_storage_id(node: PersistentId, where: str) -> StorageId:
    """The storage that a persistent id refers to.

    Raises:
        FormatError: it is no reference to a storage.
    """
    match node.pid:
        case ("storage", Global() as kind, str() as key, str() as location, int() as numel, *rest):
            untyped = kind.name == "UntypedStorage"
            dtype = None if untyped else _TYPED.get(kind.name)
            is_storage = kind.module in _STORAGE_MODULES and (untyped or dtype is not None)
            if is_storage and _are_counts((numel,)):
                match rest:
                    case [] | [None]:
                        return StorageId(key, dtype, location, numel)
                    case [(str(), int(), int()) as view] if _are_counts(view[1:]):
                        return StorageId(key, dtype, location, numel, tuple(view))
    raise FormatError(
        where,
        "the pickle refers to something outside it that is no tensor storage",
        expected="('storage', torch.FloatStorage, key, location, numel)",
        found=brief(node.pid),
    )


def class_of(node: Node) -> Global | None:
    """The class or function that a node stands for, or None where it is something else.

    The legacy format refers to the class of a module by a persistent id, with its source code
    (PyTorch `torch/serialization.py`, `_legacy_save`); what is written as a zip names the class.
    """
    match node:
        case Global():
            return node
        case PersistentId(("module", Global() as kind, file, source)):
            texts = (str, bytes, ByteText, type(None))
            return kind if isinstance(file, texts) and isinstance(source, texts) else None
    return None


def called_name(call: Call) -> str:
    """What is called, as a name for people; empty where that is no name."""
    if is_called(call, "copyreg", "_reconstructor") or is_called(
        call, "copy_reg", "_reconstructor"
    ):
        return str(class_of(call.args[0]) or "") if call.args else ""
    return str(class_of(call.function) or "")


def read_tensor(
    node: Node, storages: Mapping[PersistentId, tuple[StorageId, Storage]], name: str, where: str
) -> TensorSpec | None:
    """The tensor that this node rebuilds, or None where it is something else.

    A tensor that is still to be conjugated or negated is something else: its bytes are not its
    numbers.

    Raises:
        FormatError: the sizes are impossible, or reach beyond the storage.
    """
    call = _plain_rebuild(node)
    if call is None or _is_lazy(call):
        return None
    match call.args:
        case (PersistentId() as pid, int() as offset, sizes, steps, *rest):
            shape, strides = _counts(sizes), _counts(steps)
        case _:
            shape = strides = None
    if shape is None or strides is None or len(shape) != len(strides) or not _are_counts((offset,)):
        raise FormatError(where, f"tensor {name!r} has an impossible shape", found=brief(call.args))
    if pid not in storages:
        raise FormatError(where, f"tensor {name!r} is over something that is no tensor storage")
    identity, storage = storages[pid]
    is_explicit = call.function.name == "_rebuild_tensor_v3"
    dtype = _explicit_dtype(rest) if is_explicit else identity.dtype
    if dtype is None or not dtype.itemsize:
        raise FormatError(where, f"tensor {name!r} has an unknown dtype")
    numel, reach = _extent(shape, strides)
    if numel is None or numel >= 1 << 63:
        raise FormatError(where, f"tensor {name!r} claims more than any memory holds")
    last = offset + reach
    held = storage.nbytes // dtype.itemsize
    if numel and last >= held:
        raise FormatError(
            where,
            f"tensor {name!r} reaches beyond its storage",
            expected=f"elements below {held}",
            found=f"shape {shape}, strides {strides}, offset {offset}: up to element {last}",
        )
    return TensorSpec(name, dtype, shape, storage, offset, strides)


def is_part(node: Node) -> bool:
    """Whether this is one rank's part of a distributed tensor: a DTensor or a ShardedTensor."""
    if is_called(node, "torch._utils", "_rebuild_parameter", "_rebuild_parameter_with_state"):
        node = node.args[0] if node.args else None
    if not is_called(node, "torch._tensor", "_rebuild_from_type_v2") or len(node.args) < 2:  # noqa: PLR2004
        return False
    kind = node.args[1]
    return isinstance(kind, Global) and f"{kind.module}.".startswith("torch.distributed.")


@lru_cache(maxsize=1024)  # the layers of a model share a few shapes
def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int | None, int]:
    """The number of elements, and how far the last is behind the first."""
    steps = zip(shape, strides, strict=True)
    return count_elements(shape), sum((size - 1) * step for size, step in steps)


def _plain_rebuild(node: Node) -> Call | None:
    """The `_rebuild_tensor…` call at the heart of a tensor, a Parameter or a subclass."""
    for _ in range(_MOST_WRAPPED + 1):
        if is_called(node, "torch._utils", *_REBUILDS):
            return cast("Call", node)
        if is_called(node, "torch._utils", "_rebuild_parameter", "_rebuild_parameter_with_state"):
            node = node.args[0] if node.args else None
        elif is_called(node, "torch._tensor", "_rebuild_from_type_v2") and len(node.args) > 2:  # noqa: PLR2004
            node = Call("REDUCE", node.args[0], node.args[2])
        else:
            break
    return None


def _is_lazy(call: Call) -> bool:
    """Whether the numbers in the storage are not yet the tensor's: `conj()`, or its `imag`."""
    return len(call.args) > _USUAL_ARGS and any(
        key in ("conj", "neg") and value is not False
        for part in call.args[_USUAL_ARGS:]
        for key, value in entries_of(_untagged(part)) or []
        if isinstance(key, str)
    )


def _untagged(node: Node) -> Node:
    """What TorchScript writes with its type beside it."""
    is_tagged = is_called(node, "torch.jit._pickle", "restore_type_tag")
    return node.args[0] if is_tagged and node.args else node


def _explicit_dtype(rest: list[Node]) -> DType | None:
    for part in rest:
        if isinstance(part, Global) and part.module == "torch":
            return _NAMED.get(part.name)
    return None


def _counts(node: Node) -> tuple[int, ...] | None:
    if not isinstance(node, (tuple, list)):
        if not (is_called(node, "torch", "Size") and len(node.args) == 1):
            return None
        node = node.args[0]
    return tuple(node) if isinstance(node, (tuple, list)) and _are_counts(node) else None


def _are_counts(values: Iterable[Node]) -> bool:
    for value in values:  # noqa: SIM110 - a generator would take twice as long, for every tensor
        if type(value) is not int or not 0 <= value < 1 << 63:
            return False
    return True


@dataclass(frozen=True, slots=True)  # no tuple: it stands among the objects of a pickle
class NewStorage:
    """Stands in a persistent id for a storage that the output will have and the input has not.

    `index` is the place of its bytes among the contents that are to be filled.
    """

    index: int
    dtype: DType
    numel: int
    location: str


#: One hook-less `OrderedDict()` serves all tensors that are made here.
_NO_HOOKS = Call("REDUCE", Global("collections", "OrderedDict"), ())
_REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_WITH_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_TYPED_STORAGES = {dtype: Global("torch", name) for name, dtype in _TYPED.items() if name}
_UNTYPED_STORAGE = Global("torch.storage", "UntypedStorage")


def make_tensor(
    storage: NewStorage,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    like: Node = None,
) -> Call:
    """The call that rebuilds a tensor over a new storage; a Parameter where `like` is one.

    `like` also tells whether it requires a gradient.
    """
    stride = row_major(shape) if strides is None else strides
    rebuild = _plain_rebuild(like)
    requires_grad = rebuild is not None and len(rebuild.args) > 4 and rebuild.args[4] is True  # noqa: PLR2004
    args = (PersistentId(storage), 0, shape, stride, requires_grad, _NO_HOOKS)
    if storage.dtype in _TYPED_STORAGES:
        tensor = Call("REDUCE", _REBUILD, args)
    else:
        dtype = Global("torch", storage.dtype.torch or "")
        tensor = Call("REDUCE", _REBUILD_WITH_DTYPE, (*args, dtype))
    if is_called(like, "torch._utils", "_rebuild_parameter", "_rebuild_parameter_with_state"):
        requires_grad = bool(like.args[1]) if len(like.args) > 1 else True
        return Call("REDUCE", _REBUILD_PARAMETER, (tensor, requires_grad, _NO_HOOKS))
    return tensor


def storage_pid(storage: NewStorage, key: str) -> tuple[Node, ...]:
    """The persistent id of a new storage under `key`; untyped ones count in bytes."""
    kind = _TYPED_STORAGES.get(storage.dtype)
    numel = storage.numel if kind else storage.numel * storage.dtype.itemsize
    return ("storage", kind or _UNTYPED_STORAGE, key, storage.location, numel)
