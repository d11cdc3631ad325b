"""Measures `wn` on distributed checkpoints: `python -m benchmarks.distributed`.

`inspect` of many chunks, whose files are holes of the right size, as nothing of them is read; and
`convert` to safetensors beside `cp -r` and beside PyTorch's `dcp_to_torch_save`, which needs no
ranks either. All are whole processes, in one run, one after the other in each round.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine, versions
from benchmarks.measure import Process, Samples, alternate, discard_outputs, run_once
from benchmarks.memory import Memory

#: Tensors and ranks of what is only looked at: 4,000 and 100,032 chunks.
_LOOKED_AT = {"4,000 chunks": (250, 16), "100,000 chunks": (1563, 64)}
_MATRIX = 2560


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--runs", type=int, default=5, help="rounds that are counted (5)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of what is converted (1)")
    parser.add_argument("--work", type=Path, help="where to keep the checkpoints")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print(machine(work), versions(), sep="\n")
        for name, (tensors, ranks) in _LOOKED_AT.items():
            folder = work / name.replace(",", "").replace(" ", "-")
            _write(folder, "holes", tensors, ranks)
            show(name, [Process("wn inspect", (*_wn(), "inspect", str(folder)))], options.runs)
        count = max(1, round(options.gigabytes * 1e9 / (_MATRIX * _MATRIX * 4)))
        for name, axis, tensors, size in (
            ("rows", 0, count, _MATRIX),
            ("columns", 1, count, _MATRIX),
            ("4,000 small chunks", 0, 1000, 128),
        ):
            folder = work / name.replace(",", "").replace(" ", "-")
            _write(folder, "parts", tensors, size, axis)
            show(name, _converting(folder, work), options.runs)


def _write(folder: Path, kind: str, *numbers: int) -> None:
    """Write a checkpoint in a process of its own: what this one starts counts from its size."""
    if not folder.exists():
        command = [sys.executable, "-m", "benchmarks.parts", kind, str(folder)]
        subprocess.run([*command, *map(str, numbers)], check=True)


def _wn() -> tuple[str, ...]:
    found = shutil.which("wn", path=str(Path(sys.executable).parent))
    return (found,) if found else (sys.executable, "-m", "wncli")


def _converting(folder: Path, work: Path) -> list[Process]:
    gather = (
        "import sys; from torch.distributed.checkpoint.format_utils import dcp_to_torch_save;"
        " dcp_to_torch_save(sys.argv[1], sys.argv[2])"
    )
    made, copied, gathered = (work / name for name in ("made.safetensors", "copied", "gathered.pt"))
    return [
        Process("wn convert", (*_wn(), "convert", str(folder), str(made)), made),
        Process("cp -r", ("cp", "-r", str(folder), str(copied)), copied),
        Process(
            "dcp_to_torch_save",
            (sys.executable, "-c", gather, str(folder), str(gathered)),
            gathered,
        ),
    ]


def show(name: str, processes: list[Process], rounds: int) -> None:
    """Measure what is done with one checkpoint, after a round that is not counted."""
    together: list[int] = []
    for process in processes:
        memory = Memory()
        run_once(process, memory.look)
        together.append(memory.peak)
        discard_outputs([process])
    found = alternate(processes, rounds, together)
    print(f"\n{name}")
    for samples in found:
        print(_row(samples, found[0]))


def _row(samples: Samples, ours: Samples) -> str:
    fastest = min(run.wall for run in samples.runs)
    slowest = max(run.wall for run in samples.runs)
    beside = "" if samples is ours else f"  wn ÷ it {ours.relative_to(samples):.2f}"
    largest = statistics.median(run.peak for run in samples.runs)
    return (
        f"  {samples.process.name:18} {samples.wall:6.2f} s ({fastest:.2f} to {slowest:.2f})"
        f"  CPU {samples.cpu:.2f} s  {largest / 1e6:6.0f} MB{beside}"
    )


if __name__ == "__main__":
    main()
