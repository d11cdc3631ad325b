"""The manual page says what the help says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from tests.support.run import ROOT, Wn, environment

PAGE = ROOT / "docs" / "wn.1"
COMMANDS = ("inspect", "apply", "remove", "convert", "compare")


def test_the_manual_is_up_to_date() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "wncli.cli.man"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == PAGE.read_text(), "run python -m wncli.cli.man > docs/wn.1"


@pytest.fixture(scope="module")
def shown() -> str:
    """The page as `man` shows it on a wide terminal, in one line."""
    if not shutil.which("man"):
        pytest.skip("there is no man")
    ran = subprocess.run(
        ["man", "--warnings", "-l", str(PAGE)],
        env=environment(MANWIDTH="200", LC_ALL="C.UTF-8"), capture_output=True, check=True,
    )  # fmt: skip
    assert ran.stderr == b""
    text = re.sub(r".\x08", "", ran.stdout.decode())
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_man_shows_all_that_the_help_says(command: str, shown: str, wn: Wn) -> None:
    words = wn(command, "--help", COLUMNS="1000").stdout.split()
    section = shown.partition(f"WN {command.upper()} ")[2]
    assert len(words) > 50
    # Titles have no colon there, and no line is broken.
    assert not {w for w in words if w not in section and not w.endswith(":")} - {"\\"}
