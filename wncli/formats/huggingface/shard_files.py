"""The files of a sharded checkpoint: bare names beside the index, and links that stay there.

An index is a stranger's text, so that its names must not lead anywhere else: a link may lead to a
file of its own folder (or below), and nowhere else. The one exception is the cache of Hugging Face,
where `models--OWNER--NAME/snapshots/REVISION/model-00001-of-00002.safetensors` is a link to
`models--OWNER--NAME/blobs/HASH`: the files of that very `blobs` are taken, and no other's.

Source: huggingface_hub, "Understand caching"; for names that lead out of their folder,
transformers#47176 and diffusers#14175.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

from wncli.errors import FileError, FormatError, few
from wncli.storage.source import unreadable


def is_bare_name(name: str) -> bool:
    """Whether `name` can only mean a file of the folder, on whatever system."""
    return (
        name not in {"", ".", ".."}
        and "\0" not in name
        and ":" not in name  # a drive, or a stream of an NTFS file
        and PureWindowsPath(name).name == PurePosixPath(name).name == name
    )


def resolve(path: Path) -> Path | None:
    """Return the file that `path`, an index or a shard, leads to; None where there is none.

    Raises:
        FileError: it is not a regular file, or cannot be read.
        FormatError: it is a link that leaves its folder.
    """
    where = str(path)
    try:
        folder = Path(os.path.realpath(path.parent, strict=True))
        target = Path(os.path.realpath(path, strict=True))
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise FileError(
                where, "this link leads back to itself", expected="a checkpoint file"
            ) from None
        raise unreadable(where, error) from None
    if not (target.is_relative_to(folder) or target.parent == _blobs(folder)):
        raise FormatError(
            where,
            "this link leaves its folder",
            expected="a file beside the index, or in the blobs of the same Hugging Face cache",
            found=str(target),
            hint="put the index and all its files, or links to nothing else, into one folder",
        )
    if not stat.S_ISREG(mode):
        raise FileError(
            where,
            "this is a directory" if stat.S_ISDIR(mode) else "not a regular file",
            expected="a checkpoint file",
        )
    return target


def _is_there(path: Path) -> bool:
    """Whether there is a file or link of this name, which takes a tenth of what `resolve` does."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # what `resolve` has a refusal for
        return True
    return True


def _blobs(folder: Path) -> Path | None:
    """Where the cache of Hugging Face keeps the files of a snapshot, if `folder` is of one."""
    for parent in (folder, *folder.parents):
        model = parent.parent.parent
        if parent.parent.name == "snapshots" and model.name.startswith("models--"):
            return model / "blobs"
    return None


def locate(index: Path, names: Collection[str]) -> list[Path]:
    """Return the files of these names beside `index`, in the order of `names`.

    Raises:
        FileError: some are missing, or no regular files.
        FormatError: one is a link that leaves the folder.
    """
    paths = {name: index.with_name(name) for name in names}
    found = {name: resolve(path) if _is_there(path) else None for name, path in paths.items()}
    missing = [name for name, target in found.items() if target is None]
    if missing:
        plural = "s" if len(names) > 1 else ""
        raise FileError(
            str(index),
            f"{len(missing)} of {len(names)} shard{plural} missing: {few(missing)}",
            expected="every file that the index lists, beside it",
            found=f"{len(names) - len(missing)} of {len(names)}",
            hint="download or copy the rest into the folder of the index",
        )
    return [target for target in found.values() if target is not None]
