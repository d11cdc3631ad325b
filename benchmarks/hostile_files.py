"""Runs `wn` on every file of the hostile corpus, and shows the most time and memory that one took.

    python -m benchmarks.hostile_files [CORPUS...]

The corpus is built by the tests. The exit code is 1 where a file that has to be refused was not,
or where one took more than 5 seconds or 300 MB.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.show import Table, as_markdown
from tests.corpus import hostile_legacy, hostile_safetensors, hostile_zip
from tests.corpus.hostile import Hostile

CORPORA: Mapping[str, Mapping[str, Hostile]] = {
    "safetensors": hostile_safetensors.FILES,
    "zip": hostile_zip.FILES,
    "legacy": hostile_legacy.FILES,
}
#: What a file may take: seconds, and bytes of resident memory.
SECONDS, NBYTES = 5.0, 300 << 20
_REFUSED = 2


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: its exit code, seconds by the clock, bytes of memory."""

    name: str
    code: int
    wall: float
    peak: int


def _run(arguments: list[str]) -> Ended:
    start = time.perf_counter()
    with Path(os.devnull).open("wb") as nothing:
        streams = [(os.POSIX_SPAWN_DUP2, nothing.fileno(), number) for number in (1, 2)]
        command = [sys.executable, "-m", "wncli", *arguments]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=streams)
        _, status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(arguments[1], code, time.perf_counter() - start, usage.ru_maxrss * 1024)


def _ended(files: Mapping[str, Hostile], folder: Path) -> Iterator[Ended]:
    """Each file is converted, which has to be refused."""
    for name, hostile in files.items():
        path = folder / name
        hostile.write(path)
        yield _run(["convert", str(path), str(folder / "out.pt")])
        path.unlink()


def main() -> int:
    """Print one row for each corpus."""
    rows: list[tuple[str, ...]] = []
    sound = True
    for corpus in sys.argv[1:] or CORPORA:
        with tempfile.TemporaryDirectory() as folder:
            runs = list(_ended(CORPORA[corpus], Path(folder)))
        refused = [run for run in runs if run.code == _REFUSED]
        slowest = max(runs, key=lambda run: run.wall)
        largest = max(runs, key=lambda run: run.peak)
        names = corpus, Path(slowest.name).name, Path(largest.name).name
        figures = len(runs), len(refused), f"{slowest.wall:.2f}", f"{largest.peak / 1e6:.0f}"
        rows.append((*names, *map(str, figures)))
        sound &= len(refused) == len(runs)
        sound &= slowest.wall <= SECONDS and largest.peak <= NBYTES
    headers = ("corpus", "slowest", "largest", "files", "refused", "most s", "peak MB")
    print(as_markdown((), [Table("Hostile files", headers, tuple(rows), 3)]))
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
