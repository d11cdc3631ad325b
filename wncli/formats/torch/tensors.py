"""A tensor in a torch pickle: the rebuild calls, read into specs and made from them.

Source: PyTorch `torch/_utils.py` (`_rebuild_tensor_v2` and its kin), `torch/serialization.py`
(`persistent_id`), `torch/_tensor.py` (`_rebuild_from_type_v2`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from wncli.checkpoint.tensors import DType, Storage, TensorSpec, count_elements, row_major
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import (
    Built,
    ByteText,
    Call,
    Dict,
    Global,
    Node,
    PersistentId,
    Unread,
    brief,
    entries_of,
    is_called,
)
from wncli.notes import Note

#: The classes that typed storages have, and the modules that have had them.
STORAGES = tuple(dtype.torch_storage for dtype in DType if dtype.torch_storage)
_TYPED = {dtype.torch_storage: dtype for dtype in DType if dtype.torch_storage}
_NAMED = {dtype.torch: dtype for dtype in DType if dtype.torch}
#: Their tensors are made by `_rebuild_qtensor`, which has the scale.
QUANTIZED = frozenset(dtype for dtype in DType if dtype.name.startswith("Q"))
STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
#: How `torch.save` has written tensors (`torch/_utils.py`), with the numbers of their arguments:
#: `_rebuild_tensor` up to 0.3; v2 from 0.4 on, with metadata (conj, neg) from 1.13 on; v3 from 2.0
#: on for dtypes without a typed storage.
_REBUILDS = {"_rebuild_tensor": (4, 4), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}
#: Parameters from 0.4 on; with attributes of their own from 2.0 on. Around both, from 1.8 on, the
#: `_rebuild_from_type_v2` of subclasses and of tensors with attributes (`torch/_tensor.py`).
_PARAMETERS = {"_rebuild_parameter": 3, "_rebuild_parameter_with_state": 4}
#: Which argument says that the numbers are still to be conjugated or negated.
_METADATA_PLACE = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 6, "_rebuild_tensor_v3": 7}
#: Beyond these nothing is a tensor that PyTorch made: its dims, and its own attributes.
_MOST_DIMS = 64
_MOST_ATTRIBUTES = 256
#: As many calls can be around a tensor: a Parameter of a subclass with attributes.
_MOST_WRAPPED = 3
#: Attributes of a tensor that say what it is, which state can set (and all with two underscores).
_ATTRIBUTES = frozenset(
    {
        "data", "grad", "_grad", "real", "imag", "names", "requires_grad", "retains_grad",
        "volatile", "_backward_hooks", "_post_accumulate_grad_hooks",
    }
)  # fmt: skip


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


def read_storage_id(node: PersistentId, where: str, *, is_legacy: bool = False) -> StorageId:
    """Read the storage that a persistent id refers to; a legacy one says what it is a view of.

    Raises:
        FormatError: it is no reference to a storage.
    """
    match node.pid:
        case ("storage", Global() as kind, str() as key, str() as location, int() as numel, *rest):
            untyped = kind.name == "UntypedStorage"
            dtype = None if untyped else _TYPED.get(kind.name)
            is_storage = kind.module in STORAGE_MODULES and (untyped or dtype is not None)
            if is_storage and _are_counts((numel,)):
                if rest == ([None] if is_legacy else []):
                    return StorageId(key, dtype, location, numel)
                match rest:
                    case [(str(), int(), int()) as view] if is_legacy and _are_counts(view[1:]):
                        return StorageId(key, dtype, location, numel, tuple(view))
    raise FormatError(
        where,
        "the pickle refers to something outside it that is no tensor storage",
        expected="('storage', torch.FloatStorage, key, location, numel)",
        found=brief(node.pid),
    )


def class_of(node: Node) -> Global | None:
    """Return the class or function that a node names, or None where it is something else.

    The legacy format refers to the class of a module by a persistent id, with its source code
    (PyTorch `torch/serialization.py`, `_legacy_save`); what is written as a zip names the class.
    """
    match node:
        case Global():
            return node
        case PersistentId(("module", Global() as kind, file, source)):
            texts = (str, bytes, ByteText, Unread, type(None))
            return kind if isinstance(file, texts) and isinstance(source, texts) else None
    return None


def called_name(call: Call) -> str:
    """Return what is called, as a name for people; empty where that is no name."""
    if is_called(call, "copyreg", "_reconstructor") or is_called(
        call, "copy_reg", "_reconstructor"
    ):
        return str(class_of(call.args[0]) or "") if call.args else ""
    return str(class_of(call.function) or "")


def read_tensor(
    node: Node, storages: Mapping[PersistentId, tuple[StorageId, Storage]], name: str, where: str
) -> TensorSpec | None:
    """Return the tensor that this node rebuilds, or None where it is something else.

    A tensor is read only as `torch.save` has written it, with nothing done to it before or after.
    One that is still to be conjugated or negated is something else: its bytes are not its numbers.

    Raises:
        FormatError: it is made in another way, or the sizes are impossible, or reach beyond the
            storage.
    """
    call = _rebuild(node, name, where)
    if call is None:
        return None
    pid, offset, sizes, steps, *rest = call.args
    shape, strides = counts(sizes), counts(steps)
    if shape is None or strides is None or len(shape) != len(strides) or not _are_counts((offset,)):
        raise FormatError(where, f"tensor {name!r} has an impossible shape", found=brief(call.args))
    if not isinstance(pid, PersistentId) or pid not in storages:
        raise FormatError(where, f"tensor {name!r} is over something that is no tensor storage")
    identity, storage = storages[pid]
    is_explicit = call.function.name == "_rebuild_tensor_v3"
    dtype = dtype_of(rest[2]) if is_explicit else identity.dtype
    if is_explicit and identity.dtype is not None:
        raise touched(name, where, "a dtype of its own over a storage that has one")
    if dtype in QUANTIZED:
        raise touched(name, where, "quantized numbers without a scale")
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


def touched(name: str, where: str, found: str) -> FormatError:
    """Make the refusal of a tensor that is not made, or left, as `torch.save` does."""
    return FormatError(
        where,
        f"tensor {name!r} is not as torch.save makes it, or is changed after it was made",
        expected="a call of one of PyTorch's rebuild functions, and nothing done to its result",
        found=found,
        hint="load it with PyTorch and save it again",
    )


def find_changes(calls: Iterable[Call]) -> list[Note]:
    """Warn where something is put into what PyTorch makes, such as the elements of a tensor.

    A storage may be that of other tensors as well, which then have other numbers than the file's.
    """
    return [
        Note(
            "ambiguous",
            f"a tensor is changed after it was made ({_brief_call(call)})",
            is_warning=True,
        )
        for call in calls
        if call.effects
        and any(not isinstance(effect, Built) for effect in call.effects)
        and (function := class_of(call.function))
        and f"{function.module}.".startswith("torch.")
    ][:1]


def _rebuild(node: Node, name: str, where: str) -> Call | None:
    """Return the `_rebuild_tensor…` call at the heart of a tensor, a Parameter or a subclass.

    None where there is none, or its numbers are not those in the storage.

    Raises:
        FormatError: it is not as `torch.save` writes it.
    """
    for _ in range(_MOST_WRAPPED + 1):
        if is_called(node, "torch._utils", *_REBUILDS):
            fewest, most = _REBUILDS[node.function.name]
            is_sound = fewest <= len(node.args) <= most and all(map(_are_hooks, node.args[5:6]))
            inner = None
        elif is_called(node, "torch._utils", *_PARAMETERS):
            count = _PARAMETERS[node.function.name]
            is_sound = (
                len(node.args) == count
                and _are_hooks(node.args[2])
                and all(map(_is_plain, node.args[3:]))
            )
            inner = node.args[0] if node.args else None
        elif is_called(node, "torch._tensor", "_rebuild_from_type_v2"):
            function, kind, args, state = node.args if len(node.args) == 4 else [None] * 4  # noqa: PLR2004
            inner = Call("REDUCE", function, args)
            if not is_called(inner, "torch._utils", *_REBUILDS) or not isinstance(args, tuple):
                return None  # a wrapper, whose numbers are elsewhere
            is_sound = _is_plain(state) and _keeps_numbers(kind)
        else:
            return None
        if not is_sound or not _is_untouched(node):
            raise touched(name, where, _brief_call(node))
        if inner is None:
            return None if _is_lazy(node) else node
        node = inner
    return None


def _are_hooks(node: Node) -> bool:
    """Whether these can be a tensor's hooks; PyTorch takes anything, and breaks on some."""
    return node is None or isinstance(node, (Dict, Call))


def _is_untouched(call: Call) -> bool:
    return call.opcode == "REDUCE" and call.keywords is None and not call.effects


def _is_plain(state: Node) -> bool:
    """Whether state only gives a tensor attributes that say nothing of its numbers.

    As `_set_obj_state` takes it: the dict of attributes, or a pair of it and the slots.
    """
    parts = state if isinstance(state, tuple) else (state,)
    return len(parts) <= 2 and all(  # noqa: PLR2004
        part is None
        or (
            isinstance(part, Dict)
            and len(part.entries) <= _MOST_ATTRIBUTES
            and all(
                isinstance(key, str) and key not in _ATTRIBUTES and not key.startswith("__")
                for key, _ in part.entries
            )
        )
        for part in parts
    )


def _keeps_numbers(kind: Node) -> bool:
    """Whether an object of this class has the numbers of the tensor that it is made of.

    Of PyTorch's own only the plain ones do for sure; of others nobody can tell, and
    `weights_only` refuses them.
    """
    if not isinstance(kind, Global):
        return False
    return f"{kind.module}." in {"torch.", "torch.nn.parameter.", "torch._tensor."} or not (
        kind.module.startswith("torch.")
    )


def _is_lazy(call: Call) -> bool:
    """Whether the numbers in the storage are not yet the tensor's: `conj()`, or its `imag`.

    PyTorch goes by the keys of the metadata alone, and writes none where there is nothing to say.
    """
    place = _METADATA_PLACE[call.function.name]
    metadata = _untagged(call.args[place]) if len(call.args) > place else None
    entries = () if metadata is None else entries_of(metadata)
    return entries is None or len(entries) > 0


def _brief_call(call: Call) -> str:
    changed = "".join(f", then {type(effect).__name__.lower()}" for effect in call.effects[:3])
    return f"{call.function} with {len(call.args)} arguments{changed}"


def is_part(node: Node) -> bool:
    """Whether this is one rank's part of a distributed tensor: a DTensor or a ShardedTensor."""
    if is_called(node, "torch._utils", *_PARAMETERS):
        node = node.args[0] if node.args else None
    if not is_called(node, "torch._tensor", "_rebuild_from_type_v2") or len(node.args) < 2:  # noqa: PLR2004
        return False
    kind = node.args[1]
    return isinstance(kind, Global) and f"{kind.module}.".startswith("torch.distributed.")


@lru_cache(maxsize=1024)  # the layers of a model share a few shapes
def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int | None, int]:
    """Return the number of elements, and how far the last is behind the first."""
    steps = zip(shape, strides, strict=True)
    return count_elements(shape), sum((size - 1) * step for size, step in steps)


def _untagged(node: Node) -> Node:
    """Return what TorchScript writes with its type beside it."""
    is_tagged = is_called(node, "torch.jit._pickle", "restore_type_tag")
    return node.args[0] if is_tagged and node.args else node


def dtype_of(node: Node) -> DType | None:
    """Return the dtype that a name of torch is; None where it is none."""
    is_torch = isinstance(node, Global) and node.module == "torch"
    return _NAMED.get(node.name) if is_torch else None


def counts(node: Node) -> tuple[int, ...] | None:
    """Return sizes or strides: a tuple, as when the tensor was made; None of anything else."""
    if is_called(node, "torch", "Size") and len(node.args) == 1 and not node.effects:
        node = node.args[0]
    if not isinstance(node, tuple) or len(node) > _MOST_DIMS:
        return None
    return node if _are_counts(node) else None


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
NO_HOOKS = Call("REDUCE", Global("collections", "OrderedDict"), ())
_REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
_REBUILD_WITH_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
_REBUILD_PARAMETER = Global("torch._utils", "_rebuild_parameter")
_TYPED_STORAGES = {dtype: Global("torch", name) for name, dtype in _TYPED.items() if name}
_UNTYPED_STORAGE = Global("torch.storage", "UntypedStorage")


def requires_grad(node: Node) -> bool:
    """Whether the tensor at a node is to have a gradient."""
    if is_called(node, "torch._utils", *_PARAMETERS):
        return bool(node.args[1]) if len(node.args) > 1 else True
    rebuild = _rebuild(node, "", "")
    return rebuild is not None and len(rebuild.args) > 4 and rebuild.args[4] is True  # noqa: PLR2004


def make_tensor(
    storage: NewStorage,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    like: Node = None,
) -> Call:
    """Return the call that rebuilds a tensor over a new storage; a Parameter where `like` is one.

    `like` also tells whether it requires a gradient.
    """
    stride = row_major(shape) if strides is None else strides
    is_parameter = is_called(like, "torch._utils", *_PARAMETERS)
    has_gradient = requires_grad(like)
    args = (
        PersistentId(storage), 0, shape, stride, has_gradient and not is_parameter, NO_HOOKS,
    )  # fmt: skip
    if storage.dtype in _TYPED_STORAGES:
        tensor = Call("REDUCE", _REBUILD, args)
    else:
        dtype = Global("torch", storage.dtype.torch or "")
        tensor = Call("REDUCE", _REBUILD_WITH_DTYPE, (*args, dtype))
    if is_parameter:
        return Call("REDUCE", _REBUILD_PARAMETER, (tensor, has_gradient, NO_HOOKS))
    return tensor


def storage_pid(storage: NewStorage, key: str) -> tuple[Node, ...]:
    """Return the persistent id of a new storage under `key`; untyped ones count in bytes."""
    kind = _TYPED_STORAGES.get(storage.dtype)
    numel = storage.numel if kind else storage.numel * storage.dtype.itemsize
    return ("storage", kind or _UNTYPED_STORAGE, key, storage.location, numel)
