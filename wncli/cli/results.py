"""Prints what a command came to, for people or as JSON, and says with which exit code to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison
    from wncli.report import Report

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

    @property
    def is_silent(self) -> bool:
        """Whether nothing is said while it runs."""
        return self.json or self.quiet


def exit_code(report: Report, *, quiet: bool) -> int:
    """Say whether a check has found something, or under `quiet` that there is no weight norm."""
    is_without = quiet and report.command == "inspect" and not report.layers
    return NEGATIVE if report.findings or is_without else DONE


def print_report(report: Report, shown: Shown) -> int:
    """Print a report, and return the exit code."""
    if shown.json:
        print_json(report.to_json())
    elif not shown.quiet:
        from wncli.cli.reports import show_report

        show_report(report, verbose=shown.verbose, shows_all=shown.shows_all, sort=shown.sort)
    return exit_code(report, quiet=shown.quiet)


def print_comparison(
    found: Comparison, *, json: bool, quiet: bool, shows_all: bool, csv: str | None
) -> int:
    """Write and print a comparison; the exit code tells whether both sides are equal."""
    if csv is not None:
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
    print(dumps(value, indent=2), flush=True)
