"""Shells on a terminal: what they make of what is typed, Tab among it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.support.run import environment

#: How a shell is started so that it reads none of the machine's own settings.
STARTS = {
    "bash": ("bash", "--noprofile", "--norc", "-i"),
    "zsh": ("zsh", "-f", "-i"),
    "fish": ("fish", "--no-config", "-i"),
}
#: What shows its arguments, each between angle brackets, instead of running anything.
SHOW = {
    "bash": """show() { printf '<%s>' "$@"; echo END; }""",
    "zsh": """show() { printf '<%s>' "$@"; echo END; }""",
    "fish": """function show; printf '<%s>' $argv; echo END; end""",
}
HOME = "\x01"  # to the beginning of the line
CLEAR = "\x15"  # the line
TAB = "\t"


def with_wn(folder: Path) -> Path:
    """Make a folder for the PATH whose `wn` is this one."""
    program = folder / "wn"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wncli "$@"\n')
    program.chmod(0o755)
    return folder


def _have_the_terminal() -> None:
    """Make stdin the terminal that the session is controlled by, as shells expect."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Shell:
    """A shell on a terminal, with `wn` on its PATH and its completion loaded."""

    def __init__(self, name: str, cwd: Path, path: Path, script: str) -> None:
        self.name = name
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 200, 0, 0))
        file = path / f"completion.{name}"
        file.write_text(script)
        self.process = subprocess.Popen(
            STARTS[name], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd,
            start_new_session=True, preexec_fn=_have_the_terminal,  # noqa: PLW1509 - no threads
            env=environment(
                PATH=f"{path}:{os.environ['PATH']}", HOME=str(path), PS1="$ ", LC_ALL="C.UTF-8",
                TERM="xterm" if name == "fish" else "dumb",
                XDG_DATA_HOME=str(path), XDG_CONFIG_HOME=str(path),
            ),
        )  # fmt: skip
        os.close(theirs)
        loading = f"source {shlex.quote(str(file))}"
        self.until(f"{SHOW[name]}\r{loading}\rshow ready\r", "<ready>END")

    def until(self, keys: str, wanted: str, seconds: float = 30) -> str:
        """Type keys, and return what is shown until that which is waited for."""
        os.write(self.ours, keys.encode())
        shown, end = "", time.monotonic() + seconds
        while wanted not in shown:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.ours], [], [], left)[0]:
                message = f"{self.name} does not show {wanted!r}, but {shown!r}"
                raise TimeoutError(message)
            shown += os.read(self.ours, 65536).decode(errors="replace")
        return shown

    def completed(self, typed: str) -> list[str]:
        """Return the words that a line becomes with Tab at its end, as the shell then reads it."""
        shown = self.until(f"{typed}{TAB}{HOME}show \r", ">END")
        words = shown.replace("\r", "").replace("\n", "").rpartition(">END")[0]
        return words[words.rindex("<wn>") + 1 :].split("><")[1:]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
