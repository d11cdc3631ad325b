"""Has forks of this process carry out tasks of a crew, so that Python's lock parts nobody."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any, NoReturn

from wncli.parallel.crew import Crew
from wncli.storage.signals import unfinished
from wncli.storage.temporary import uninterrupted

#: Bytes that every pipe holds (POSIX PIPE_BUF on Linux), and those of a number in one.
_PIPE = 4096
_NUMBER = 4


def _runs_of(count: int) -> list[range]:
    """Tasks that are taken together, in no more runs than a pipe surely holds the numbers of.

    The first, which are the largest, stand alone. Of the others neighbours go together, since they
    are neighbours in memory as well, where what one process looks at is copied for it.
    """
    most = _PIPE // _NUMBER
    alone = min(count, most // 2)
    together = max(1, -(-(count - alone) // (most - alone)))
    others = [range(n, min(n + together, count)) for n in range(alone, count, together)]
    return [range(n, n + 1) for n in range(alone)] + others


class Forks:
    """Forks of this process, which works as well, as long as there are tasks.

    Args:
        count: the number of tasks, begun in their order.
        crew: carries them out.
        workers: as many processes, this one included.

    Nothing is lost where something goes wrong in a fork: what it has not reported as done, this
    process does once more, and fails in the same way.
    """

    def __init__(self, count: int, crew: Crew, workers: int) -> None:
        self.count = count
        self.crew = crew
        self.parent = os.getpid()
        #: Bytes that each fork has done so far.
        self.counts = memoryview(mmap.mmap(-1, 8 * (workers - 1))).cast("Q")
        self.counted = 0
        self.runs = _runs_of(count)
        #: The runs that nobody has begun: a pipe gives each of its bytes to one reader alone.
        self.left, writing = os.pipe()
        with os.fdopen(writing, "wb") as numbers:
            for number in range(len(self.runs)):
                numbers.write(number.to_bytes(_NUMBER, "little"))
        #: The files that forks leave their results in, by the process.
        self.living: dict[int, int] = {}

    def run(self) -> None:
        """Carry out all tasks."""
        progress = self.crew.progress
        done: set[int] = set()
        with unfinished:
            try:
                with contextlib.suppress(OSError):  # fewer are enough, and none if need be
                    for number in range(len(self.counts)):
                        self.fork(number)
                self.crew.progress = lambda count: progress(count + self.done_by_forks())
                done.update(self.work())
                for process in tuple(self.living):
                    for reported, results in self.outcome(process):
                        done.update(reported)
                        self.crew.add(results)
                progress(self.done_by_forks())
            finally:
                self.crew.progress = progress
                self.end()
        for task in range(self.count):
            if task not in done:
                self.crew.work(task)

    def work(self) -> Iterator[int]:
        """Carry out tasks until none is left, and say which."""
        while raw := os.read(self.left, _NUMBER):
            for task in self.runs[int.from_bytes(raw, "little")]:
                self.crew.work(task)
                yield task

    def fork(self, number: int) -> None:
        """Start one.

        Raises:
            OSError: the system does not let it.
        """
        with uninterrupted():
            results = os.memfd_create("results")
            try:
                process = os.fork()
            except OSError:
                os.close(results)
                raise
            if not process:
                self.be_fork(number, results)
            self.living[process] = results

    def be_fork(self, number: int, results: int) -> NoReturn:
        """Work and leave. Signals that end a run are the parent's, who then ends its forks."""
        code = 1
        try:
            self.crew.begin()
            self.crew.progress = partial(self.note, number)
            done: list[int] = []
            try:
                for task in self.work():
                    done.append(task)
                    self.end_if_left()
            except Exception:  # noqa: BLE001 - the parent will see for itself, as soon as it can
                os.read(self.left, _PIPE)
            with os.fdopen(results, "wb") as file:
                pickle.dump((done, self.crew.results()), file)
            code = 0
        finally:
            os._exit(code)

    def note(self, number: int, count: int) -> None:
        """Count what a fork has done."""
        self.counts[number] += count
        self.end_if_left()

    def end_if_left(self) -> None:
        """End a fork whose parent has ended: what it does is for nobody."""
        if os.getppid() != self.parent:
            os._exit(1)

    def done_by_forks(self) -> int:
        """Bytes that forks have done since this was asked for the last time."""
        before, self.counted = self.counted, sum(self.counts)
        return self.counted - before

    def outcome(self, process: int) -> Iterator[tuple[list[int], Any]]:
        """The tasks that a fork has done, and its results; nothing if it was killed."""
        _, status = os.waitpid(process, 0)
        results = self.living.pop(process)
        with os.fdopen(results, "rb") as file:
            if not status:
                file.seek(0)
                yield pickle.load(file)  # noqa: S301 - written by this program

    def end(self) -> None:
        """Leave no fork and no file behind."""
        with uninterrupted():
            for process, results in self.living.items():
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
                os.close(results)
            self.living.clear()
            os.close(self.left)
