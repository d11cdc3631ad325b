"""Prints what a command came to, for people or as JSON, and says with which exit code to leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wncli.hints import in_shell

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison
    from wncli.report import Report

DONE = 0
#: Nothing to do, or a difference found.
NEGATIVE = 1


def print_report(report: Report, *, json: bool, quiet: bool) -> int:
    """Print a report; under `quiet`, `inspect` prints the layers' names.

    The exit code tells whether a check has found something.
    """
    code = NEGATIVE if report.findings else DONE
    if json:
        print_json(report.to_json())
        return code
    if not quiet:
        from wncli.cli.reports import show_report

        show_report(report)
    return code


def print_comparison(found: Comparison, *, json: bool, quiet: bool) -> int:
    """Print a comparison; the exit code tells whether both sides are equal."""
    if json:
        print_json(found.to_json())
    elif not quiet:
        from wncli.cli.comparisons import show_comparison

        show_comparison(found)
    return DONE if found.equal else NEGATIVE


def print_json(value: dict[str, Any]) -> None:
    """Print the report of a command, or those of several files, as one JSON object on stdout."""
    from json import dumps

    for report in (value, *value.get("files", ())):
        for note in (*report.get("notes", ()), *(report.get("findings") or ())):
            note["message"] = in_shell(note["message"])
    print(dumps(value, indent=2), flush=True)
