"""NumPy arrays in a pickle, and plain pickles of them: Paddle's, and dumps of JAX and the like.

Source: NumPy `numpy/_core/src/multiarray/methods.c` (`array_reduce`, `array_setstate`),
`descriptor.c` (`arraydescr_reduce`, `arraydescr_setstate`), `numpy/_core/numeric.py`
(`_frombuffer`); Paddle `python/paddle/framework/io.py` (`reduce_varbase`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from wncli.checkpoint.tensors import DType, Storage, count_elements, row_major
from wncli.errors import FormatError
from wncli.formats.numpy.dtypes import CODES, ML_DTYPES
from wncli.formats.numpy.latin1 import Latin1Text
from wncli.formats.pickles.nodes import (
    Built,
    ByteText,
    Call,
    Dict,
    Effect,
    Global,
    Node,
    PersistentId,
    Unread,
    is_called,
)
from wncli.formats.pickles.reader import Pickle
from wncli.formats.torch.tensors import (
    NO_HOOKS,
    NewStorage,
    StorageId,
    class_of,
    make_tensor,
    storage_pid,
)
from wncli.storage.source import FileSource

_CORES = ("numpy.core", "numpy._core")
#: What makes arrays: of Python's protocols up to 4, and of 5.
_RECONSTRUCT = tuple(f"{core}.multiarray._reconstruct" for core in _CORES)
_FROM_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in _CORES)
MAKERS = frozenset(_RECONSTRUCT + _FROM_BUFFER)
#: The names that Paddle gives the same parameters in its graph (`_build_saved_state_dict`).
NAMES = "StructuredToParameterName@@"
_MOST_DIMS = 64
#: What Python 3 calls `builtins` where it writes for Python 2, in protocols up to 2.
_BUILTINS = ("builtins", "__builtin__")


class _Array(NamedTuple):
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    #: Where its bytes are, and how many.
    place: int
    nbytes: int


class TakenArrays(NamedTuple):
    """The arrays of a pickle that now are tensors: their storages, and what their nodes were."""

    references: dict[PersistentId, tuple[StorageId, Storage]]
    former: list[tuple[Call, Node, Node, Sequence[Effect]]]
    table: list[tuple[Dict, Sequence[tuple[Node, Node]]]]

    dtypes: dict[int, DType | None]

    def keep(self, pickled: Pickle) -> None:
        """Have what the nodes were no longer be asked what it would run, but what they are."""
        named: dict[int, Global] = {}
        for node, *_ in self.former:
            pid, *rest = node.args
            for part in (node.function, *pid.pid, *rest, NO_HOOKS.function):
                if isinstance(part, Global):
                    named[id(part)] = part
        pickled.globals.extend(named.values())
        pickled.calls[:] = [NO_HOOKS, *(n for n in pickled.calls if not self.dtypes.get(id(n)))]

    def give_back(self) -> None:
        """Let the nodes be what they were."""
        for mapping, entries in self.table:
            mapping.entries = entries
        for node, function, args, effects in self.former:
            node.function, node.args, node.effects = function, args, effects


def take_arrays(pickled: Pickle, nbytes: int, source: FileSource) -> TakenArrays:
    """Turn the calls that make arrays of numbers into those that make tensors over their bytes.

    Arrays of anything else stay as they are.

    Args:
        pickled: the content.
        nbytes: of the pickle; the arrays have no more.
        source: the file, which gets the bytes behind its end.

    Raises:
        FormatError: an array is not as NumPy pickles it, or big-endian.
    """
    former: list[tuple[Call, Node, Node, Sequence[Effect]]] = []
    dtypes: dict[int, DType | None] = {}
    taken = TakenArrays({}, former, _without_names(pickled.root), dtypes)
    where = source.name
    arrays: dict[int, Call] = {}
    left = nbytes
    for node in pickled.calls:
        array = _read_array(node, dtypes, source)
        if array is None:
            continue
        left -= array.nbytes
        if left < 0:
            raise _broken(where, "arrays share their bytes, which NumPy never writes")
        key = str(len(arrays))
        arrays[id(node)] = node
        numel = prod(array.shape)
        new = NewStorage(0, array.dtype, numel, "cpu")
        pid = PersistentId(storage_pid(new, key))
        storage = Storage(key, array.place, array.nbytes, None, "cpu", source.number)
        is_typed = array.dtype.torch_storage is not None
        identity = StorageId(
            key, array.dtype if is_typed else None, "cpu", numel if is_typed else array.nbytes
        )
        taken.references[pid] = identity, storage
        tensor = make_tensor(new, array.shape, array.strides)
        former.append((node, node.function, node.args, node.effects))
        node.function, node.args, node.effects = tensor.function, (pid, *tensor.args[1:]), ()
    for node in pickled.calls:
        # Paddle's tensors below the top: their name, and the array.
        match node.args:
            case ((str(), Call() as inner),) if (
                any(is_called(node, module, "tuple") for module in _BUILTINS)
                and id(inner) in arrays
                and not node.effects
            ):
                former.append((node, node.function, node.args, node.effects))
                node.function, node.args = inner.function, inner.args
    return taken


def _without_names(root: Node) -> list[tuple[Dict, Sequence[tuple[Node, Node]]]]:
    """Leave out Paddle's table of other names, which is no parameter, and say what was there."""
    if not isinstance(root, Dict):
        return []
    former = root.entries
    root.entries = [entry for entry in former if entry[0] != NAMES]
    return [(root, former)] if len(root.entries) < len(former) else []


def _broken(where: str, problem: str, found: str = "") -> FormatError:
    return FormatError(
        where,
        f"an array in the pickle is not as NumPy writes it: {problem}",
        found=found,
        hint="load it with NumPy and save it again",
    )


class _Made(NamedTuple):
    """What an array is made of, as the pickle says it."""

    raw: Node
    dtype: Node
    shape: Node
    order: str
    axes: Node = None


def _read_array(node: Call, dtypes: dict[int, DType | None], source: FileSource) -> _Array | None:
    """Read an array of numbers; None where the node makes something else."""
    where = source.name
    name = str(class_of(node.function))
    if name not in MAKERS:
        return None
    if node.opcode != "REDUCE" or node.keywords is not None:
        raise _broken(where, "it is made in another way")
    made = (_from_buffer if name in _FROM_BUFFER else _reconstructed)(node, where)
    if made is None:
        return None
    if id(made.dtype) not in dtypes:
        dtypes[id(made.dtype)] = _read_dtype(made.dtype, where)
    dtype = dtypes[id(made.dtype)]
    if dtype is None:
        return None
    shape = _counts(made.shape)
    numel = count_elements(shape or ())
    if shape is None or numel is None:
        raise _broken(where, "its shape is impossible")
    nbytes = numel * dtype.itemsize
    place, found = _bytes_of(made.raw, nbytes, source)
    if found != nbytes:
        label = f"{found:,} bytes for {shape} of {dtype.label}"
        raise _broken(where, "its bytes do not fill its shape", label)
    return _Array(dtype, *_placed(shape, made, where), place, nbytes)


def _placed(
    shape: tuple[int, ...], made: _Made, where: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the sizes and strides of an array whose bytes are in its own order."""
    if made.order == "C":
        return shape, row_major(shape)
    if made.order == "F":
        return shape, row_major(shape[::-1])[::-1]
    axes = _counts(made.axes)
    if axes is None or sorted(axes) != list(range(len(shape))):
        raise _broken(where, "its axes are in no order")
    strides = row_major(shape)
    return tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes)


def _from_buffer(node: Call, where: str) -> _Made:
    if node.effects:
        raise _broken(where, "it is changed after it was made")
    match node.args:
        case (raw, dtype, shape, "C" | "F" as order):
            return _Made(raw, dtype, shape, order)
        case (raw, dtype, shape, "K", axes):
            return _Made(raw, dtype, shape, "K", axes)
    raise _broken(where, "its arguments are others")


def _reconstructed(node: Call, where: str) -> _Made | None:
    match node.args:
        case (Global("numpy", "ndarray"), (0,), _):
            pass
        case (Global() as kind, *_) if str(kind) != "numpy.ndarray":
            return None  # of a subclass, whose numbers may be others
        case _:
            raise _broken(where, "its arguments are others")
    match node.effects:
        case [Built((1, shape, dtype, bool() | 0 | 1 as is_fortran, raw))]:
            return _Made(raw, dtype, shape, "F" if is_fortran else "C")
    raise _broken(where, "its state is another, or it is changed after it was made")


def _counts(node: Node) -> tuple[int, ...] | None:
    is_shape = isinstance(node, tuple) and len(node) <= _MOST_DIMS
    return node if is_shape and all(type(n) is int and 0 <= n < 1 << 63 for n in node) else None


def _read_dtype(node: Node, where: str) -> DType | None:
    """Read a dtype of numbers; None for others."""
    if not is_called(node, "numpy", "dtype") or node.opcode != "REDUCE":
        raise _broken(where, "its dtype is none")
    match node.args:
        case (str() as code, 0, 1):
            found = CODES.get(code)
        case (Global("ml_dtypes", name), 0, 1):
            found = ML_DTYPES.get(name)
        case _:
            return None
    if found is None:
        return None
    match node.effects:
        case [Built((3, str() as order, None, None, None, int(), int(), int()))]:
            pass
        case _:
            raise _broken(where, "its dtype is changed")
    if order == ">":
        raise FormatError(
            where,
            "the arrays are stored big-endian",
            expected="byte order <",
            found="byte order >",
            hint="load it with NumPy and save it again with astype(dtype.newbyteorder('<'))",
        )
    if order not in {"<", "="} and not (order == "|" and found.itemsize == 1):
        raise _broken(where, f"its dtype has the byte order {order[:10]!r}")
    return found


def _bytes_of(raw: Node, nbytes: int, source: FileSource) -> tuple[int, int]:
    """Where the bytes of an array are, which should be `nbytes`, and how many they are.

    How many characters a long text has is seen when it is read.
    """
    content = _content_of(raw)
    match content:
        case bytes() | bytearray():
            return _behind(source, bytes(content))
        case str():
            try:
                return _behind(source, content.encode("latin1"))
            except UnicodeEncodeError:
                raise _broken(source.name, "its content is no bytes") from None
        case Unread() if content.kind is not str:
            return content.offset, content.nbytes
        case Unread() if nbytes <= content.nbytes <= 2 * nbytes:  # two bytes a character at most
            return source.append(nbytes, Latin1Text(content, nbytes).read_at), nbytes
        case Unread():
            return 0, content.nbytes
    raise _broken(source.name, "its content is no bytes")


def _content_of(raw: Node) -> Node:
    """Return bytes, or the text that protocols up to 2 have for them, a character for each."""
    if isinstance(raw, ByteText):
        return raw.raw
    match raw:
        case Call(args=((str() | Unread()) as text, "latin1" | "latin-1")) if (
            is_called(raw, "_codecs", "encode")
            and not raw.effects
            and (isinstance(text, str) or text.kind is str)
        ):
            return text
        case Call(args=()) if any(is_called(raw, module, "bytes") for module in _BUILTINS):
            return b""  # as protocol 2 has it
    return raw


def _behind(source: FileSource, raw: bytes) -> tuple[int, int]:
    return source.append(len(raw), lambda start, count: raw[start : start + count]), len(raw)
