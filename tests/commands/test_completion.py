"""Completion: what Tab offers, and what bash, zsh and fish make of it on a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

from tests.support.run import SAMPLES, Ran, Wn, environment
from tests.support.shells import CLEAR, STARTS, TAB, Shell, with_wn
from wncli.checkpoint.naming import SPELLINGS
from wncli.cli.commands import app
from wncli.cli.shells import script
from wncli.formats.registry import OFFERED, SUFFIXES

RunHere = Callable[..., Ran]
GROUP: Any = typer.main.get_command(app)
COMMANDS = ["inspect", "apply", "remove", "convert", "compare"]
GENERATOR, TRAINING = SAMPLES / "hifigan_generator", SAMPLES / "training.pt"
NORMALIZED = [
    name.removesuffix(".weight_g")
    for name in torch.load(GENERATOR, weights_only=True)["generator"]
    if name.endswith(".weight_g")
]
#: Shells are started for each test of theirs; those that are not here are said to be missing.
each_shell = pytest.mark.parametrize("shell", STARTS)


@pytest.fixture
def offered(wn_here: RunHere) -> Callable[..., list[str]]:
    """What is offered in place of the last of these words, without the explanations."""

    def offer(*words: str | Path) -> list[str]:
        *before, word = words
        ran = wn_here("--complete", "zsh", word, *before)
        assert (ran.code, ran.stderr) == (0, "")
        kind, *lines = ran.stdout.splitlines()
        assert kind in {"values", "open", "files", "folders"}
        return [line.partition("\t")[0] for line in lines] or [f"[{kind}]"]

    return offer


Offered = Callable[..., list[str]]


def test_commands_and_then_files_are_offered(offered: Offered) -> None:
    assert offered("") == [*COMMANDS, "help"]
    assert offered("co") == ["convert", "compare"]
    assert offered("sam") == ["[files]"]
    assert offered("help", "") == COMMANDS
    assert offered("inspect", "") == offered("compare", "a", "") == ["[files]"]
    assert offered("remove", "a", "--", "-") == ["[files]"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_all_options_are_offered(command: str, offered: Offered) -> None:
    found = GROUP.commands[command] if command else GROUP
    long = {max(one.opts, key=len) for one in found.params if one.param_type_name == "option"}
    assert {*offered(*command.split(), "-")} == long | {"--help"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("convert", "--naming", ""), list(SPELLINGS)),
        (("inspect", "--sort", "m"), ["min", "median", "max"]),
        (("apply", "--naming", ""), ["auto", *SPELLINGS]),
        (("remove", "--format", ""), list(OFFERED)),
        (("remove", "--format=s"), ["--format=safetensors"]),
        (("remove", "a", "--output-dir", ""), ["[folders]"]),
        (("convert", "--like", ""), ["[files]"]),
        (("convert", "-o", ""), ["[files]"]),
        (("remove", "--jobs", ""), ["[values]"]),
        (("--show-completion", ""), list(STARTS)),
    ],
)
def test_values_of_options_are_offered(
    words: tuple[str, ...], expected: list[str], offered: Offered
) -> None:
    assert offered(*words) == expected


@pytest.mark.parametrize("command", ["inspect", "remove", "convert"])
@pytest.mark.parametrize("option", ["-l", "-x", "--layers", "--exclude"])
def test_layers_and_what_has_several_below_it_are_offered(
    command: str, option: str, offered: Offered
) -> None:
    found = offered(command, GENERATOR, "out.pt", option, "")
    assert sorted(name for name in found if not name.endswith("*")) == sorted(NORMALIZED)
    parents = {".".join(name.split(".")[:n]) for name in NORMALIZED for n in range(1, 4)}
    several = {p for p in parents if sum(name.startswith(f"{p}.") for name in NORMALIZED) > 1}
    assert {name for name in found if name.endswith("*")} == {f"{p}.*" for p in several}
    assert offered(command, GENERATOR, option, "ups") == ["ups.0", "ups.1", "ups.*"]
    assert offered(command, option, "ups", GENERATOR, f"{option}", "ups.1") == ["ups.1"]


def test_what_is_offered_is_taken(offered: Offered, wn_here: RunHere) -> None:
    for rule in offered("inspect", GENERATOR, "-l", ""):
        assert wn_here("inspect", GENERATOR, "-l", rule).code == 0
    for root in offered("inspect", TRAINING, "--only", ""):
        assert wn_here("inspect", TRAINING, "--only", root).code == 0
    for entry in offered("remove", TRAINING, "--drop", ""):
        assert wn_here("remove", TRAINING, "x.pt", "-n", "--drop", entry).code in {0, 1}


def test_what_apply_and_compare_take_is_offered_to_them(offered: Offered, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 4), nn.LSTM(3, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    torch.save(model.state_dict(), tmp_path / "in.pt")
    recurrent = ["1.*", "1.weight_hh_l0", "1.weight_ih_l0"]
    assert sorted(offered("apply", tmp_path / "in.pt", "o", "-l", "")) == recurrent
    every = offered("compare", tmp_path / "in.pt", "o", "-l", "")
    vectors = ["0.bias", "1.bias_hh_l0", "1.bias_ih_l0"]
    assert sorted(every) == sorted(["0", *vectors, *recurrent])


def test_roots_and_entries_are_offered(offered: Offered) -> None:
    assert offered("remove", TRAINING, "--only", "") == ["model", "ema"]
    assert offered("remove", TRAINING, "--only=e") == ["--only=ema"]
    entries = [
        key for key in torch.load(TRAINING, weights_only=False) if key not in {"model", "ema"}
    ]
    assert offered("remove", TRAINING, "--drop", "") == [*entries, "model", "ema"]


def test_behind_an_equals_sign_the_other_checkpoints_roots_are_offered(offered: Offered) -> None:
    roots = ["ema=generator"]
    assert offered("compare", TRAINING, GENERATOR, "--only", "ema=") == roots
    assert offered("convert", TRAINING, "--like", GENERATOR, "--only", "ema=g") == roots
    assert offered("convert", TRAINING, "--only", f"--like={GENERATOR}", "-q", "") != roots
    assert offered("convert", TRAINING, "o", "--only", "ema=") == ["[values]"]


def test_many_layers_are_offered_part_by_part(offered: Offered, tmp_path: Path) -> None:
    names = [f"decoder.blocks.{i}.convs.{j}" for i in range(30) for j in range(5)]
    state = {
        f"{name}.weight_{half}": torch.ones(1, 1) for name in [*names, "post"] for half in "gv"
    }
    torch.save(state, tmp_path / "in.pt")
    assert offered("inspect", tmp_path / "in.pt", "-l", "") == ["decoder.", "post"]
    assert offered("inspect", tmp_path / "in.pt", "-l", "decoder.") == [
        "decoder.*",
        "decoder.blocks.",
    ]
    few = offered("inspect", tmp_path / "in.pt", "-l", "decoder.blocks.2.")
    assert few == ["decoder.blocks.2.*", *(f"decoder.blocks.2.convs.{j}" for j in range(5)),
                   "decoder.blocks.2.convs.*"]  # fmt: skip
    assert offered("inspect", tmp_path / "in.pt", "-l", "decoder.blocks.1")[1:3] == [
        "decoder.blocks.1.convs.0", "decoder.blocks.1.convs.1",
    ]  # fmt: skip


# What is damaged, or means ill

EVIL = [
    "$(touch pwned)",
    "`touch pwned`",
    "\\$(touch pwned)",
    "; touch pwned;",
    "'\"$(touch pwned)",
]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"{", b"\x80\x02}q\x00", b"\xff" * 999])
def test_a_damaged_file_has_no_names(content: bytes, wn: Wn, tmp_path: Path) -> None:
    (tmp_path / "in.pt").write_bytes(content)
    for words in (("", "remove", "in.pt", "-l"), ("", "remove", "in.pt", "--drop")):
        assert wn("--complete", "zsh", *words, cwd=tmp_path) == Ran(0, "", "")
    for name in ("none.pt", ".", "https://a/b.pt", "-", ""):
        assert wn("--complete", "zsh", "", "remove", name, "-l", cwd=tmp_path) == Ran(0, "", "")


def test_what_the_script_does_not_pass_is_no_failure(wn: Wn) -> None:
    for words in ((), ("bash",), ("zsh",), ("bash", "a", "b", "c"), ("nonsense", "", "inspect")):
        ran = wn("--complete", *words)
        assert (ran.code, ran.stderr) == (0, "")


def test_names_that_do_not_show_as_they_are_are_not_offered(
    offered: Offered, tmp_path: Path
) -> None:
    names = ["a\nb", "c\x1b[2J", "d\te", "\u202ef", "sound"]
    state = {f"{name}.weight_{half}": torch.ones(1, 1) for name in names for half in "gv"}
    torch.save(state, tmp_path / "in.pt")
    assert offered("inspect", tmp_path / "in.pt", "-l", "") == ["sound"]


@pytest.mark.parametrize("words", [("-", "remove"), ("", "remove", GENERATOR, "x", "-l"), ("",)])
def test_tab_imports_neither_numpy_nor_rich(words: tuple[str, ...]) -> None:
    program = (
        "import sys; sys.argv[:] = ['wn', '--complete', 'zsh', *sys.argv[1:]]\n"
        "from wncli.cli.edge import _run\n"
        "assert _run(sys.argv[1:]) == 0\n"
        "assert not {'numpy', 'torch', 'rich', 'ml_dtypes'} & {*sys.modules}"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.startswith("values\n")


# In the shells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with samples, files of odd names, and one whose layers mean ill."""
    made = tmp_path_factory.mktemp("work")
    (made / "sample_models").symlink_to(SAMPLES)
    for name in ("a b'c:d=e.pt", "zeta", "модель é.pt", "x$(touch pwned).pt"):
        shutil.copy(SAMPLES / "lstm.pt", made / name)
    (made / "some folder").mkdir()
    (made / "notes.txt").touch()
    state = {
        f"{n}{name}.weight_{half}": torch.ones(1, 1) for n, name in enumerate(EVIL) for half in "gv"
    }
    torch.save({"my root": state, "a:b=c": state}, made / "evil.pt")
    return made


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, folder: Path
) -> Iterator[Callable[[str], Shell]]:
    """Each shell, started once."""
    shells: dict[str, Shell] = {}

    def start(name: str) -> Shell:
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")
        if name not in shells:
            path = with_wn(tmp_path_factory.mktemp(name))
            shells[name] = Shell(name, folder, path, script(name))
        return shells[name]

    yield start
    for shell in shells.values():
        shell.close()


Start = Callable[[str], Shell]


@each_shell
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("rem", ["remove"]),
        ("remove --dry", ["remove", "--dry-run"]),
        ("inspect sample_models/hifi", ["inspect", "sample_models/hifigan_generator"]),
        ("inspect ze", ["inspect", "zeta"]),
        ("inspect notes", ["inspect", "notes.txt"]),
        ("inspect мо", ["inspect", "модель é.pt"]),
        ("inspect a", ["inspect", "a b'c:d=e.pt"]),
        ('inspect "a b', ["inspect", "a b'c:d=e.pt"]),
        ("inspect 'модель é.pt' -l weight_h", ["inspect", "модель é.pt", "-l", "weight_hh_l0"]),
        ("remove sample_models/hifigan_generator x -l conv_po", [
            "remove", "sample_models/hifigan_generator", "x", "-l", "conv_post"]),
        ("remove sample_models/hifigan_generator x -x 'conv_po", [
            "remove", "sample_models/hifigan_generator", "x", "-x", "conv_post"]),
        ("remove sample_models/hifigan_generator -l ups.\\*", [
            "remove", "sample_models/hifigan_generator", "-l", "ups.*"]),
        ("remove sample_models/training.pt --only=mo", [
            "remove", "sample_models/training.pt", "--only=model"]),
        ("remove sample_models/training.pt --drop opt", [
            "remove", "sample_models/training.pt", "--drop", "optimizer"]),
        ("convert --naming=par", ["convert", "--naming=parametrized"]),
        ("convert z --like=sample_models/lin", ["convert", "z", "--like=sample_models/linear.pt"]),
        ("inspect evil.pt --only my", ["inspect", "evil.pt", "--only", "my root"]),
        ("inspect evil.pt --only=a:", ["inspect", "evil.pt", "--only=a:b=c"]),
        ("inspect evil.pt --only 'my", ["inspect", "evil.pt", "--only", "my root"]),
        ("inspect x", ["inspect", "x$(touch pwned).pt"]),
        *(
            (f"inspect evil.pt --only 'my root' -l {number}", [
                "inspect", "evil.pt", "--only", "my root", "-l", f"{number}{name}"])
            for number, name in enumerate(EVIL)
        ),
    ],
)  # fmt: skip
def test_tab_completes_a_word_as_the_shell_then_reads_it(
    shell: str, typed: str, becomes: list[str], started: Start, folder: Path
) -> None:
    assert started(shell).completed(f"wn {typed}") == becomes
    assert not (folder / "pwned").exists()


@each_shell
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("co", ["convert", "compare"]),
        ("remove sample_models/hifigan_generator -l ups.", ["ups.0", "ups.1"]),
        ("remove sample_models/training.pt --only ", ["model", "ema"]),
    ],
)
def test_tab_lists_what_may_be_meant(
    shell: str, typed: str, meant: list[str], started: Start
) -> None:
    tabs = 2 if shell == "bash" else 1
    shown = started(shell).until(f"wn {typed}{TAB * tabs}", meant[1])
    assert meant[0] in shown
    started(shell).until(f"{CLEAR}show done\r", "<done>END")


@each_shell
def test_a_damaged_file_shows_nothing(shell: str, started: Start, folder: Path) -> None:
    (folder / "bad.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    line = ["remove", "bad.pt", "-l", "con"]
    assert started(shell).completed("wn remove bad.pt -l con") == line


@each_shell
def test_a_folder_is_offered_where_one_is_wanted(shell: str, started: Start) -> None:
    *_, word = started(shell).completed("wn remove a --output-dir so")
    assert word.rstrip("/") == "some folder"


# Installed


@each_shell
def test_what_is_installed_is_loaded_by_the_next_shell(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    path = with_wn(tmp_path)
    places = {
        "HOME": str(path),
        "XDG_DATA_HOME": str(path / "data"),
        "XDG_CONFIG_HOME": str(path / "config"),
    }
    (path / ".bashrc").write_text("alias ll='ls -l'")
    for _ in range(2):  # the second changes nothing
        ran = subprocess.run(
            [path / "wn", "--install-completion", shell],
            env=environment(**places), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert shell in ran.stdout
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    after = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert after == before
    asking = {
        "bash": "complete -p wn",
        "zsh": "print -r -- $_comps[wn]",
        "fish": "complete -C 'wn rem'",
    }
    started = subprocess.run(
        [shell, "-i", "-c", asking[shell]],
        env=environment(PATH=f"{path}:{os.environ['PATH']}", TERM="dumb", **places),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert {"bash": "-F _wn", "zsh": "_wn", "fish": "remove"}[shell] in started.stdout


def test_the_shell_is_known_by_its_variable(wn: Wn) -> None:
    assert wn("--show-completion", SHELL="/usr/bin/fish").stdout.rstrip() == script("fish").rstrip()
    ran = wn("--show-completion", SHELL="/bin/tcsh")
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: tcsh: no such shell is completed\n  expected: bash, zsh, fish\n"
        "  try:      wn --show-completion bash\n"
    )


def test_files_are_told_by_all_suffixes() -> None:
    for shell in ("zsh", "fish"):
        assert all(suffix.removeprefix(".") in script(shell) for suffix in SUFFIXES)
