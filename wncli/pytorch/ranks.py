"""The ranks that `torchrun` starts, as a team: what they exchange goes through gloo.

Messages are bytes, exchanged as tensors of them: nothing is pickled. Beside them each rank leaves
signs in the store that the ranks meet at: that it is alive, and whether it is refused. A rank that
ends closes its connections, which the others notice while they wait for it; one whose machine is
gone leaves no more signs of life.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

if not dist.is_available():
    message = "this PyTorch was built without torch.distributed"
    raise ImportError(message)

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined] # as documented
from torch.distributed.rendezvous import rendezvous

from wncli.parallel import processors
from wncli.team import AlarmError, LostError, Team

#: Seconds that the ranks have to meet.
_MEETING = 600.0
#: Seconds between two signs of life, and after which a rank without one is gone.
_BEAT = 5.0
_SILENCE = 60.0
#: Seconds between two looks at the store, and the longest between two looks at an exchange.
_LOOK = 1.0
_POLL = 0.05
#: Longer than any conversion: signs of life tell sooner who is gone.
_FOR_EVER = timedelta(days=30)
_GONE = "another rank has ended before all was done"
_AGAIN = "see what the launcher says of it; OUTPUT is as it was before, or complete"


class Ranks(Team):
    """The ranks of this process's group, of which it is one.

    Args:
        store: where they have met.
        rank: the number of this process.
        size: how many there are.
        neighbours: how many of them are on this machine.
    """

    def __init__(self, store: Store, rank: int, size: int, neighbours: int) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.jobs = max(1, processors() // neighbours)
        self.is_spread = neighbours < size
        self._alarm = "alarm/0"
        self._exchanges = 0
        self._looked = self._listened = time.monotonic()
        #: Of each rank: its last sign of life, and when it was new.
        self._beats = [(b"", self._looked)] * size
        self._lock = threading.Lock()
        store.set(_beat_of(rank), "")
        threading.Thread(target=self._beat, daemon=True).start()

    def exchange(self, message: bytes) -> list[bytes]:
        """Return the messages of all ranks, in their order, on each.

        Raises:
            LostError: one of them is gone.
        """
        sizes = self._gather(torch.tensor([len(message)], device="cpu"))
        counts = [int(size) for size in sizes]
        padded = torch.zeros(max(counts), dtype=torch.uint8, device="cpu")
        padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        found = self._gather(padded)
        self._exchanges += 1
        self._alarm = f"alarm/{self._exchanges}"
        return [one[:count].numpy().tobytes() for one, count in zip(found, counts, strict=True)]

    def alarm(self) -> None:
        """Let the others know, before the next exchange, that this rank is refused."""
        with contextlib.suppress(RuntimeError):
            self.store.set(self._alarm, "")

    def look(self) -> None:
        """Look, once in a while, whether another rank has given the alarm, or is gone.

        Raises:
            AlarmError: it is refused.
            LostError: it is gone.
        """
        now = time.monotonic()
        with self._lock:
            if now - self._looked < _LOOK:
                return
            self._looked = now
        with _lost_if_it_fails():
            is_given = self.store.check([self._alarm])
        if is_given:
            raise AlarmError
        self._listen(now)

    def _gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Gather a tensor from each rank, in Python's reach so that signals are noticed."""
        found = [torch.empty_like(own) for _ in range(self.size)]
        pause = _POLL / 50
        with _lost_if_it_fails():
            work = dist.all_gather(found, own, async_op=True)
            assert work is not None  # noqa: S101 - this process is in the group
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, _POLL)
                self._listen(time.monotonic())
            work.wait()
        return found

    def _listen(self, now: float) -> None:
        """Look for the signs of life of the others.

        Raises:
            LostError: there are none.
        """
        with self._lock:
            if now - self._listened < _BEAT:
                return
            self._listened = now
        with _lost_if_it_fails():
            beats = self.store.multi_get([_beat_of(rank) for rank in range(self.size)])
        for rank, beat in enumerate(beats):
            if beat != self._beats[rank][0]:
                self._beats[rank] = beat, now
            elif now - self._beats[rank][1] > _SILENCE and rank != self.rank:
                raise LostError(
                    "--ranks", f"rank {rank} has been silent for {_SILENCE:.0f} s", hint=_AGAIN
                )

    def _beat(self) -> None:
        count = 0
        with contextlib.suppress(RuntimeError):  # where the others have ended before this one
            while True:
                self.store.set(_beat_of(self.rank), str(count))
                count += 1
                time.sleep(_BEAT)


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"


@contextmanager
def _lost_if_it_fails() -> Iterator[None]:
    """Take what gloo and the store say for the end of another rank.

    Raises:
        LostError: they say something.
    """
    try:
        yield
    except RuntimeError:
        raise LostError("--ranks", _GONE, hint=_AGAIN) from None


def join_ranks() -> Ranks:
    """Meet the other ranks, as the environment says that `torchrun` sets.

    Raises:
        LostError: they do not meet.
    """
    met: list[Ranks] = []
    failures: list[BaseException] = []

    def meet() -> None:
        try:
            met.append(_meet())
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    thread = threading.Thread(target=meet, daemon=True)  # so that signals are noticed
    thread.start()
    while thread.is_alive():
        thread.join(_POLL)
    if not met:
        reason = str(failures[0]).splitlines() or [type(failures[0]).__name__]
        raise LostError(
            "--ranks",
            "the ranks do not meet",
            expected="all of them, at MASTER_ADDR and MASTER_PORT",
            found=reason[0],
        ) from None
    return met[0]


def _meet() -> Ranks:
    timeout = timedelta(seconds=_MEETING)
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    group = PrefixStore("gloo", store)
    dist.init_process_group("gloo", store=group, rank=rank, world_size=size, timeout=_FOR_EVER)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Ranks(PrefixStore("wn", store), rank, size, max(1, neighbours))
