"""Reads what `.metadata` says: which tensors and values there are, and where their items stand.

It is a pickle of `Metadata`, read as inert nodes; a subclass has the same attributes (Megatron).
Source: PyTorch `torch/distributed/checkpoint/metadata.py`, `filesystem.py` (`_StorageInfo`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wncli.checkpoint.parts import Chunk, Item, PartedTensor, PartedValue, Path
from wncli.checkpoint.tensors import DType, count_elements
from wncli.errors import FormatError
from wncli.formats.dcp.boxes import covers
from wncli.formats.dcp.glance import Box, Index, Sizes, Stored
from wncli.formats.huggingface.shard_files import is_bare_name
from wncli.formats.pickles.nodes import Built, Call, Dict, Global, Node, brief
from wncli.formats.pickles.reader import Pickle
from wncli.formats.torch.tensors import QUANTIZED, counts, dtype_of

_METADATA = "torch.distributed.checkpoint.metadata."
_STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
#: Keys that lead to a value in a nested state dict.
_DEEPEST = 64
#: An object of the metadata has five.
_MOST_ATTRIBUTES = 64
#: Bytes that a chunk takes at least.
_CHUNK = 16


class Listed(NamedTuple):
    """A tensor as the metadata lists it; `properties` are a node."""

    dtype: DType
    shape: Sizes
    boxes: list[Box]
    properties: Node


@dataclass(slots=True)
class Metadata:
    """What one metadata file says.

    `tensors` are None for what is a value; `paths` lead to each in the nested state dict; `stored`
    are the items by the name and the place of the box, None for values.
    """

    where: str
    tensors: dict[str, Listed | None] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    stored: dict[Index, Stored] = field(default_factory=dict)


def broken(where: str, problem: str, expected: str = "", found: str = "") -> FormatError:
    """Make the refusal of a distributed checkpoint that contradicts itself."""
    return FormatError(
        where,
        f"the distributed checkpoint is damaged: {problem}",
        expected=expected,
        found=found,
        hint="copy or download the whole directory again",
    )


def read_metadata(pickled: Pickle, where: str) -> Metadata:
    """Read a metadata file.

    Raises:
        FormatError: it is none, or says what cannot be.
    """
    made = Metadata(where)
    top = _attributes(pickled.root)
    listed, storage = top.get("state_dict_metadata"), top.get("storage_data")
    entries, items = _mapping(listed), _mapping(storage)
    if entries is None or items is None:
        raise FormatError(
            where,
            "not the metadata of a distributed checkpoint",
            expected="a pickle with state_dict_metadata and storage_data",
            found=brief(pickled.root),
        )
    left = pickled.nbytes // _CHUNK
    for name, about in entries:
        if not isinstance(name, str):
            raise broken(where, "a name is no text", found=brief(name))
        made.tensors[name] = tensor = _tensor(about, name, where, left)
        left -= len(tensor.boxes) if tensor else 0
    made.paths = _paths(top.get("planner_data"), where)
    for index, info in items:
        made.stored[_index(index, where)] = _stored(info, where)
    return made


def _mapping(node: Node) -> Sequence[tuple[Node, Node]] | None:
    return node.entries if isinstance(node, Dict) else None


def _attributes(node: Node) -> dict[str, Node]:
    """Return the attributes of an object, as a dataclass is pickled; none where there are many.

    One object can be listed any number of times.
    """
    if not isinstance(node, Call) or node.opcode != "NEWOBJ" or len(node.effects) != 1:
        return {}
    match node.effects[0]:
        case Built(Dict(entries)) if len(entries) <= _MOST_ATTRIBUTES:
            return {key: value for key, value in entries if type(key) is str}
    return {}


def _class_name(node: Node) -> str:
    function = node.function if isinstance(node, Call) else None
    return str(function) if isinstance(function, Global) else brief(node)


def _tensor(node: Node, name: str, where: str, most: int) -> Listed | None:
    """Return what is said of a tensor; None for what is no tensor."""
    kind = _class_name(node)
    if kind == f"{_METADATA}BytesStorageMetadata":
        return None
    if kind != f"{_METADATA}TensorStorageMetadata":
        raise broken(where, f"{name!r} is neither a tensor nor a value", found=kind)
    about = _attributes(node)
    shape, dtype = counts(about.get("size")), _dtype(about.get("properties"))
    listed = about.get("chunks")
    if shape is None or not isinstance(listed, list):
        raise broken(where, f"tensor {name!r} has no size or no chunks")
    if len(listed) > most:
        raise broken(where, f"the chunks of tensor {name!r} are those of others, too")
    if dtype is None or dtype in QUANTIZED:
        found = brief(about.get("properties"))
        raise broken(where, f"tensor {name!r} has a dtype that is not read", found=found)
    numel = count_elements(shape)
    if numel is None or numel * dtype.itemsize >= 1 << 63:
        raise broken(where, f"tensor {name!r} claims more than any memory holds", found=f"{shape}")
    boxes = [_box(chunk, shape, name, where) for chunk in listed]
    return Listed(dtype, shape, boxes, about["properties"])


def _dtype(properties: Node) -> DType | None:
    """Return the dtype of the properties, which come as a tuple that begins with it."""
    if _class_name(properties).rpartition(".")[2] != "TensorProperties":
        return None
    match properties.effects:
        case [Built((dtype, *_))]:
            return dtype_of(dtype)
    return None


def _box(node: Node, shape: tuple[int, ...], name: str, where: str) -> Box:
    if isinstance(node, Box):
        made = node
    else:
        if _class_name(node) != f"{_METADATA}ChunkStorageMetadata":
            raise broken(where, f"a chunk of tensor {name!r} is none", found=brief(node))
        about = _attributes(node)
        offsets, sizes = counts(about.get("offsets")), counts(about.get("sizes"))
        if offsets is None or sizes is None:
            raise broken(where, f"a chunk of tensor {name!r} has an impossible size")
        made = Box(offsets, sizes)
    offsets, sizes = made
    is_inside = len(offsets) == len(sizes) == len(shape) and all(
        begin + size <= whole for begin, size, whole in zip(offsets, sizes, shape, strict=True)
    )
    if not is_inside:
        raise broken(
            where,
            f"a chunk of tensor {name!r} reaches beyond it",
            f"inside {list(shape)}",
            f"{list(sizes)} from {list(offsets)} on",
        )
    return made


def _paths(node: Node, where: str) -> dict[str, Path]:
    """Return the planner's paths: for each name the keys that lead to it."""
    if node is None:
        return {}
    entries = _mapping(node)
    if entries is None:
        raise broken(where, "its planner_data is no mapping", found=brief(node))
    found: dict[str, Path] = {}
    for name, path in entries:
        is_path = (
            isinstance(path, tuple)
            and 0 < len(path) <= _DEEPEST
            and all(type(key) is str or (type(key) is int and key >= 0) for key in path)
        )
        if not isinstance(name, str) or not is_path:
            raise broken(where, "a path in its planner_data is none", found=brief(path))
        found[name] = path
    return found


def _index(node: Node, where: str) -> Index:
    if type(node) is Index:
        return node
    if _class_name(node) == f"{_METADATA}MetadataIndex":
        about = _attributes(node)
        name, offset = about.get("fqn"), about.get("offset")
        offsets = None if offset is None else counts(offset)
        if isinstance(name, str) and (offset is None or offsets is not None):
            return Index(name, offsets)
    raise broken(where, "an index in its storage_data is none", found=brief(node))


def _stored(node: Node, where: str) -> Stored:
    if isinstance(node, Stored):
        return node
    about = _attributes(node)
    file, place = about.get("relative_path"), counts((about.get("offset"), about.get("length")))
    if _class_name(node) != _STORAGE_INFO or not isinstance(file, str):
        raise broken(where, "its storage_data says of an item no place", found=brief(node))
    packed = about.get("transform_descriptors")
    if packed is not None:
        raise FormatError(
            where,
            "the items of this distributed checkpoint are compressed, or changed in other ways",
            expected="items as torch.save writes them",
            found=brief(tuple(packed) if isinstance(packed, list) else packed),
            hint="load it with torch.distributed.checkpoint and its extension, and save it"
            " again without",
        )
    if place is None:
        raise broken(where, f"an item of {file!r} has an impossible place")
    return Stored(file, *place)


def union(found: Sequence[Metadata]) -> Metadata:
    """Return what several ranks have written together, each its own metadata.

    What each of them has whole is taken from the first.

    Raises:
        FormatError: they contradict each other.
    """
    made = Metadata(found[0].where)
    for one in found:
        for name, about in one.tensors.items():
            known = made.tensors.setdefault(name, about)
            if known is about:
                continue
            if known is None or about is None or known[:2] != about[:2]:
                raise broken(one.where, f"{name!r} is another than in the first metadata file")
            seen = set(known.boxes)
            known.boxes.extend(box for box in about.boxes if box not in seen)
        for name, path in one.paths.items():
            if made.paths.setdefault(name, path) != path:
                raise broken(one.where, f"{name!r} stands elsewhere than in the first")
        for index, stored in one.stored.items():
            made.stored.setdefault(index, stored)
    return made


class Placed(NamedTuple):
    """The entries of a checkpoint by name, and the names of the files that their items are in."""

    entries: Mapping[str, PartedTensor | PartedValue]
    files: tuple[str, ...]


def place(made: Metadata) -> Placed:
    """Put chunks and items together.

    Raises:
        FormatError: an item is missing, or chunks overlap or leave gaps.
    """
    numbers: dict[str, int] = {}
    entries: dict[str, PartedTensor | PartedValue] = {}
    where, stored = made.where, made.stored

    def item(name: str, offsets: Sizes | None) -> Item:
        found = stored.get(Index(name, offsets))
        if found is None:
            raise broken(where, f"no item is listed for {name!r}", "one for each chunk", "none")
        number = numbers.get(found.file)
        if number is None:
            _refuse_path(found.file, where)
            number = numbers[found.file] = len(numbers)
        return Item(number, found.offset, found.nbytes)

    for name, about in made.tensors.items():
        path = made.paths.get(name)
        if path is not None and ".".join(map(str, path)) != name:  # PyTorch finds it by both
            raise broken(where, f"the path of {name!r} is another's", name, brief(path))
        if about is None:
            entries[name] = PartedValue(name, path, item(name, None))
            continue
        dtype, shape, boxes, properties = about
        chunks = tuple([Chunk(offsets, sizes, item(name, offsets)) for offsets, sizes in boxes])
        if not covers(shape, chunks):
            raise broken(
                where,
                f"the chunks of tensor {name!r} overlap, or leave gaps",
                f"chunks that cover {list(shape)}",
                _listed(boxes),
            )
        entries[name] = PartedTensor(name, path, dtype, shape, chunks, properties)
    return Placed(entries, tuple(numbers))


def _refuse_path(file: str, where: str) -> None:
    """Refuse a file that does not stand beside the metadata.

    Raises:
        FormatError: its name leads elsewhere.
    """
    if not is_bare_name(file):
        raise broken(
            where, "an item does not stand beside it", "a bare file name", repr(file[:200])
        )


def _listed(boxes: Iterable[Box]) -> str:
    shown = [f"{list(box.sizes)} from {list(box.offsets)} on" for box in list(boxes)[:4]]
    return "; ".join(shown) or "no chunks"
