"""Looks into archives and compressed files that hold a checkpoint, so far as to name it.

Nothing of them is read as a checkpoint: a refusal says how to take it out.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import tarfile
import zlib
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from wncli.formats.registry import LONGEST_START, SUFFIXES, kinds_of
from wncli.hints import free_path, path_word, then_inspecting, word
from wncli.storage.source import Source

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: Bytes that are unpacked at most, and read at once, to find the names of what is inside.
_UNPACKED = 32 << 20
_AT_ONCE = 1 << 20
#: How often more is asked for at the end.
_MOST_AT_END = 16
_MOST_MEMBERS = 1000
#: What begins a compressed file: how it is called, its suffix, and what unpacks it to stdout.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", ".gz", "gzip -dc"),
    b"BZh": ("bzip2", ".bz2", "bzip2 -dc"),
    b"\xfd7zXZ\0": ("xz", ".xz", "xz -dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst", "zstd -dc"),
}
#: What unpacks it here; Python has nothing for zstd.
_OPENERS: dict[str, Any] = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile}
_AGAIN = "copy or download the file again"
_TAR = slice(257, 262)
#: What torch.save wrote before version 0.1.10 (PyTorch `torch/serialization.py`, `legacy_load`).
_TORCH_TAR = {"sys_info", "pickle", "tensors", "storages"}


class Found(NamedTuple):
    """What a file is, in words, and what to type to come to the checkpoint in it."""

    what: str
    hint: str


def look_into(source: Source, start: bytes) -> Found | None:
    """Return what an archive or a compressed file is that begins so; None where it is neither."""
    for magic, (name, suffix, unpack) in _COMPRESSED.items():
        if start.startswith(magic):
            stream = _unpacked(source, name)
            inner = stream.peek(512) if stream else b""
            if stream and inner[_TAR] == b"ustar":
                return _tar(source, stream, f"a tar archive compressed with {name}")
            if stream and not kinds_of(inner, sys.maxsize):
                return Found(f"compressed with {name}, and no checkpoint inside", hint="")
            if name in _OPENERS and not stream:
                return Found(f"compressed with {name}, and damaged", hint=_AGAIN)
            path = Path(source.name)
            new = free_path(
                path.with_suffix("") if path.suffix == suffix else path.with_suffix(".pt")
            )
            command = f"{unpack} < {path_word(path)} > {path_word(new)}"
            return Found(f"compressed with {name}", hint=then_inspecting(command, new))
    if start[_TAR] == b"ustar":
        stream = io.BufferedReader(_Bounded(io.BufferedReader(_Stream(source))))
        return _tar(source, stream, "a tar archive")
    return None


class _Stream(io.RawIOBase):
    """A source, from its beginning on."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.place = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)[: self.source.nbytes - self.place]
        self.source.read_into(self.place, view, "an archive")
        self.place += len(view)
        return len(view)


class _Bounded(io.RawIOBase):
    """The first bytes of a stream, as many as may be unpacked."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.left = _UNPACKED
        self.left_at_end = _MOST_AT_END

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self.stream.read(min(len(view), self.left, _AT_ONCE))
        self.left -= len(data)
        self.left_at_end -= not data
        if self.left_at_end < 0:  # tarfile passes over what a header claims, 10 kB at a time
            raise EOFError
        view[: len(data)] = data
        return len(data)


def _unpacked(source: Source, kind: str) -> io.BufferedReader[_Bounded] | None:
    opener = _OPENERS.get(kind)
    if opener is None:
        return None
    file = io.BufferedReader(_Stream(source))
    stream = opener(fileobj=file) if kind == "gzip" else opener(file)
    found = io.BufferedReader(_Bounded(stream))
    try:
        found.peek(1)
    except _UNREADABLE:
        return None
    return found


_UNREADABLE = (
    tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError,
    RecursionError,  # tarfile goes down one level for each header that is about the next
)  # fmt: skip


def _tar(source: Source, stream: io.BufferedReader[_Bounded], what: str) -> Found:
    members = _members(stream)
    if set(members) >= _TORCH_TAR:
        return Found(
            f"{what}, as torch.save wrote before version 0.1.10",
            hint="load it with torch.load and save it again",
        )
    path = Path(source.name)
    inner = {PurePosixPath(name).name for name in members}
    if {"model_config.yaml", "model_weights.ckpt"} <= inner:
        what = f"a NeMo archive ({what[2:]} of a configuration and a checkpoint)"
    for name in sorted(members, key=lambda name: not name.endswith("model_weights.ckpt")):
        if name.endswith(tuple(SUFFIXES)) and members[name] and _is_plain(name):
            folder = free_path(path.with_name(f"{path.name.partition('.')[0]}-members"))
            take = f"tar -xf {path_word(path)} -C {path_word(folder)} {word(name)}"
            return Found(
                what,
                hint=then_inspecting(f"mkdir {path_word(folder)} && {take}", folder / name),
            )
    return Found(what, hint=f"tar -tf {path_word(path)}")


def _members(stream: io.BufferedReader[_Bounded]) -> dict[str, bool]:
    """Return the first members, and whether they begin as a checkpoint does.

    Those behind what may be unpacked are not found.
    """
    members: dict[str, bool] = {}
    with (
        contextlib.suppress(*_UNREADABLE),
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        for member in islice(archive, _MOST_MEMBERS):
            file = archive.extractfile(member) if member.isfile() else None
            if file:
                start = file.read(LONGEST_START)
                members[member.name] = bool(kinds_of(start, member.size))
    return members


def _is_plain(name: str) -> bool:
    """Whether tar takes a member's name as it is, and to no other folder than it is told."""
    path = PurePosixPath(name)
    leads_out = path.is_absolute() or ".." in path.parts
    return not (leads_out or name.startswith("-") or "\\" in name)  # which tar takes for an escape
