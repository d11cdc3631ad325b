"""What carries out tasks and gathers what comes of them, whoever else works on the same ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: Called with a number of bytes that have just been done; raises Stopped where that is in vain.
Advance = Callable[[int], None]


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
