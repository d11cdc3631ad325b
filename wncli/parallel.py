"""Runs tasks on threads: reading, writing and the compiled loops do not hold Python's lock."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from wncli.storage.signals import wake_all

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Called with the bytes that have just been done, and those that there are to do in all.
Progress = Callable[[int, int], None]
#: Called with a number of bytes that have just been done; raises Stopped where that is in vain.
Advance = Callable[[int], None]

#: Bytes that are worth another thread.
_SHARE = 16 << 20


class Stopped(Exception):  # noqa: N818 - ends a task after another has failed
    """Another task has failed."""


def processors() -> int:
    """As many processors as this process may use."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(
    function: Callable[[Item, Advance], Result],
    items: Sequence[Item],
    *,
    nbytes: int,
    jobs: int | None,
    progress: Callable[[int], None],
) -> list[Result]:
    """Call a function for all items, begun in their order; this thread works as well.

    Args:
        function: takes an item, and what to call with the bytes that it has just done.
        items: of the tasks.
        nbytes: about as much work as there is.
        jobs: threads at most, this one included; None for as many as there are processors.
        progress: called with the bytes that have just been done, by one thread at a time.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: what a task has raised; those that run end as soon as they call `advance`.
    """
    tasks = _Tasks(function, items, progress)
    count = min(jobs or processors(), 1 + nbytes // _SHARE, len(items))
    threads = [threading.Thread(target=tasks.work) for _ in range(count - 1)]
    try:
        with contextlib.suppress(RuntimeError):  # the system gives no more, and fewer do it, too
            for thread in threads:
                thread.start()
        tasks.work()
    except BaseException as error:  # noqa: BLE001 - raised once no thread works any more
        tasks.failures.insert(0, error)
        wake_all(tasks.runner)
    while any(thread.is_alive() for thread in threads):
        try:
            for thread in threads:
                if thread.is_alive():
                    thread.join()
        except KeyboardInterrupt as error:  # what they write to is closed after this
            tasks.failures.insert(0, error)
            wake_all(tasks.runner)
    if tasks.failures:
        raise tasks.failures[0]
    return [tasks.results[number] for number in range(len(items))]


class _Tasks(Generic[Item, Result]):
    """Tasks that several threads take from one queue."""

    def __init__(
        self,
        function: Callable[[Item, Advance], Result],
        items: Sequence[Item],
        progress: Callable[[int], None],
    ) -> None:
        self.function = function
        self.left = deque(enumerate(items))
        self.results: dict[int, Result] = {}
        self.failures: list[BaseException] = []
        self.progress = progress
        self.lock = threading.Lock()
        self.runner = threading.get_ident()

    def work(self) -> None:
        try:
            while not self.failures:
                try:
                    number, item = self.left.popleft()
                except IndexError:
                    return
                self.results[number] = self.function(item, self.advance)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in `run_tasks`
            self.failures.append(error)
            wake_all(self.runner)

    def advance(self, count: int) -> None:
        if self.failures:
            raise Stopped
        with self.lock:
            self.progress(count)
