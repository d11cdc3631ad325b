"""The README's screens are what the commands print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.run import ROOT

SCREENS = re.findall(
    r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)


#: How long it took: no two runs agree.
TIME = re.compile(r"  \d+\.\d s$", re.MULTILINE)
COMMANDS = ("inspect", "apply", "remove", "convert", "compare")


def test_the_readme_shows_every_command() -> None:
    shown = "".join(SCREENS)
    assert all(f"$ wn {command} " in shown for command in COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader types the commands, one after the other."""
    made = tmp_path_factory.mktemp("reader")
    (made / "sample_models").symlink_to(ROOT / "sample_models")
    return made


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_of_the_readme_is_what_is_printed(screen: str, folder: Path) -> None:
    command, _, expected = screen.partition("\n")
    arguments = shlex.split(command.removeprefix("$ wn "))
    done = subprocess.run(
        [sys.executable, "-m", "wncli", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert TIME.sub("", done.stdout) == TIME.sub("", expected)
    assert done.returncode == expected.startswith("different")
