"""Runs `wn` in forks of one process, and lets something go wrong at a chosen step of a run.

A step is a call that changes files, or the middle or the end of one. `faults.py` starts this as a
program and talks to it in lines of JSON; one that has imported everything forks in milliseconds,
where a new interpreter takes tenths of a second.
"""

from __future__ import annotations

import builtins
import errno
import gc
import io
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: Functions of `os` that are steps, beside those that are wrapped one by one.
_CALLS = (
    "chmod", "fchmod", "fchown", "fsync", "ftruncate", "link", "mkdir", "posix_fallocate",
    "pread", "preadv", "remove", "rename", "replace", "rmdir", "unlink",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: How a child ends that this program itself has failed in.
BROKEN = 99


class Steps:
    """Counts the steps of this process and brings about the fault that was asked for.

    Args:
        fault: `at` (the number of the step, from 1), `on` (labels that count; all where it is
            empty), `signal` or `errno`, `lasting` (all further ones fail as well), `again` (so many
            steps later the signal comes once more), `missing` (calls that the file system has not).
        trace: a descriptor that takes the label of each step.
    """

    def __init__(self, fault: dict[str, Any] | None, trace: int) -> None:
        self.fault = fault
        self.trace = trace
        self.count = 0
        self.lock = threading.Lock()

    def step(self, label: str) -> bool:
        """Take a step; False where a write is to stop here and say how far it came.

        Raises:
            OSError: the system refuses the call.
        """
        fault = self.fault
        if fault and label in fault["missing"]:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        with self.lock:
            os.write(self.trace, f"{label}\n".encode())
            if not fault or (fault["on"] and label not in fault["on"]):
                return True
            self.count += 1
            behind = self.count - fault["at"]
            if behind not in {0, fault["again"]} and not (fault["lasting"] and behind > 0):
                return True
        if fault["signal"]:
            os.kill(os.getpid(), fault["signal"])
        elif label.endswith(" half"):
            return False
        elif not label.endswith(" done"):
            raise OSError(fault["errno"], os.strerror(fault["errno"]))
        return True

    def install(self) -> None:
        """Take the place of the functions that change files."""
        for name in _CALLS:
            if hasattr(os, name):
                setattr(os, name, self.call(name, getattr(os, name)))
        import fcntl  # which Windows does not have

        fcntl.flock = self.call("flock", fcntl.flock)
        fcntl.ioctl = self.call("ioctl", fcntl.ioctl)
        os.open = self.opening("open", os.open, lambda flags: bool(flags & _WRITING))
        opening = self.opening("open", io.open, lambda mode: bool(set(mode) & set("wxa+")))
        io.open = builtins.open = opening
        os.close = self.close(os.close)  # type: ignore[assignment]
        os.pwrite = self.pwrite(os.pwrite)
        Path.write_bytes = self.write_bytes()  # type: ignore[assignment, method-assign]

    def call(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """A call with a step before and one behind it."""

        def stepping(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the real one
            self.step(name)
            found = real(*arguments, **keywords)
            self.step(f"{name} done")
            return found

        return stepping

    def opening(
        self, name: str, real: Callable[..., Any], writes: Callable[[Any], bool]
    ) -> Callable[..., Any]:
        """An opening call, which is a step where it is for writing."""
        counted = self.call(name, real)

        def stepping(*arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as the real one
            how = arguments[1] if len(arguments) > 1 else keywords.get("mode", "r")
            return (counted if writes(how) else real)(*arguments, **keywords)

        return stepping

    def close(self, real: Callable[[int], None]) -> Callable[[int], None]:
        """`os.close`, which closes the descriptor also where it fails (close(2), on Linux)."""

        def stepping(fd: int) -> None:
            try:
                self.step("close")
            finally:
                real(fd)
            self.step("close done")

        return stepping

    def pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        """`os.pwrite` with a step in its middle, as the system may stop there."""

        def stepping(descriptor: int, data: memoryview, offset: int) -> int:
            self.step("pwrite")
            half = len(data) // 2
            done = real(descriptor, data[:half], offset) if half else 0
            if half and not self.step("pwrite half"):
                return done
            done += real(descriptor, data[done:], offset + done)
            self.step("pwrite done")
            return done

        return stepping

    def write_bytes(self) -> Callable[[Path, bytes], int]:
        """`Path.write_bytes` with a step in its middle."""

        def stepping(path: Path, data: bytes) -> int:
            with path.open("wb", buffering=0) as file:
                done = file.write(data[: len(data) // 2])
                if not self.step("write half"):
                    self.step("write")
                done += file.write(data[done:])
                self.step("write done")
            return done

        return stepping


def run(arguments: Sequence[str]) -> int:
    """`wn` with these arguments, in this process.

    Returns:
        Its exit code.
    """
    from wncli.cli import main

    sys.argv = ["wn", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else BROKEN
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def usual_signals(ignored: Sequence[int] = ()) -> None:
    """What a process begins with that was started from a shell."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for each in ignored:
        signal.signal(each, signal.SIG_IGN)


def be_child(order: dict[str, Any], streams: Path) -> NoReturn:
    """Carry out one run and leave with its exit code."""
    code = BROKEN
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{streams}.{name}", flags), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        trace = os.open(f"{streams}.trace", flags | os.O_APPEND)
        usual_signals(order["ignored"])
        os.chdir(order["cwd"])
        Steps(order["fault"], trace).install()
        code = run(order["arguments"])
    except BaseException:  # noqa: BLE001 - nothing of a child may go on in its parent's loop
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Parent:
    """Forks runs and waits for them, as the lines on stdin ask for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0
        self.living: set[int] = set()

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "warm":
                return {"code": self.warm(order)}
            case "start":
                return self.start(order)
            case _:
                return {"code": self.wait(order["pid"], order["seconds"])}

    def warm(self, order: dict[str, Any]) -> int:
        """Run in this process, so that what a run imports is imported."""
        kept = [os.dup(number) for number in (1, 2)]
        with Path(os.devnull).open("w") as nowhere:
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
        try:
            os.chdir(order["cwd"])
            return run(order["arguments"])
        finally:
            assert threading.active_count() == 1  # a fork has only the thread that forks
            for stream, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            usual_signals()
            gc.freeze()  # what is never looked at is never copied either

    def start(self, order: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        streams = self.folder / str(self.number)
        pid = os.fork()
        if not pid:
            be_child(order, streams)
        self.living.add(pid)
        return {"pid": pid, "streams": str(streams)}

    def wait(self, pid: int, seconds: float | None) -> int | None:
        """The exit code, minus the number of a signal, or None where it stopped or goes on."""
        end = time.monotonic() + (seconds or 0)
        patience = 0 if seconds is None else os.WNOHANG
        while True:
            ended, status = os.waitpid(pid, os.WUNTRACED | patience)
            if ended and os.WIFSTOPPED(status):
                return None
            if ended:
                self.living.remove(pid)
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(0.005)

    def end(self) -> None:
        """Leave no child behind, stopped ones least of all."""
        for pid in self.living:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def serve(folder: Path) -> None:
    """Carry out what the lines on stdin ask for, each answered by one on stdout."""
    parent = Parent(folder)
    try:
        for line in sys.stdin:
            print(json.dumps(parent.answer(json.loads(line))), flush=True)  # noqa: T201
    finally:
        parent.end()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
