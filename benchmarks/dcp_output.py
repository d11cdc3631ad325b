"""Measures writing distributed checkpoints beside `cp` and what PyTorch does: whole processes.

    python -m benchmarks.dcp_output --size 1000 --runs 5

Rounds alternate. The model is one of convolutions, 7.3 MB each, in the hook spelling; chunks are
rows, as four ranks of FSDP2 have them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

from benchmarks.holding import held_memory
from benchmarks.measure import Process, Samples, alternate, discard, run_once

#: Bytes of one layer: 512 × 512 × 7 float32, and g.
_LAYER = 512 * 512 * 7 * 4

_LOAD = "import torch.distributed.checkpoint.format_utils as f; f.{}({!r}, {!r})"


def make(folder: Path, megabytes: int) -> None:
    """Write the model as a torch file and as a distributed checkpoint."""
    import torch

    from tests.support.dcp import RANKS, Rows, save_dcp

    generator = torch.Generator().manual_seed(0)
    model = {}
    for number in range(max(1, megabytes * 1_000_000 // _LAYER)):
        model[f"{number}.bias"] = torch.randn(512, generator=generator)
        model[f"{number}.weight_g"] = torch.rand(512, 1, 1, generator=generator) + 0.5
        model[f"{number}.weight_v"] = torch.randn(512, 512, 7, generator=generator)
    torch.save({"model": model}, folder / "in.pt")
    save_dcp({"model": model}, folder / "in", Rows(), thread_count=RANKS)


def measure(folder: Path, megabytes: int, runs: int) -> None:
    """Measure, and print a row for each process, with how it compares to the first of its group."""
    making = get_context("spawn").Process(target=make, args=(folder, megabytes))
    making.start()  # whose memory would count for the processes that are started from it
    making.join()
    file, parts = folder / "in.pt", folder / "in"
    out, out_file = folder / "out", folder / "out.pt"
    wn = (sys.executable, "-m", "wncli")
    python = (sys.executable, "-W", "ignore", "-c")
    groups = (
        (
            Process("cp -r, of the directory", ("cp", "-r", str(parts), str(out)), out),
            Process("wn convert --naming, directory to directory",
                    (*wn, "convert", str(parts), str(out), "--naming", "parametrized"), out),
            Process("wn remove, directory to directory",
                    (*wn, "remove", str(parts), str(out)), out),
        ),
        (
            Process("cp, of the torch file", ("cp", str(file), str(out_file)), out_file),
            Process("wn convert --format dcp, torch file to directory",
                    (*wn, "convert", str(file), str(out), "--format", "dcp"), out),
            Process("torch_save_to_dcp",
                    (*python, _LOAD.format("torch_save_to_dcp", str(file), str(out))), out),
        ),
    )  # fmt: skip
    print(f"{'process':50} {'median s':>9} {'÷ first':>8} {'peak MB':>8}")
    for group in groups:
        for process in group:  # the round that is not counted
            run_once(process)
            if process.output:
                discard(process.output)
        found = alternate(group, runs, [0] * len(group))
        for samples in found:
            _show(samples, found[0])


def _show(samples: Samples, first: Samples) -> None:
    ratio = samples.relative_to(first)
    peak = samples.peak / 1e6
    print(f"{samples.process.name:50} {samples.wall:9.2f} {ratio:8.2f} {peak:8.0f}")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1000, help="megabytes")
    parser.add_argument("--runs", type=int, default=5, help="rounds that are counted")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--hold", action="store_true", help="keep a page of every MB, as in `run`")
    options = parser.parse_args()
    held = held_memory() if options.hold else nullcontext()
    with held, tempfile.TemporaryDirectory(dir=options.work) as folder:
        measure(Path(folder), options.size, options.runs)


if __name__ == "__main__":
    main()
