"""Says what a file is that is no checkpoint, and what to type instead."""

from __future__ import annotations

from pathlib import Path

from wncli.errors import FormatError
from wncli.formats.archives import Found, look_into
from wncli.formats.distributed import refuse_distributed_file
from wncli.formats.huggingface.folder import inspect_commands, places_of_checkpoints
from wncli.formats.torch.zip_end import find_shift, has_directory
from wncli.hints import free_path, path_word, then_inspecting
from wncli.storage.addresses import download_hint
from wncli.storage.source import Source, is_remote

_READABLE = "a safetensors, torch or npz file"
#: Bytes at the end of a zip in which its directory is looked for.
_END = 16 << 20
_KNOWN = {
    b"version https://git-lfs": Found(
        "a Git LFS pointer, not the file it stands for",
        hint="have Git LFS fetch the file: git lfs pull in its repository",
    ),
    b"\x89HDF": Found("an HDF5 file (Keras, h5py)", hint=""),
    b"GGUF": Found("a GGUF file (llama.cpp)", hint=""),
    b"\x93NUMPY": Found("a NumPy array", hint=""),
    b"7z\xbc\xaf\x27\x1c": Found(
        "a 7-Zip archive", hint="unpack it, and give the checkpoint in it"
    ),
    b"Rar!": Found("a RAR archive", hint="unpack it, and give the checkpoint in it"),
    b"<!DOCTYPE": Found("a web page", hint="download the file itself"),
    b"<html": Found("a web page", hint="download the file itself"),
}


def refuse_file(source: Source, start: bytes) -> FormatError:
    """Make the refusal of a file that is no checkpoint and begins with `start`."""
    refuse_distributed_file(source.name, start)
    found = _at_a_distance(source, start) if is_remote(source) else _what(source, start)
    return FormatError(
        source.name, "not a checkpoint", expected=_READABLE, found=found.what, hint=found.hint
    )


def _at_a_distance(source: Source, start: bytes) -> Found:
    """Return what its first bytes say it is: more is looked for once it is on this machine."""
    found = _by_start(start) or Found("bytes of no known format", hint="")
    return found if found.hint else found._replace(hint=download_hint(source.name))


def _what(source: Source, start: bytes) -> Found:
    return (
        look_into(source, start)
        or _disguised_zip(source)
        or _by_start(start)
        or _by_name(source, start)
    )


def _by_start(start: bytes) -> Found | None:
    if not start:
        return Found("an empty file", hint="")
    if start.startswith(b"\x80"):
        return Found("a plain pickle", hint="save its state dict with torch.save")
    return next((found for magic, found in _KNOWN.items() if start.startswith(magic)), None)


def _by_name(source: Source, start: bytes) -> Found:
    path = Path(source.name)
    if path.name.endswith(".index.json"):
        return Found(
            "a name that ends as an index's does, and no JSON object",
            hint="download it again, or give one of the shards",
        )
    if start.isascii() and b"\0" not in start:
        near = places_of_checkpoints(path.parent) if path.suffix == ".json" else []
        return Found("a text file", hint=inspect_commands(near))
    if path.suffix.lower() == ".safetensors":
        from wncli.formats.safetensors.reader import read_safetensors

        read_safetensors(source)  # says which rule is broken
    return Found("bytes of no known format", hint="")


def _disguised_zip(source: Source) -> Found | None:
    """Return a zip archive with a sound end that does not start as one."""
    path = Path(source.name)
    file = path_word(path)
    new = free_path(path.with_name(f"{path.stem}-zip{path.suffix or '.pt'}"))
    copy = path_word(new)
    end = min(source.nbytes, _END)
    is_torch = b"/data.pkl" in source.read_at(source.nbytes - end, end, "the zip's directory")
    if has_directory(source):
        what = "a zip archive whose first bytes have been changed"
        restore = f"printf 'PK\\003\\004' | dd of={copy} conv=notrunc"
        command = f"cp {file} {copy} && {restore}"
        return Found(what, hint=then_inspecting(command, new) if is_torch else "")
    shift = find_shift(source)
    if shift is None:
        return None
    if shift < 0:
        missing = f"a zip archive whose first {-shift:,} bytes are missing"
        return Found(missing, hint="copy or download it again")
    return Found(
        f"a zip archive behind {shift:,} bytes that are no part of it",
        hint=then_inspecting(f"tail -c +{shift + 1} {file} > {copy}", new) if is_torch else "",
    )
