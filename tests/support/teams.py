"""A team whose ranks are threads of this process: what is exchanged, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from wncli.team import AlarmError, Team

Value = TypeVar("Value")
#: Seconds after which a rank counts as one that waits for ever.
_PATIENCE = 60.0


class _Meeting:
    """What the ranks have in common."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=_PATIENCE)
        self.messages: list[bytes] = [b""] * size
        self.is_alarmed = False
        self.exchanged = 0


class ThreadTeam(Team):
    """One of these ranks."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank
        self.size = len(meeting.messages)
        self.jobs = 1

    def exchange(self, message: bytes) -> list[bytes]:
        self.meeting.messages[self.rank] = message
        self.meeting.barrier.wait()
        found = list(self.meeting.messages)
        if self.rank == 0:
            self.meeting.exchanged += sum(map(len, found))
        self.meeting.barrier.wait()
        return found

    def alarm(self) -> None:
        self.meeting.is_alarmed = True

    def look(self) -> None:
        if self.meeting.is_alarmed:
            raise AlarmError


def on_threads(size: int, function: Callable[[Team], Value]) -> list[Value | Exception]:
    """Call a function on each of so many ranks: what each returns, or what ends it."""
    meeting = _Meeting(size)
    found: list[Value | Exception] = [RuntimeError("never ended")] * size

    def run(rank: int) -> None:
        try:
            found[rank] = function(ThreadTeam(meeting, rank))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
