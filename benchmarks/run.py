"""Measures `wn` beside PyTorch, `cp` and bare imports: `python benchmarks/run.py --help`.

Nothing here judges a time: the exit code is 0 whenever every process did its work.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar, get_args

from checkpoints import (
    SUFFIXES,
    Checkpoint,
    DisagreementError,
    DTypeName,
    Format,
    check_agreement,
    in_own_process,
    write,
)
from machine import machine, versions
from measure import Process, ProcessFailedError, Samples, alternate, discard_outputs, run_once

T = TypeVar("T")
Command = Literal["inspect", "remove", "apply"]

HEADERS = ("checkpoint", "process", "wall s", "CPU s", "peak MB", "wn ÷ it")
_UNITS = {"MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how often."""

    sizes: tuple[int, ...]
    formats: tuple[Format, ...]
    commands: tuple[Command, ...]
    dtypes: tuple[DTypeName, ...]
    dims: tuple[int | None, ...]
    every: tuple[int, ...]
    channels: int
    runs: int
    work: Path | None
    markdown: Path | None

    @property
    def checkpoints(self) -> Iterator[Checkpoint]:
        """Every combination, the small ones first."""
        cases = product(self.sizes, self.formats, self.dtypes, self.dims, self.every)
        for size, file_format, dtype, dim, every in cases:
            yield Checkpoint(size, file_format, dtype, dim, every, self.channels)


@dataclass(frozen=True, slots=True)
class Result:
    """One command on one checkpoint of `nbytes`: `wn` first, then what it is held against."""

    checkpoint: Checkpoint
    nbytes: int
    command: Command
    samples: tuple[Samples, ...]

    @property
    def rows(self) -> Iterator[tuple[str, ...]]:
        """The cells of the table, a row per process."""
        case = self.checkpoint
        label = (
            f"{self.nbytes / 1e6:,.1f} MB {case.format}, {case.dtype},"
            f" dim {case.dim_name}, {case.share}"
        )
        ours = self.samples[0]
        for its in self.samples:
            yield (
                label if its is ours else "",
                its.process.name,
                f"{its.wall:.3f}",
                f"{its.cpu:.3f}",
                f"{its.peak / 1e6:.0f}",
                "" if its is ours else f"{ours.relative_to(its):.2f}",
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it as Markdown where that is asked for.

    Ended by a signal, it still takes its temporary folder away.
    """
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with working_folder(options.work) as folder:
            results = list(measure(options, folder))
            facts = [
                machine(folder),
                versions(),
                f"medians of {options.runs} alternating runs after one that is not counted",
            ]
    except (ProcessFailedError, DisagreementError) as error:
        say(str(error))
        return 1
    print_table(facts, results)
    if options.markdown:
        options.markdown.write_text(as_markdown(facts, results), encoding="utf-8")
    return 0


# Measuring


def measure(options: Options, folder: Path) -> Iterator[Result]:
    """Write each checkpoint when its turn comes; without `--work`, delete it when it is done."""
    for case in options.checkpoints:
        for command in options.commands:
            source = case.path(folder, plain=command == "apply")
            if not source.exists():
                say(f"writing {source.name}")
                in_own_process(write, case, source, plain=command == "apply")
                os.sync()
            say(f"wn {command} {source.name}")
            yield measure_command(case, command, source, options.runs)
        if options.work is None:
            for plain in (False, True):
                case.path(folder, plain=plain).unlink(missing_ok=True)


def measure_command(case: Checkpoint, command: Command, source: Path, runs: int) -> Result:
    """Warm up, see that `wn` and the script agree in what they write, then measure."""
    processes = contenders(case, command, source)
    ours, theirs = (process.output for process in processes[:2])
    try:
        for process in processes:
            run_once(process)
        if ours and theirs:
            in_own_process(check_agreement, ours, theirs, case.dtype)
        discard_outputs(processes)
        return Result(case, source.stat().st_size, command, alternate(processes, runs))
    finally:
        discard_outputs(processes)


def contenders(case: Checkpoint, command: Command, source: Path) -> tuple[Process, ...]:
    """`wn`, then the script with PyTorch, `cp` and the two bare imports."""
    suffix = SUFFIXES[case.format]
    ours, theirs, copy = (source.with_name(f"{name}{suffix}") for name in ("wn", "script", "cp"))
    python, script = sys.executable, str(Path(__file__).with_name("peer.py"))
    if command == "inspect":
        wn = Process("wn inspect", (python, "-m", "wncli", "inspect", str(source)))
        peer = Process("script", (python, script, "inspect", str(source)))
    else:
        files = (command, str(source))
        wn_options, peer_options = apply_options(case) if command == "apply" else ((), ())
        wn = Process(f"wn {command}", (python, "-m", "wncli", *files, str(ours), *wn_options), ours)
        peer = Process("script", (python, script, *files, str(theirs), *peer_options), theirs)
    return (
        wn,
        peer,
        Process("cp", ("cp", str(source), str(copy)), copy),
        Process("import torch", (python, "-c", "import torch")),
        Process("import typer, rich", (python, "-c", "import typer, rich")),
    )


def apply_options(case: Checkpoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The dim and the layers to normalize, for `wn` and for the script."""
    dim = -1 if case.dim is None else case.dim
    chosen = [] if case.every == 1 else [f"{layer.module}.weight" for layer in case.normalized]
    rules = [part for name in chosen for part in ("--layers", name)]
    return ("--dim", case.dim_name, *rules), (str(dim), *chosen)


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """The folder of `--work`, made if it is not there; else a temporary one."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="wn-benchmark-") as folder:
        yield Path(folder)


# Showing


def print_table(facts: Sequence[str], results: Sequence[Result]) -> None:
    """Print facts and table to stdout. Rich is imported here, after everything is measured."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADERS[:2])
    for header in HEADERS[2:]:
        table.add_column(header, justify="right")
    for result in results:
        for row in result.rows:
            table.add_row(*row)
        table.add_section()
    console = Console(width=None if sys.stdout.isatty() else 120)
    for fact in facts:
        console.print(fact, highlight=False)
    console.print(table)


def as_markdown(facts: Sequence[str], results: Sequence[Result]) -> str:
    """The same as Markdown."""
    rows: list[tuple[str, ...]] = [HEADERS, ("---", "---", "---:", "---:", "---:", "---:")]
    rows += [row for result in results for row in result.rows]
    lines = [f"- {fact}" for fact in facts] + [""]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


def say(message: str) -> None:
    """Tell on stderr what is going on."""
    sys.stderr.write(f"{message}\n")


# Options


def parse(arguments: Sequence[str] | None) -> Options:
    """Read the command line; lists are separated by commas."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--sizes", type=several(size), default="51MB,1GB", help="e.g. 51MB,1GB,4GB (%(default)s)")
    add(
        "--formats",
        type=several(one_of(Format)),
        default="torch,safetensors",
        help="torch, safetensors, legacy (%(default)s)",
    )
    add(
        "--commands",
        type=several(one_of(Command)),
        default="inspect,remove,apply",
        help="%(default)s",
    )
    add(
        "--dtypes",
        type=several(one_of(DTypeName)),
        default="float32",
        help="float32, bfloat16, float16, float64 (%(default)s)",
    )
    add("--dims", type=several(dim), default="0", help="0, 1, 2, none (%(default)s)")
    add(
        "--share",
        type=several(share),
        default="1",
        dest="every",
        help="the part of the layers that is normalized, e.g. 1,1/100 (%(default)s)",
    )
    add(
        "--channels",
        type=at_least_one,
        default=512,
        help="the generators' width, upsample_initial_channel; wider ones have fewer, larger"
        " layers (%(default)s)",
    )
    add("--runs", type=at_least_one, default=5, help="rounds that are counted (%(default)s)")
    add("--work", type=Path, help="keep the generated checkpoints here for the next run")
    add("--markdown", type=Path, help="write the table to this file, too")
    return Options(**vars(parser.parse_args(arguments)))


def several(parse_one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """A parser of lists that are separated by commas."""

    def parse_all(text: str) -> tuple[T, ...]:
        return tuple(parse_one(part.strip()) for part in text.split(","))

    return parse_all


def one_of(names: object) -> Callable[[str], str]:
    """A parser of the names that a `Literal` has."""

    def parse_name(text: str) -> str:
        if text not in get_args(names):
            message = f"{text!r}: expected one of {', '.join(get_args(names))}"
            raise argparse.ArgumentTypeError(message)
        return text

    return parse_name


def at_least_one(text: str) -> int:
    """A number from 1 on."""
    if not text.isdigit() or text == "0":
        message = f"{text!r}: expected a number from 1 on"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def size(text: str) -> int:
    """`51MB` or `1GB`, in bytes; the units are decimal."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        message = f"{text!r}: expected a size such as 51MB or 1GB"
        raise argparse.ArgumentTypeError(message)
    return round(float(number) * _UNITS[unit])


def dim(text: str) -> int | None:
    """`0`, `1`, `2`, or `none` for the norm of the whole tensor."""
    if text not in {"0", "1", "2", "none"}:
        message = f"{text!r}: expected 0, 1, 2 or none"
        raise argparse.ArgumentTypeError(message)
    return None if text == "none" else int(text)


def share(text: str) -> int:
    """`1` or `1/100` (or `0.01`): one layer in how many."""
    part = Fraction(text)
    if part.numerator != 1:
        message = f"{text!r}: expected 1 or one in so many, such as 1/100"
        raise argparse.ArgumentTypeError(message)
    return part.denominator


if __name__ == "__main__":
    sys.exit(main())
