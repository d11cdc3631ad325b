"""The exit code tells what a run came to, whoever reads what it prints."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.support.run import SAMPLES, environment

pytestmark = pytest.mark.thinned(37)

TRAINING, LINEAR, LSTM = (str(SAMPLES / f"{name}.pt") for name in ("training", "linear", "lstm"))


@dataclass(frozen=True)
class Expected:
    """A command line, its exit code, the files that it writes, and whether stdout has a report."""

    arguments: tuple[str, ...]
    code: int
    written: tuple[str, ...] = ()
    reports: bool = True


OUTCOMES = {
    "help": Expected(("--help",), 0),
    "no arguments": Expected((), 0),
    "a command's help": Expected(("remove", "--help"), 0),
    "version": Expected(("--version",), 0),
    "listed": Expected(("inspect", TRAINING), 0),
    "listed as json": Expected(("inspect", TRAINING, "--json"), 0),
    "names": Expected(("inspect", TRAINING, "--tensors"), 0),
    "written with a warning": Expected(("remove", TRAINING, "out.pt"), 0, ("out.pt",)),
    "written, as json": Expected(("remove", TRAINING, "out.pt", "--json"), 0, ("out.pt",)),
    "written, nothing printed": Expected(
        ("remove", LSTM, "out.pt", "-q"), 0, ("out.pt",), reports=False
    ),
    "equal": Expected(("compare", LSTM, LSTM), 0),
    "different": Expected(("compare", TRAINING, LINEAR), 1),
    "different, as json": Expected(("compare", TRAINING, LINEAR, "--json"), 1),
    "different, nothing printed": Expected(("compare", TRAINING, LINEAR, "-q"), 1, reports=False),
    "a finding": Expected(("inspect", "nan.pt", "--check"), 1),
    "a finding, as json": Expected(("inspect", "nan.pt", "--check", "--json"), 1),
    "nothing to do": Expected(("remove", LINEAR, "out.pt"), 1, reports=False),
    "nothing to do, as json": Expected(("remove", LINEAR, "out.pt", "--json"), 1),
    "refused": Expected(("remove", "none.pt", "out.pt"), 2, reports=False),
    "an unknown option": Expected(("inspect", "--nope", "in.pt"), 2, reports=False),
    "no OUTPUT": Expected(("remove", LSTM), 2, reports=False),
    "several, nothing to do for one": Expected(
        ("remove", TRAINING, LINEAR, LSTM, "--output-dir", "o"), 1, ("o/training.pt", "o/lstm.pt")
    ),
    "several, one refused": Expected(
        ("remove", TRAINING, "none.pt", LSTM, "--output-dir", "o", "--json"),
        2,
        ("o/training.pt", "o/lstm.pt"),
    ),
}

NOISE = ("Traceback", "Exception ignored", "defect", "BrokenPipe")


@pytest.fixture(params=OUTCOMES.values(), ids=list(OUTCOMES))
def outcome(request: pytest.FixtureRequest, tmp_path: Path) -> Expected:
    torch.save({"weight": torch.full((2,), torch.nan)}, tmp_path / "nan.pt")
    expected: Expected = request.param
    return expected


def run(
    redirection: str, outcome: Expected, folder: Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `wn` under bash, where `$gone` is a pipe that nobody reads."""
    reading, gone = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [
                *("bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", "wncli"),
                *outcome.arguments,
            ],
            env=environment(gone=str(gone), **extra), cwd=folder, pass_fds=[gone],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        os.close(gone)


@pytest.mark.parametrize(
    "redirection",
    [">&$gone", "2>&$gone", ">&$gone 2>&1", "2>/dev/full", ">&-", "2>&-", "<&- >&- 2>&-"],
)
def test_the_exit_code_is_the_same_where_nobody_reads(
    redirection: str, outcome: Expected, tmp_path: Path
) -> None:
    ran = run(redirection, outcome, tmp_path)
    assert ran.returncode == outcome.code, ran.stderr
    assert not any(word in ran.stdout + ran.stderr for word in NOISE)
    for name in outcome.written:
        assert torch.load(tmp_path / name, weights_only=False)


@pytest.mark.parametrize("redirection", [">&$gone", "2>&$gone", "2>/dev/full"])
def test_colours_do_not_change_the_exit_code(
    redirection: str, outcome: Expected, tmp_path: Path
) -> None:
    """Rich ends a program with its own exit code where a pipe is closed."""
    ran = run(redirection, outcome, tmp_path, FORCE_COLOR="1", TERM="xterm-256color")
    assert ran.returncode == outcome.code, ran.stderr
    assert not any(word in ran.stdout + ran.stderr for word in NOISE)


def test_a_report_that_does_not_fit_on_its_device_is_an_error(
    outcome: Expected, tmp_path: Path
) -> None:
    ran = run(">/dev/full", outcome, tmp_path)
    message = "error: the report cannot be written (No space left on device)\n"
    assert ran.stderr.count(message) == outcome.reports
    assert ran.returncode == (2 if outcome.reports else outcome.code)
    assert not any(word in ran.stderr for word in NOISE)
    for name in outcome.written:
        assert torch.load(tmp_path / name, weights_only=False)


def test_a_slow_reader_of_a_pipe_that_does_not_wait_gets_everything(tmp_path: Path) -> None:
    """As programs leave them that wait for several things at once."""
    state = {
        f"layer{n}.{'deep.' * 40}weight_{kind}": torch.ones(1, 1)
        for n in range(400)
        for kind in "gv"
    }
    torch.save(state, tmp_path / "many.pt")
    reading, writing = os.pipe()
    flags = fcntl.fcntl(writing, fcntl.F_GETFL)
    fcntl.fcntl(writing, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    with subprocess.Popen(
        [sys.executable, "-m", "wncli", "inspect", str(tmp_path / "many.pt"), "--json"],
        env=environment(), stdout=writing, stderr=subprocess.PIPE, text=True,
    ) as process, os.fdopen(reading) as report:  # fmt: skip
        os.close(writing)
        time.sleep(1)
        assert process.poll() is None
        assert len(json.load(report)["layers"]) == 400
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0
