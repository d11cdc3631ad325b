"""Kills conversions on their way and looks at what is left: `python -m benchmarks.kill_points`.

Each conversion is killed (SIGKILL) at as many points as `--points` says, spread over its steps:
before and in the middle of the calls that write, flush, move and remove files; and at some moments
by the clock. After each, OUTPUT has to be bit for bit what it was before, or what an undisturbed
run makes of it, and the next run has to succeed and to clear away what was left. The exit code is 1
if anything else was found.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.show import Table, print_tables
from tests.support.faults import (
    CASES,
    SUFFIXES,
    Case,
    Fault,
    Forks,
    leftovers,
    points,
    prepare,
    snapshot,
    without_leftovers,
)
from tests.support.run import environment

_HEADERS = (
    "conversion", "steps", "points", "by the clock", "old kept", "new complete", "being moved",
    "leftovers found", "anything else",
)  # fmt: skip
_MOVED = """being moved: a folder without an index, so that nothing takes it for a checkpoint;
all bytes of the new one are there"""


@dataclass(slots=True)
class Tally:
    """What the kills of one conversion left."""

    case: Case
    points: int = 0
    moments: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    leftovers: int = 0
    wrong: int = 0

    def row(self) -> tuple[str, ...]:
        """Return the cells of its row."""
        counts = (
            len(self.case.steps), self.points + self.moments, self.moments, self.verdicts["old"],
            self.verdicts["new"], self.verdicts["moving"], self.leftovers, self.wrong,
        )  # fmt: skip
        return self.case.name, *map(str, counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, print the table, and tell whether all went well."""
    options = parse(arguments)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        tallies = list(kill_all(options, Path(name)))
    rows = tuple(tally.row() for tally in tallies)
    total = tuple(str(sum(int(row[n]) for row in rows)) for n in range(1, len(_HEADERS)))
    table = Table("Killed on their way", _HEADERS, (*rows, ("all", *total)), texts=1)
    print_tables((_MOVED, f"{time.monotonic() - start:.0f} s"), (table,))
    return int(any(tally.wrong for tally in tallies))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--points", type=int, default=300, help="steps to kill each conversion at")
    add("--moments", type=int, default=20, help="moments by the clock to kill each conversion at")
    add("--layers", type=int, default=24, help="layers of the checkpoint; more have more steps")
    add("--only", default="", help="conversions whose name holds this, such as 'in place, torch'")
    return parser.parse_args(arguments)


def kill_all(options: argparse.Namespace, folder: Path) -> Iterator[Tally]:
    """Kill every conversion at every point."""
    (folder / "forks").mkdir()
    with Forks(folder / "forks") as forks:
        for kind in SUFFIXES:
            for name in CASES:
                if options.only not in f"{name}, {kind}":
                    continue
                home = folder / f"{name}, {kind}"
                home.mkdir()
                tally = Tally(prepare(forks, home, kind, name, options.layers))
                print(tally.case.name, file=sys.stderr)
                kill_at_steps(forks, tally, options.points)
                kill_at_moments(forks, tally, options.moments)
                yield tally


def kill_at_steps(forks: Forks, tally: Tally, most: int) -> None:
    """Kill a run before or in the middle of a call that it makes."""
    case = tally.case
    for number in points(case.steps, most):
        case.begin()
        ran = forks.run(*case.arguments, cwd=case.home, fault=Fault(number, signal.SIGKILL))
        tally.points += 1
        where = f"step {number}, {ran.steps[-1]}"
        judge(forks, tally, where if ran.code == -signal.SIGKILL else f"{where}: not killed")


def kill_at_moments(forks: Forks, tally: Tally, count: int) -> None:
    """Kill processes that nothing is in the way of, the first when they begin to read."""
    case = tally.case
    command = [sys.executable, "-m", "wncli", *case.arguments]
    for number in range(-1, count):
        case.begin()
        start = time.monotonic()
        with subprocess.Popen(
            command, cwd=case.home, env=environment(), stdout=subprocess.DEVNULL
        ) as process:
            if number < 0:
                process.wait()
                took = time.monotonic() - start
                continue
            moment = took * (0.4 + 0.6 * number / count)
            time.sleep(moment)
            process.kill()
        tally.moments += 1
        judge(forks, tally, f"{moment:.3f} s")


def judge(forks: Forks, tally: Tally, where: str) -> None:
    """Count what a kill left, and say what should not be there."""
    case = tally.case
    state = snapshot(case.home)
    verdict = case.judge(state)
    tally.verdicts[verdict] += 1
    tally.leftovers += bool(leftovers(state))
    again = forks.run(*case.again, cwd=case.home)
    after = snapshot(case.home)
    if case.is_in_place and verdict == "moving":  # the input is not there: what to type is told
        goes_on = again.stderr.startswith("error: ") and after == state
    elif case.is_in_place and verdict == "new":  # there is nothing left to do
        goes_on = without_leftovers(after) == case.new
    else:
        goes_on = again.code == 0 and after == case.new
    if verdict == "wrong" or not goes_on or "not killed" in where:
        tally.wrong += 1
        said = again.stderr.partition("\n")[0] or "another output"
        print(f"  {where}: {verdict}; the next run: {said}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
