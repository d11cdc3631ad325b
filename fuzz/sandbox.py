"""Keeps what a pickle can do small while `torch.load(weights_only=False)` loads it.

An audit hook refuses every name that a pickle could do harm with, and every file, process and
socket outside the folder that the process works in. It is for files that this fuzzer makes: no
hook of this kind withstands somebody who knows it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tests.support.bounds import NBYTES, SECONDS

_FUNCTIONS = frozenset({
    "_codecs.encode", "copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__",
    "torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout",
    "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer", "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar", "numpy.core.numeric._frombuffer",
    "torch.jit._pickle.build_intlist", "torch.jit._pickle.restore_type_tag",
})  # fmt: skip
_CLASSES = frozenset({
    "builtins.bool", "builtins.bytearray", "builtins.bytes", "builtins.complex", "builtins.dict",
    "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list", "builtins.object",
    "builtins.set", "builtins.slice", "builtins.str", "builtins.tuple", "numpy.dtype",
    "numpy.ndarray", "numpy.recarray", "numpy.matrix", "numpy.float32", "numpy.str_",
    "functools.partial", "argparse.Namespace",
})  # fmt: skip
#: Of these any class, and of `torch` what names a dtype, a layout and the like, too.
_ROOMS = ("collections", "torch.nn.modules.", "torch.nn.parameter", "torch.optim.", "torch.storage",
          "torch.nn.utils.")  # fmt: skip
_TORCH_KINDS = (torch.dtype, torch.layout, torch.qscheme, torch.memory_format)
_TORCH_CLASSES = frozenset({"Size", "Tensor", "device", "Generator"})

#: Only Linux tells, and bounds, the memory of a process so.
_STATM = Path("/proc/self/statm")

#: Events that end a load where they concern anything but the folder that is worked in.
_PLACES = {
    "open": 1, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.chmod": 1, "os.utime": 1,
    "os.rename": 2, "os.truncate": 1, "os.chown": 1, "shutil.rmtree": 1,
}  # fmt: skip
_REFUSED = (
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.system", "os.link", "os.symlink", "os.putenv", "os.unsetenv", "subprocess.", "socket.",
    "ctypes.", "pty.", "shutil.copy", "shutil.move", "signal.", "urllib.", "ftplib.", "http.",
    "webbrowser.", "syslog.", "mmap.", "resource.", "code.__new__", "builtins.input",
)  # fmt: skip


class OutOfBoundsError(Exception):
    """A file would have done, or taken, what it may not here."""


class _Watch:
    """What the hook knows: whether it is on, and where files may be written."""

    is_on = False
    folder = ""


def install(folder: Path) -> None:
    """Add the hook and the limits, for good; work and keep temporary files in `folder` alone."""
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    _Watch.folder = f"{folder.resolve()}{os.sep}"
    sys.addaudithook(_hook)
    signal.signal(signal.SIGALRM, _too_long)
    if _STATM.exists():
        most = int(_STATM.read_text().split()[5]) * resource.getpagesize() + NBYTES
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise OutOfBoundsError(f"more than {SECONDS} seconds")


@contextmanager
def timed() -> Iterator[None]:
    """End what takes longer than it may, where it is in Python."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def watched() -> Iterator[None]:
    """Have the hook on meanwhile."""
    _Watch.is_on = True
    try:
        yield
    finally:
        _Watch.is_on = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _Watch.is_on:
        return
    if event == "pickle.find_class":
        if not is_allowed(*args[:2]):
            raise OutOfBoundsError(f"{args[0]}.{args[1]}")
    elif event in _PLACES:
        is_reading = event == "open" and (
            args[1] in {"r", "rb"} or (args[1] is None and not args[2] & (os.O_WRONLY | os.O_RDWR))
        )
        if is_reading or (event == "open" and isinstance(args[0], int)):
            return
        for place in args[: _PLACES[event]]:
            if not str(Path(os.fsdecode(place)).resolve()).startswith(_Watch.folder):
                raise OutOfBoundsError(f"{event} {place!r}")
    elif event.startswith(_REFUSED):
        raise OutOfBoundsError(event)


def is_allowed(module: str, name: str) -> bool:
    """Whether a pickle may use this name: none that does more than make a value."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    full = f"{module}.{name}"
    if full in _FUNCTIONS or full in _CLASSES:
        return True
    if "." in name or "__" in name:
        return False
    if module == "torch._utils":
        return name.startswith("_rebuild_")
    if module == "torch":
        found = getattr(torch, name, None)
        return (
            name in _TORCH_CLASSES
            or isinstance(found, _TORCH_KINDS)
            or (isinstance(found, type) and name.endswith(("Storage", "Tensor")))
        )
    if not f"{module}.".startswith(_ROOMS) and module not in _ROOMS:
        return False
    return isinstance(getattr(sys.modules.get(module), name, None), type)
