"""Runs `wn` where every event that the interpreter reports is held against a sound run's.

A script: from stdin it reads a list of sound command lines, as JSON, then one command line after
another, and it answers each with a line on stdout. A command line that begins with `unpickle` hands
the file to Python's own pickle instead.

Everything of the package is imported, and the sound command lines run twice, before the first of
the others. From then on (PEP 578) only what the second of these runs did may happen: no module is
imported, no code compiled that was not, no file opened outside the working directory, none written
outside its `out`; no process, no socket, no library. What is begun all the same is prevented, and
listed.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import sys
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypedDict

import typer

import wncli
from wncli.cli import commands, main

#: Events that say by their arguments what is run: exactly these must have happened before.
CODE = {"compile", "exec", "import"}
#: Events whose arguments are paths, besides those of `os`.
PATHS = {"open", "os", "shutil", "tempfile", "glob", "pathlib"}
READING = {"os.listdir", "os.scandir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Outcome(TypedDict):
    """What a command came to, and what the watch prevented meanwhile."""

    code: int | None
    stdout: str
    stderr: str
    violations: list[str]


class ForbiddenError(BaseException):
    """Ends what must not happen; no `except Exception` keeps it."""


class Tripwire(ModuleType):
    """A module that is imported already, as `os` is: looking a name up in it is reported."""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        if not name.startswith("__"):
            sys.audit("tripwire", name)
        return super().__getattribute__(name)


class Watch:
    """The audit hook: learns in a sound run, then forbids all else."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.output = str(folder / "out")
        self.learning = False
        self.armed = False
        self.usual: set[object] = set()
        self.violations: list[str] = []

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.learning:
            self.usual.add(key_of(event, arguments))
        elif self.armed and not self.allows(event, arguments):
            self.violations.append(f"{event} {arguments!r}"[:300])
            raise ForbiddenError(event)

    def allows(self, event: str, arguments: tuple[object, ...]) -> bool:
        if key_of(event, arguments) not in self.usual:
            return False
        if event == "open":
            path, _, flags = arguments
            assert isinstance(flags, int)
            return self.is_below(path, self.output if flags & WRITING else self.folder)
        if event.partition(".")[0] in PATHS:
            paths = [part for part in arguments if isinstance(part, (str, bytes))]
            folder = self.folder if event in READING else self.output
            return all(self.is_below(path, folder) for path in paths)
        return True

    def is_below(self, path: object, folder: str) -> bool:
        """Whether a path is in the folder; a number is a file that is open already."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return isinstance(path, int)
        found = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        return found == folder or found.startswith(folder + os.sep)


def key_of(event: str, arguments: tuple[object, ...]) -> object:
    """What two events must have in common to count as the same."""
    if event not in CODE:
        return event
    subject = arguments[0]
    return event, subject if isinstance(subject, (str, bytes, CodeType)) else repr(subject)


def run(command: list[str]) -> tuple[int | None, str, str]:
    """The exit code (None where it does not exit), stdout and stderr of one command line."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]
    usual = sys.argv, sys.stdout, sys.stderr
    sys.argv, sys.stdout, sys.stderr = ["wn", *command], *streams
    code: int | None = None
    try:
        if command[0] == "unpickle":
            pickle.loads(Path(command[1]).read_bytes())  # noqa: S301 - the control
        else:
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else None
    except BaseException as error:  # noqa: BLE001
        sys.stderr.write(type(error).__name__)
    finally:
        sys.argv, sys.stdout, sys.stderr = usual
    for stream in streams:
        stream.flush()
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in streams)
    return code, stdout, stderr


def import_everything() -> None:
    """Import every room of the package, and with them all libraries that it uses for files."""
    others = ("wncli.__main__", "wncli.arithmetic.torch_tensors", "wncli.pytorch")
    package = Path(wncli.__file__).parent
    for path in package.rglob("*.py"):
        room = ".".join(path.relative_to(package.parent).with_suffix("").parts)
        if not room.startswith(others):
            importlib.import_module(room.removesuffix(".__init__"))
    for name in ("numpy", "ml_dtypes", "typer", "rich"):
        assert name in sys.modules or importlib.import_module(name)
    assert "torch" not in sys.modules


def answer(watch: Watch, command: list[str]) -> Outcome:
    """Run one command under the watch."""
    modules = set(sys.modules)
    watch.violations = []
    watch.armed = True
    code, stdout, stderr = run(command)
    watch.armed = False
    watch.violations += [f"{name} was imported" for name in set(sys.modules) - modules]
    return {"code": code, "stdout": stdout, "stderr": stderr, "violations": watch.violations}


def serve() -> None:
    """Learn from the sound commands, then answer the others."""
    import_everything()
    # What typer makes of the commands anew for each run; it compiles their annotations for that.
    made = typer.main.get_command(commands.app)
    vars(commands)["app_for"] = lambda _command: made
    watch = Watch(Path.cwd())
    sys.modules["wn_tripwire"] = Tripwire("wn_tripwire")
    sys.addaudithook(watch)
    sound = json.loads(input())
    for learning in (False, True):
        for command in sound:
            watch.learning = learning
            run(command)
            watch.learning = False
            for left in Path("out").iterdir():
                left.unlink()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(watch, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
