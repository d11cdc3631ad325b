"""Runs `wn` in a process of its own, or on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import wncli

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "sample_models"


@dataclass(frozen=True)
class Ran:
    """How a run of `wn` ended and what it printed."""

    code: int
    stdout: str
    stderr: str


class Wn(Protocol):
    """Runs `wn` with these arguments; further keywords are variables of its environment."""

    def __call__(
        self, *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> Ran: ...


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, without what would change the tool's output, and `extra`."""
    ours = {"PYTHONPATH": str(Path(wncli.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    ignored = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "WN_TRACEBACK", "PYTHONWARNINGS")
    kept = {name: value for name, value in os.environ.items() if name not in ignored}
    return kept | ours | extra


def encoding_of(extra: dict[str, str]) -> str:
    """The encoding of what is printed, as Python takes it from the environment."""
    return extra.get("PYTHONIOENCODING", "utf-8").partition(":")[0]


def run_wn(*arguments: str | Path, cwd: Path | None = None, **extra: str) -> Ran:
    """Run `python -m wncli` and wait for its end."""
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", *map(str, arguments)],
        cwd=cwd,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    encoding = encoding_of(extra)
    return Ran(ran.returncode, ran.stdout.decode(encoding), ran.stderr.decode(encoding))


def on_a_terminal(
    *arguments: str | Path, start: tuple[str, ...] = ("-m", "wncli"), **extra: str
) -> tuple[int, str]:
    """Run `wn` with all its streams on one terminal; what it shows there."""
    import pty  # which Windows does not have

    ours, theirs = pty.openpty()
    extra = {"TERM": "xterm-256color"} | extra
    with subprocess.Popen(
        [sys.executable, *start, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(**extra),
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux tells the end of a terminal
                break
            if not part:
                break
            shown += part
        code = process.wait(60)
    os.close(ours)
    return code, shown.decode(encoding_of(extra)).replace("\r\n", "\n")


#: Gives up root's right to pass over permissions (capget(2), capset(2)), then runs `wn`.
AS_ANYBODY = """
import ctypes, os, sys
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
from wncli.cli import main
main()
"""


def refused_for_anybody(*arguments: Path | str) -> str:
    """What `wn` says, with exit code 2, where the system's permissions count for it."""
    done = subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, *map(str, arguments)],
        check=False, capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    return done.stderr


#: Gives up root's right to give files away (capget(2), capset(2)), then runs `wn`.
WITHOUT_CHOWN = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.capget(header, sets) == 0
sets[0] &= ~0b1  # CAP_CHOWN
assert libc.capset(header, sets) == 0
from wncli.cli import main
main()
"""
