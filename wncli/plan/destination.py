"""Decides where the output goes and in which format, from what was typed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import UsageError
from wncli.formats.registry import (
    FOLDERS,
    FORMATS,
    OF_FILES,
    SUFFIXES,
    FormatName,
    written_format,
)
from wncli.hints import Text, either, given, parameter, path_text, phrase, setting
from wncli.notes import Note
from wncli.storage.addresses import name_path

_UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class Target(NamedTuple):
    """One file, or a folder of several and their index.

    In a folder, `max_shard` are the bytes of tensors that a file may hold; None keeps the input's
    own division.
    """

    path: Path
    format: FormatName
    is_folder: bool = False
    max_shard: int | None = None


def decide_target(  # noqa: PLR0913 - what it depends on
    output: str,
    checkpoint: Checkpoint,
    chosen: FormatName | None,
    max_shard: int | None,
    *,
    from_folder: bool,
    is_named: bool = False,
) -> Target:
    """Read OUTPUT as it was typed.

    A folder is meant where the format is one of folders, where a size for shards is given or OUTPUT
    ends with a slash, and, without a suffix, where the input was one (`from_folder`). A single
    file goes into an existing folder, as `cp` does it, unless OUTPUT has the name that it is to
    have (`is_named`).

    Raises:
        UsageError: the suffix says no format.
    """
    path = Path(output)
    suffix = path.suffix.lower()
    slash = output.endswith(("/", os.sep))
    kept = written_format(checkpoint)
    is_folder = chosen in FOLDERS or (kept in FOLDERS and not chosen and suffix not in SUFFIXES)
    if max_shard is None and not is_folder:
        enters = os.path.isdir(path)  # noqa: PTH112 - which takes names that are too long, too
        if not from_folder and not is_named and enters:
            return Target(beside(path, name_path(checkpoint.name), chosen), chosen or kept)
        if not slash and (suffix in SUFFIXES or not from_folder):
            return Target(path, chosen or format_of(path, checkpoint))
    if suffix in SUFFIXES:
        what = "a folder" if is_folder else "a folder of shards"
        raise UsageError(
            output,
            phrase("{} is to be {}, and has the suffix of a file", parameter("output"), what),
            expected="a folder's name",
            hint=phrase(
                "{}{}{}",
                path_text(path.with_suffix(""), "/"),
                Text(", ", " "),
                setting(format=chosen or SUFFIXES[suffix]),
            ),
        )
    return Target(path, chosen or kept, is_folder=True, max_shard=max_shard)


def suffix_notes(target: Target) -> list[Note]:
    """Warn of a suffix that says another format than the one which is written."""
    said = SUFFIXES.get(target.path.suffix.lower())
    if target.is_folder or said in {None, target.format}:
        return []
    message = (
        f"a {target.format} file is written, though its suffix {target.path.suffix} says {said}"
    )
    return [Note("suffix", message, str(target.path), is_warning=True)]


def format_of(output: Path, checkpoint: Checkpoint) -> FormatName:
    """Return what OUTPUT's suffix says; without a suffix, as HiFi-GAN's files, the input's kind.

    Raises:
        UsageError: the suffix says no format.
    """
    suffix = output.suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if not suffix:
        return written_format(checkpoint)
    raise UsageError(
        str(output),
        f"the suffix {output.suffix} does not say which format to write",
        expected=", ".join(SUFFIXES),
        hint=either(setting(format=name) for name in OF_FILES),
    )


def beside(folder: Path, checkpoint: Path, chosen: FormatName | None) -> Path:
    """Name the output of one of several inputs: its name, with the suffix of the format."""
    if checkpoint.name in {"", ".."}:
        checkpoint = checkpoint.resolve()
    suffix = checkpoint.suffix.lower()
    if chosen is None or SUFFIXES.get(suffix) == chosen:
        return folder / checkpoint.name
    new = "" if chosen in FOLDERS else FORMATS[chosen].suffixes[0]
    known = suffix in SUFFIXES
    return folder / (checkpoint.stem + new if known else checkpoint.name + new)


def parse_size(text: str) -> int:
    """Return a size as it is typed, `5GB` or `500MiB` or a number of bytes.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]{0,3})\s*", text)
    unit = _UNITS.get(match[2].upper()) if match else None
    nbytes = int(float(match[1]) * unit) if match and unit else 0
    if not nbytes:
        raise UsageError(
            given(max_shard_size=text), "not a size", expected="bytes, as 5GB, 500MB or 2GiB"
        )
    return nbytes
