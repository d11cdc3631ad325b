"""Holds `wn` against PyTorch and safetensors over many files: `python -m fuzz.differential`.

Every file has to be the same tensors, bit for bit, to both, or `wn` has to refuse it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fuzz.generate import Made, make
from fuzz.oracle import IDLE, LOADING, READING, Examiner, Verdict, load
from fuzz.reduce import reduced
from fuzz.sandbox import install
from fuzz.target import import_everything
from wncli.formats.pickles import reader
from wncli.formats.torch import zip_reader

ROOT = Path(__file__).resolve().parents[1]
#: Files that one process examines before another takes its place.
_BATCH = 500
#: Of each kind of finding, how many files are kept, and how many of them reduced.
_KEPT = 20
_REDUCED = 2
#: Bytes and texts of a pickle that are longer are left in the file, where all of them should be.
_SHORT = 40
_HELD = "LONGEST_HELD"
#: Files after which young garbage is collected.
_COLLECTED = 100
#: Seconds between looks at the processes, and after which one that says nothing is ended.
_LOOK, _STUCK = 5, 60
_SHARED = struct.Struct("<qq")
#: What is counted, in the order in which it is shown.
OUTCOMES = ("read by both and same", "refused by wn", "refused by its library", "finding")


class Batch(NamedTuple):
    """Files from one number to before another."""

    start: int
    stop: int


class Running(NamedTuple):
    """A process, the batch that it is at, and the file in which it says how far it is."""

    process: BaseProcess
    batch: Batch
    folder: Path


class Fuzzer:
    """One run: what was counted, and the findings by their kinds."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.work = work
        self.counts: Counter[str] = Counter()
        self.honest: Counter[str] = Counter()
        self.kinds: dict[str, list[dict[str, Any]]] = {}
        self.context = multiprocessing.get_context("fork")
        self.begun = time.monotonic()

    def run(self) -> None:
        """Examine every file, in as many processes as there should be."""
        batches = [
            Batch(start, min(start + _BATCH, self.options.first + self.options.files))
            for start in range(
                self.options.first, self.options.first + self.options.files, _BATCH
            )
        ]  # fmt: skip
        batches.reverse()
        running: list[Running] = []
        while batches or running:
            while batches and len(running) < self.options.jobs:
                running.append(self.start(batches.pop()))
            connection.wait([one.process.sentinel for one in running], _LOOK)
            for one in running:
                self.end_stuck(one)
            for one in [one for one in running if not one.process.is_alive()]:
                running.remove(one)
                rest = self.collect(one)
                if rest.start < rest.stop:
                    batches.append(rest)
            if self.options.seconds and time.monotonic() - self.begun > self.options.seconds:
                batches.clear()

    def start(self, batch: Batch) -> Running:
        """Return a process that examines a batch."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        process = self.context.Process(
            target=examine_all, args=(self.options.seed, batch, folder, self.kept())
        )
        process.start()
        return Running(process, batch, folder)

    def end_stuck(self, one: Running) -> None:
        """End a process that has been at one file for too long, and so cannot end itself."""
        with suppress(FileNotFoundError):
            if time.time() - (one.folder / "progress").stat().st_mtime > _STUCK:
                one.process.kill()

    def kept(self) -> frozenset[str]:
        """Return the kinds of which there are enough examples."""
        return frozenset(kind for kind, found in self.kinds.items() if len(found) >= _KEPT)

    def collect(self, one: Running) -> Batch:
        """Take over what a process found; what is left of its batch, where it died in it."""
        one.process.join()
        progress = (one.folder / "progress").read_bytes()
        number, phase = _SHARED.unpack(progress)
        for line in (one.folder / "results").read_text().splitlines():
            self.add(json.loads(line))
        rest = Batch(one.batch.stop, one.batch.stop)
        if one.process.exitcode:
            rest = Batch(number + 1, one.batch.stop)
            self.died(number, phase, one.process.exitcode)
        shutil.rmtree(one.folder)
        return rest

    def died(self, number: int, phase: int, code: int) -> None:
        """Count the file at which a process ended."""
        if phase == READING:
            made = make(self.options.seed, number)
            verdict = Verdict("finding", f"wn ends the process ({code})")
            self.add(described(number, made, verdict))
        elif phase == LOADING:
            print(f"file {number}: its library ended the process ({code})", file=sys.stderr)
            self.counts["refused by its library"] += 1
        else:
            verdict = Verdict("finding", f"the fuzzer ends ({code})")
            self.add(described(number, Made("no file", b"", ()), verdict))

    def add(self, result: dict[str, Any]) -> None:
        """Count one result, and keep it where it is a finding."""
        outcome = result["outcome"]
        self.counts[outcome] += 1
        if result["is_honest"]:
            self.honest["files"] += 1
            self.honest["read"] += outcome == OUTCOMES[0]
        if outcome == "finding":
            self.counts[f"finding: {result['kind']}"] += 1
            found = self.kinds.setdefault(result["kind"], [])
            if len(found) < _KEPT:
                found.append(result)

    def report(self) -> None:
        """Print the summary."""
        seconds = time.monotonic() - self.begun
        files = sum(self.counts[name] for name in OUTCOMES)
        print(f"{files:,} files in {seconds:,.0f} s ({files / seconds:,.0f} a second)", end="")
        print(f", seed {self.options.seed}, from {self.options.first} on")
        for name in OUTCOMES:
            print(f"{self.counts[name]:>12,} {name}")
        print(f"{self.honest['files']:>12,} honest", end="")
        print(f", {self.honest['read']:,} of them the same to both")
        for kind, found in sorted(self.kinds.items()):
            print(f"{self.counts[f'finding: {kind}']:>12,} {kind}")
            for one in found[:3]:
                print(f"{'':13}file {one['number']}: {one['detail'][:80]!r}")

    def keep(self, folder: Path) -> None:
        """Write the files of the findings, and the smaller ones that they come down to."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for kind, found in sorted(self.kinds.items()):
            name = "".join(letter if letter.isalnum() else "-" for letter in kind)
            smallest = sorted(found, key=lambda one: int(one["nbytes"]))
            for place, one in enumerate(smallest):
                made = make(self.options.seed, one["number"])
                path = folder / f"{name}-{one['number']}.{made.format}"
                path.write_bytes(made.content)
                path.with_name(f"{path.name}.txt").write_text(json.dumps(one, indent=1) + "\n")
                if place < _REDUCED:
                    self.in_a_process(reduce_one, made, kind, path)

    def in_a_process(self, run: Callable[..., None], *args: object) -> None:
        """Do something that may end the process that does it."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        process = self.context.Process(target=run, args=(*args, folder))
        process.start()
        process.join(30)
        process.kill()
        process.join()


def described(number: int, made: Made, verdict: Verdict) -> dict[str, Any]:
    """Return a finding, as it is handed on; its kind names the move, where only one was made."""
    cause = {0: "no move", 1: "".join(made.moves)}.get(len(made.moves), "several moves")
    return {
        "outcome": verdict.outcome,
        "is_honest": made.is_honest,
        "kind": f"{made.format}: {verdict.what} ({cause})",
        "number": number,
        "nbytes": len(made.content),
        "moves": made.moves,
        "detail": verdict.detail,
    }


def silenced() -> None:
    """Make the process quiet: what libraries print about broken files is of no use."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def examine_all(seed: int, batch: Batch, folder: Path, enough: frozenset[str]) -> None:
    """Examine a batch in a process of its own."""
    silenced()
    progress = os.open(folder / "progress", os.O_RDWR | os.O_CREAT)
    results = os.open(folder / "results", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    place = batch.start

    def phase(who: int) -> None:
        os.pwrite(progress, _SHARED.pack(place, who), 0)

    phase(IDLE)
    install(folder)
    examiner = Examiner(folder / "checkpoint", phase)
    held = reader.LONGEST_HELD, _SHORT
    gc.disable()  # it would look for garbage in all of PyTorch
    for number in range(*batch):
        place = number
        # What is long is left in the file: in every other, that is nearly all.
        for module in (reader, zip_reader):
            setattr(module, _HELD, held[number % 2])
        try:
            made = make(seed, number)
        except Exception:  # noqa: BLE001 - a file that is not made should not go unseen
            made = Made("no file", b"", ())
            verdict = Verdict("finding", "it cannot be made", traceback.format_exc())
        else:
            verdict = examiner.examine(made)
        result = {"outcome": verdict.outcome, "is_honest": made.is_honest}
        if verdict.outcome == "finding":
            result = described(number, made, verdict)
            if result["kind"] in enough:
                result |= {"detail": "", "moves": ()}
        os.write(results, json.dumps(result).encode() + b"\n")
        if number % _COLLECTED == 0:
            gc.collect(0)


def reduce_one(made: Made, kind: str, path: Path, folder: Path) -> None:
    """Write a smaller file of the same kind of finding beside the one that was found."""
    silenced()
    smaller = path.with_name(f"{path.name}.reduced")
    with suppress(OSError):
        smaller.touch()
    descriptor = os.open(smaller, os.O_WRONLY)
    install(folder)
    examiner = Examiner(folder / "checkpoint", lambda _: None)

    def is_still(content: bytes) -> bool:
        found = made._replace(content=content)
        return bool(described(0, found, examiner.examine(found))["kind"] == kind)

    for content in reduced(made, is_still):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, content, 0)


def warm_up() -> None:
    """Import once, and not in every process, what is imported as it is needed."""
    import_everything()
    for path in (ROOT / "fuzz" / "seeds" / "torch-zip" / "pairs.pt",
                 ROOT / "fuzz" / "seeds" / "torch-legacy" / "pairs.pt"):  # fmt: skip
        for weights_only in (True, False):
            load(path, weights_only=weights_only)


def main() -> int:
    """Run; the exit code is 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="what they are made from")
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seconds", type=float, default=0, help="stop then (0: when all are done)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--findings", type=Path, help="the folder for failing files, made anew")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm_up()
    gc.freeze()
    memory = Path("/dev/shm")  # noqa: S108 - no file is worth a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        fuzzer = Fuzzer(options, Path(work))
        fuzzer.run()
        fuzzer.report()
        if options.findings and fuzzer.kinds:
            fuzzer.keep(options.findings.resolve())
            print(f"the files are in {options.findings}")
    return 1 if fuzzer.kinds else 0


if __name__ == "__main__":
    sys.exit(main())
