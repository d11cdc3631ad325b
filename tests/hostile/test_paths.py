"""Paths that lead to no file, or to none that may be read: refused, and never waited for."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors.torch import load_file, save_file

import wncli
from tests.support.refusals import RunHere, hold_refused, snapshot
from tests.support.run import AS_ANYBODY, Ran, environment
from wncli.errors import FileError

pytestmark = pytest.mark.thinned(7)

STATE = {"a.weight_g": torch.tensor([[2.0], [3.0]]), "a.weight_v": torch.ones(2, 3)}
#: Seconds after which a run waits for something that does not come.
_PATIENCE = 20


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    def give_up(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.safetensors"
    save_file(STATE, path)
    return path


# -- what is put at a path ---------------------------------------------------------------------

Put = Callable[[Path], Path | None]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def socket(path: Path) -> None:
    os.mknod(path, 0o140644)


def link_to(target: str) -> Put:
    return lambda path: path.symlink_to(target)


def fifo_behind_a_link(path: Path) -> None:
    fifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def loop(path: Path) -> None:
    path.symlink_to("loop")
    path.with_name("loop").symlink_to(path.name)


def loop_of_folders(path: Path) -> Path:
    path.symlink_to(".")
    (path / "x").symlink_to("x")
    return path / "x" / "model"


def long_chain(path: Path) -> None:
    """More links than the system follows, and a sound file behind the last."""
    last = path
    for number in range(100):
        last.symlink_to(f"link{number}")
        last = last.with_name(f"link{number}")
    save_file(STATE, last)


def folder_of(*names: str) -> Put:
    def put(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).write_bytes(b"x")

    return put


def named(name: str) -> Put:
    return lambda path: path.parent / name


def in_a_file(path: Path) -> Path:
    path.write_bytes(b"x")
    return path / "model"


def terminal(_: Path) -> Path:
    """One that stays open until this process ends."""
    _ours, theirs = pty.openpty()
    return Path(os.ttyname(theirs))


def device(name: str) -> Put:
    return lambda _: Path("/dev") / name


NO_FILE = "not a regular file"
LOOPS = "Too many levels of symbolic links"
TOO_LONG = "File name too long"
MISSING = "no such file"
FOLDER = "no checkpoint in this directory"

CHECKPOINTS: dict[str, tuple[Put, str]] = {
    "a FIFO": (fifo, NO_FILE),
    "a link to a FIFO": (fifo_behind_a_link, NO_FILE),
    "a socket": (socket, NO_FILE),
    "an endless device": (device("zero"), NO_FILE),
    "an empty device": (device("null"), NO_FILE),
    "a link to a device": (link_to("/dev/zero"), NO_FILE),
    "a terminal": (terminal, NO_FILE),
    "an empty folder": (folder_of(), FOLDER),
    "a folder of other files": (folder_of("a.py", "b.txt", ".hidden.pt"), FOLDER),
    "a folder of hostile names": (folder_of("\x1b[2J\u202e\n.py"), FOLDER),
    "a link to itself": (lambda path: path.symlink_to(path.name), LOOPS),
    "a loop of links": (loop, LOOPS),
    "a file in a loop of links": (loop_of_folders, LOOPS),
    "a chain of 100 links": (long_chain, LOOPS),
    "a link to nothing": (link_to("nothing"), MISSING),
    "nothing": (lambda _: None, MISSING),
    "a name of 300 characters": (named("x" * 300), TOO_LONG),
    "a name of 100000 characters": (named("x" * 100_000), TOO_LONG),
    "a path of 5000 characters": (named("x/" * 2500), f"{TOO_LONG}|{MISSING}"),
    "a missing name that is no text": (named("\udcff\udcfe.pt"), MISSING),
    "a missing name that hides": (named("\x1b[2J\u202e.pt"), MISSING),
    "a file in a file": (in_a_file, "Not a directory"),
    "an empty file": (Path.touch, "an empty file"),
}
ROLES = {
    "inspect": ("inspect", "PATH"),
    "convert": ("convert", "PATH", "OUTPUT", "--force"),
    "apply": ("apply", "PATH", "OUTPUT", "--force"),
    "remove": ("remove", "PATH", "OUTPUT", "--force"),
    "REFERENCE": ("convert", "SOUND", "OUTPUT", "--force", "--like", "PATH"),
    "A": ("compare", "PATH", "SOUND"),
    "B": ("compare", "SOUND", "PATH"),
}


def escaped(path: Path) -> str:
    """How a path is shown."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(path)
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_and_not_waited_for(
    kind: str, role: str, wn_here: RunHere, sound: Path
) -> None:
    folder = sound.parent / "x"
    folder.mkdir()
    put, says = CHECKPOINTS[kind]
    path = put(folder / "model.pt") or folder / "model.pt"
    output = sound.with_name("out.pt")
    output.write_bytes(b"precious")
    before = snapshot(sound.parent)
    places = {"PATH": path, "OUTPUT": output, "SOUND": sound}
    ran = wn_here(*(places.get(word, word) for word in ROLES[role]))
    hold_refused(ran, escaped(path), says)
    assert snapshot(sound.parent) == before


#: Leaves with 99 where the path is opened; prints the exit codes of `wn inspect` on all paths.
WATCHED = """
import os, sys
paths = sys.argv[1:]
def watch(event, arguments):
    if event == "open" and not isinstance(arguments[0], int):
        if os.fsdecode(arguments[0]) in paths:
            os._exit(99)
from wncli.cli import main
sys.addaudithook(watch)
for path in paths:
    sys.argv[1:] = ["inspect", path]
    try:
        main()
    except SystemExit as end:
        print(end.code)
"""


def watched(*paths: Path) -> tuple[int, list[str]]:
    ran = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, paths)],
        env=environment(), capture_output=True, text=True, check=False, timeout=_PATIENCE,
    )  # fmt: skip
    return ran.returncode, ran.stdout.split()


def test_what_is_no_regular_file_is_not_even_opened(sound: Path) -> None:
    assert watched(sound) == (99, [])
    kinds = (fifo, socket, fifo_behind_a_link, link_to("/dev/zero"))
    paths = [sound.with_name(f"{number}") for number in range(len(kinds))]
    for put, path in zip(kinds, paths, strict=True):
        put(path)
    assert watched(*paths, Path("/dev/zero")) == (0, ["2"] * 5)


def test_what_others_write_into_a_fifo_is_left_to_its_reader(
    wn_here: RunHere, tmp_path: Path
) -> None:
    fifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    os.write(descriptor, b"for another")
    hold_refused(wn_here("inspect", tmp_path / "pipe"), tmp_path / "pipe", NO_FILE)
    assert os.read(descriptor, 100) == b"for another"
    os.close(descriptor)


def test_a_pipe_as_standard_input_is_refused(sound: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", "inspect", "/dev/stdin"],
        env=environment(), input=sound.read_bytes(), capture_output=True, check=False,
        timeout=_PATIENCE,
    )  # fmt: skip
    answer = Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
    hold_refused(answer, "/dev/stdin", NO_FILE)


@pytest.mark.parametrize("path", ["a\0b", "\0", "model.pt\0"], ids=["inside", "alone", "behind"])
def test_a_path_with_nul_is_refused(path: str, sound: Path) -> None:
    with pytest.raises(FileError, match="no file can have this name"):
        wncli.inspect(path)
    with pytest.raises(FileError):
        wncli.convert(sound, path, format="torch")


def test_an_empty_path_is_refused(wn_here: RunHere, sound: Path) -> None:
    for arguments in (("inspect", ""), ("convert", sound, ""), ("compare", sound, "")):
        hold_refused(wn_here(*arguments), "''", "not a path")


def test_a_name_that_is_no_text_is_read_written_and_shown(wn_here: RunHere, sound: Path) -> None:
    path = sound.rename(sound.with_name("\udcff\x1b.safetensors"))
    assert b"/\xff\x1b.safetensors" in os.fsencode(path)
    output = path.with_name("\udcfe.pt")
    ran = wn_here("convert", path, output)
    assert ran.code == 0
    assert r"\udcff\x1b.safetensors" in ran.stdout
    assert ran.stdout.replace("\n", "").isprintable()
    assert torch.load(output).keys() == STATE.keys()
    assert json.loads(wn_here("inspect", path, "--json").stdout)["checkpoint"] == str(path)
    path.write_bytes(b"x")
    hold_refused(wn_here("inspect", path), escaped(path), "not a checkpoint")


# -- permissions -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["convert", "REFERENCE", "B"])
def test_a_file_that_may_not_be_read_is_refused(role: str, sound: Path) -> None:
    secret, output = sound.with_name("secret.pt"), sound.with_name("out.pt")
    torch.save(STATE, secret)
    secret.chmod(0)
    output.write_bytes(b"precious")
    before = snapshot(sound.parent)
    places = {"PATH": secret, "OUTPUT": output, "SOUND": sound}
    hold_refused(for_anybody(*(places.get(word, word) for word in ROLES[role])), secret,
                 r"cannot be read \(Permission denied\)")  # fmt: skip
    assert snapshot(sound.parent) == before


def test_a_file_in_a_folder_that_may_not_be_searched_is_refused(sound: Path) -> None:
    folder = sound.parent / "secret"
    folder.mkdir()
    path = sound.rename(folder / sound.name)
    folder.chmod(0)
    hold_refused(for_anybody("inspect", path), path, r"cannot be read \(Permission denied\)")


def for_anybody(*arguments: Path | str) -> Ran:
    """Runs `wn` where the system's permissions count for it."""
    ran = subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False, timeout=_PATIENCE,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr)


# -- OUTPUT ------------------------------------------------------------------------------------

OUTPUTS: dict[str, tuple[Put, str]] = {
    "a FIFO": (fifo, NO_FILE),
    "a link to a FIFO": (fifo_behind_a_link, NO_FILE),
    "a socket": (socket, NO_FILE),
    "an endless device": (device("zero"), NO_FILE),
    "a link to a device": (link_to("/dev/null"), NO_FILE),
    "a terminal": (terminal, NO_FILE),
    "a link to itself": (lambda path: path.symlink_to(path.name), LOOPS),
    "a loop of links": (loop, LOOPS),
    "a file in a loop of links": (loop_of_folders, LOOPS),
    "a chain of 100 links": (long_chain, LOOPS),
    "a link into no folder": (link_to("nowhere/out"), "the directory does not exist"),
    "a file in no folder": (named("nowhere/out"), "the directory does not exist"),
    "a name of 300 characters": (named("x" * 300), TOO_LONG),
    "a path of 5000 characters": (named("x/" * 2500), f"{TOO_LONG}|the directory does not exist"),
    "a file in a file": (in_a_file, "is not a directory|Not a directory"),
}


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["new", "force"])
@pytest.mark.parametrize("command", ["convert", "remove", "make shards"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_what_cannot_be_replaced_by_a_file_is_refused_as_output(
    kind: str, command: str, force: tuple[str, ...], wn_here: RunHere, sound: Path
) -> None:
    folder = sound.parent / "x"
    folder.mkdir()
    put, says = OUTPUTS[kind]
    output = put(folder / "out") or folder / "out"
    before = snapshot(sound.parent)
    arguments: tuple[str, ...] = (command,)
    if command == "make shards":
        arguments = ("convert", "--max-shard-size", "16")
        says = f"{says}|OUTPUT is a file|the directory does not exist|is not a directory"
    ran = wn_here(*arguments, sound, output, "--format", "torch", *force)
    hold_refused(ran, output, says)
    assert snapshot(sound.parent) == before


@pytest.mark.parametrize("put", [fifo, socket, link_to("/dev/null"), Path.touch])
def test_what_is_no_folder_is_refused_for_many_outputs(
    put: Put, wn_here: RunHere, sound: Path
) -> None:
    folder = sound.with_name("out")
    put(folder)
    before = snapshot(sound.parent)
    ran = wn_here("remove", sound, "--output-dir", folder, "--force")
    hold_refused(ran, folder, "a folder's name")
    assert snapshot(sound.parent) == before


def test_a_chain_of_30_links_is_followed_to_the_output(sound: Path) -> None:
    last = sound.with_name("out.safetensors")
    for number in range(30):
        last.symlink_to(f"link{number}")
        last = last.with_name(f"link{number}")
    wncli.remove(sound, sound.with_name("out.safetensors"))
    assert last.is_file()
    assert not last.is_symlink()
    assert load_file(last).keys() == {"a.weight"}
