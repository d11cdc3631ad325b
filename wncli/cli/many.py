"""Runs commands over one checkpoint, or over several with a row each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wncli.cli.options import FORMATS, Writing, one_of
from wncli.cli.progress import progress_bar
from wncli.cli.results import (
    DONE,
    NEGATIVE,
    Shown,
    error_of,
    exit_code,
    nothing_to_do,
    print_json,
    print_report,
    several,
)
from wncli.cli.rows import (
    INSPECTED,
    WRITTEN,
    Rows,
    inspected_row,
    show_total,
    warnings_of,
    written_row,
)
from wncli.cli.streams import STREAM, from_stdin, result_as_typed, to_stdout
from wncli.cli.terminal import show_refusal
from wncli.errors import FileError, UsageError, WnError
from wncli.formats.huggingface.folder import checkpoints_at
from wncli.hints import is_address
from wncli.parallel import Progress
from wncli.plan.destination import beside
from wncli.report import NothingToDo, Report
from wncli.storage.addresses import parse_address, shown_address
from wncli.storage.signals import REFUSED

_NAMELESS = "what is read from stdin has no name that it could have in a folder"


def write_all(run: partial[Report], typed: Writing) -> int:
    """Run a command over what was typed, and print what came of it.

    Raises:
        WnError: refused; of several checkpoints only where none can be begun.
    """
    command, keywords = run.func.__name__, typed.keywords()
    shown = Shown(typed.json, typed.quiet, verbose=typed.verbose)
    phases = (_PHASES[command], *("verifying",) * typed.verify)
    if typed.output_dir is None:
        output = _one_output(command, typed)
        with to_stdout(output, typed) as path:
            checkpoint = from_stdin(typed.checkpoint)
            with progress_bar(phases, quiet=shown.is_silent) as progress:
                report = run(checkpoint, path, **keywords, progress=progress)
        return print_report(result_as_typed(report), shown)
    outputs = _outputs(typed, Path(typed.output_dir))

    def written(checkpoint: str, progress: Progress) -> Report:
        return run(checkpoint, outputs[checkpoint], **keywords, progress=progress)

    found = _each(written, list(outputs), phases, shown, (written_row, WRITTEN))
    if typed.json:
        print_json(several(command, found.outcomes))
    elif not typed.quiet:
        show_total(found.counts, f"{'would be ' * typed.dry_run}written to {typed.output_dir}/")
    found.show_refusals()
    return found.code


def inspect_all(run: partial[Report], checkpoints: list[str], shown: Shown) -> int:
    """Inspect one checkpoint, or several with a row each.

    Raises:
        WnError: the only one is refused.
    """
    paths: list[str] = []
    for given in checkpoints:  # an address is to stay as it was typed
        # Which takes names that no file can have, too, and an empty word for no folder.
        inside = checkpoints_at(Path(given)) if os.path.isdir(given) else []  # noqa: PTH112
        paths += map(str, inside) if inside else [given]
    phases = ("reading",)
    if paths == checkpoints[:1]:
        with progress_bar(phases, quiet=shown.is_silent) as progress:
            report = run(from_stdin(checkpoints[0]), progress=progress)
        return print_report(result_as_typed(report), shown)

    if shown.plot is not None:
        raise UsageError(
            "--plot",
            f"one checkpoint is drawn at a time, {len(paths)} were given",
            hint="wn compare A B --plot draws two",
        )

    for key, flag in _ONE_BY_ONE.items():
        if run.keywords.get(key) and not shown.is_silent and shown.csv is None:
            raise UsageError(
                flag,
                f"several checkpoints have a row each, {len(paths)} were given",
                hint="--csv FILE or --json has it for each",
            )

    def inspected(checkpoint: str, progress: Progress) -> Report:
        return result_as_typed(run(from_stdin(checkpoint), progress=progress))

    found = _each(inspected, paths, phases, shown, (inspected_row, INSPECTED))
    shown.export(found.reports)
    if shown.json:
        print_json(several("inspect", found.outcomes))
    elif not shown.is_silent:
        show_total(found.counts, "with weight norm", found.reports)
    shown.show_exports()
    found.show_refusals()
    return found.code


#: What is shown of one checkpoint alone, by the parameter.
_ONE_BY_ONE = {"tensors": "--tensors", "norms": "--norms", "statistics": "--stats"}
_PHASES = {"apply": "normalizing", "remove": "folding", "convert": "writing"}


_NOTHING: dict[str, tuple[str, ...]] = {
    "apply": ("nothing to normalize, not written",),
    "remove": ("no weight norm, not written",),
    "convert": ("no weight norm, not written",),
}


class _Found:
    """What came of several checkpoints."""

    def __init__(self) -> None:
        self.code = DONE
        self.counts: Counter[str] = Counter()
        self.outcomes: list[dict[str, Any]] = []
        self.reports: list[Report] = []
        self.refusals: list[tuple[str, str]] = []

    def show_refusals(self) -> None:
        """Print the errors and warnings, which would have torn the rows apart."""
        for kind, message in self.refusals:
            show_refusal(kind, message)


def _each(
    run: Callable[[str, Progress], Report],
    checkpoints: list[str],
    phases: tuple[str, ...],
    shown: Shown,
    drawn: tuple[Callable[[Report], tuple[str, ...]], Sequence[int]],
) -> _Found:
    """Run a command for each checkpoint, and print a row of each once it is done."""
    found = _Found()
    row, widths = drawn
    rows = Rows(list(map(shown_address, checkpoints)), widths)
    for number, given in enumerate(checkpoints, 1):
        checkpoint = shown_address(given)
        place = f"{Path(checkpoint).name}, {number} of {len(checkpoints)}"
        try:
            with progress_bar(phases, quiet=shown.is_silent, place=place) as progress:
                report = run(given, progress)
        except NothingToDo as outcome:
            kind, cells = "nothing", _NOTHING[outcome.report.command]
            found.code = max(found.code, NEGATIVE)
            found.outcomes.append(nothing_to_do(outcome))
        except WnError as refusal:
            kind, cells = "failed", (refusal.problem,)
            found.code = REFUSED
            found.outcomes.append({"checkpoint": checkpoint, "error": error_of(refusal)})
            found.refusals.append(("error", _of_one(refusal, checkpoint)))
        else:
            kind = "nothing" if report.command == "inspect" and not report.layers else "done"
            cells = row(report)
            found.code = max(found.code, exit_code(report, quiet=shown.quiet))
            found.outcomes.append(report.to_json())
            found.reports.append(report)
            found.refusals += warnings_of(report)
        found.counts[kind] += 1
        if not shown.is_silent:
            rows.show(kind, checkpoint, cells)
    return found


def _of_one(refusal: WnError, checkpoint: str) -> str:
    """Return a message that says of which of several checkpoints it is."""
    is_named = checkpoint in refusal.where
    return refusal.in_shell if is_named else f"{checkpoint}: {refusal.in_shell}"


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
        " ".join(map(shown_address, words[1:])),
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
        path, is_folder = _input_of(checkpoint)
        chosen = None if is_folder else one_of("--format", typed.format, FORMATS)
        output = str(beside(folder, path, chosen)) + "/" * is_folder
        if typed.max_shard_size is not None and not is_folder:
            output = f"{Path(output).with_suffix('')}/"
        if output in found.values():
            raise UsageError(
                shown_address(checkpoint),
                f"two checkpoints would be written to {output}",
                hint="run them one after the other, each with an --output-dir of its own",
            )
        found[checkpoint] = output
    return found


def _input_of(checkpoint: str) -> tuple[Path, bool]:
    """Return the name of a checkpoint, as a path, and whether it is a folder's."""
    if is_address(checkpoint):
        address = parse_address(checkpoint)
        return Path(address.folder_name), address.is_folder
    path = Path(checkpoint)
    if path.name.endswith(".index.json"):
        path = path.resolve().parent
    return path, path.is_dir()
