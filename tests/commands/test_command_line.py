"""The command line: what goes where, exit codes, terminals, and what cannot be printed as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from safetensors.torch import load_file
from torch import nn

import wncli
from tests.support.run import SAMPLES, Ran, Wn, environment, on_a_terminal
from wncli.cli import page

pytestmark = pytest.mark.thinned(5)

COMMANDS = ("inspect", "apply", "remove", "convert", "compare")
RunHere = Callable[..., Ran]
HALVES = ("weight_g", "weight_v")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# What goes where


def test_reports_go_to_stdout_and_warnings_to_stderr(wn: Wn, tmp_path: Path) -> None:
    ran = wn("remove", SAMPLES / "training.pt", tmp_path / "out.pt")
    assert ran.code == 0
    assert "folded 2 layers" in ran.stdout
    assert "warning" not in ran.stdout
    assert ran.stderr.startswith("warning: ")
    assert "--drop optimizer" in ran.stderr


@pytest.mark.parametrize("sample", ["linear.pt", "bfloat16.safetensors", "hifigan_generator"])
def test_a_run_without_warnings_leaves_stderr_empty(
    sample: str, wn_here: RunHere, tmp_path: Path
) -> None:
    command = "apply" if sample == "linear.pt" else "remove"
    ran = wn_here(command, SAMPLES / sample, tmp_path / "out.pt")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout


def test_the_report_shows_the_change_in_parameters(wn_here: RunHere, tmp_path: Path) -> None:
    shown = wn_here("apply", SAMPLES / "linear.pt", tmp_path / "out.pt").stdout
    assert "18 → 21 (+3)" in shown
    shown = wn_here("remove", tmp_path / "out.pt", tmp_path / "again.pt").stdout
    assert "21 → 18 (-3)" in shown


def test_without_a_terminal_nothing_is_cut_off_or_coloured(
    wn_here: RunHere, tmp_path: Path
) -> None:
    name = ".".join(f"module{number}" for number in range(60))
    state = {f"{name}.weight_g": torch.ones(2, 1), f"{name}.weight_v": torch.ones(2, 2)}
    torch.save(state, tmp_path / "in.pt")
    shown = wn_here("inspect", tmp_path / "in.pt").stdout
    assert f"{name}.weight" in shown
    assert "\x1b" not in shown


def test_json_is_all_there_is_on_stdout(wn: Wn, tmp_path: Path) -> None:
    ran = wn("remove", SAMPLES / "training.pt", tmp_path / "out.pt", "--json")
    assert ran.code == 0
    assert json.loads(ran.stdout)["command"] == "remove"
    notes = json.loads(ran.stdout)["notes"]
    assert [note["code"] for note in notes] == ["optimizer"]


def test_a_refusal_is_json_on_stdout_and_text_on_stderr(wn_here: RunHere, tmp_path: Path) -> None:
    ran = wn_here("inspect", tmp_path / "none.pt", "--json")
    assert (ran.code, json.loads(ran.stdout)["error"]["problem"]) == (2, "no such file")
    assert ran.stderr.startswith("error: ")


def test_quiet_prints_nothing_of_a_run_that_went_well(wn_here: RunHere, tmp_path: Path) -> None:
    ran = wn_here("remove", SAMPLES / "training.pt", tmp_path / "out.pt", "-q")
    assert ran == Ran(0, "", "")
    assert (tmp_path / "out.pt").exists()
    ran = wn_here("remove", SAMPLES / "training.pt", tmp_path / "out.pt", "--quiet")
    assert ran.code == 2
    assert "exists already" in ran.stderr


def test_quiet_inspect_says_by_its_exit_code_alone_whether_there_is_weight_norm(
    wn_here: RunHere,
) -> None:
    assert wn_here("inspect", "-q", SAMPLES / "lstm.pt") == Ran(0, "", "")
    assert wn_here("inspect", "-q", SAMPLES / "linear.pt") == Ran(1, "", "")
    assert wn_here("inspect", "-q", SAMPLES / "lstm.pt", SAMPLES / "linear.pt") == Ran(1, "", "")


# Exit codes


@pytest.mark.parametrize(
    ("command", "sample"), [("remove", "linear.pt"), ("apply", "lstm.pt"), ("apply", "linear.pt")]
)
def test_nothing_to_do_is_exit_code_1_and_writes_nothing(
    command: str, sample: str, wn_here: RunHere, tmp_path: Path
) -> None:
    options = ["-x", "*"] if (command, sample) == ("apply", "linear.pt") else []
    for more in ([], ["--json"]):
        ran = wn_here(command, SAMPLES / sample, tmp_path / "out.pt", *options, *more)
        assert ran.code == 1
        assert ran.stderr.startswith("nothing to do: ")
        assert "Traceback" not in ran.stderr
        if more:
            assert json.loads(ran.stdout)["layers"] == []
        else:
            assert ran.stdout == ""
    assert not list(tmp_path.iterdir())


def test_an_input_may_be_its_own_output_with_force(wn_here: RunHere, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(SAMPLES / "bfloat16.safetensors", path)
    path.chmod(0o640)
    before = path.read_bytes()
    refused = wn_here("remove", path, path)
    assert refused.code == 2
    assert "keeps both" in refused.stderr
    assert path.read_bytes() == before
    assert wn_here("remove", path, path, "--force").code == 0
    assert not any(name.endswith("_g") for name in load_file(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_link_stays_a_link_to_the_new_content(wn_here: RunHere, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    shutil.copy(SAMPLES / "lstm.pt", tmp_path / "store" / "blob")
    link = tmp_path / "model.pt"
    link.symlink_to(Path("store") / "blob")
    assert wn_here("remove", link, link, "--force").code == 0
    assert link.is_symlink()
    loaded = torch.load(tmp_path / "store" / "blob", weights_only=True)
    assert "weight_hh_l0" in loaded


def test_a_new_file_has_the_permissions_that_new_files_have(
    wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "other").touch()
    assert wn_here("apply", SAMPLES / "linear.pt", tmp_path / "out.safetensors").code == 0
    modes = {(tmp_path / name).stat().st_mode for name in ("other", "out.safetensors")}
    assert len(modes) == 1


SLOW = """
import os, sys, time, wncli.fill.fill
real = os.pwrite
def slow(*arguments):
    print("writing", file=sys.stderr, flush=True)
    time.sleep(0.1)
    return real(*arguments)
os.pwrite = slow
sys.argv[0] = "wn"
from wncli.cli import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_what_was_there(number: signal.Signals, tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    target.write_bytes(b"precious")
    arguments = ["remove", str(SAMPLES / "hifigan_generator"), str(target), "--force"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "writing\n"
        started = time.monotonic()
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.replace("writing\n", "").startswith("interrupted: ")
    assert "Traceback" not in stderr
    assert time.monotonic() - started < 5
    assert [path.name for path in tmp_path.iterdir()] == ["out.pt"]
    assert target.read_bytes() == b"precious"


def test_an_interruption_while_starting_shows_no_traceback(tmp_path: Path) -> None:
    """By an import of a library that takes long, as on a slow disk."""
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join((str(tmp_path), environment()["PYTHONPATH"]))
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", "inspect", str(SAMPLES / "linear.pt")],
        env=environment(PYTHONPATH=paths),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in ran.stderr
    assert ran.returncode == 130


# Readers that go away


def many_layers(folder: Path) -> Path:
    """A checkpoint whose report is longer than any buffer."""
    state = {}
    for number in range(400):
        name = f"layer{number}." + "deep." * 40
        state[f"{name}weight_g"] = torch.ones(1, 1)
        state[f"{name}weight_v"] = torch.ones(1, 1)
    torch.save(state, folder / "many.pt")
    return folder / "many.pt"


@pytest.mark.parametrize("options", [(), ("--json",), ("--tensors",)])
def test_a_reader_that_goes_away_ends_the_run_quietly(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "wncli", "inspect", str(many_layers(tmp_path)), *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
        code = process.wait(60)
    assert stderr == b""
    assert code == 0  # as the reader has what it wanted; 1 would say that there was nothing to do


@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_failure(closing: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            *("bash", "-c", f'exec "$@" {closing}', "bash", sys.executable, "-m", "wncli"),
            *("remove", str(SAMPLES / "training.pt"), str(tmp_path / "out.pt")),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in ran.stderr
    assert "defect" not in ran.stderr
    assert ran.returncode == 0
    assert (tmp_path / "out.pt").exists()


def test_a_full_device_for_the_report_is_no_defect() -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "wncli", "inspect", str(SAMPLES / "training.pt")],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert "No space left on device" in ran.stderr
    assert "defect" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


# Terminals


def test_colours_are_for_terminals_that_want_them() -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)[;m]")
    code, shown = on_a_terminal("inspect", "none.pt")
    assert code == 2
    assert colour.search(shown)
    _, shown = on_a_terminal("inspect", "none.pt", NO_COLOR="1")
    assert not colour.search(shown)
    assert "error: none.pt: no such file" in ESCAPES.sub("", shown)


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
@pytest.mark.parametrize(
    "arguments",
    [("inspect",), ("inspect", "--stats"), ("inspect", "--tensors"), ("remove", "-v")],
    ids=" ".join,
)
def test_no_line_is_wider_than_the_terminal_and_no_name_is_broken(
    arguments: tuple[str, ...], columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "encoder.pos_conv_embed.convolution_of_many_channels"
    layers = [f"{name}.{n}" for n in range(3)]
    state = {f"{layer}.{half}": torch.ones(4, 1) for layer in layers for half in HALVES}
    state[f"{name}.bias"] = torch.ones(4)
    torch.save({"state_dict": state, "epoch": 3}, "in.pt")
    command, *options = arguments
    target = [] if command == "inspect" else ["out.pt"]
    code, shown = on_a_terminal(command, "in.pt", *target, *options, COLUMNS=str(columns))
    assert code == 0
    lines = ESCAPES.sub("", shown).splitlines()
    lines = lines[: next((n for n, line in enumerate(lines) if " wn " in line), None)]
    assert all(cell_len(line) <= columns for line in lines)
    named = [line for line in lines if re.match(r" \w+\S*(\d|_[gv]|bias)\b", line)]
    assert len(named) >= 3
    for line in named:
        (word,) = line.split()[:1]
        front, cut, back = word.partition("…")
        full = {*layers, *state}
        assert any(one.startswith(front) and one.endswith(back) for one in full)
        assert cut or word in full


@pytest.mark.slow
def test_a_progress_bar_is_for_terminals_and_long_runs(wn: Wn, tmp_path: Path) -> None:
    quietly = SLOW.replace('print("writing", file=sys.stderr, flush=True)', "")
    start = ("-c", quietly.replace("0.1", "0.2"))
    arguments = ("remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--force")
    code, shown = on_a_terminal(*arguments, start=start, COLUMNS="80")
    assert code == 0
    assert "━" in shown
    assert shown.rindex("\x1b[2K") < shown.index("folded 2 layers")  # and it is gone again
    code, shown = on_a_terminal(*arguments, "-q", start=start, COLUMNS="80")
    assert (code, shown) == (0, "")
    assert wn(*arguments).stderr == ""


SHOWN: dict[str, tuple[str | Path, ...]] = {
    "inspect": ("inspect", SAMPLES / "training.pt"),
    "inspect, nothing": ("inspect", "plain.pt"),
    "wide characters": ("inspect", "wide.pt"),
    "a check": ("inspect", SAMPLES / "wavenet.pt", "--check"),
    "remove": ("remove", SAMPLES / "training.pt", "out.pt", "--dry-run"),
    "equal": ("compare", SAMPLES / "wavenet.pt", SAMPLES / "wavenet.pt"),
    "different": ("compare", "one.pt", "other.pt"),
    "refused": ("remove", "none.pt", "out.pt"),
}


@pytest.mark.parametrize("arguments", SHOWN.values(), ids=SHOWN)
def test_plain_text_is_what_rich_draws_without_its_colours(
    arguments: tuple[str | Path, ...], wn: Wn, tmp_path: Path
) -> None:
    torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "plain.pt")
    pair = {"é模型.weight_g": torch.ones(2, 1), "é模型.weight_v": torch.ones(2, 2)}
    torch.save({"模型": pair | {"b.bias": torch.ones(2)}, "epoch": 1}, tmp_path / "wide.pt")
    for name, factor in (("one.pt", 1), ("other.pt", 1.5)):
        torch.save({"a.bias": torch.ones(3), "weight": factor * torch.ones(2)}, tmp_path / name)
    plain = wn(*arguments, cwd=tmp_path)
    coloured = wn(*arguments, cwd=tmp_path, FORCE_COLOR="1", TERM="xterm-256color")
    assert "\x1b" in coloured.stdout + coloured.stderr
    for ours, theirs in ((plain.stdout, coloured.stdout), (plain.stderr, coloured.stderr)):
        drawn = ESCAPES.sub("", theirs)
        lines = [line.rstrip() for line in ours.splitlines()]
        assert lines == [line.rstrip() for line in drawn.splitlines()]


# Names from strangers

EVIL = "evil\x1b[2J\x1b]0;title\x07\r\u202e.layer"


@pytest.mark.parametrize("command", ["inspect", "remove"])
def test_names_that_would_steer_the_terminal_are_shown_escaped(
    command: str, wn_here: RunHere, tmp_path: Path
) -> None:
    state = {
        f"{EVIL}.weight_g": torch.ones(2, 1),
        f"{EVIL}.weight_v": torch.ones(2, 2),
        f"{EVIL}.weight": torch.zeros(2, 2),
    }
    torch.save({EVIL: state, f"{EVIL} too": EVIL, EVIL + "\n": 1}, tmp_path / "in.pt")
    target = [] if command == "inspect" else [tmp_path / "out.pt"]
    for option in ([], ["-q"], ["--json"]):
        force = ["--force"] if target else []
        ran = wn_here(command, tmp_path / "in.pt", *target, *option, *force)
        assert ran.code == 0
        for shown in (ran.stdout, ran.stderr):
            assert not set(shown) & {"\x1b", "\x07", "\r", "\u202e"}
    assert f"{EVIL}.weight" in torch.load(tmp_path / "in.pt")[EVIL]


def test_names_in_refusals_are_shown_escaped(wn_here: RunHere, tmp_path: Path) -> None:
    torch.save({f"{EVIL}.weight_g": torch.ones(2, 1)}, tmp_path / "in.pt")
    for arguments in (
        ("remove", tmp_path / "in.pt", tmp_path / "out.pt"),
        ("inspect", tmp_path / EVIL),
        ("inspect", tmp_path / "in.pt", "-l", EVIL),
        ("inspect", "a", "b", EVIL),
        ("apply", tmp_path / "in.pt", tmp_path / "out.pt", "--naming", EVIL),
    ):
        ran = wn_here(*arguments)
        assert ran.code == 2
        assert not set(ran.stderr) & {"\x1b", "\x07", "\r", "\u202e"}
        assert "evil\\x1b" in ran.stderr


def test_a_line_break_in_a_name_cannot_forge_a_line(wn_here: RunHere, tmp_path: Path) -> None:
    name = "a\nerror: run rm -rf\n"
    torch.save({f"{name}.weight_g": torch.ones(2, 1)}, tmp_path / "in.pt")
    refused = wn_here("remove", tmp_path / "in.pt", tmp_path / "out.pt")
    assert refused.code == 2
    assert not any(line.startswith("error: run") for line in refused.stderr.splitlines())
    listed = wn_here("inspect", tmp_path / "in.pt")
    for shown in (listed.stdout, listed.stderr):
        assert not any(line.startswith("error: run") for line in shown.splitlines())


def test_markup_in_names_is_shown_as_it_is(wn_here: RunHere, tmp_path: Path) -> None:
    name = "[bold]a[/bold] :smile: [link=x]"
    state = {f"{name}.weight_g": torch.ones(2, 1), f"{name}.weight_v": torch.ones(2, 2)}
    torch.save(state, tmp_path / "in.pt")
    assert f"{name}.weight" in wn_here("inspect", tmp_path / "in.pt").stdout


def test_file_names_that_are_no_text_can_be_used(wn: Wn, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.pt"))
    shutil.copy(SAMPLES / "lstm.pt", path)
    ran = wn("inspect", path)
    assert ran.code == 0
    assert "weight_hh_l0" in ran.stdout
    ran = wn("inspect", path, "--json")
    assert json.loads(ran.stdout)["checkpoint"] == str(path)


IN, OUT, NONE = "модель é.pt", "выход.pt", "нет.pt"
SAID: dict[str, tuple[str, ...]] = {
    "listed": ("inspect", IN),
    "all tensors": ("inspect", IN, "--tensors"),
    "statistics": ("inspect", IN, "--stats"),
    "a check": ("inspect", IN, "--check"),
    "removed": ("remove", IN, OUT, "--force"),
    "several": ("remove", IN, NONE, "--output-dir", "папка", "--dry-run"),
    "converted": ("convert", IN, OUT, "--naming", "parametrized", "--dry-run"),
    "applied": ("apply", IN, OUT, "--dry-run", "-l", "模.rest"),
    "different": ("compare", IN, "other.pt"),
    "nothing to do": ("apply", IN, OUT, "-x", "*"),
    "no such file": ("inspect", NONE),
    "no such layer": ("remove", IN, OUT, "-l", "模模*"),
    "no such option": ("inspect", "--模"),
    "no such choice": ("convert", IN, OUT, "--format", "模"),
    "version": ("--version", "-v"),
}


def as_shown(text: str, encoding: str) -> str:
    """A text as a console of that encoding can show it, without blanks and with short rules."""
    text = re.sub(r"\d+\.\d s\b", "0.0 s", text.rpartition("\x1b[2K")[2])
    bars = zip("▁▂▃▄▅▆▇█", ".:-=+*%#", strict=True)
    others = zip("─→…×·‖Δ°", ["-", "->", "...", "x", ".", "||", "d", " deg"], strict=True)
    for char, alike in (*others, ("✓", "+"), ("✗", "!"), *bars):
        if not char.encode(encoding, "ignore"):
            text = text.replace(char, alike)
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    return re.sub("[-─]{2,}", "--", "".join(ESCAPES.sub("", text).split()))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files whose names, and names in them, are no Latin."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, factor in ((IN, 1.0), ("other.pt", 1.5)):
        pair = {"模.é.weight_g": torch.ones(2, 1), "模.é.weight_v": factor * torch.eye(2)}
        more = {"模.rest": factor * torch.ones(2, 2), "b.bias": torch.ones(3)}
        torch.save({"сеть": pair | more, "эпоха": 1, "log": Namespace(a=1)}, folder / name)
    return folder


@pytest.mark.parametrize("arguments", SAID.values(), ids=SAID)
def test_a_console_of_another_encoding_shows_the_same_and_escapes_what_it_lacks(
    arguments: tuple[str, ...], wn: Wn, foreign: Path
) -> None:
    usual = wn(*arguments, cwd=foreign)
    assert usual.stdout + usual.stderr
    for encoding, errors in (("cp1252", ""), ("ascii", ":strict")):
        ran = wn(*arguments, cwd=foreign, PYTHONIOENCODING=encoding + errors)
        assert ran.code == usual.code
        assert as_shown(ran.stdout, encoding) == as_shown(usual.stdout, encoding)
        assert as_shown(ran.stderr, encoding) == as_shown(usual.stderr, encoding)
        assert "defect" not in ran.stderr


@pytest.mark.parametrize("what", ["listed", "removed", "different", "no such layer"])
def test_a_terminal_of_another_encoding_shows_the_same(
    what: str, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(foreign)
    code, usual = on_a_terminal(*SAID[what], COLUMNS="250")
    for encoding in ("cp1252", "ascii", "latin-1", "cp437"):
        ran = on_a_terminal(*SAID[what], COLUMNS="250", PYTHONIOENCODING=encoding)
        assert (ran[0], as_shown(ran[1], encoding)) == (code, as_shown(usual, encoding))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_shown_on_consoles_of_other_encodings(command: str, wn: Wn) -> None:
    arguments = [*command.split(), "--help"]
    usual, *others = (
        wn(*arguments, PYTHONIOENCODING=encoding).stdout
        for encoding in ("utf-8", "cp1252", "ascii:strict")
    )
    words = re.compile(r"--?[a-z-]*[a-z]+")
    assert all(set(words.findall(shown)) == set(words.findall(usual)) for shown in others)
    code, shown = on_a_terminal(*arguments, PYTHONIOENCODING="ascii:strict")
    assert code == 0
    assert "--help" in ESCAPES.sub("", shown)


def test_a_progress_bar_is_shown_where_only_ascii_can_be(tmp_path: Path) -> None:
    quietly = SLOW.replace('print("writing", file=sys.stderr, flush=True)', "").replace(
        "0.1", "0.2"
    )
    arguments = ("remove", SAMPLES / "lstm.pt", tmp_path / "out.pt")
    code, shown = on_a_terminal(
        *arguments, start=("-c", quietly), COLUMNS="80", PYTHONIOENCODING="ascii:strict"
    )
    assert code == 0
    assert "------" in ESCAPES.sub("", shown[: shown.index("folded 2 layers")])


def test_file_names_that_begin_with_a_dash_follow_two_dashes(wn: Wn, tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "lstm.pt", tmp_path / "-x.pt")
    ran = wn("remove", "--", "-x.pt", "-y.pt", cwd=tmp_path)
    assert ran.code == 0
    assert "weight_hh_l0" in torch.load(tmp_path / "-y.pt")


# Formats and options


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".th", ".bin", ".pkl", ".tar", ".PT"])
def test_torch_suffixes_give_torch_files(suffix: str, wn_here: RunHere, tmp_path: Path) -> None:
    target = tmp_path / f"out{suffix}"
    assert wn_here("apply", SAMPLES / "linear.pt", target).code == 0
    assert set(torch.load(target, weights_only=True)) == {"weight_g", "weight_v", "bias"}


def test_the_format_can_be_chosen_whatever_the_suffix(wn_here: RunHere, tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    ran = wn_here("apply", SAMPLES / "linear.pt", target, "--format", "safetensors")
    assert ran.code == 0
    assert set(load_file(target)) == {"weight_g", "weight_v", "bias"}


def test_without_a_suffix_the_format_is_the_inputs(wn_here: RunHere, tmp_path: Path) -> None:
    assert wn_here("remove", SAMPLES / "hifigan_generator", tmp_path / "g_0001").code == 0
    assert list(torch.load(tmp_path / "g_0001", weights_only=True)) == ["generator"]
    assert wn_here("remove", SAMPLES / "bfloat16.safetensors", tmp_path / "codec").code == 0
    assert load_file(tmp_path / "codec")


def test_options_do_what_the_functions_do(wn_here: RunHere, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 4), nn.Linear(3, 2), nn.Linear(2, 2))
    torch.save({"model": model.state_dict(), "epoch": 3, "log": [1]}, tmp_path / "in.pt")
    ran = wn_here(
        *("apply", tmp_path / "in.pt", tmp_path / "ours.pt", "--json"),
        *("-l", "0=2", "--layers", "*", "-x", "2", "--dim", "none"),
        *("--naming", "parametrized", "--drop", "log", "--drop", "epoch"),
    )
    assert ran.code == 0
    report = wncli.apply(
        tmp_path / "in.pt",
        tmp_path / "theirs.pt",
        layers=["0=2", "*"],
        exclude=["2"],
        dim=None,
        naming="parametrized",
        drop=["log", "epoch"],
    )
    found = json.loads(ran.stdout)
    expected = json.loads(json.dumps(report.to_json()))
    assert found["layers"] == expected["layers"]
    assert [layer["dim"] for layer in found["layers"]] == [2, None]
    ours, theirs = (torch.load(tmp_path / f"{name}.pt") for name in ("ours", "theirs"))
    assert list(ours) == list(theirs) == ["model"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("apply", "--naming", "x"), ("--naming", "auto or hook or parametrized", "x")),
        (("convert", "--naming", "auto"), ("--naming", "hook or parametrized", "auto")),
        (("remove", "--format", "onnx"), ("--format", "torch or safetensors", "onnx")),
        (("remove", "--format", "", "--output-dir", "o"), ("--format", "torch or safetensors")),
        (("apply", "--dim", "x"), ("--dim", "'x' is not a dim", "whole number")),
        (("compare", "--rtol", "x"), ("--rtol", "not a number", "x")),
        (("compare", "--atol", "-1"), ("--atol", "0 or more", "-1")),
        (("compare", "--atol", "nan"), ("--atol", "0 or more", "nan")),
    ],
)
def test_a_word_that_an_option_does_not_take_is_refused_with_what_it_takes(
    arguments: tuple[str, ...], said: tuple[str, ...], wn_here: RunHere, tmp_path: Path
) -> None:
    command, *options = arguments
    other = tmp_path / "out.pt" if command != "compare" else SAMPLES / "lstm.pt"
    ran = wn_here(command, SAMPLES / "lstm.pt", other, *options)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert all(part in ran.stderr for part in said)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_prints_the_report_and_writes_nothing(wn_here: RunHere, tmp_path: Path) -> None:
    ran = wn_here("remove", SAMPLES / "lstm.pt", tmp_path / "out.pt", "--dry-run", "--json")
    assert ran.code == 0
    assert len(json.loads(ran.stdout)["layers"]) == 2
    assert not list(tmp_path.iterdir())


# Help

OPTIONS = {
    "inspect": {"--layers", "--exclude", "--only", "--json", "--quiet"},
    "remove": {
        *("--layers", "--exclude", "--only", "--json", "--quiet"),
        *("--format", "--dry-run", "--force", "--drop"),
    },
}
OPTIONS["apply"] = OPTIONS["remove"] | {"--dim", "--naming"}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_shows_every_option(command: str, wn: Wn) -> None:
    ran = wn(command, "--help", COLUMNS="100")
    assert (ran.code, ran.stderr) == (0, "")
    shown = set(re.findall(r"(?<![\w-])--[a-z-]+", ran.stdout))
    assert shown >= OPTIONS[command] | {"--help"}
    assert set(re.findall(r"(?<![\w-])-[a-z]\b", ran.stdout)) >= {"-l", "-x", "-q"}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_shows_the_commands_and_exit_codes(
    arguments: tuple[str, ...], wn_here: RunHere
) -> None:
    ran = wn_here(*arguments)
    assert (ran.code, ran.stderr) == (0, "")
    for word in ("inspect", "apply", "remove", "--version", "130"):
        assert word in ran.stdout


def test_version_is_the_packages(wn_here: RunHere) -> None:
    assert wn_here("--version") == Ran(0, f"wn {wncli.__version__}\n", "")


# Tables on a terminal

CELLS = st.text(st.sampled_from("ab.模é"), min_size=1, max_size=40)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1), st.integers(44, 130))
def test_columns_stand_under_one_another_and_go_where_there_is_no_room(
    rows: list[tuple[str, ...]], width: int
) -> None:
    columns = (
        page.Column("name", is_name=True),
        page.Column("b", is_right=True, goes=2),
        page.Column("c", goes=1),
    )
    rows = [(name, "b" * cell_len(b), "c" * min(9, cell_len(c))) for name, b, c in rows]
    head, rule, *lines = texts(page.Table(columns, rows), width)[1:-1]
    assert all(cell_len(line) < width for line in (head, rule, *lines))
    assert len(lines) == len(rows)
    longest = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    all_fit = 1 + min(max(longest[0], 4), 26) + 2 + longest[1] + 2 + longest[2] < width
    assert ("b" in head, "c" in head) == (all_fit, True)
    for line, (name, b, c) in zip(lines, rows, strict=True):
        shown, *others = line.split()
        assert others == [b] * all_fit + [c]
        assert cell_len(line) <= cell_len(rule)
        front, cut, back = shown.partition("…")
        assert name == shown or (cut and name.startswith(front) and name.endswith(back))
        if all_fit:  # flush right
            assert cell_len(line[: line.rindex(b) + len(b)]) == cell_len(rule) - longest[2] - 2


def texts(table: page.Table, width: int | None, encoding: str = "utf-8") -> list[str]:
    """The lines of a table without their styles."""
    lines = table.lines(width, encoding)
    return ["".join(part if isinstance(part, str) else part[0] for part in line) for line in lines]


@given(st.lists(st.text(st.sampled_from("ab模"), min_size=1, max_size=30)), st.integers(20, 90))
def test_lines_are_wrapped_at_blanks_alone(words: list[str], width: int) -> None:
    drawn = page.Page()
    drawn.line("  ", (" ".join(words), "bold"), hang=6)
    found = drawn.lines(width, "utf-8")
    lines = ["".join(p if isinstance(p, str) else p[0] for p in line) for line in found]
    assert " ".join(lines).split() == words
    longest = max(map(cell_len, words), default=0)
    indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
    assert len(indents) <= 1
    assert all(indent == 6 if longest <= width - 6 else 1 <= indent < 6 for indent in indents)
    for line in lines:
        assert cell_len(line) <= width or (len(line.split()) == 1 and longest > width - 3)
