"""Ctrl-C: one message and exit code 130, whenever it comes; never a traceback, never dropped."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.run import SAMPLES, environment

pytestmark = pytest.mark.thinned(13)

#: Has the process interrupted by itself: plainly, or where Python drops all exceptions.
INTERRUPTING = """
import os, signal, sys, weakref
number = getattr(signal, os.environ.get("NUMBER", "SIGINT"))
class Thing:
    def __del__(self):
        if os.environ["WAY"] == "finalizer":
            os.kill(os.getpid(), number)
def interrupt(*_):
    os.kill(os.getpid(), number)
def interrupt_somehow():
    if os.environ["WAY"] == "plain":
        interrupt()
    thing = Thing()
    if os.environ["WAY"] == "callback":
        reference = weakref.ref(thing, interrupt)
    del thing
sys.argv[0] = "/usr/bin/wn"
"""
WAYS = ("plain", "callback", "finalizer")

#: Interrupts at one of the imports that come after the program has taken the signal.
AT_AN_IMPORT = f"""
{INTERRUPTING}
left = int(os.environ["AT"])
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        global left
        if signal.getsignal(number) not in (signal.default_int_handler, signal.SIG_DFL):
            left -= 1
            if left == 0:
                interrupt_somehow()
sys.meta_path.insert(0, Finder)
from wncli.cli import program
program()
"""

#: Interrupts when a function of `os` has been called so many times.
AT_A_CALL = f"""
{INTERRUPTING}
name, left = os.environ["CALL"], int(os.environ["AT"])
real = getattr(os, name)
def call(*arguments, **keywords):
    global left
    left -= 1
    if left == 0:
        interrupt_somehow()
    return real(*arguments, **keywords)
setattr(os, name, call)
from wncli.cli import program
program()
"""
WRITES = "interrupted: OUTPUT is as it was before, or complete\n"


def run(script: str, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment(**extra), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["inspect", "compare", "remove", "--help"])
def test_an_interruption_at_any_import_is_one_message(
    command: str, way: str, tmp_path: Path
) -> None:
    sample = SAMPLES / "lstm.pt"
    arguments: dict[str, tuple[str | Path, ...]] = {
        "inspect": (sample,),
        "compare": (sample, sample),
        "remove": (sample, tmp_path / "out.pt", "-q"),
        "--help": (),
    }
    for at in range(1, 1000, 23):
        ran = run(AT_AN_IMPORT, command, *arguments[command], WAY=way, AT=str(at))
        if not ran.returncode:  # it has not as many imports
            break
        assert (ran.returncode, ran.stdout) == (130, "")
        assert ran.stderr == (WRITES if command == "remove" else "interrupted\n")
        assert list(tmp_path.iterdir()) == []
    assert at > 4 * 23


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_that_end_a_run_are_noticed_as_early(name: str) -> None:
    sample = SAMPLES / "lstm.pt"
    ran = run(AT_AN_IMPORT, "inspect", sample, WAY="callback", AT="1", NUMBER=name)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_from_the_beginning_stays_ignored(number: signal.Signals) -> None:
    ignoring = f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_IGN); "
    ignoring += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    script = f"import os, typer; os.kill(os.getpid(), {int(number)})\n"
    script = f"from wncli.cli import program\n{script}program()"
    ran = run(ignoring, "-c", script, "inspect", SAMPLES / "lstm.pt")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "weight_hh_l0" in ran.stdout


@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_while_writing_is_not_dropped(way: str, tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    target.write_bytes(b"precious")
    arguments = ("remove", SAMPLES / "hifigan_generator", target, "--force")
    ran = run(AT_A_CALL, *arguments, WAY=way, AT="1", CALL="pwrite")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", WRITES)
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("way", WAYS)
def test_an_interruption_while_a_file_takes_its_place_is_not_dropped(
    way: str, tmp_path: Path
) -> None:
    target = tmp_path / "out.pt"
    ran = run(AT_A_CALL, "remove", SAMPLES / "lstm.pt", target, WAY=way, AT="1", CALL="link")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", WRITES)
    found = [path.name for path in tmp_path.iterdir()]
    assert found in ([], ["out.pt"])
    if found:
        assert "weight_hh_l0" in torch.load(target, weights_only=True)


def test_an_interruption_while_the_report_is_printed_is_one_message(tmp_path: Path) -> None:
    """It waits for whoever reads it, as `less`."""
    state = {
        f"layer{n}.{'deep.' * 40}weight_{kind}": torch.ones(1, 1)
        for n in range(400)
        for kind in "gv"
    }
    torch.save(state, tmp_path / "many.pt")
    with subprocess.Popen(
        [sys.executable, "-m", "wncli", "remove", tmp_path / "many.pt", tmp_path / "out.pt", "-v"],
        env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == WRITES
    assert len(torch.load(tmp_path / "out.pt", weights_only=True)) == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.pt", "out.pt"]


SLOW = """
import os, sys, time
real = os.pwrite
def slow(*arguments):
    time.sleep(0.2)
    return real(*arguments)
os.pwrite = slow
from wncli.cli import program
program()
"""


def test_an_interruption_wipes_the_progress_bar_away_and_shows_the_cursor(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["remove", str(SAMPLES / "hifigan_generator"), str(tmp_path / "out.pt")]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env=environment(TERM="xterm-256color", COLUMNS="80"),
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while "━".encode() not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux tells the end of a terminal
                break
        code = process.wait(30)
    os.close(ours)
    assert code == 130
    assert shown.rindex(b"\x1b[?25l") < shown.rindex(b"\x1b[?25h")
    assert shown.rindex("━".encode()) < shown.rindex(b"\x1b[2K") < shown.index(b"interrupted: ")
    assert shown.endswith(WRITES.replace("\n", "\r\n").encode())
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_python_ends_is_one_message() -> None:
    script = "import atexit, os, signal\nfrom wncli.cli import main\n"
    script += "atexit.register(os.kill, os.getpid(), signal.SIGINT)\nmain()"
    ran = run(script, "inspect", SAMPLES / "lstm.pt", "-q")
    assert (ran.returncode, ran.stderr) == (130, "interrupted\n")


def test_importing_the_package_takes_no_signals() -> None:
    script = """
import signal, sys
def taken():
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    return [signal.getsignal(number) for number in numbers], sys.unraisablehook
before = taken()
import wncli, wncli.api, wncli.cli.commands
wncli.inspect(sys.argv[1])
assert taken() == before
"""
    ran = run(script, SAMPLES / "lstm.pt")
    assert (ran.returncode, ran.stderr) == (0, "")
