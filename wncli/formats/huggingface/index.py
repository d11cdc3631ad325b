"""Reads the index of a Hugging Face sharded checkpoint: which file holds which tensor.

Source: transformers `modeling_utils.py` (`model.safetensors.index.json`, with a variant
`model.safetensors.index.fp16.json`), huggingface_hub `serialization/_torch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from wncli.errors import FormatError
from wncli.formats.huggingface.names import index_format
from wncli.formats.huggingface.shard_files import is_bare_name, resolve
from wncli.formats.registry import FORMATS
from wncli.formats.strict_json import parse_object
from wncli.storage.addresses import Address, Place
from wncli.storage.source import Source

#: Bytes; what a safetensors header may take, although an index says less of each tensor.
LONGEST_INDEX = 100_000_000


class ShardIndex(NamedTuple):
    """Which file holds which tensor; `path` is where it is itself.

    `weight_map` leads from a tensor's name to a bare file name, in the order of the index;
    `metadata` is what else the index says: `total_size` in bytes, and which names are tied.
    """

    path: Place
    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files, each once, sorted by name."""
        return tuple(sorted(set(self.weight_map.values())))


def is_index(source: Source) -> bool:
    """Whether a file that begins with a brace is meant as an index, by its name or its content."""
    name = Path(source.name).name
    if index_format(name) or name.endswith(".index.json"):
        return True
    if source.nbytes > LONGEST_INDEX:
        return False
    return b'"weight_map"' in source.read_at(0, source.nbytes, "the text")


def read_index(source: Source, address: Address | None = None) -> ShardIndex:
    """Read an index, which is at `address` if it is not on this machine.

    Raises:
        FileError: the index is a link to nothing.
        FormatError: a rule of the format is broken, or a name leads out of the folder.
    """
    path = address or Path(source.name)
    if isinstance(path, Path):
        resolve(path)
    if source.nbytes > LONGEST_INDEX:
        raise _broken(
            source, "the file is too long", f"up to {LONGEST_INDEX:,} bytes", f"{source.nbytes:,}"
        )
    raw = source.read_at(0, source.nbytes, "the index")
    index = parse_object(raw, "the text", partial(_broken, source))
    weight_map, metadata = index.get("weight_map"), index.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map:
        raise _broken(
            source,
            "it has no weight_map that lists tensors",
            '{"weight_map": {"NAME": "FILE", …}}',
            f"the names {', '.join(sorted(index)[:5])}" if index else "{}",
        )
    if not isinstance(metadata, dict):
        raise _broken(source, "metadata is no object", "{…}", type(metadata).__name__)
    only = index_format(path.name)
    suffixes = frozenset(
        suffix
        for name, listed in FORMATS.items()
        if only in {None, name}
        for suffix in listed.shard_suffixes
    )
    checked: set[str] = set()
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise _broken(source, f"the file of {name!r} is no text", found=repr(file)[:60])
        if file not in checked:
            _check_file_name(source, name, file, suffixes)
            checked.add(file)
    return ShardIndex(path, weight_map, metadata)


def _check_file_name(source: Source, tensor: str, file: str, suffixes: frozenset[str]) -> None:
    if not is_bare_name(file):
        raise _broken(
            source,
            f"the file of {tensor!r} does not stand beside it",
            "a bare file name",
            repr(file[:200]),
        )
    if PurePosixPath(file).suffix not in suffixes:
        raise _broken(
            source,
            f"the file of {tensor!r} is of another kind",
            f"a name that ends with {' or '.join(sorted(suffixes))}",
            repr(file[:200]),
        )


def _broken(source: Source, problem: str, expected: str = "", found: str = "") -> FormatError:
    return FormatError(
        source.name,
        f"not a valid index of a sharded checkpoint: {problem}",
        expected=expected,
        found=found,
    )
