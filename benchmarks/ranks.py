"""Measures `wn --ranks` on one machine: one rank and two, beside one process with as many threads.

Each rank has one thread, so that two of them do what one process does with `--jobs 2`. A run's work
is what its report says that it took; the rest is its start, with PyTorch and the meeting in it. The
CPU time of its busiest process, beyond that for a small file, tells how the work is divided where
the machine has other work to do.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.checkpoints import Checkpoint, in_own_process, write
from benchmarks.holding import held_memory
from benchmarks.machine import machine, versions
from benchmarks.measure import discard
from benchmarks.options import several, size


class Taken(NamedTuple):
    """Seconds of a run: all of it, what its report says, and of CPU time of its busiest process."""

    wall: float
    work: float
    cpu: float


def run(words: list[str], ranks: int, jobs: int) -> Taken:
    """Run a command on so many ranks, started as `torchrun` does; without any, in one process.

    Raises:
        RuntimeError: it fails.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "wncli", *words, "--json", "--jobs", str(jobs)]
    if ranks:
        command.append("--ranks")
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    meeting |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as report:
        started = [
            subprocess.Popen(
                command, env=os.environ | meeting | {"RANK": str(rank)}, stdout=report
            ).pid
            for rank in range(max(1, ranks))
        ]
        ended = [os.wait4(pid, 0) for pid in started]
        wall = time.perf_counter() - start
        codes = [os.waitstatus_to_exitcode(status) for _, status, _ in ended]
        if any(codes):
            message = f"{' '.join(words)} ended with {codes}"
            raise RuntimeError(message)
        report.seek(0)
        work = json.load(report)["seconds"]
    return Taken(wall, work, max(usage.ru_utime + usage.ru_stime for *_, usage in ended))


#: Who does it: as many ranks, each with as many threads; none is one process without `--ranks`.
WAYS = {
    "one process, 1 thread": (0, 1),
    "one process, 2 threads": (0, 2),
    "1 rank": (1, 1),
    "2 ranks": (2, 1),
}


def measure(words: list[str], output: Path, rounds: int) -> dict[str, list[Taken]]:
    """Return what each way takes in each round, all in turn; the first round is not counted."""
    found: dict[str, list[Taken]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, (ranks, jobs) in WAYS.items():
            taken = run(words, ranks, jobs)
            discard(output)
            if number:
                found[name].append(taken)
    return found


def show(command: str, found: dict[str, list[Taken]], starts: dict[str, list[Taken]]) -> None:
    """Print the rows of a command: medians, and the median of the ratios, round by round."""

    def computed(name: str) -> list[float]:
        start = statistics.median(one.cpu for one in starts[name])
        return [one.cpu - start for one in found[name]]

    for name, all_of in found.items():
        base = "1 rank" if name == "2 ranks" else "one process, 1 thread"
        works = zip(all_of, found[base], strict=True)
        cpus = zip(computed(name), computed(base), strict=True)
        cells = [
            statistics.median(one.wall for one in all_of),
            statistics.median(one.work for one in all_of),
            statistics.median(one.work / other.work for one, other in works),
            statistics.median(computed(name)),
            statistics.median(one / other for one, other in cpus),
        ]
        print(f"| {command} | {name} | {' | '.join(f'{cell:.2f}' for cell in cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=several(size), default=(4_000_000_000,), help="as 1GB,4GB")
    parser.add_argument("--runs", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--work", type=Path, help="where the checkpoints are written")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as made, held_memory():
        folder = Path(made)
        print(f"- {machine(folder)}\n- {versions()}\n")
        print("| command | run by | wall s | work s | ÷ | CPU s of the busiest | ÷ |")
        print("|---|---|---:|---:|---:|---:|---:|", flush=True)
        small, output = folder / "small.safetensors", folder / "out"
        in_own_process(write, Checkpoint(0, "safetensors", channels=32), small, plain=False)
        words = ["remove", str(small), str(output), "--format", "safetensors"]
        starts = measure(words, output, options.runs)
        for name, all_of in starts.items():
            wall, _, cpu = (statistics.median(one) for one in zip(*all_of, strict=True))
            print(f"| start and end | {name} | {wall:.2f} | | | {cpu:.2f} | |", flush=True)
        for nbytes in options.sizes:
            source = folder / "in.safetensors"
            in_own_process(write, Checkpoint(nbytes, "safetensors"), source, plain=False)
            gigabytes = f"{source.stat().st_size / 1e9:.1f} GB"
            shards = f"{nbytes // 8 // 10**6}MB"
            removing = ["remove", str(source), str(output)]
            commands = {
                "remove, one file": [*removing, "--format", "safetensors"],
                "remove, 8 shards": [*removing, "--max-shard-size", shards],
                "inspect --check": ["inspect", str(source), "--check"],
            }
            for what, words in commands.items():
                show(f"{what}, {gigabytes}", measure(words, output, options.runs), starts)


if __name__ == "__main__":
    main()
