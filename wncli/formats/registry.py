"""The one list of formats: how a file is recognised, read, named and laid out.

A new format is a package beside this file, and a line in the lists here. Readers and writers are
imported when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from wncli.checkpoint.checkpoint import Checkpoint
    from wncli.checkpoint.layout import FolderLayout, Layout
    from wncli.checkpoint.output import Output
    from wncli.notes import Note
    from wncli.storage.source import Source

FormatName = Literal["safetensors", "torch", "npz", "dcp"]

#: Bytes from which every kind of file is known.
LONGEST_START = 512


class Format(NamedTuple):
    """A format of files that can be written.

    Attributes:
        name: as `--format` takes it.
        suffixes: of its files; a new file has the first.
        shard_suffixes: of the files that an index lists; a new shard has the first.
        hub_stem: what Hugging Face calls a model's file, before the suffix.
        holds_a_tree: whether it holds several state dicts, and what is no tensor.
        lay_out: gives the layout of one file, and notes on what the format has no place for. The
            file's name without its suffix is for formats that repeat it inside.
    """

    name: FormatName
    suffixes: tuple[str, ...]
    shard_suffixes: tuple[str, ...]
    hub_stem: str
    holds_a_tree: bool
    lay_out: Callable[[Output, str], tuple[Layout, tuple[Note, ...]]]


class FolderFormat(NamedTuple):
    """A format of folders that can be written; all of them hold a tree.

    Attributes:
        name: as `--format` takes it.
        lay_out: gives every file of a folder of this name, and what lists them. Of the bytes of
            tensors, a file holds so many if that is given and can be.
    """

    name: FormatName
    lay_out: Callable[[Output, str, int | None], FolderLayout]


class FileKind(NamedTuple):
    """A kind of file that can be read.

    Attributes:
        label: what it is called in a refusal.
        begins: whether a file of so many bytes can be of this kind, from its first bytes.
        read: opens it.
    """

    label: str
    begins: Callable[[bytes, int], bool]
    read: Callable[[Source], Checkpoint]


def _lay_out_safetensors(output: Output, _stem: str) -> tuple[Layout, tuple[Note, ...]]:
    from wncli.formats.safetensors.writer import lay_out_safetensors

    return lay_out_safetensors(output)


def _lay_out_torch(output: Output, stem: str) -> tuple[Layout, tuple[Note, ...]]:
    from wncli.formats.torch.writer import torch_content
    from wncli.formats.torch.zip_writer import lay_out_torch_zip

    content = torch_content(output)
    mark = b"" if output.alone else output.checkpoint.mark
    # What has a mark was saved to memory first, under the name that torch.save has for that.
    return lay_out_torch_zip(content, "archive" if mark else stem, mark), content.notes


def _lay_out_npz(output: Output, _stem: str) -> tuple[Layout, tuple[Note, ...]]:
    from wncli.formats.numpy.writer import lay_out_npz

    return lay_out_npz(output)


def _lay_out_dcp(output: Output, folder: str, limit: int | None) -> FolderLayout:
    from wncli.formats.dcp.writer import lay_out_dcp

    return lay_out_dcp(output, folder, limit)


def _begins_zip(start: bytes, _nbytes: int) -> bool:
    # Two digits stand for PK in GPT-SoVITS' files (`formats/torch/zip_records.py`).
    is_zip = start[2:4] == b"\x03\x04" and (start[:2] == b"PK" or start[:2].isdigit())
    return is_zip and not _begins_npz(start, _nbytes)


def _begins_npz(start: bytes, _nbytes: int) -> bool:
    if not start.startswith(b"PK"):
        return False
    from wncli.formats.torch.zip_records import begins_npz

    return begins_npz(start)


def _begins_legacy(start: bytes, _nbytes: int) -> bool:
    if not start.startswith(b"\x80"):
        return False
    from wncli.formats.torch.legacy import MAGIC

    return MAGIC in start[:32]  # behind the protocol, and from 4 on a frame


def _begins_pickle(start: bytes, nbytes: int) -> bool:
    """Tell a protocol from 2 on, and what follows it, from the length of a safetensors header.

    Such a length has three zeros or more behind it, where a frame or the next opcode would be.
    """
    if start[:1] != b"\x80" or not 2 <= int.from_bytes(start[1:2]) <= 5:  # noqa: PLR2004
        return False
    if start[2:3] == b"\x95":
        is_pickle = int.from_bytes(start[3:11], "little") <= nbytes
    else:
        is_pickle = start[2:3] in {b"}", b"]", b"c", b"("} and start[3:4] >= b"("
    return is_pickle and not _begins_legacy(start, nbytes)


def _begins_safetensors(start: bytes, nbytes: int) -> bool:
    if not start[8:].lstrip(b" \t\r\n").startswith(b"{"):
        return False
    from wncli.formats.safetensors.reader import looks_like_safetensors

    return looks_like_safetensors(start, nbytes)


def _read_zip(source: Source) -> Checkpoint:
    from wncli.formats.torch.zip_reader import read_torch_zip

    return read_torch_zip(source)


def _read_npz(source: Source) -> Checkpoint:
    from wncli.formats.numpy.reader import read_npz

    return read_npz(source)


def _read_legacy(source: Source) -> Checkpoint:
    from wncli.formats.torch.legacy import read_torch_legacy

    return read_torch_legacy(source)


def _read_pickle(source: Source) -> Checkpoint:
    from wncli.formats.numpy.pickle_reader import read_pickled_arrays

    return read_pickled_arrays(source)


def _read_safetensors(source: Source) -> Checkpoint:
    from wncli.formats.safetensors.reader import read_safetensors

    return read_safetensors(source)


#: In the order in which `from_pretrained` prefers them.
FORMATS: dict[FormatName, Format] = {
    "safetensors": Format(
        name="safetensors",
        suffixes=(".safetensors",),
        shard_suffixes=(".safetensors",),
        hub_stem="model",
        holds_a_tree=False,
        lay_out=_lay_out_safetensors,
    ),
    "torch": Format(
        name="torch",
        suffixes=(".pt", ".pth", ".ckpt", ".th", ".bin", ".pkl", ".tar"),
        shard_suffixes=(".bin", ".pt", ".pth"),
        hub_stem="pytorch_model",
        holds_a_tree=True,
        lay_out=_lay_out_torch,
    ),
    "npz": Format(
        name="npz",
        suffixes=(".npz",),
        shard_suffixes=(".npz",),
        hub_stem="model",
        holds_a_tree=False,
        lay_out=_lay_out_npz,
    ),
}
FOLDERS: dict[FormatName, FolderFormat] = {"dcp": FolderFormat("dcp", _lay_out_dcp)}
#: In the order in which they are offered: first what holds everything that is in a file.
OF_FILES = tuple(sorted(FORMATS, key=lambda name: not FORMATS[name].holds_a_tree))
OFFERED = (*OF_FILES, *FOLDERS)
#: Which format a file's suffix names.
SUFFIXES: dict[str, FormatName] = {
    suffix: made.name for made in FORMATS.values() for suffix in made.suffixes
}
FILE_KINDS = (
    FileKind("a zip archive", _begins_zip, _read_zip),
    FileKind("NumPy's .npz", _begins_npz, _read_npz),
    FileKind("a legacy torch file", _begins_legacy, _read_legacy),
    FileKind("a plain pickle", _begins_pickle, _read_pickle),
    FileKind("safetensors", _begins_safetensors, _read_safetensors),
)


def kinds_of(start: bytes, nbytes: int) -> list[FileKind]:
    """List the kinds that a file of so many bytes can be, from its first `LONGEST_START` bytes."""
    return [kind for kind in FILE_KINDS if kind.begins(start, nbytes)]


def holds_a_tree(name: FormatName) -> bool:
    """Whether a format holds several state dicts, and what is no tensor."""
    return name in FOLDERS or FORMATS[name].holds_a_tree


def written_format(checkpoint: Checkpoint) -> FormatName:
    """Give the format that keeps what a checkpoint is: TorchScript and legacy files are torch's."""
    kind = checkpoint.format.partition(",")[0]  # "safetensors, distributed"
    if checkpoint.parts and not checkpoint.parts.is_safetensors:
        return "dcp"
    return next((name for name in FORMATS if name == kind), "torch")
