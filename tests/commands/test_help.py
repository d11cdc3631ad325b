"""Help: complete at any width, plain in a pipe, and with examples that work as typed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.support.run import ROOT, SAMPLES, Ran, Wn, environment, on_a_terminal
from wncli.cli.commands import app
from wncli.cli.examples import EXAMPLES

RunHere = Callable[..., Ran]
GROUP: Any = typer.main.get_command(app)
COMMANDS = ("inspect", "apply", "remove", "convert", "compare")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTHS = (40, 60, 80, 120)


def words_of(command: str) -> set[str]:
    """What the help has to say: each option, what its value is called, and what it does."""
    found = GROUP.commands[command] if command else GROUP
    said = {"--help", "-h"}
    for one in found.params:
        said |= {*one.opts} if one.param_type_name == "option" else set()
        said |= set(re.split(r"[<>]", one.metavar or ""))
        said |= set(one.help.split())
    return said - {""}


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("width", WIDTHS)
def test_help_says_all_at_any_width(command: str, width: int, wn: Wn) -> None:
    ran = wn(*command.split(), "--help", COLUMNS=str(width))
    assert (ran.code, ran.stderr) == (0, "")
    assert all(len(line) < width for line in ran.stdout.splitlines())
    said = set(re.split(r"[\s,]+", ran.stdout)) | set(ran.stdout.split())
    assert words_of(command) <= said
    assert "…" not in ran.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_piped_help_is_plain(command: str, wn: Wn) -> None:
    shown = wn(*command.split(), "--help").stdout
    assert shown.isascii()
    assert "\x1b" not in shown
    assert all(line == line.rstrip() for line in shown.splitlines())
    assert shown.strip("\n") == shown.removesuffix("\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_a_terminal_shows_the_same_and_a_dumb_one_no_escapes(command: str, wn: Wn) -> None:
    plain = wn(*command.split(), "--help", COLUMNS="80").stdout
    code, shown = on_a_terminal(*command.split(), "--help", COLUMNS="80")
    assert (code, ESCAPES.sub("", shown)) == (0, plain)
    assert shown != plain  # it is set off
    assert on_a_terminal(*command.split(), "--help", COLUMNS="80", TERM="dumb")[1] == plain


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_wn_help_is_the_same(command: str, wn_here: RunHere) -> None:
    assert wn_here("help", *command.split()) == wn_here(*command.split(), "--help")


def test_options_stand_in_groups(wn_here: RunHere) -> None:
    shown = wn_here("remove", "--help").stdout
    titles = re.findall(r"^(\w+):$", shown, re.MULTILINE)
    expected = ["Usage", "Arguments", "Select", "Change", "Output", "Safety", "Report", "Examples"]
    assert titles == expected
    group = dict(re.findall(r"^(\w+):\n((?: .*\n)+)", shown, re.MULTILINE))
    assert all(f"{flag} " in group["Safety"] for flag in ("--force", "--dry-run", "--verify"))
    assert all(f"{flag} " in group["Select"] for flag in ("--layers", "--only", "--drop"))


def test_what_must_be_given_is_not_shown_as_optional(wn_here: RunHere) -> None:
    for command in ("apply", "remove", "convert"):
        shown = wn_here(command, "--help").stdout
        assert f"wn {command} CHECKPOINT OUTPUT [OPTIONS]" in shown
        assert "[OUTPUT]" not in shown
        assert "{CHECKPOINT}" not in shown
    assert "wn compare A B [OPTIONS]" in wn_here("compare", "--help").stdout


def test_help_says_once_that_buffers_count(wn_here: RunHere) -> None:
    said = [wn_here(*command.split(), "--help").stdout for command in ("", *COMMANDS)]
    assert sum(shown.count("include buffers") for shown in said) == 1


def test_every_command_has_three_examples() -> None:
    assert set(EXAMPLES) == {"", *COMMANDS}
    for command, examples in EXAMPLES.items():
        assert len(examples) == 3
        assert all(example.startswith(f"wn {command}") for example, _ in examples)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sample models and a `wn`, where examples are typed one after the other."""
    made = tmp_path_factory.mktemp("examples")
    (made / "sample_models").symlink_to(SAMPLES)
    program = made / "bin" / "wn"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m wncli "$@"\n')
    program.chmod(0o755)
    return made


@pytest.mark.parametrize("command", EXAMPLES)
@pytest.mark.parametrize("width", [40, 100])
def test_the_examples_work_as_shown(
    command: str, width: int, wn: Wn, folder: Path, tmp_path: Path
) -> None:
    shown = wn(*command.split(), "--help", COLUMNS=str(width)).stdout
    lines = shown.partition("Examples:\n")[2].replace("\\\n", "")
    typed = re.findall(r"^    (wn .*)$", lines, re.MULTILINE)
    assert len(typed) == 3
    (tmp_path / "sample_models").symlink_to(SAMPLES)
    for line in typed:
        ran = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment(PATH=f"{folder / 'bin'}:/usr/bin:/bin"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ran.stdout, line
        assert not ran.stderr.startswith("error"), ran.stderr
        assert ran.returncode == (1 if "--only model=ema" in line else 0)  # these do differ


def test_an_example_that_names_no_sample_is_about_the_tool_itself() -> None:
    for examples in EXAMPLES.values():
        for example, _ in examples:
            named = re.findall(r"sample_models/[\w.]+", example)
            assert named or example.startswith("wn help")
            assert all((ROOT / path).exists() for path in named)
