"""Shares tasks out among the processors: in forked processes where that is allowed, else threads.

Threads that compute wait for each other: Python's lock lets only one of them go on between two
pieces of work, and hands over slowly. Processes do not, but only a program that knows all that it
runs may fork; a library does not know what else there is in its process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from wncli.parallel.crew import Advance, Crew, Stopped

if TYPE_CHECKING:
    from wncli.parallel.forks import Forks

Item = TypeVar("Item")
Result = TypeVar("Result")
#: More only wait for the disk, or for Python.
_MOST = 4
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


def _forks(count: int, crew: Crew, workers: int) -> Forks | None:
    """Forks of this process; None where it may not fork, or has not the files for it."""
    if _may_fork and threading.active_count() == 1:
        from wncli.parallel.forks import Forks

        with contextlib.suppress(OSError):
            return Forks(count, crew, workers)
    return None


def _in_threads(count: int, crew: Crew, workers: int) -> None:
    from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

    left = deque(range(count))

    def work() -> None:
        while not crew.stopping:
            try:
                task = left.popleft()
            except IndexError:
                return
            try:
                crew.work(task)
            except BaseException:
                left.append(task)
                raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            running: list[Future[None]] = []
            with contextlib.suppress(RuntimeError):  # the system lets fewer threads be, or none
                running.extend(pool.submit(work) for _ in range(workers))
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            crew.stopping = True  # those that go on though another has failed, or is interrupted
    crew.stopping = False
    for failure in (future.exception() for future in running):
        if failure and not isinstance(failure, Stopped):
            raise failure
    work()  # what is left: by no thread, or by one of which the pool kept no record
