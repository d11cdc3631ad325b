"""Measures `wn` beside PyTorch, `cp` and bare imports: `python -m benchmarks.run --help`.

Nothing here judges a time: the exit code is 0 whenever every process did its work.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from benchmarks.checkpoints import (
    AGREEMENT,
    Checkpoint,
    DisagreementError,
    check_agreement,
    in_own_process,
    write,
)
from benchmarks.contenders import (
    CP,
    TRANSFORMERS,
    Command,
    Contenders,
    folding,
    for_file,
    for_folder,
    for_help,
    has_transformers,
    inspecting,
    writing_folder,
)
from benchmarks.holding import held_memory
from benchmarks.imports import import_table
from benchmarks.machine import machine, versions
from benchmarks.measure import (
    ProcessFailedError,
    Samples,
    alternate,
    discard,
    discard_outputs,
    run_once,
)
from benchmarks.memory import Memory
from benchmarks.options import Options, parse
from benchmarks.results import Result, main_table
from benchmarks.show import Table, as_markdown, print_tables
from benchmarks.targets import target_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write them as Markdown where that is asked for.

    Ended by a signal, it still takes its temporary folder away.
    """
    options = parse(arguments, (__doc__ or "").splitlines()[0])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        held = held_memory() if options.hold else nullcontext()
        with held, working_folder(options.work) as folder:
            results = list(measure(options, folder))
            tables = [main_table(results)]
            if "inspect" in options.commands:
                tables.append(measure_imports(options, folder))
            if options.targets:
                tables.append(target_table(results))
            facts = [
                machine(folder),
                versions(),
                f"medians of {options.runs} alternating runs after one that is not counted",
            ]
            if options.hold:
                facts.append("a page of every MB of free memory is held meanwhile")
    except (ProcessFailedError, DisagreementError) as error:
        say(str(error))
        return 1
    print_tables(facts, tables)
    if options.markdown:
        options.markdown.write_text(as_markdown(facts, tables), encoding="utf-8")
    return 0


def measure(options: Options, folder: Path) -> Iterator[Result]:
    """Write each checkpoint when its turn comes; without `--work`, delete it when it is done."""
    of_files = [each for each in options.commands if each not in {"help", "folder"}]
    if "help" in options.commands:
        say("wn --help")
        yield Result("help", None, 0, in_turn(for_help(), options.runs, rtol=0))
    for case in options.checkpoints if of_files else ():
        for command in of_files:
            yield measure_file(case, command, folder, options)
        if options.work is None:
            for plain in (False, True):
                discard(case.path(folder, plain=plain))
    if "folder" in options.commands:
        for nbytes in options.sizes:
            yield measure_folder(nbytes, folder, options)


def measure_file(case: Checkpoint, command: Command, folder: Path, options: Options) -> Result:
    """One command on one file, which is written if it is not there."""
    plain = command == "apply"
    source = case.path(folder, plain=plain)
    folded = source.with_name(f"folded-{source.name}")
    if not source.exists():
        say(f"writing {source.name}")
        in_own_process(write, case, source, plain=plain)
        os.sync()
    say(f"{command} {source.name}")
    nbytes = source.stat().st_size
    try:
        if command == "compare":
            discard(folded)
            run_once(folding(source, folded))
            os.sync()
            nbytes += folded.stat().st_size
        contenders = for_file(case, command, source, folded)
        if options.only_cp:
            contenders = contenders.only(CP)
        only_moved = command in {"convert", "respell"}
        rtol = 0.0 if only_moved else AGREEMENT[case.dtype]
        samples = in_turn(contenders, options.runs, rtol)
    finally:
        discard(folded)
    return Result(command, case, nbytes, samples, contenders.missing)


def measure_folder(nbytes: int, folder: Path, options: Options) -> Result:
    """`wn remove` on a folder that transformers saved, beside the model's own way."""
    case = Checkpoint(nbytes, "safetensors")
    if not has_transformers():
        return Result("folder", case, nbytes, (), ((TRANSFORMERS, "is not installed"),))
    source = folder / f"transformers-{nbytes // 10**6}MB"
    if not source.exists():
        say(f"writing {source.name}")
        partial = source.with_name(f"{source.name}.partial")
        discard(partial)
        run_once(writing_folder(partial, nbytes))
        partial.rename(source)
        os.sync()
    say(f"remove {source.name}")
    size = sum(path.stat().st_size for path in source.iterdir())
    samples = in_turn(for_folder(source), options.runs, AGREEMENT["float32"])
    if options.work is None:
        discard(source)
    return Result("folder", case, size, samples)


def in_turn(contenders: Contenders, runs: int, rtol: float) -> tuple[Samples, ...]:
    """Warm up, see that `wn` and the others agree in what they write, then measure."""
    processes = contenders.processes
    ours = contenders.ours.output
    try:
        memory = [Memory() for _ in processes]
        for process, its in zip(processes, memory, strict=True):
            run_once(process, its.look)
        for script in contenders.scripts:
            if ours and script.output:
                in_own_process(check_agreement, ours, script.output, rtol)
        discard_outputs(processes)
        return alternate(processes, runs, [its.peak for its in memory])
    finally:
        discard_outputs(processes)


def measure_imports(options: Options, folder: Path) -> Table:
    """Return what `wn inspect` imports for a tiny file of the first format."""
    tiny = Checkpoint(10**6, options.formats[0], channels=64)
    source = tiny.path(folder, plain=False)
    in_own_process(write, tiny, source, plain=False)
    try:
        return import_table(inspecting(source), options.runs)
    finally:
        discard(source)


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """Return the folder of `--work`, made if it is not there; else a temporary one."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="wn-benchmark-") as folder:
        yield Path(folder)


def say(message: str) -> None:
    """Tell on stderr what is going on."""
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    sys.exit(main())
