"""Runs the commands that write: over one checkpoint, or over several into a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from wncli.api import Progress
from wncli.cli.progress import progress_bar
from wncli.cli.reports import show_line
from wncli.cli.results import DONE, NEGATIVE, print_json, print_report
from wncli.cli.terminal import show_refusal
from wncli.errors import FileError, UsageError, WnError
from wncli.formats.registry import FormatName
from wncli.parallel.workers import allow_forking
from wncli.plan.destination import beside
from wncli.report import SCHEMA, NothingToDo, Report
from wncli.storage.signals import REFUSED

#: A command for one checkpoint: its path, its output's, and what is called while writing.
Command = Callable[[str, str, Progress], Report]


class Paths(NamedTuple):
    """What was typed: a checkpoint, then OUTPUT or, with `output_dir`, further checkpoints."""

    checkpoint: str
    others: list[str]
    output_dir: Path | None
    format: FormatName | None
    is_sharded: bool


def write_all(command: str, run: Command, paths: Paths, *, json: bool, quiet: bool) -> int:
    """Run a command and print what came of it.

    Raises:
        WnError: refused; of several checkpoints only where none can be begun.
    """
    allow_forking()
    if paths.output_dir is None:
        with progress_bar("writing", quiet=quiet or json) as progress:
            report = run(paths.checkpoint, _one_output(command, paths), progress)
        return print_report(report, json=json, quiet=quiet)
    outcomes: list[dict[str, Any]] = []
    code = DONE
    for checkpoint, output in _outputs(paths, paths.output_dir).items():
        try:
            with progress_bar("writing", quiet=quiet or json) as progress:
                report = run(checkpoint, output, progress)
        except NothingToDo as outcome:
            code = max(code, NEGATIVE)
            outcomes.append(outcome.report.to_json() | {"error": str(outcome)})
            show_refusal("nothing to do", str(outcome))
        except WnError as refusal:
            code = REFUSED
            outcomes.append({"checkpoint": checkpoint, "error": str(refusal)})
            show_refusal("error", str(refusal))
        else:
            outcomes.append(report.to_json())
            if not (json or quiet):
                show_line(report)
    if json:
        print_json({"schema": SCHEMA, "command": command, "files": outcomes})
    return code


def _one_output(command: str, paths: Paths) -> str:
    if len(paths.others) == 1:
        return paths.others[0]
    if not paths.others:
        hint = f"wn {command} --help"
        raise UsageError("OUTPUT", "missing", expected="CHECKPOINT OUTPUT", hint=hint)
    raise UsageError(
        " ".join(paths.others[1:]),
        "one checkpoint and one OUTPUT are taken at a time",
        hint="--output-dir DIR takes several checkpoints",
    )


def _outputs(paths: Paths, folder: Path) -> dict[str, str]:
    """The output of each checkpoint in `folder`: two under one name are refused."""
    if folder.exists() and not folder.is_dir():
        raise FileError(str(folder), "--output-dir is a file", expected="a folder's name")
    found: dict[str, str] = {}
    for checkpoint in (paths.checkpoint, *paths.others):
        path = Path(checkpoint)
        if path.name.endswith(".index.json"):
            path = path.resolve().parent
        is_folder = path.is_dir()
        output = str(beside(folder, path, None if is_folder else paths.format)) + "/" * is_folder
        if paths.is_sharded and not is_folder:
            output = f"{Path(output).with_suffix('')}/"
        if output in found.values():
            raise UsageError(
                checkpoint,
                f"two checkpoints would be written to {output}",
                hint="run them one after the other, each with an --output-dir of its own",
            )
        found[checkpoint] = output
    return found
