"""The command line's edge: runs a command, catches what it refuses, and sets the exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from wncli.cli.results import DONE, INTERRUPTED, NEGATIVE, REFUSED
from wncli.cli.terminal import StreamError, printing, show_refusal

_COMMANDS = ("inspect", "apply", "remove", "convert", "compare")


def program() -> NoReturn:
    """What a shell starts as `wn`: `main`, leaving without taking apart what ends anyway.

    Python would free every object one by one, which takes a tenth of a short run.
    """
    try:
        main()
    except SystemExit as end:
        with contextlib.suppress(OSError):  # `main` has told what could not be printed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else DONE)


def main() -> NoReturn:
    """Run `wn` with the process's arguments and leave with its exit code."""
    try:
        for ending in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup has it
                signal.signal(ending, _interrupt)
        _open_streams()
        gc.disable()  # a short run makes no garbage worth looking for among the nodes of a pickle
        # The work has its own threads; those of OpenBLAS would only be started and wait.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        code = _run(sys.argv[1:])
        with printing():  # what typer printed
            pass
    except (BrokenPipeError, SystemExit):  # typer and rich make the one into the other
        _discard_output()
        code = DONE  # whoever read the output has read enough
    except KeyboardInterrupt:
        writes = not {"inspect", "compare"} & set(sys.argv[1:2])
        what = ": OUTPUT is as it was before, or complete" if writes else ""
        print(f"interrupted{what}", file=sys.stderr)
        code = INTERRUPTED
    except StreamError as error:
        _discard_output()
        reason = os.strerror(error.errno or 0)
        print(f"error: the report cannot be written ({reason})", file=sys.stderr)
        code = REFUSED
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    from typer import TyperException

    from wncli.cli.commands import app_for
    from wncli.cli.results import print_json
    from wncli.errors import WnError

    try:
        app = app_for(arguments[0] if arguments else "")
        result = app(arguments, prog_name="wn", standalone_mode=False)
    except WnError as outcome:
        from wncli.report import NothingToDo

        if not isinstance(outcome, NothingToDo):
            show_refusal("error", str(outcome))
            return REFUSED
        if "--json" in arguments:
            print_json(outcome.report.to_json())
        show_refusal("nothing to do", str(outcome))
        return NEGATIVE
    except TyperException as refusal:
        message = f"{refusal.format_message()}\n  try:      {_help(arguments)}"
        show_refusal("error", message)
        return REFUSED
    except (BrokenPipeError, StreamError):
        raise
    except Exception as error:  # no traceback reaches a user
        if os.environ.get("WN_TRACEBACK"):
            raise
        detail = f"{type(error).__name__}: {error}"
        hint = "WN_TRACEBACK=1 shows where; please report it"
        show_refusal("error", f"this is a defect of wn ({detail})\n  try:      {hint}")
        return REFUSED
    if result == INTERRUPTED:  # typer turns Ctrl-C into its exit code
        raise KeyboardInterrupt
    return result if isinstance(result, int) else DONE


def _help(arguments: list[str]) -> str:
    known = [word for word in arguments[:1] if word in _COMMANDS]
    return " ".join(["wn", *known, "--help"])


def _open_streams() -> None:
    """Give closed streams a place to write to, and let no character of a name fail."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)
        getattr(sys, name).reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Have what is still buffered go nowhere, so that leaving does not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
