"""What the system refuses while writing ends in one message, with the old OUTPUT as it was."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wncli
from tests.support.faults import (
    CASES,
    LEFTOVER,
    Case,
    Fault,
    Forks,
    Kind,
    Outcome,
    Prepared,
    faulty,
    layers,
    leftovers,
    points,
    snapshot,
)
from tests.support.run import Ran, environment, refused_for_anybody
from tests.support.shards import save
from wncli.errors import FileError

pytestmark = pytest.mark.thinned(12)

#: The steps at which a full disk shows.
TAKING_ROOM = (
    "fsync", "ftruncate", "mkdir", "open", "posix_fallocate", "pwrite", "pwrite half", "write",
    "write half",
)  # fmt: skip
#: The steps that read the input.
READING = ("pread", "preadv")
#: The steps that take away what is not needed any more.
TIDYING = ("close", "rmdir", "unlink")
KINDS: tuple[Kind, ...] = ("safetensors", "torch")


@pytest.fixture(params=[f"{name}, {KINDS[place % 2]}" for place, name in enumerate(CASES)])
def case(request: pytest.FixtureRequest, case_of: Prepared) -> Case:
    name, _, kind = request.param.partition(", ")
    return case_of(name, kind)


def hold_refused(ran: Outcome | Ran, *says: str) -> None:
    assert ran.code == 2, ran.stderr
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error: ") == 1
    assert not any(word in ran.stderr for word in ("Traceback", "defect of wn"))
    assert all(word in ran.stderr for word in says), ran.stderr


# -- no room -------------------------------------------------------------------------------------


def test_a_disk_that_is_full_at_any_step_leaves_the_old_output(case: Case, forks: Forks) -> None:
    """From that step on, also where room was promised: thin volumes, copies on write, quotas."""
    steps = [label for label in case.steps if label in TAKING_ROOM]
    for at in points(steps, 8):
        number = (errno.ENOSPC, errno.EDQUOT)[at % 2]
        fault = Fault(at, errno=number, on=TAKING_ROOM, lasting=True)
        hold_refused(faulty(forks, case, fault), f"cannot be written ({os.strerror(number)})")
        assert snapshot(case.home) == case.old, (at, steps[at - 1])


#: Runs `wn` where no file may have as many bytes as the first argument says (setrlimit(2)).
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1)) - 1
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from wncli.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["folder onto folder", "new folder"])
def test_whichever_file_of_a_folder_grows_too_large_the_old_ones_stay(
    name: str, case_of: Prepared
) -> None:
    """`test_output.py` has the single file."""
    case = case_of(name, "safetensors")
    mine = [path for path in case.new if path.startswith(f"{case.output}/")]
    for size in sorted({len(case.new[path] or b"") for path in mine}):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(size), *case.arguments],
            check=False, capture_output=True, text=True, cwd=case.home, env=environment(),
            timeout=60,
        )  # fmt: skip
        ran = Ran(done.returncode, done.stdout, done.stderr)
        hold_refused(ran, "cannot be written (File too large)")
        assert snapshot(case.home) == case.old


#: Has a disk of 1 MB. Prints the exit code, whether the old file is there, and what was said.
ON_A_SMALL_DISK = """
import subprocess, sys
from pathlib import Path
folder, disk, is_folder = Path(sys.argv[1]), Path(sys.argv[1], "disk"), sys.argv[2] == "folder"
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
out = disk / ("out" if is_folder else "out.pt")
if is_folder:
    out.mkdir()
old = out / "model.safetensors" if is_folder else out
old.write_bytes((folder / "old").read_bytes())
size = ["--max-shard-size", "300KB"] if is_folder else []
command = [sys.executable, "-m", "wncli", "remove", folder / "in.pt", out, "--force", *size]
if is_folder:
    command += ["--format", "safetensors"]
ran = subprocess.run(command, capture_output=True, text=True)
print(ran.returncode, old.read_bytes() == (folder / "old").read_bytes(), len(list(disk.rglob("*"))))
print(ran.stderr)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_disk_that_is_really_full_is_refused_and_leaves_the_old_output(
    what: str, tmp_path: Path
) -> None:
    save(layers(6, size=50_000), tmp_path / "in.pt")
    save(layers(1), tmp_path / ("old.safetensors" if what == "folder" else "old.pt"))
    next(tmp_path.glob("old.*")).rename(tmp_path / "old")
    (tmp_path / "disk").mkdir()
    own = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    if not shutil.which("unshare") or subprocess.run(
        [*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")],
        check=False, capture_output=True,
    ).returncode:  # fmt: skip
        pytest.skip("nothing can be mounted here: limits and failing calls stand for full disks")
    ran = subprocess.run(
        [*own, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), what],
        check=True, capture_output=True, text=True, env=environment(), timeout=60,
    )  # fmt: skip
    first, _, said = ran.stdout.partition("\n")
    assert first == f"2 True {2 if what == 'folder' else 1}", said
    assert said.startswith("error: ")
    assert "No space left on device" in said


# -- what breaks ---------------------------------------------------------------------------------


def test_an_error_at_any_step_is_told_where_the_old_output_stays_and_not_where_the_new_is_there(
    case: Case, forks: Forks
) -> None:
    failed: list[tuple[object, ...]] = []
    for number in points(case.steps, 20 if case.is_folder else 14):
        label = case.steps[number - 1]
        ran = faulty(forks, case, Fault(number, errno=errno.EIO))
        state = snapshot(case.home)
        ends = ran.code, case.judge(state)
        if ends == (2, "old"):
            hold_refused(ran, "(Input/output error)")
        elif ends != (0, "new"):
            failed.append((number, label, *ends))
        if leftovers(state) and label not in TIDYING:
            failed.append((number, label, "leftovers"))
    assert failed == []


@pytest.mark.parametrize("name", ["folder onto folder", "folder in place"])
def test_where_files_cannot_be_moved_in_none_is_lost_and_the_next_run_does(
    name: str, case_of: Prepared, forks: Forks
) -> None:
    """As where the system makes a failing disk read-only."""
    case = case_of(name, "safetensors")
    moving = ("rename", "replace", "unlink")
    moves = [label for label in case.steps if label in moving]
    assert moves[:2] == ["rename", "unlink"]  # which marks the files as ready, and the old index
    for at in range(1, len(moves)):
        fault = Fault(at, errno=errno.EROFS, on=moving, lasting=True)
        ran = faulty(forks, case, fault)
        hold_refused(ran, f"({os.strerror(errno.EROFS)})")
        state = snapshot(case.home)
        assert case.judge(state) == ("old" if at <= 2 else "moving"), at
        if at > 2:
            assert f"what is left in {case.home / leftovers(state)[0]}" in ran.stderr
        if not case.is_in_place:
            assert forks.run(*case.again, cwd=case.home).code == 0
            assert snapshot(case.home) == case.new


def test_what_a_file_system_tells_only_at_closing_keeps_a_new_file_from_its_name(
    case_of: Prepared, forks: Forks
) -> None:
    """Those that others serve write at that time, and see a full quota only then (close(2))."""
    case = case_of("new file", "torch")
    fault = Fault(1, errno=errno.EDQUOT, on=("close",))
    hold_refused(faulty(forks, case, fault), os.strerror(errno.EDQUOT))
    assert snapshot(case.home) == case.old


def test_an_input_that_cannot_be_read_to_its_end_leaves_the_old_output(
    case: Case, forks: Forks
) -> None:
    reads, refused = sum(label in READING for label in case.steps), 0
    assert reads > 2
    for at in {1, reads // 3, reads // 2, reads - 1, reads}:
        ran = faulty(forks, case, Fault(at, errno=errno.EIO, on=READING))
        if ran.code == 0 and case.is_folder:  # a look at what is to be replaced
            assert snapshot(case.home) == case.new
            continue
        refused += 1
        hold_refused(ran, "cannot be read (Input/output error)")
        assert snapshot(case.home) == case.old
    assert refused > 1


def test_an_input_that_shrinks_at_any_step_of_writing_is_told_or_not_needed(
    case: Case, forks: Forks
) -> None:
    moves = ("rename", "replace", "link")
    first_move = min(case.steps.index(move) for move in moves if move in case.steps)
    steps = [n for n in points(case.steps, 8) if "open" in case.steps[:n] and n <= first_move]
    codes = set()
    shards = [
        name
        for name in case.old
        if name.startswith("in/") and ("-of-" in name or ".distcp" in name)
    ]
    name = (shards or [case.arguments[1]])[0]
    source = case.home / name
    for number in steps:
        case.begin()
        stop = Fault(number, signal=signal.SIGSTOP)
        run = forks.start(*case.arguments, cwd=case.home, fault=stop)
        assert forks.wait(run).code is None
        size = source.stat().st_size
        os.truncate(source, size // 2)
        os.kill(run.pid, signal.SIGCONT)
        ran = forks.wait(run)
        codes.add(ran.code)
        state = snapshot(case.home)
        if ran.code == 2:
            says = "it has changed since", "the file ends "
            hold_refused(ran, next((text for text in says if text in ran.stderr), says[1]))
            assert state == case.old | {name: (case.old[name] or b"")[: size // 2]}
        else:
            assert state | {name: case.new[name]} == case.new
    assert 2 in codes


@pytest.mark.parametrize("name", ["file onto file", "new file", "folder onto folder", "new folder"])
def test_a_directory_that_is_removed_while_writing_is_told(
    name: str, case_of: Prepared, forks: Forks
) -> None:
    for label in ("ftruncate", "pwrite", "fsync", "link", "rename", "replace"):
        case = case_of(name, "torch")
        if label not in case.steps:
            continue
        gone = case.home / "gone"
        gone.mkdir()
        if case.output in case.old:
            (case.home / case.output).rename(gone / case.output)
        arguments = (*case.arguments[:2], f"gone/{case.output}", *case.arguments[3:])
        stop = Fault(1, signal=signal.SIGSTOP, on=(label,))
        run = forks.start(*arguments, cwd=case.home, fault=stop)
        assert forks.wait(run).code is None, label
        shutil.rmtree(gone)
        os.kill(run.pid, signal.SIGCONT)
        hold_refused(forks.wait(run), "cannot be written (No such file or directory)")
        inputs = {n: data for n, data in case.old.items() if not n.startswith(case.output)}
        assert snapshot(case.home) == inputs, label


def test_a_read_only_directory_is_refused_and_stays_as_it_is(case: Case) -> None:
    """Where the output comes into, which for a folder that is there already is the folder."""
    (case.home / "open").mkdir()
    locked = case.home / ("out" if case.is_folder and "out" in case.old else "")
    if case.is_folder and case.is_in_place:
        locked = case.home / "in"
    locked.chmod(0o555)
    before = snapshot(case.home)
    try:
        command, source, output, *rest = case.arguments
        paths = (command, case.home / source, case.home / output)
        said = refused_for_anybody(*paths, *rest)
    finally:
        locked.chmod(0o755)
    assert said.startswith("error: ")
    assert "cannot be written (Permission denied)" in said
    assert snapshot(case.home) == before


@pytest.mark.parametrize("name", ["file onto file", "new file", "folder onto folder"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_disk_gives_back_otherwise_is_refused_where_it_is_verified(
    name: str, kind: Kind, case_of: Prepared, forks: Forks
) -> None:
    """One bit of one tensor turns over between writing it and reading it back."""
    case = case_of(name, kind)
    stop = Fault(1, signal=signal.SIGSTOP, on=("fsync",))
    run = forks.start(*case.arguments, "--verify", cwd=case.home, fault=stop)
    assert forks.wait(run).code is None
    source = next(p for p in sorted(case.home.glob("in*/*-of-*")) or case.home.glob("in.*"))
    state = load_file(source) if kind == "safetensors" else torch.load(source)
    tensor = state["l0.bias"].numpy().tobytes()
    for path in case.home.rglob("*"):
        if path.is_file() and LEFTOVER in str(path) and tensor in path.read_bytes():
            with path.open("r+b") as written:
                written.seek(path.read_bytes().index(tensor) + 3)
                written.write(bytes([tensor[3] ^ 0x40]))
    os.kill(run.pid, signal.SIGCONT)
    hold_refused(forks.wait(run), "reading back what was written failed")
    assert snapshot(case.home) == case.old


# -- what is kept for when the power fails, and of the old file ----------------------------------


def test_an_existing_file_is_flushed_before_it_is_replaced(
    tmp_path: Path, wn_here: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = recorded(monkeypatch)
    save(layers(2), tmp_path / "in.pt")
    save(layers(1), tmp_path / "out.pt")
    assert wn_here("remove", tmp_path / "in.pt", tmp_path / "out.pt", "--force").code == 0
    inode = (tmp_path / "out.pt").stat().st_ino
    written = [place for place, call in enumerate(calls) if call == ("pwrite", inode)]
    assert written
    assert written[-1] < calls.index(("fsync", inode)) < calls.index(("replace", inode))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_all_new_files_of_a_folder_are_flushed_before_the_first_old_one_is_moved(
    suffix: str, tmp_path: Path, wn_here: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(layers(4), tmp_path / f"in{suffix}")
    out, arguments = tmp_path / "out", ("--max-shard-size", "1KB", "--force")
    assert wn_here("remove", tmp_path / f"in{suffix}", f"{out}/", *arguments).code == 0
    calls = recorded(monkeypatch)
    assert wn_here("remove", tmp_path / f"in{suffix}", f"{out}/", *arguments).code == 0
    inodes = {path.stat().st_ino for path in out.iterdir()}
    assert len(inodes) > 3
    moved = next(place for place, (call, _) in enumerate(calls) if call == "rename")
    assert inodes <= {inode for call, inode in calls[:moved] if call == "fsync"}
    assert not any(call == "pwrite" for call, _ in calls[moved:])


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The calls from now on that write, flush and move, each with the inode that it is about."""
    calls: list[tuple[str, int]] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def call(file: object, *arguments: object, **keywords: object) -> object:
            assert isinstance(file, int | str | os.PathLike)
            calls.append((name, os.stat(file).st_ino))  # noqa: PTH116 - also of descriptors
            return real(file, *arguments, **keywords)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "pwrite", "rename", "replace"):
        record(name)
    return calls


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.EINVAL, errno.ENOSYS], ids=errno.errorcode.get
)
@pytest.mark.parametrize("name", ["file onto file", "folder onto folder"])
def test_an_owner_that_cannot_be_kept_does_not_keep_anybody_from_writing(
    name: str, number: int, case_of: Prepared, forks: Forks
) -> None:
    """EINVAL is an owner that a container has no number for (user_namespaces(7))."""
    case = case_of(name, "torch")
    if os.geteuid():
        pytest.skip("only root can give files away, for a run to find")
    for path in (case.home / case.output, *(case.home / case.output).glob("*")):
        os.chown(path, 12345, 12345)
    fault = Fault(1, errno=number, on=("fchown",), lasting=True)
    ran = forks.run(*case.arguments, cwd=case.home, fault=fault)
    assert "fchown" in ran.steps
    assert (ran.code, ran.stderr) == (0, "")
    assert snapshot(case.home) == case.new


def test_without_hard_links_an_error_at_the_end_leaves_no_part_of_a_new_file(
    case_of: Prepared, forks: Forks
) -> None:
    case = case_of("new file", "torch")
    ran = faulty(forks, case, Fault(0, missing=("link",)))
    assert (ran.code, snapshot(case.home)) == (0, case.new)
    for number in range(len(ran.steps) - 8, len(ran.steps) + 1):
        refused = faulty(forks, case, Fault(number, errno=errno.EIO, missing=("link",)))
        state = snapshot(case.home)
        assert (refused.code, case.judge(state)) in {(2, "old"), (0, "new")}, number
        assert leftovers(state) == []


def test_without_hard_links_a_file_that_appears_meanwhile_is_not_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on FAT, and on file systems that others serve."""
    save(layers(2), tmp_path / "in.pt")
    out = tmp_path / "out.pt"

    def refuse(*_: object, **_keywords: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def appear(_count: int, _total: int) -> None:
        out.write_bytes(b"of another process")

    monkeypatch.setattr(os, "link", refuse)
    wncli.remove(tmp_path / "in.pt", out)
    assert set(torch.load(out)) == {"l0.weight", "l0.bias", "l1.weight", "l1.bias"}
    out.unlink()
    with pytest.raises(FileError, match="File exists"):
        wncli.remove(tmp_path / "in.pt", out, progress=appear)
    assert out.read_bytes() == b"of another process"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]
