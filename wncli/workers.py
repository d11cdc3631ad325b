"""Shares tasks out among the processors: in forked processes where that is allowed, else threads.

Threads that compute wait for each other: Python's lock lets only one of them go on between two
pieces of work, and hands over slowly. Processes do not, but only a program that knows all that it
runs may fork; a library does not know what else there is in its process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from wncli.partial_output import uninterrupted

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Called with a number of bytes that have just been done; raises Stopped where that is in vain.
Advance = Callable[[int], None]

#: More only wait for the disk, or for Python.
_MOST = 4
#: Bytes that every pipe holds (POSIX PIPE_BUF on Linux), and those of a number in one.
_PIPE = 4096
_NUMBER = 4
#: Bytes that are worth another worker.
_SHARE = 16 << 20

_may_fork = False


def allow_forking() -> None:
    """Let tasks be shared out among forks of this process from now on, while it has one thread."""
    global _may_fork  # noqa: PLW0603 - it is about the process
    _may_fork = sys.platform == "linux"
    if _may_fork and threading.current_thread() is threading.main_thread():
        # Whoever started this may not want to hear of its children, which is inherited.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


class Stopped(Exception):  # noqa: N818 - ends a worker after another has failed
    """Another part of the run has failed."""


class Crew(Protocol):
    """What works on tasks, and gathers what comes of them.

    Workers in one process share it; each forked one has its own, whose `results` since `begin`
    are added to the first one's. Tasks are numbers and may be done twice. While it is `stopping`,
    a task ends early by raising Stopped; `progress` is called with the bytes that have been done.
    """

    stopping: bool
    progress: Callable[[int], None]

    def work(self, task: int) -> None:
        """Carry out one task."""

    def begin(self) -> None:
        """Forget what has come of the tasks so far."""

    def results(self) -> Any:  # noqa: ANN401 - what it is, only the crew knows
        """What has come of the tasks, to be pickled."""

    def add(self, results: Any) -> None:  # noqa: ANN401 - as `results`
        """Take in the results of another worker."""


def worker_count() -> int:
    """As many workers as there are processors to use, and a few at most."""
    here = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(_MOST, here)


def map_shared(
    function: Callable[[Item, Advance], Result],
    items: Sequence[Item],
    nbytes: int,
    progress: Callable[[int], None],
) -> list[Result]:
    """The results of `function` for all items, about `nbytes` of work; they can be pickled.

    Raises:
        Exception: what the function has raised.
    """
    crew = _Mapping(function, items, progress)
    share_out(len(items), crew, nbytes)
    return [crew.found[task] for task in range(len(items))]


class _Mapping(Generic[Item, Result]):
    """The crew of `map_shared`."""

    def __init__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Sequence[Item],
        progress: Callable[[int], None],
    ) -> None:
        self.function = function
        self.items = items
        self.progress = progress
        self.stopping = False
        self.found: dict[int, Result] = {}

    def work(self, task: int) -> None:
        self.found[task] = self.function(self.items[task], self.advance)

    def advance(self, count: int) -> None:
        if self.stopping:
            raise Stopped
        self.progress(count)

    def begin(self) -> None:
        self.found = {}

    def results(self) -> dict[int, Result]:
        return self.found

    def add(self, results: dict[int, Result]) -> None:
        self.found |= results


def share_out(count: int, crew: Crew, nbytes: int) -> None:
    """Have so many tasks carried out, begun in their order: about `nbytes` of work.

    Raises:
        Exception: what a task has raised; no worker goes on.
    """
    workers = min(worker_count(), 1 + nbytes // _SHARE, count)
    if workers <= 1:
        for task in range(count):
            crew.work(task)
    elif forks := _forks(count, crew, workers):
        forks.run()
    else:
        _in_threads(count, crew, workers)


def _forks(count: int, crew: Crew, workers: int) -> _Forks | None:
    """Forks of this process; None where it may not fork, or has not the files for it."""
    if _may_fork and threading.active_count() == 1:
        with contextlib.suppress(OSError):
            return _Forks(count, crew, workers)
    return None


def _in_threads(count: int, crew: Crew, workers: int) -> None:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

    left = deque(range(count))

    def work() -> None:
        while not crew.stopping:
            try:
                task = left.popleft()
            except IndexError:
                return
            crew.work(task)

    with ThreadPoolExecutor(workers) as pool:
        try:
            running = [pool.submit(work) for _ in range(workers)]
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            crew.stopping = True  # those that go on though another has failed, or is interrupted
    crew.stopping = False
    for failure in (future.exception() for future in running):
        if failure and not isinstance(failure, Stopped):
            raise failure


class _Forks:
    """Forks of this process, which works as well.

    Nothing is lost where something goes wrong in a fork: what it has not reported as done, this
    process does once more, and fails in the same way.
    """

    def __init__(self, count: int, crew: Crew, workers: int) -> None:
        self.crew = crew
        self.parent = os.getpid()
        #: Bytes that each fork has done so far.
        self.counts = memoryview(mmap.mmap(-1, 8 * (workers - 1))).cast("Q")
        self.counted = 0
        #: Tasks that are taken together, so many that a pipe surely holds the numbers of all runs.
        together = -(-count * _NUMBER // _PIPE)
        self.runs = [range(start, count)[:together] for start in range(0, count, together)]
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
        for task in chain(*self.runs):
            if task not in done:
                self.crew.work(task)

    def work(self) -> Iterator[int]:
        """Carry out tasks until none is left, and say which."""
        while raw := os.read(self.left, _NUMBER):
            for task in self.runs[int.from_bytes(raw, "little")]:
                self.crew.work(task)
                yield task

    def fork(self, number: int) -> None:
        results = os.memfd_create("results")
        with uninterrupted():
            process = os.fork()
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
                    done.append(task)  # noqa: PERF402 - those before a failure count
            except Exception:  # noqa: BLE001 - the parent will see for itself, as soon as it can
                os.read(self.left, _PIPE)
            with os.fdopen(results, "wb") as file:
                pickle.dump((done, self.crew.results()), file)
            code = 0
        finally:
            os._exit(code)

    def note(self, number: int, count: int) -> None:
        """Count what a fork has done; it does not outlive its parent."""
        self.counts[number] += count
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
