"""Recognizes the folders and files of distributed training, and says what to do with them.

Sources: PyTorch `torch/distributed/checkpoint/` (`filesystem.py`, `hf_storage.py`), DeepSpeed
`runtime/engine.py` (`save_checkpoint`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from wncli.checkpoint.checkpoint import DISTRIBUTED
from wncli.errors import FileError, FormatError, few
from wncli.hints import free_path, inspecting, option, path_word

ONE_METADATA = ".metadata"
_METADATA = re.compile(r"(__\d+)?\.metadata")
_ITEMS = ".distcp"
#: A shard of one rank, whose number is in it.
SHARD = re.compile(r"shard-(\d{1,9})-model-\d+-of-\d+\.safetensors")
_DEEPSPEED = re.compile(r"(bf16_)?(zero_pp_rank_\d+_)?mp_rank_\d+_(model|optim)_states\.pt")
_WHOLE = re.compile(r"mp_rank_\d+_model_states\.pt")
_LATEST = "latest"
_SCRIPT = "zero_to_fp32.py"
_LONGEST_TAG = 256


def metadata_files(names: Iterable[str]) -> list[str]:
    """Return which of these files are the metadata of a distributed checkpoint.

    That is one, which PyTorch reads; or one of each rank, where they were written without it.
    """
    found = [name for name in names if _METADATA.fullmatch(name)]
    return [ONE_METADATA] if ONE_METADATA in found else found


def shards_of_ranks(names: Iterable[str]) -> list[str]:
    """Return which of these files are safetensors shards of ranks, if no index lists any."""
    names = list(names)
    if any(name.endswith(".index.json") for name in names):
        return []
    return [name for name in names if SHARD.fullmatch(name)]


def is_distributed(names: Iterable[str]) -> bool:
    """Whether the folder of these files is a distributed checkpoint that is read."""
    names = list(names)
    return bool(metadata_files(names) or shards_of_ranks(names))


def files_of_distributed(names: Iterable[str]) -> list[str]:
    """Return all that a distributed checkpoint consists of, of the files of its folder."""
    names = list(names)
    if not is_distributed(names):
        return []
    items = [name for name in names if name.endswith(_ITEMS)]
    return [*filter(_METADATA.fullmatch, names), *items, *shards_of_ranks(names)]


def refuse_distributed_folder(folder: Path, files: Iterable[str], folders: Iterable[str]) -> None:
    """Name a folder of parts without their metadata, or one that DeepSpeed wrote.

    Args:
        folder: the folder.
        files: the names of its files.
        folders: the names of its folders.

    Raises:
        FileError: it is one.
    """
    names = sorted(files)
    items = [name for name in names if name.endswith(_ITEMS)]
    if items:
        raise FileError(
            str(folder),
            "these are files of a distributed checkpoint, and its .metadata is missing",
            expected=".metadata beside them",
            found=few(items),
            hint="copy the whole folder, with its .metadata",
        )
    _refuse_deepspeed(folder, names, sorted(folders))


def _refuse_deepspeed(folder: Path, files: list[str], folders: list[str]) -> None:
    own = [name for name in files if _DEEPSPEED.fullmatch(name)]
    if own:
        raise _deepspeed(folder, _above(folder), folder, own)
    if _SCRIPT not in files and _LATEST not in files:
        return
    tags = [_tag(folder / _LATEST)] if _LATEST in files else []
    for tag in [*(tag for tag in tags if tag in folders), *reversed(folders)]:
        own = sorted(
            path.name for path in (folder / tag).iterdir() if _DEEPSPEED.fullmatch(path.name)
        )
        if own:
            raise _deepspeed(folder, folder, folder / tag, own)


def _deepspeed(where: Path, top: Path, tag: Path, names: list[str]) -> FileError:
    """Refuse what DeepSpeed wrote: `top` is the folder that it saved to, `tag` one step."""
    whole = [name for name in names if _WHOLE.fullmatch(name)]
    if len(whole) == 1 and not any("zero_pp" in n and "model_states" in n for n in names):
        hint: str = inspecting(tag / whole[0])
    else:
        script = top / _SCRIPT
        run = path_word(script) if script.exists() else "-m deepspeed.utils.zero_to_fp32"
        gathered = free_path(_above(top) / f"{top.resolve().name}-gathered")
        step = tag.resolve().name
        hint = f"python {run} {path_word(top)} {path_word(gathered)}"
        if step != _tag(top / _LATEST):  # which is gathered where none is named
            hint = f"{hint} {option('--tag', step)}"
    return FileError(
        str(where),
        "this is a checkpoint of DeepSpeed, in parts",
        expected="one file with whole tensors, or shards with an index",
        found=few(names),
        hint=hint,
    )


def _above(folder: Path) -> Path:
    return folder / ".." if folder.name in {"", ".."} else folder.parent


def _tag(latest: Path) -> str:
    try:
        with latest.open("rb") as file:
            return file.read(_LONGEST_TAG).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def refuse_distributed_file(where: str, start: bytes) -> None:
    """Name a file of a distributed checkpoint by its name, or by how it begins.

    Raises:
        FormatError: it is one.
    """
    path = Path(where)
    is_metadata = _METADATA.fullmatch(path.name) or (
        start.startswith(b"\x80") and DISTRIBUTED in start
    )
    if is_metadata:
        raise distributed_file(where, "the metadata of a distributed checkpoint")
    if path.name.endswith(_ITEMS):
        raise distributed_file(where, "a part of a distributed checkpoint")
    if path.name == _LATEST and len(start) <= _LONGEST_TAG:
        tag = path.parent / _tag(path)
        if tag != path.parent and tag.is_dir():
            folder = path.parent
            names = [entry.name for entry in folder.iterdir()]
            refuse_distributed_folder(folder, [_LATEST, *names], names)


def distributed_file(where: str, what: str) -> FormatError:
    """Make the refusal of one file of a distributed checkpoint."""
    path = Path(where)
    try:
        is_whole = bool(metadata_files(entry.name for entry in path.parent.iterdir()))
    except OSError:  # it is an item, whose name is no path
        is_whole = False
    return FormatError(
        where,
        f"this is {what} (torch.distributed.checkpoint), not a checkpoint by itself",
        expected="the directory that it is in",
        hint=inspecting(path.parent)
        if is_whole
        else "copy the whole folder, with its .metadata, and give the folder",
    )
