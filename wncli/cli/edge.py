"""The command line's edge: runs a command, catches what it refuses, and sets the exit code.

What a command comes to decides on the exit code. Whether anybody reads what is printed does not
matter. Only a report that its device does not take (a full disk) is an error, also where the exit
code would have been 1, because whoever asked for the report does not have it.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from wncli.cli import ranks
from wncli.cli.guesses import COMMANDS, meant
from wncli.cli.results import DONE, NEGATIVE
from wncli.cli.terminal import forgiving_streams, show_refusal
from wncli.storage.signals import (
    INTERRUPTED,
    REFUSED,
    end_when_interrupted,
    is_out_of_memory,
    report_interruption,
    report_out_of_memory,
    unfinished,
)

#: Bytes that NumPy and its OpenBLAS take of a process's address space when they are imported: 77
#: million of NumPy 2.4's 2.0 to 2.4 on x86-64, with one thread.
_NUMPY = 80 << 20


class _RoomForNumPy:
    """Asks before NumPy is imported: its OpenBLAS ends the process where memory is lacking."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        """Find nothing.

        Raises:
            MemoryError: there is no room for NumPy.
        """
        if name == "numpy":
            bytes(_NUMPY)  # which the system promises, and nothing touches


def program() -> NoReturn:
    """Run what a shell starts as `wn`: `main`, leaving without taking apart what ends anyway.

    Python would free every object one by one, which takes a tenth of a short run.
    """
    os._exit(_exit_code())


def main() -> NoReturn:
    """Run `wn` with the process's arguments and leave with its exit code."""
    sys.exit(_exit_code())


def _exit_code() -> int:
    try:
        end_when_interrupted()
        gc.disable()  # a short run makes no garbage worth looking for among the nodes of a pickle
        # The work has its own threads; those of OpenBLAS would only be started and wait.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        if _RoomForNumPy not in sys.meta_path:
            sys.meta_path.insert(0, _RoomForNumPy)
        with forgiving_streams() as stdout:
            code = _run(sys.argv[1:])
            sys.stdout.flush()
            if stdout.failure:
                reason = os.strerror(stdout.failure.errno or 0)
                show_refusal("error", f"the report cannot be written ({reason})")
                code = REFUSED
            code = ranks.leave(code)
        unfinished.end_if_interrupted()
    except KeyboardInterrupt:
        report_interruption()
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("WN_TRACEBACK") or not is_out_of_memory(error):
            raise
        report_out_of_memory()
        return REFUSED
    return code


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--complete"]:
        from wncli.cli.tab import answer

        answer(arguments[1:])
        return DONE
    from typer import TyperException

    from wncli.cli.commands import app_for
    from wncli.cli.results import error_of, nothing_to_do, print_json
    from wncli.cli.streams import as_typed
    from wncli.errors import WnError

    try:
        if ranks.is_asked_for(arguments):
            arguments = ranks.join(arguments)
        with ranks.operation():
            arguments = meant(arguments)
            result = _result(app_for(arguments[0] if arguments else ""), arguments)
    except WnError as outcome:
        from wncli.report import NothingToDo

        if not isinstance(outcome, NothingToDo):
            return _refused(arguments, error_of(outcome))
        if "--json" in arguments:
            print_json(nothing_to_do(outcome))
        show_refusal("nothing to do", as_typed(outcome.in_shell))
        return NEGATIVE
    except TyperException as refusal:
        return _refused(arguments, _problem(refusal.format_message(), _help(arguments)))
    except Exception as error:  # no traceback reaches a user
        if os.environ.get("WN_TRACEBACK") or is_out_of_memory(error):
            raise
        detail = f"{type(error).__name__}: {error}"
        hint = "report it, with what it prints after export WN_TRACEBACK=1"
        return _refused(arguments, _problem(f"this is a defect of wn ({detail})", hint))
    return result if isinstance(result, int) else DONE


def _result(app: Callable[..., object], arguments: list[str]) -> object:
    result = app(arguments, prog_name="wn", standalone_mode=False)
    if result == INTERRUPTED:  # typer turns Ctrl-C into its exit code
        raise KeyboardInterrupt
    return result


def _problem(problem: str, hint: str) -> dict[str, str | None]:
    message = f"{problem}\n  try:      {hint}"
    missing = dict.fromkeys(("where", "expected", "found"))
    return {"message": message, "problem": problem, "hint": hint, **missing}


def _refused(arguments: list[str], error: dict[str, str | None]) -> int:
    """Say what is wrong on stderr, and with `--json` on stdout as well."""
    from wncli.cli.results import print_json, refusal
    from wncli.cli.streams import as_typed

    if "--json" in arguments:
        command = next((word for word in arguments[:1] if word in COMMANDS), None)
        print_json(refusal(command, error))
    show_refusal("error", as_typed(error["message"] or ""))
    return REFUSED


def _help(arguments: list[str]) -> str:
    if {"--version", "-V"} & {*arguments}:  # which goes without a command
        return "wn --version"
    known = [word for word in arguments[:1] if word in COMMANDS]
    return " ".join(["wn", *known, "--help"])
