"""Measures whole processes, alternating: wall time, CPU time and peak memory."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Bytes in the unit of `ru_maxrss` (getrusage(2): kilobytes on Linux, bytes on macOS).
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
#: Seconds between two looks at a process.
_PAUSE = 0.005


class ProcessFailedError(Exception):
    """A measured process ended with an exit code other than 0."""


@dataclass(frozen=True, slots=True)
class Process:
    """A command to measure, and what it writes, which is deleted before the next one starts.

    Were it left there, the next round would replace a file, which also has to wait for the disk.
    """

    name: str
    command: tuple[str, ...]
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: seconds, seconds of CPU time (user and system, all threads), bytes."""

    wall: float
    cpu: float
    peak: int


@dataclass(frozen=True, slots=True)
class Samples:
    """All runs of one process, in the order of the rounds.

    `together` are the bytes that it had in memory with all that it started, at the most, in the
    round that is not counted.
    """

    process: Process
    runs: tuple[Sample, ...]
    together: int

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median seconds of CPU time."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak(self) -> int:
        """Peak memory, bytes: the median of the largest process, or of all where that is more."""
        return max(int(statistics.median(run.peak for run in self.runs)), self.together)

    def relative_to(self, other: Samples) -> float:
        """Return the median of this wall time divided by the other's, round by round."""
        pairs = zip(self.runs, other.runs, strict=True)
        return statistics.median(ours.wall / theirs.wall for ours, theirs in pairs)


def run_once(process: Process, look: Callable[[int], None] | None = None) -> Sample:
    """Run a process and wait for it; its output file is left in place.

    Args:
        process: what to run.
        look: called with its number, again and again while it runs.

    Raises:
        ProcessFailedError: it failed; the message ends with what it wrote to stderr.
    """
    with tempfile.TemporaryFile() as errors:
        streams = [
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors.fileno(), 2),
        ]
        start = time.perf_counter()
        pid = os.posix_spawnp(process.command[0], process.command, os.environ, file_actions=streams)
        while look and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            look(pid)
            time.sleep(_PAUSE)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - start
        code = os.waitstatus_to_exitcode(status)
        if code:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            message = f"{process.name} ended with exit code {code}: {said}"
            raise ProcessFailedError(message)
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _MAXRSS_UNIT)


def alternate(
    processes: Sequence[Process], rounds: int, memory: Sequence[int]
) -> tuple[Samples, ...]:
    """Run all processes in turn, `rounds` times: A B C A B C …, so that noise meets all alike.

    Args:
        processes: what to run.
        rounds: how often.
        memory: what each has had in memory before.

    Raises:
        ProcessFailedError: one of them failed.
    """
    runs: list[list[Sample]] = [[] for _ in processes]
    for _ in range(rounds):
        for process, samples in zip(processes, runs, strict=True):
            samples.append(run_once(process))
            discard_outputs([process])
    return tuple(
        Samples(process, tuple(samples), together)
        for process, samples, together in zip(processes, runs, memory, strict=True)
    )


def discard_outputs(processes: Sequence[Process]) -> None:
    """Delete what the processes have written."""
    for process in processes:
        if process.output:
            discard(process.output)


def discard(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
