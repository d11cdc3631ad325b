"""The README's screens are what the commands print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCREENS = re.findall(
    r"^```console\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_the_readme_shows_every_command() -> None:
    shown = "".join(SCREENS)
    assert all(f"$ wn {command} " in shown for command in ("inspect", "apply", "remove"))


@pytest.mark.parametrize("screen", SCREENS)
def test_a_screen_of_the_readme_is_what_is_printed(screen: str, tmp_path: Path) -> None:
    command, _, expected = screen.partition("\n")
    (tmp_path / "sample_models").symlink_to(ROOT / "sample_models")
    arguments = shlex.split(command.removeprefix("$ wn "))
    done = subprocess.run(
        [sys.executable, "-m", "wncli", *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.stdout == expected
