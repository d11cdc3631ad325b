"""Prints what a command came to, for people or as JSON, and says with which exit code to leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import wncli
from wncli.cli.ranks import team
from wncli.cli.streams import as_typed
from wncli.cli.terminal import STDOUT
from wncli.errors import is_typable
from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison
    from wncli.errors import WnError
    from wncli.report import NothingToDo, Report

DONE = 0
#: Nothing to do, or a difference found.
NEGATIVE = 1


class Shown(NamedTuple):
    """How a report is to be shown: as JSON, not at all, or to people, and how much of it."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    shows_all: bool = False
    sort: str | None = None
    plot: str | None = None
    csv: str | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing is said to people: stdout is for a program, or for nobody."""
        return self.json or self.quiet or self.csv == STDOUT

    def export(self, reports: Sequence[Report]) -> None:
        """Write the files that were asked for.

        Raises:
            WnError: they cannot be written.
        """
        if (self.plot is not None or self.csv is not None) and team().rank == 0:
            from wncli.cli.exports import write_exports

            write_exports(reports, self.plot, self.csv)

    def show_exports(self) -> None:
        """Say which files were written."""
        if not self.is_silent and (self.plot is not None or self.csv is not None):
            from wncli.cli.exports import show_written

            show_written(self.plot, self.csv)


def exit_code(report: Report, *, quiet: bool) -> int:
    """Say whether a check has found something, or under `quiet` that there is no weight norm."""
    is_without = quiet and report.command == "inspect" and not report.layers
    return NEGATIVE if report.findings or is_without else DONE


def print_report(report: Report, shown: Shown) -> int:
    """Write and print a report, and return the exit code."""
    shown.export([report])
    if shown.json:
        print_json(report.to_json())
    elif not shown.is_silent:
        from wncli.cli.reports import show_report

        show_report(report, verbose=shown.verbose, shows_all=shown.shows_all, sort=shown.sort)
    shown.show_exports()
    return exit_code(report, quiet=shown.quiet)


def print_comparison(
    found: Comparison, *, json: bool, quiet: bool, shows_all: bool, csv: str | None
) -> int:
    """Write and print a comparison; the exit code tells whether both sides are equal."""
    if csv is not None and team().rank == 0:
        from wncli.cli.csv_files import write_csv

        write_csv(csv, found.to_rows())
    if json:
        print_json(found.to_json())
    elif not quiet and csv != "-":
        from wncli.cli.comparisons import show_comparison

        show_comparison(found, shows_all=shows_all)
    return DONE if found.equal else NEGATIVE


def print_json(value: dict[str, Any]) -> None:
    """Print the report of a command, or those of several files, as one JSON object on stdout."""
    from json import dumps

    for report in (value, *value.get("files", ())):
        for note in (*report.get("notes", ()), *(report.get("findings") or ())):
            note["message"] = in_shell(note["message"])
    print(as_typed(dumps(value, indent=2, allow_nan=False)), flush=True)


def refusal(command: str | None, error: dict[str, str | None]) -> dict[str, Any]:
    """Make what is printed as JSON in place of a report that there is not."""
    from wncli.report import SCHEMA

    return {"schema": SCHEMA, "wn": wncli.__version__, "command": command, "error": error}


def several(command: str, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Make what is printed as JSON of several checkpoints: a report each, or why there is none."""
    from wncli.report import SCHEMA

    return {"schema": SCHEMA, "wn": wncli.__version__, "command": command, "files": outcomes}


def nothing_to_do(outcome: NothingToDo) -> dict[str, Any]:
    """Make what is printed as JSON where nothing answers to a request."""
    return outcome.report.to_json() | {"nothing_to_do": True, "error": error_of(outcome)}


def error_of(refused: WnError) -> dict[str, str | None]:
    """Return the parts of a message, as the command line spells them; None for what it lacks."""
    keys = ("where", "problem", "expected", "found", "hint")
    parts = {key: in_shell(getattr(refused, key)) or None for key in keys}
    if not is_typable(parts["hint"] or ""):
        parts["hint"] = None
    return {"message": refused.in_shell, **parts}
