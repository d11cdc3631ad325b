"""Where an output goes: into a folder that is there, as `cp` does it, and to stdout."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wncli
from tests.support.run import SAMPLES, Ran, Wn, environment, on_a_terminal

RunHere = Callable[..., Ran]
LSTM = SAMPLES / "lstm.pt"


@pytest.mark.parametrize("slash", ["", "/"])
def test_an_existing_folder_gets_a_file_of_the_same_name(
    slash: str, wn_here: RunHere, tmp_path: Path
) -> None:
    for folder in ("folder", "folder.pt"):
        (tmp_path / folder).mkdir()
        target = f"{tmp_path / folder}{slash}"
        assert wn_here("remove", LSTM, target).code == 0
        assert "weight_hh_l0" in torch.load(tmp_path / folder / "lstm.pt")
        assert wn_here("convert", LSTM, target, "--format", "safetensors").code == 0
        assert "weight_hh_l0_g" in load_file(tmp_path / folder / "lstm.safetensors")
        assert len(list((tmp_path / folder).iterdir())) == 2


def test_what_is_in_an_existing_folder_is_replaced_with_force_alone(
    wn_here: RunHere, tmp_path: Path
) -> None:
    shutil.copy(SAMPLES / "linear.pt", tmp_path / "lstm.pt")
    before = (tmp_path / "lstm.pt").read_bytes()
    ran = wn_here("remove", LSTM, tmp_path)
    assert (ran.code, ran.stdout) == (2, "")
    assert f"error: {tmp_path / 'lstm.pt'}: OUTPUT exists already" in ran.stderr
    assert "--output-dir" not in ran.stderr
    assert (tmp_path / "lstm.pt").read_bytes() == before
    itself = wn_here("remove", tmp_path / "lstm.pt", tmp_path)
    assert "CHECKPOINT itself" in itself.stderr
    assert wn_here("remove", LSTM, tmp_path, "-f").code == 0
    assert "weight_hh_l0" in torch.load(tmp_path / "lstm.pt")


def test_the_function_does_the_same_and_says_where(tmp_path: Path) -> None:
    report = wncli.remove(LSTM, tmp_path)
    assert report.output == str(tmp_path / "lstm.pt")


def test_shards_stay_a_folder_of_their_own(wn_here: RunHere, tmp_path: Path) -> None:
    sample = SAMPLES / "bfloat16.safetensors"
    for name in ("made", "again"):
        (tmp_path / name).mkdir()
    assert wn_here("convert", sample, tmp_path / "made", "--max-shard-size", "5KB").code == 0
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert "model.safetensors.index.json" in names
    assert wn_here("convert", tmp_path / "made", tmp_path / "again").code == 0
    assert {path.name for path in (tmp_path / "again").iterdir()} == names


def test_one_of_several_does_not_go_into_a_folder_of_its_name(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "lstm.pt").mkdir()
    ran = wn_here("remove", LSTM, "--output-dir", tmp_path)
    assert ran.code == 2
    assert "is a directory" in ran.stderr
    assert not list((tmp_path / "lstm.pt").iterdir())


def test_another_checkpoint_as_output_is_said_to_be_one(wn_here: RunHere, tmp_path: Path) -> None:
    for name, sample in (("la.pt", "lstm.pt"), ("lb.pt", "wavenet.pt")):
        shutil.copy(SAMPLES / sample, tmp_path / name)
    before = (tmp_path / "lb.pt").read_bytes()
    ran = wn_here("remove", tmp_path / "la.pt", tmp_path / "lb.pt")
    assert (ran.code, ran.stdout) == (2, "")
    first, *_, hint = ran.stderr.splitlines()
    assert first == f"error: {tmp_path / 'lb.pt'}: OUTPUT exists already, and is a checkpoint"
    assert hint.index("--output-dir DIR writes both") < hint.index("--force replaces it")
    assert hint.endswith("what it holds is lost")
    assert (tmp_path / "lb.pt").read_bytes() == before


def test_a_dry_run_shows_its_plan_where_the_output_exists_and_touches_nothing(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "out.pt").write_bytes(b"mine")
    ran = wn_here("remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--dry-run")
    assert (ran.code, ran.stderr) == (0, "")
    assert "would fold 2 layers" in ran.stdout
    assert "exists already: without --force it is refused" in ran.stdout
    assert (
        "exists"
        not in wn_here(
            "remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--dry-run", "--force"
        ).stdout
    )
    assert (tmp_path / "out.pt").read_bytes() == b"mine"


# `-`


def piped(
    line: str, folder: Path, tmp_path: Path, **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """Type a line in a shell, beside the samples; what temporary files it leaves is looked at."""
    temporary = tmp_path / "temporary"
    temporary.mkdir(exist_ok=True)
    ran = subprocess.run(
        ["bash", "-c", f'wn() {{ {shlex.quote(sys.executable)} -m wncli "$@"; }}; {line}'],
        cwd=folder, env=environment(TMPDIR=str(temporary), **extra), capture_output=True,
        stdin=subprocess.DEVNULL, check=False, timeout=60,
    )  # fmt: skip
    assert not list(temporary.iterdir())
    return ran


@pytest.mark.parametrize("sample", ["lstm.pt", "bfloat16.safetensors", "hifigan_generator"])
@pytest.mark.parametrize("typed", ["cat {} | wn inspect - --json", "wn inspect - --json < {}"])
def test_stdin_is_read_as_the_file_is(sample: str, typed: str, wn: Wn, tmp_path: Path) -> None:
    ran = piped(typed.format(sample), SAMPLES, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, b"")
    expected = json.loads(wn("inspect", SAMPLES / sample, "--json").stdout)
    found = json.loads(ran.stdout)
    assert found | {"seconds": 0} == expected | {"seconds": 0, "checkpoint": "-"}


@pytest.mark.parametrize(
    "typed",
    [
        "wn remove {} - > {}",
        "cat {} | wn remove - - > {}",
        "wn remove - - < {} > {}",
        "wn remove - -o {1} < {0}",
        "cat {} | wn remove - - --verify | cat > {}",
    ],
)
def test_stdout_gets_what_a_file_would_and_stderr_the_report(
    typed: str, wn: Wn, tmp_path: Path
) -> None:
    line = typed.format(SAMPLES / "lstm.pt", tmp_path / "out.pt")
    ran = piped(line, tmp_path, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert b"2 layers" in ran.stdout + ran.stderr
    assert b"/dev/fd" not in ran.stderr
    assert b"/temporary/" not in ran.stderr
    assert wn("remove", SAMPLES / "lstm.pt", tmp_path / "expected.pt").code == 0
    ours, theirs = (torch.load(tmp_path / name) for name in ("out.pt", "expected.pt"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not (tmp_path / "-").exists()


def test_stdout_has_the_format_that_is_asked_for_and_json_goes_beside_it(tmp_path: Path) -> None:
    line = f"wn remove {SAMPLES / 'lstm.pt'} - --format safetensors --json > out 2> said"
    assert piped(line, tmp_path, tmp_path).returncode == 0
    assert "weight_hh_l0" in load_file(tmp_path / "out")
    said = json.loads((tmp_path / "said").read_text())
    assert (said["output"], said["output_format"]) == ("-", "safetensors")


def test_nothing_to_do_and_a_dry_run_leave_stdout_empty(tmp_path: Path) -> None:
    plain = piped("wn remove - - --json < linear.pt", SAMPLES, tmp_path)
    assert (plain.returncode, plain.stdout) == (1, b"")
    assert b'"checkpoint": "-"' in plain.stderr
    dry = piped("wn remove lstm.pt - -n", SAMPLES, tmp_path)
    assert (dry.returncode, dry.stdout) == (0, b"")


def test_both_sides_of_a_comparison_can_be_stdin_but_not_at_once(tmp_path: Path) -> None:
    for line in ("wn compare - lstm.pt < lstm.pt", "cat lstm.pt | wn compare lstm.pt -"):
        ran = piped(line, SAMPLES, tmp_path)
        assert ran.returncode == 0, ran.stderr
    twice = piped("wn compare - - < lstm.pt", SAMPLES, tmp_path)
    assert twice.returncode == 2
    assert b"stdin is read once" in twice.stderr
    like = "wn convert training.pt out.pt -n --like - < training.pt"
    assert piped(like, SAMPLES, tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("echo hello | wn inspect -", "error: -: "),
        ("wn inspect - <&-", "error: -: stdin is closed"),
        ("wn remove lstm.pt - >&-", "error: -: stdout is closed"),
        ("wn remove - . < lstm.pt", "error: .: what is read from stdin has no name"),
        ("wn remove - --output-dir . < lstm.pt", "error: -: what is read from stdin has no name"),
        ("wn remove lstm.pt - --max-shard-size 5KB", "error: -: stdout takes one file"),
        ("wn remove . - ", "error: -: stdout takes one file"),
        ("wn remove - ./x/y.pt < lstm.pt", "error: ./x/y.pt: the directory does not exist"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_and_called_as_it_was_typed(
    line: str, said: str, tmp_path: Path
) -> None:
    ran = piped(line, SAMPLES, tmp_path)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.decode().startswith(said.replace("./x", "x")), ran.stderr
    assert b"/dev/fd" not in ran.stderr


def test_a_terminal_gets_no_checkpoint_and_gives_none() -> None:
    for arguments in (("remove", SAMPLES / "lstm.pt", "-"), ("inspect", "-")):
        code, shown = on_a_terminal(*arguments)
        assert code == 2
        assert "is a terminal" in shown


def test_a_file_called_so_is_dot_slash_dash(tmp_path: Path) -> None:
    assert piped(f"wn remove {SAMPLES / 'lstm.pt'} ./-", tmp_path, tmp_path).returncode == 0
    assert "weight_hh_l0" in torch.load(tmp_path / "-")
    assert piped("wn inspect ./-", tmp_path, tmp_path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_temporary_file(number: signal.Signals, tmp_path: Path) -> None:
    slow = (
        "import os, sys, time, wncli.fill.fill\n"
        "real = os.pwrite\n"
        "def slow(*a):\n"
        "    print('writing', file=sys.stderr, flush=True)\n"
        "    time.sleep(0.1)\n"
        "    return real(*a)\n"
        "os.pwrite = slow\n"
        "sys.argv[0] = 'wn'\n"
        "from wncli.cli import main\nmain()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow, "remove", "-", "-"],
        env=environment(TMPDIR=str(tmp_path)), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write((SAMPLES / "hifigan_generator").read_bytes())
        process.stdin.close()
        assert process.stderr.readline() == b"writing\n"
        assert list(tmp_path.iterdir())
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert b"interrupted" in process.stderr.read()
        assert process.wait(30) == 130
    assert not list(tmp_path.iterdir())


def test_stdin_of_which_no_more_comes_can_be_interrupted(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "wncli", "inspect", "-"],
        env=environment(TMPDIR=str(tmp_path)), stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(bytes(1 << 20))
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    ran = piped("wn remove hifigan_generator - -q | head -c 10", SAMPLES, tmp_path)
    assert (ran.returncode, len(ran.stdout), ran.stderr) == (0, 10, b"")


def test_a_full_device_for_the_output_is_an_error(tmp_path: Path) -> None:
    ran = piped("wn remove hifigan_generator - -q > /dev/full", SAMPLES, tmp_path)
    assert ran.returncode == 2
    assert b"No space left on device" in ran.stderr


def test_names_that_no_file_can_have_are_refused_as_such(wn: Wn, tmp_path: Path) -> None:
    name = "x" * 300
    for arguments in ((LSTM, name), (name, "-"), (name,), ("-", name)):
        ran = wn(*(("remove", *arguments) if len(arguments) > 1 else arguments), cwd=tmp_path)
        assert ran.code == 2
        assert "defect" not in ran.stderr
        assert ran.stderr.startswith("error: ")
