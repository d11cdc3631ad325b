"""Runs the commands that write: over one checkpoint, or over several into a folder."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from wncli.cli.options import FORMATS, Writing, one_of
from wncli.cli.progress import progress_bar
from wncli.cli.reports import show_line
from wncli.cli.results import DONE, NEGATIVE, print_json, print_report
from wncli.cli.streams import STREAM, from_stdin, result_as_typed, to_stdout
from wncli.cli.terminal import show_refusal
from wncli.errors import FileError, UsageError, WnError
from wncli.plan.destination import beside
from wncli.report import SCHEMA, NothingToDo, Report
from wncli.storage.signals import REFUSED

_NAMELESS = "what is read from stdin has no name that it could have in a folder"


def write_all(run: partial[Report], typed: Writing) -> int:
    """Run a command over what was typed, and print what came of it.

    Raises:
        WnError: refused; of several checkpoints only where none can be begun.
    """
    command, keywords, is_silent = run.func.__name__, typed.keywords(), typed.quiet or typed.json
    if typed.output_dir is None:
        output = _one_output(command, typed)
        with to_stdout(output, typed) as path:
            checkpoint = from_stdin(typed.checkpoint)
            with progress_bar("writing", quiet=is_silent) as progress:
                report = run(checkpoint, path, **keywords, progress=progress)
        return print_report(result_as_typed(report), json=typed.json, quiet=typed.quiet)
    outcomes: list[dict[str, Any]] = []
    code = DONE
    for checkpoint, output in _outputs(typed, Path(typed.output_dir)).items():
        try:
            with progress_bar("writing", quiet=is_silent) as progress:
                report = run(checkpoint, output, **keywords, progress=progress)
        except NothingToDo as outcome:
            code = max(code, NEGATIVE)
            outcomes.append(outcome.report.to_json() | {"error": outcome.in_shell})
            show_refusal("nothing to do", outcome.in_shell)
        except WnError as refusal:
            code = REFUSED
            outcomes.append({"checkpoint": checkpoint, "error": refusal.in_shell})
            show_refusal("error", refusal.in_shell)
        else:
            outcomes.append(report.to_json())
            if not is_silent:
                show_line(report)
    if typed.json:
        print_json({"schema": SCHEMA, "command": command, "files": outcomes})
    return code


def _one_output(command: str, typed: Writing) -> str:
    words = list(typed.output or [])
    if typed.output_option is not None:
        words.append(typed.output_option)
    if len(words) == 1:
        if typed.checkpoint == STREAM and os.path.isdir(words[0]):  # noqa: PTH112 - as in `streams`
            raise UsageError(words[0], _NAMELESS, expected="a file's name")
        return words[0]
    if not words:
        hint = f"wn {command} --help"
        raise UsageError("OUTPUT", "missing", expected=f"wn {command} CHECKPOINT OUTPUT", hint=hint)
    raise UsageError(
        " ".join(words[1:]),
        "one checkpoint and one OUTPUT are taken at a time",
        hint="--output-dir DIR takes several checkpoints",
    )


def _outputs(typed: Writing, folder: Path) -> dict[str, str]:
    """Name the output of each checkpoint in `folder`: two under one name are refused."""
    if typed.output_option is not None:
        raise UsageError(
            f"-o {typed.output_option}", "--output-dir names the outputs", hint="leave one out"
        )
    if folder.exists() and not folder.is_dir():
        raise FileError(str(folder), "--output-dir is a file", expected="a folder's name")
    found: dict[str, str] = {}
    for checkpoint in (typed.checkpoint, *(typed.output or [])):
        if checkpoint == STREAM:
            raise UsageError(STREAM, _NAMELESS, expected="one - and one OUTPUT")
        path = Path(checkpoint)
        if path.name.endswith(".index.json"):
            path = path.resolve().parent
        is_folder = path.is_dir()
        chosen = None if is_folder else one_of("--format", typed.format, FORMATS)
        output = str(beside(folder, path, chosen)) + "/" * is_folder
        if typed.max_shard_size is not None and not is_folder:
            output = f"{Path(output).with_suffix('')}/"
        if output in found.values():
            raise UsageError(
                checkpoint,
                f"two checkpoints would be written to {output}",
                hint="run them one after the other, each with an --output-dir of its own",
            )
        found[checkpoint] = output
    return found
