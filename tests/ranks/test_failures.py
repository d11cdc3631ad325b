"""A rank that dies, hangs, is refused or sees something else ends all; OUTPUT is as it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.support.faults import leftovers, snapshot
from tests.support.launched import Launcher
from tests.support.parted import put_parts
from tests.support.run import Ran, Wn, environment
from tests.support.shards import save
from tests.support.teams import on_threads
from wncli.errors import FileError, WeightNormError, WnError
from wncli.team import AlarmError, LostError, Team, agree

#: Does something before this rank writes for the n-th time.
BEFORE_A_WRITE = """
import os, signal, sys, time
real_write, left = os.pwrite, [{at}]
def write(descriptor, data, offset):
    left[0] -= 1
    if left[0] == 0:
        {fault}
    return real_write(descriptor, data, offset)
os.pwrite = write
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    with Launcher() as found:
        yield found


def layers(count: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    found = {}
    for number in range(count):
        found[f"l{number}.weight_g"] = torch.rand(8, 1) + 0.5
        found[f"l{number}.weight_v"] = torch.randn(8, 40)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A checkpoint, as a file and in shards, and the outputs that are to be replaced."""
    folder = tmp_path / "home"
    folder.mkdir()
    save(layers(), folder / "in.safetensors")
    torch.save(layers(), folder / "in.pt")
    torch.save(layers(1), folder / "out.pt")
    (folder / "out").mkdir()
    save(layers(1), folder / "out" / "model.safetensors")
    return folder


FILE = ("remove", "in.pt", "out.pt", "--force")
FOLDER = ("remove", "in.pt", "out", "--max-shard-size", "3KB", "--force")


def hold_ended(ran: list[Ran], *dead: int) -> str:
    """All have ended with a refusal, told once, but those that were killed; what was said."""
    said = [one.stderr for rank, one in enumerate(ran) if rank not in dead]
    assert [one.code for rank, one in enumerate(ran) if rank not in dead] == [2] * len(said), ran
    assert all(not one.stdout for one in ran)
    told = "".join(said)
    assert told.count("error: ") <= 1
    assert not any(word in told for word in ("Traceback", "defect of wn"))
    return told


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [FILE, FOLDER], ids=["file", "folder"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_next_run_clears_up(
    rank: int, arguments: tuple[str, ...], home: Path, launch: Launcher, wn: Wn
) -> None:
    old = snapshot(home)
    fault = BEFORE_A_WRITE.format(at=2, fault=KILLED)
    ran = launch(*arguments, cwd=home, faults={rank: fault}, ranks=3)
    assert ran[rank].code == -signal.SIGKILL
    told = hold_ended(ran, rank)
    if rank:
        assert "another rank has ended before all was done" in told
        assert snapshot(home) == old
    else:
        state = snapshot(home)
        left = leftovers(state)
        assert left
        assert {name: state[name] for name in state if name not in left} == old
    again = launch(*arguments, cwd=home)
    assert [one.code for one in again] == [0, 0]
    state = snapshot(home)
    assert leftovers(state) == []
    if arguments is FOLDER:
        shutil.rmtree(home / "out")
    assert wn(*arguments, cwd=home).code == 0
    assert snapshot(home) == state


@pytest.mark.slow
def test_a_rank_that_is_killed_while_it_reads_ends_all(home: Path, launch: Launcher) -> None:
    fault = f"import os, signal, wncli.analysis.compare as c\nc._compare = lambda *_: {KILLED}"
    ran = launch("compare", "in.pt", "in.safetensors", cwd=home, faults={1: fault}, ranks=3)
    assert "another rank has ended" in hold_ended(ran, 1)


@pytest.mark.slow
def test_a_rank_that_is_silent_ends_all(home: Path, launch: Launcher) -> None:
    """As one whose machine has lost its power, which closes no connection."""
    old = snapshot(home)
    soon = "import wncli.pytorch.ranks as r\nr._BEAT, r._SILENCE = 0.1, 1.0\n"
    silent = soon + "r.Ranks._beat = lambda self: None\n"
    stuck = silent + BEFORE_A_WRITE.format(at=2, fault="time.sleep(4)")
    ran = launch(*FILE, cwd=home, faults={0: soon, 1: stuck, 2: soon}, ranks=3)
    assert "rank 1 has been silent for 1 s" in hold_ended(ran)
    assert snapshot(home) == old


@pytest.mark.slow
def test_ranks_that_do_not_meet_are_told(home: Path, launch: Launcher) -> None:
    soon = "import wncli.pytorch.ranks as r\nr._MEETING = 2.0\n"
    gone = "import os\nos._exit(3)"
    first, second = launch(*FILE, cwd=home, faults={0: soon, 1: gone})
    assert (first.code, second.code) == (2, 3)
    assert first.stderr.startswith("error: --ranks: the ranks do not meet\n")


FULL = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [FILE, FOLDER], ids=["file", "folder"])
def test_a_disk_that_is_full_for_one_rank_leaves_the_old_output(
    arguments: tuple[str, ...], home: Path, launch: Launcher
) -> None:
    old = snapshot(home)
    fault = FULL if arguments is FILE else FULL.replace("4096", "1024")
    ran = launch(*arguments, cwd=home, faults={2: fault}, ranks=3, kill=signal.SIGTERM)
    told = hold_ended(ran)
    assert told.startswith("error: rank 2 on ")
    assert "cannot be written (File too large)" in told
    assert snapshot(home) == old


@pytest.mark.slow
def test_a_refusal_in_one_ranks_share_is_that_of_one_process(
    home: Path, launch: Launcher, wn: Wn
) -> None:
    for number in (0, 7):  # the first and the last, which are not one rank's
        broken = layers()
        broken[f"l{number}.weight_v"][5] = 0
        torch.save(broken, home / "in.pt")
        old = snapshot(home)
        ran = launch(*FILE, cwd=home)
        assert hold_ended(ran) == wn(*FILE, cwd=home).stderr
        assert f"slice 5 (of 8) of l{number}.weight_v is all zero" in ran[0].stderr
        assert snapshot(home) == old


@pytest.mark.slow
def test_a_refusal_ends_what_the_others_do_at_once(home: Path, launch: Launcher) -> None:
    broken = layers(80)
    broken["l0.weight_v"][5] = 0
    torch.save(broken, home / "in.pt")
    slow = BEFORE_A_WRITE.format(at=1, fault="left[0] = 1; time.sleep(0.5)")
    start = time.monotonic()
    told = hold_ended(launch(*FILE, cwd=home, faults={1: slow}))
    assert "slice 5 (of 8) of l0.weight_v is all zero" in told
    assert time.monotonic() - start < 10  # its share alone would take 20


@pytest.mark.slow
def test_ranks_that_see_different_inputs_are_refused(
    home: Path, launch: Launcher, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other)  # with the times of the originals
    alike = launch("inspect", "in.pt", "--check", cwd=[home, other])
    assert [one.code for one in alike] == [0, 0]
    time.sleep(0.01)
    changed = layers()
    changed["l3.weight_v"] += 1
    torch.save(changed, other / "in.pt")
    old = snapshot(home), snapshot(other)
    for arguments in (FILE, ("compare", "in.pt", "in.safetensors"), ("inspect", "in.pt")):
        ran = launch(*arguments, cwd=[home, other])
        assert hold_ended(ran).startswith("error: in.pt: ranks 0 and 1 see different inputs\n")
    for place in (home, other):
        put_parts(place / "parts", changed, checkpoint_id="run")
    told = hold_ended(launch("inspect", "parts", cwd=[home, other]))
    assert told.startswith("error: parts/__0_0.distcp: ranks 0 and 1 see different inputs\n")
    for place in (home, other):
        shutil.rmtree(place / "parts")
    (other / "in.pt").unlink()
    told = hold_ended(launch(*FILE, cwd=[home, other]))
    assert told.startswith("error: rank 1 on ")
    assert ": in.pt: no such file\n" in told
    assert (snapshot(home), snapshot(other)["in.safetensors"]) == (old[0], old[1]["in.safetensors"])


@pytest.mark.slow
def test_ranks_that_share_no_folder_are_refused(
    home: Path, launch: Launcher, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other)
    old = snapshot(home), snapshot(other)
    soon = "import wncli.fill.new_files as r\nr._PATIENCE = 0.5"
    for arguments in (FILE, FOLDER):
        ran = launch(*arguments, cwd=[home, other], faults={1: soon})
        told = hold_ended(ran)
        assert told.startswith("error: rank 1 on ")
        assert "which rank 0 has made beside it, is not there" in told
        assert (snapshot(home), snapshot(other)) == old


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_is_told_once(
    number: signal.Signals, home: Path, launch: Launcher
) -> None:
    """As from torchrun when a rank has failed, or from Ctrl-C, which all get."""
    old = snapshot(home)
    fault = BEFORE_A_WRITE.format(at=3, fault=f"os.kill(os.getpid(), {int(number)})")
    ran = launch(*FILE, cwd=home, faults={0: fault, 1: fault})
    interrupted = "interrupted: OUTPUT is as it was before, or complete\n"
    # Whoever gets it later may have noticed by then that the other one has ended.
    assert sorted(one.code for one in ran) in ([130, 130], [2, 130])
    assert ran[0].stderr == interrupted or "another rank has ended" in ran[0].stderr
    assert (ran[1].stdout, ran[1].stderr, ran[0].stdout) == ("", "", "")
    assert snapshot(home) == old
    for rank in range(2):
        ran = launch(*FILE, cwd=home, faults={rank: fault}, kill=number)
        assert ran[rank].code == 130
        assert ran[1 - rank].code in {2, 130}
        assert ran[0].stderr.count("\n") == (1 if ran[0].code == 130 else 2)
        assert snapshot(home) == old


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_torchrun_itself_runs_it(home: Path, wn: Wn, *, fails: bool) -> None:
    old = snapshot(home)
    program = "-m" if not fails else str(home.parent / "faulty.py")
    fault = BEFORE_A_WRITE.format(at=3, fault=f"{KILLED} if os.environ['RANK'] == '1' else None")
    (home.parent / "faulty.py").write_text(f"{fault}\nfrom wncli.cli import program\nprogram()\n")
    words = [program, "wncli"] if not fails else [program]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         *words, "--ranks", *FILE],
        check=False, capture_output=True, text=True, cwd=home, env=environment(), timeout=120,
    )  # fmt: skip
    if fails:
        assert ran.returncode != 0
        assert ran.stdout == ""
        assert snapshot(home) == old
        return
    assert (ran.returncode, ran.stdout.count("✓ folded 8 layers")) == (0, 1), ran.stderr
    state = snapshot(home)
    assert wn(*FILE, cwd=home).code == 0
    assert snapshot(home) == state


# -- without processes ---------------------------------------------------------------------------


def test_a_refusal_stops_the_others_and_is_theirs() -> None:
    def run(team: Team) -> int:
        with team.operation():
            if team.rank == 1:
                raise WeightNormError("here", "no direction", expected="one", hint="exclude it")
            return team.gather(team.rank)[0]

    first, second, third = on_threads(3, run)
    for error in (first, second, third):
        assert isinstance(error, WeightNormError)
        assert str(error) == str(second)


def test_a_refusal_of_a_file_names_its_rank() -> None:
    def run(team: Team) -> None:
        with team.operation():
            if team.rank == 1:
                raise FileError("x.pt", "no such file")
            team.wait()

    first, second = on_threads(2, run)
    assert str(second) == "x.pt: no such file"
    assert isinstance(first, FileError)
    assert str(first).startswith("rank 1 on ")
    assert str(first).endswith(": x.pt: no such file")


def test_a_defect_of_one_rank_ends_all() -> None:
    def run(team: Team) -> None:
        with team.operation():
            while True:
                if team.rank == 0:
                    raise ZeroDivisionError
                team.look()

    first, second = on_threads(2, run)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, WnError)
    assert "ZeroDivisionError" in str(second)


class Abandoned(Team):
    """A rank whose other one is gone."""

    rank, size = 0, 2

    def exchange(self, message: bytes) -> list[bytes]:
        raise LostError("--ranks", "gone", found=str(len(message)))


@pytest.mark.parametrize(
    ("error", "told"), [(FileError("x", "full"), FileError), (AlarmError("x"), LostError)]
)
def test_a_refusal_is_told_also_where_another_rank_is_gone(
    error: Exception, told: type[Exception]
) -> None:
    team = Abandoned()
    with pytest.raises(told), team.operation():
        raise error
    assert team.is_lost


class Lying(Team):
    """Another rank, whose rank 0 sends the name of something that it has not made."""

    rank, size = 1, 2

    def __init__(self, place: str) -> None:
        self.place = place

    def exchange(self, message: bytes) -> list[bytes]:
        sent = json.loads(message)
        if sent.get("value") == "":
            sent["value"] = self.place
        return [json.dumps(sent).encode(), message]


@pytest.mark.parametrize("place", ["in.pt", "../.in.pt.wn-partial", "{home}/in.pt"])
def test_only_new_files_are_written(place: str, home: Path) -> None:
    """What comes over the network is a name, and nothing else is opened by it."""
    old = snapshot(home.parent)
    with pytest.raises(FileError, match="rank 0 has named no new file"):
        wncli.remove(home / "in.pt", home / "new.pt", team=Lying(place.format(home=home)))
    assert snapshot(home.parent) == old


@pytest.mark.parametrize(
    ("inputs", "plan"),
    [([("a", (5, 7))], [1]), ([("a", (5, 6)), ("b", (1, 1))], [1]), ([("a", (5, 6))], [2])],
)
def test_what_ranks_see_is_compared(
    inputs: list[tuple[str, tuple[int, int]]], plan: list[int]
) -> None:
    def run(team: Team) -> None:
        with team.operation():
            if team.rank == 2:
                agree(team, inputs, plan)
            else:
                agree(team, [("a", (5, 6))], [1])

    for error in on_threads(3, run):
        assert isinstance(error, FileError)
        assert "ranks 0 and 2 see different inputs" in str(error)
