"""The command line's edge: runs a command, catches what it refuses, and sets the exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from wncli.errors import WnError

DONE = 0
NOTHING_TO_DO = 1
REFUSED = 2
INTERRUPTED = 130


def main() -> NoReturn:
    """Run `wn` with the process's arguments and leave with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE  # whoever read the output has read enough
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    from typer import TyperException

    from wncli.cli.commands import app
    from wncli.cli.screen import show_refusal
    from wncli.report import NothingToDo

    try:
        code = app(arguments, prog_name="wn", standalone_mode=False)
    except NothingToDo as outcome:
        show_refusal("nothing to do", str(outcome))
        return NOTHING_TO_DO
    except WnError as refusal:
        show_refusal("error", str(refusal))
        return REFUSED
    except TyperException as refusal:
        show_refusal("error", f"{refusal.format_message()}\n  try:      {_help(arguments)}")
        return REFUSED
    except KeyboardInterrupt:
        show_refusal("interrupted", "nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # no traceback reaches a user
        if os.environ.get("WN_TRACEBACK"):
            raise
        detail = f"{type(error).__name__}: {error}"
        hint = "WN_TRACEBACK=1 shows where; please report it"
        show_refusal("error", f"this is a defect of wn ({detail})\n  try:      {hint}")
        return REFUSED
    return code or DONE


def _help(arguments: list[str]) -> str:
    known = [word for word in arguments[:1] if word in ("inspect", "apply", "remove")]
    return " ".join(["wn", *known, "--help"])


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
