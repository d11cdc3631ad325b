"""Loads files with a plain `torch.load`, each in a process of its own, and tells what they ran.

A script: from stdin it reads `[[path, [modules that it names]], …]` as JSON, and it writes for each
file, as JSON, the events (PEP 578) of what must not happen without having been listed. What a file
begins is prevented, and its process ends.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import signal
import sys
import types
import warnings
from pathlib import Path
from typing import Any, Self

import torch

#: Whose modules may be imported, and whose files read: every `torch.load` has them.
KNOWN = sys.stdlib_module_names | {"torch", "numpy", "functorch", "torchgen", "typing_extensions"}
#: Events of what goes beyond this process, or runs a text; of the others, those that begin so.
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "tempfile.", "webbrowser.",
             "urllib.", "ftplib.", "http.", "smtplib.", "code.", "pty.", "mmap.", "fcntl.",
             "sqlite3.", "signal.")  # fmt: skip
READING = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "ctypes.dlopen", "ctypes.dlsym")
#: Where these packages are.
PLACES = (sys.prefix, sys.base_prefix, str(Path(torch.__file__).parents[1]))
#: What a file may take; what takes longer makes very much of something.
SECONDS = 3


class ForbiddenError(BaseException):
    """Ends what must not happen."""


class Watch:
    """The audit hook."""

    def __init__(self) -> None:
        self.armed = False
        self.path = ""
        self.ran: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.armed and self.is_forbidden(event, arguments):
            self.ran.append(f"{event} {arguments!r}"[:200])
            raise ForbiddenError(event)

    def is_forbidden(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "stranger":
            return True
        if event == "import":
            return str(arguments[0]).partition(".")[0] not in KNOWN
        if event == "compile":
            return "wn_stranger" in str(arguments[0])
        if event == "open":
            path, _, flags = arguments
            assert isinstance(flags, int)
            if isinstance(path, int):
                return False
            found = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type] # noqa: PTH100
            is_own = found.startswith((*PLACES, self.path))
            return bool(flags & (os.O_WRONLY | os.O_RDWR)) or not is_own
        return event.startswith(FORBIDDEN) and event not in READING


def stranger() -> types.ModuleType:
    """A module of another package: a function, a class, and one whose methods are looked up."""
    module = types.ModuleType("wn_stranger")

    def run(*_args: object, **_keywords: object) -> None:
        sys.audit("stranger")

    class Config:
        def __init__(self, *args: object) -> None:
            pass

    class Pipe(Config):
        def __getitem__(self, _key: object) -> Self:
            sys.audit("stranger")
            return self

    for method in ("__iter__", "__next__", "__len__", "__contains__", "__index__", "__int__",
                   "__float__", "__call__", "__bytes__", "keys", "items", "detach"):  # fmt: skip
        setattr(Pipe, method, run)
    for kind in (Config, Pipe):
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
    vars(module).update(run=run, Config=Config, Pipe=Pipe)
    return module


def load(path: str, watch: Watch) -> None:
    """Load one file."""
    watch.path = path
    watch.armed = True
    with contextlib.suppress(BaseException):
        torch.load(path, weights_only=False, map_location="cpu")
    watch.armed = False


def main() -> None:
    """Answer with what each file ran."""
    warnings.simplefilter("ignore")
    sys.modules["wn_stranger"] = stranger()
    watch = Watch()
    sys.addaudithook(watch)
    files: list[tuple[str, list[str]]] = json.load(sys.stdin)
    for module in {module for _, modules in files for module in modules}:
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    plain = io.BytesIO()
    torch.save({"w": torch.ones(1)}, plain)
    torch.load(io.BytesIO(plain.getvalue()), weights_only=False)  # imports what it needs
    found: list[Any] = []
    for path, _ in files:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            null = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(null, stream)
            load(path, watch)
            os.write(writing, json.dumps(watch.ran[:1]).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as answer:
            found.append(json.loads(answer.read() or b"[]"))
        os.waitpid(child, 0)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
