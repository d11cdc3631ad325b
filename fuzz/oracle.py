"""Compares what `wn` reads in a file with what PyTorch or safetensors reads in it."""

from __future__ import annotations

import io
import os
import pickle
import posixpath
import tarfile
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from torch import Tensor, nn

from fuzz.generate import Made
from fuzz.numpy_maker import WEIGHTS
from fuzz.sandbox import timed, watched
from wncli.checkpoint.checkpoint import Checkpoint, StateDict
from wncli.checkpoint.keys import Keys, Position
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WnError
from wncli.formats.open import open_checkpoint
from wncli.storage.source import Sources
from wncli.streaming.blocks import TensorBlocks

#: Bytes; of what is larger, as expanded tensors can be, the storage is compared.
_MOST = 1 << 20
#: Who is at work, for whoever finds the process gone.
IDLE, READING, LOADING = range(3)


class Found(NamedTuple):
    """What a tensor is: two of them mean the same where all of this is equal."""

    dtype: str
    shape: tuple[int, ...]
    content: object


@dataclass(frozen=True, slots=True)
class Read:
    """What `wn` read: its state dicts, each with its tensors in their order."""

    checkpoint: Checkpoint
    state_dicts: list[tuple[StateDict, dict[str, Found]]]


class Verdict(NamedTuple):
    """What a file came to: one of the outcomes that are counted, and what is wrong with it."""

    outcome: str
    what: str = ""
    detail: str = ""


class DifferenceError(Exception):
    """Two readings differ: what in, and the details."""

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.detail = detail


class NotJudgedError(Exception):
    """PyTorch's answer cannot be had."""


class Examiner:
    """Examines one file after the other at one place.

    `phase` is told who is at work.
    """

    def __init__(self, path: Path, phase: Callable[[int], None]) -> None:
        self.path = path
        self.phase = phase
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT)

    def examine(self, made: Made) -> Verdict:
        """Return what comes of a file."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, made.content, 0)
        try:
            self.phase(READING)
            with timed():
                found = self.read()
        except WnError as error:
            str(error).encode()
            if made.is_honest:
                return Verdict("finding", "an honest file is refused", str(error))
            return Verdict("refused by wn")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            frames = traceback.extract_tb(error.__traceback__)
            at = next((f for f in reversed(frames) if "/wncli/" in f.filename), frames[-1])
            where = f"{Path(at.filename).name}:{at.name}"
            text = "".join(traceback.format_exception(error))
            return Verdict("finding", f"wn fails: {type(error).__name__} in {where}", text)
        finally:
            self.phase(IDLE)
        if made.is_saved and not found.state_dicts:
            return Verdict("finding", "of an honest file no state dict is read")
        verdict = self.compare(made, found)
        if made.is_honest and verdict.outcome == "refused by its library":
            return Verdict("finding", "an honest file is refused by its library")
        return verdict

    def read(self) -> Read:
        """Return what `wn` makes of the file, down to the bytes of every tensor."""
        with open_checkpoint(self.path) as (checkpoint, sources):
            state_dicts = [
                (found, {spec.name: tensor_of(sources, checkpoint, spec) for spec in found.tensors})
                for found in checkpoint.state_dicts
            ]
            return Read(checkpoint, state_dicts)

    def compare(self, made: Made, found: Read) -> Verdict:
        """Hold what was read against the library of the format."""
        if found.checkpoint.format == "safetensors":
            return self.judge([("", lambda: safetensors_at(made.content))], found)
        is_ambiguous = any(note.code == "ambiguous" for note in found.checkpoint.notes)
        if found.checkpoint.would_run or is_ambiguous:
            return Verdict("refused by wn")  # no command converts it
        content, name = made.content, found.checkpoint.format
        if name.startswith("NeMo"):
            content, name = member_of(content), name.removeprefix("NeMo, ")
        if name == "npz":
            return self.judge([("", lambda: npz_at(content))], found)
        if name == "pickle of NumPy arrays":
            return self.judge(
                [("", lambda: unpickled(content)),
                 ("with UTF-8, ", lambda: unpickled(content, encoding="utf-8"))],
                found,
            )  # fmt: skip
        if found.checkpoint.mark:
            content = b"PK" + content[2:]
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)
        ways = [
            ("", lambda: load(self.path, weights_only=True)),
            ("with weights_only=False, ", lambda: load(self.path, weights_only=False)),
        ]
        return self.judge(ways, found)

    def judge(self, ways: list[tuple[str, Callable[[], Any]]], found: Read) -> Verdict:
        """Return the verdict by each way to load the file that takes it."""
        count = 0
        for name, way in ways:
            try:
                self.phase(LOADING)
                with timed(), watched():
                    value = way()
            except Exception:  # noqa: BLE001, S112 - the libraries raise many kinds
                continue
            finally:
                self.phase(IDLE)
            try:
                self.phase(LOADING)
                with watched():
                    same_everywhere(found, value)
            except DifferenceError as difference:
                return Verdict("finding", name + difference.what, difference.detail)
            except NotJudgedError:
                continue
            except Exception as error:  # noqa: BLE001 - it should not go unseen
                text = "".join(traceback.format_exception(error))
                return Verdict("finding", f"the comparison fails: {type(error).__name__}", text)
            finally:
                self.phase(IDLE)
            count += 1
        return Verdict("read by both and same" if count else "refused by its library")


# -- what wn reads ------------------------------------------------------------------------------


def tensor_of(sources: Sources, checkpoint: Checkpoint, spec: TensorSpec) -> Found:
    """Return a tensor as `wn` reads it."""
    source = sources[spec.storage.file]
    if checkpoint.format == "safetensors":
        raw = source.read_at(spec.storage.offset, spec.storage.nbytes, "a tensor")
        return Found(str(spec.dtype.safetensors), spec.shape, raw)
    content: object
    if not spec.numel:
        content = b""
    elif spec.nbytes <= _MOST:
        blocks = TensorBlocks(source, spec, row_major=True)
        content = b"".join(bytes(blocks.read_bytes(block)) for block in blocks)
    else:
        raw = source.read_at(spec.storage.offset, min(_MOST, spec.storage.nbytes), "a storage")
        content = spec.offset, spec.strides, raw
    return Found(str(spec.dtype.torch), spec.shape, content)


# -- what PyTorch reads -------------------------------------------------------------------------


def load(path: Path, *, weights_only: bool) -> Any:  # noqa: ANN401
    """Return what PyTorch makes of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, weights_only=weights_only, map_location="cpu")


def found_in(tensor: Tensor) -> Found:
    """Return a tensor as PyTorch has it."""
    plain = tensor.detach().as_subclass(Tensor)
    if plain.layout is not torch.strided or plain.is_quantized or plain.is_nested:
        return Found("not dense", tuple(plain.shape), None)
    if plain.device.type != "cpu":
        return Found(f"on {plain.device.type}", tuple(plain.shape), None)
    dtype, shape = str(plain.dtype).removeprefix("torch."), tuple(plain.shape)
    if not plain.numel():
        return Found(dtype, shape, b"")
    if plain.numel() * plain.itemsize > _MOST:
        raw = plain.untyped_storage()[: min(_MOST, plain.untyped_storage().nbytes())]
        return Found(dtype, shape, (plain.storage_offset(), plain.stride(), bytes(raw.tolist())))
    try:
        flat = plain.resolve_conj().resolve_neg()
    except NotImplementedError:  # as there is no minus for unsigned integers
        return Found("negated", shape, None)
    numbers = flat.view(torch.uint8) if flat.dtype is torch.bool else flat
    dense = numbers.flatten().clone(memory_format=torch.contiguous_format)
    return Found(dtype, shape, dense.view(torch.uint8).numpy().tobytes())


def items_of(value: Any) -> list[tuple[Any, Any]]:  # noqa: ANN401
    """Return the items of a mapping, whatever attributes it was given; none of anything else."""
    if isinstance(value, OrderedDict):
        return [*OrderedDict.items(value)]
    if isinstance(value, dict):
        return [*dict.items(value)]
    return [*value.items()] if isinstance(value, Mapping) else []


def mapping_at(value: Any, keys: Keys) -> Any:  # noqa: ANN401
    """Return what stands at a path.

    Raises:
        DifferenceError: nothing does.
    """
    for key in keys:
        if isinstance(key, Position):
            if not isinstance(value, (list, tuple)) or key.number >= len(value):
                raise DifferenceError("a root is not there", repr(keys))
            value = value[key.number]
            continue
        inner = [
            found for name, found in items_of(value) if type(name) is type(key) and name == key
        ]
        if not inner:
            raise DifferenceError("a root is not there", repr(keys))
        value = inner[0]
    return value


def same_everywhere(found: Read, value: Any) -> None:  # noqa: ANN401
    """Compare every state dict that was read with what the library has at its place.

    Raises:
        DifferenceError: one of them is another.
    """
    if isinstance(value, _Stored):
        for state_dict, tensors in found.state_dicts:
            value.compare(found.checkpoint, state_dict, tensors)
        if not found.state_dicts and value.tensors:
            raise DifferenceError("a tensor is lost", ", ".join(value.tensors))
        return
    for state_dict, tensors in found.state_dicts:
        there = mapping_at(value, state_dict.keys)
        if state_dict.holder:
            if not isinstance(there, nn.Module):
                raise DifferenceError("a module is none", type(there).__name__)
            there = state_dict_of(there)
        elif not isinstance(there, Mapping):
            raise DifferenceError("a state dict is no mapping", type(there).__name__)
        same_state_dict(found.checkpoint, state_dict, tensors, there)


def state_dict_of(module: nn.Module) -> Mapping[str, Any]:
    """Return what a module's own method gives.

    Raises:
        NotJudgedError: it fails, as the module lacks something that only that needs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module.state_dict()
    except Exception as error:
        raise NotJudgedError from error


def same_state_dict(
    checkpoint: Checkpoint,
    state_dict: StateDict,
    tensors: Mapping[str, Found],
    there: Mapping[Any, Any],
) -> None:
    """Compare one state dict."""
    kinds: tuple[type, ...] = (Tensor,)
    members = [(name, part) for name, part in items_of(there) if type(name) is str]
    if checkpoint.format == "npz" or any(note.code == "arrays" for note in checkpoint.notes):
        kinds = (np.ndarray,)
        members = [
            (name, part[1] if name in tensors and _is_pair(part) else part)
            for name, part in members
        ]
    known: dict[str, Any] = {
        name: part
        for name, part in members
        if isinstance(part, kinds) and (name in tensors or not _is_no_tensor(part))
    }
    for name, mine in tensors.items():
        if name not in known:
            raise DifferenceError("a tensor is invented", repr(name))
        part = known[name]
        is_array = isinstance(part, np.ndarray)
        same_tensor(name, mine, array_found(part) if is_array else found_in(part))
    for name in known.keys() - tensors.keys() - {*state_dict.others, *state_dict.parts}:
        raise DifferenceError("a tensor is lost", repr(name))
    if [*tensors] != [name for name in known if name in tensors]:
        raise DifferenceError("another order", f"{[*tensors]} {[*known]}")
    same_ties(checkpoint, state_dict, known)
    if not state_dict.holder:
        others = sum(
            isinstance(part, Tensor) for name, part in items_of(there) if type(name) is not str
        )
        listed = sum(
            entry.keys[:-1] == state_dict.keys and type(entry.keys[-1]) is not str
            for entry in checkpoint.entries
            if entry.keys
        )
        if others > listed:
            raise DifferenceError("a tensor whose name is no text is lost", repr([*there]))


def same_tensor(name: str, mine: Found, theirs: Found) -> None:
    """Compare one tensor."""
    for field in Found._fields:
        if getattr(mine, field) != getattr(theirs, field):
            what = "other bytes" if field == "content" else f"another {field}"
            raise DifferenceError(what, f"{name!r}: {str(mine)[:300]} {str(theirs)[:300]}")


def _is_pair(part: object) -> bool:
    """Whether it is a tensor of Paddle's: its name and an array."""
    return type(part) is tuple and len(part) == 2 and isinstance(part[1], np.ndarray)  # noqa: PLR2004


def _is_no_tensor(part: object) -> bool:
    """Whether it is an array that is no tensor: of a subclass, or of no numbers."""
    return isinstance(part, np.ndarray) and (
        type(part) is not np.ndarray or part.dtype.name not in _NUMBERS
    )


def _place_of(part: Tensor | np.ndarray[Any, Any]) -> int:
    """Return what is one for tensors that share their storage, and for one array."""
    return id(part) if isinstance(part, np.ndarray) else part.untyped_storage().data_ptr()


def same_ties(checkpoint: Checkpoint, state_dict: StateDict, known: Mapping[str, Any]) -> None:
    """Compare which tensors share a storage; of legacy files, views have storages of their own."""
    if checkpoint.format in {"torch legacy", "npz"}:
        return
    partners: dict[object, int] = {}
    back: dict[int, object] = {}
    for spec in state_dict.tensors:
        if spec.numel:
            mine = spec.storage.identity
            place = _place_of(known[spec.name])
            if partners.setdefault(mine, place) != place or back.setdefault(place, mine) != mine:
                raise DifferenceError("other ties", repr(spec.name))


# -- what NumPy reads ---------------------------------------------------------------------------

_NUMPY_NAMES = {"void16": "bfloat16"}
_NUMBERS = frozenset(
    {"bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
     "float32", "float64", "complex64", "complex128", "bfloat16", "void16"}
)  # fmt: skip


def array_found(array: np.ndarray[Any, Any]) -> Found:
    """Return an array as NumPy has it."""
    dtype = _NUMPY_NAMES.get(array.dtype.name, array.dtype.name)
    return Found(dtype, array.shape, array.tobytes())


def npz_at(content: bytes) -> dict[str, Any]:
    """Return what NumPy makes of an .npz file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def unpickled(content: bytes, encoding: str = "ASCII") -> Any:  # noqa: ANN401
    """Return what Python makes of a pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pickle.loads(content, encoding=encoding)  # noqa: S301 - in the sandbox


def member_of(content: bytes) -> bytes:
    """Return the checkpoint in a tar archive, as Python's tarfile takes it out."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        (found,) = [
            member for member in archive if posixpath.normpath(member.name) == WEIGHTS
        ]  # fmt: skip
        file = archive.extractfile(found)
        return file.read() if file else b""


# -- what safetensors reads ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stored:
    """A safetensors file as the reference reader has it."""

    tensors: dict[str, Found]
    metadata: dict[str, str]

    def compare(
        self, checkpoint: Checkpoint, state_dict: StateDict, tensors: Mapping[str, Found]
    ) -> None:
        """Compare all that `wn` read, ties in the metadata included."""
        for spec in state_dict.tensors:
            kept = spec.name
            if kept not in self.tensors and spec.name in self.metadata:
                kept = self.metadata[spec.name]
            if kept not in self.tensors or spec.storage.key != kept:
                raise DifferenceError("a tensor is invented", repr(spec.name))
            same_tensor(spec.name, tensors[spec.name], self.tensors[kept])
        if self.tensors.keys() - tensors.keys():
            raise DifferenceError("a tensor is lost", repr(self.tensors.keys() - tensors.keys()))
        if dict(checkpoint.metadata or {}) != self.metadata:
            raise DifferenceError("other metadata", f"{checkpoint.metadata} {self.metadata}")


def safetensors_at(content: bytes) -> _Stored:
    """Return what safetensors makes of a file."""
    tensors = {
        name: Found(part["dtype"], tuple(part["shape"]), bytes(part["data"]))
        for name, part in safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    }
    with safetensors.safe_open("checkpoint", "np") as file:
        return _Stored(tensors, dict(file.metadata() or {}))
