"""Several runs on one OUTPUT: one wins as a whole, and none takes away what another makes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import wncli
import wncli.layout.files
from tests.support.faults import (
    LEFTOVER,
    Case,
    Fault,
    Forks,
    Outcome,
    Prepared,
    Run,
    Snapshot,
    leftovers,
    restore,
    snapshot,
)
from tests.support.shards import save, sharded
from wncli.errors import FileError

pytestmark = pytest.mark.thinned(17)

#: Seconds that a run is given to end while another is stopped, which may have what it waits for.
PATIENCE = 0.2
#: What is put in the way of a run so that others overtake it.
STOP = signal.SIGSTOP


def go_on(forks: Forks, runs: Mapping[Run, Outcome]) -> list[Outcome]:
    """Let the runs that are stopped, or soon will be, go on all at once, and wait for all."""
    ended = {run: ran for run, ran in runs.items() if ran.code is not None}
    while going := runs.keys() - ended.keys():
        for run in going:
            os.kill(run.pid, signal.SIGCONT)
        for run in going:
            ran = forks.wait(run, 0.02)
            if ran.code is not None:
                ended[run] = ran
    return [ended[run] for run in runs]


def hold_one_of(home: Path, old: Snapshot, ended: Sequence[tuple[Outcome, Snapshot]]) -> None:
    """One run that was done has written what it writes alone; what was not done was refused."""
    for ran, _ in ended:
        assert ran.code in {0, 2}, ran.stderr
        assert bool(ran.stderr) == (ran.code == 2)
        assert ran.code == 0 or ran.stderr.startswith("error: ")
    state = snapshot(home)
    assert leftovers(state) == []
    if not any(ran.code == 0 for ran, _ in ended):
        assert state == old
        return
    assert state in [new for ran, new in ended if ran.code == 0], sorted(state)


# -- what is cleared away ------------------------------------------------------------------------

#: What stands beside an OUTPUT `out.pt`, and is no leftover of a run that wrote it.
NOT_OURS = (
    ".out.pt.wn-partial",
    ".out.pt.0123456.wn-partial",
    ".out.pt.012345678.wn-partial",
    ".out.pt.0123456G.wn-partial",
    ".out.pt.01234567.wn-partial~",
    ".out.pt.01234567.tmp",
    ".xout.pt.01234567.wn-partial",
    ".out.pt.pt.01234567.wn-partial",
    ".outxpt.01234567.wn-partial",
    "out.pt.01234567.wn-partial",
    ".out.safetensors.01234567.wn-partial",
)


def test_only_what_dead_runs_for_the_same_output_left_is_cleared_away(
    case_of: Prepared, forks: Forks
) -> None:
    case = case_of("file onto file", "torch")
    killed = Fault(1, signal=signal.SIGKILL, on=("pwrite",))
    for output in ("out.pt", "other.pt"):
        forks.run("remove", "in.pt", output, "--force", cwd=case.home, fault=killed)
    others, ours = sorted(leftovers(snapshot(case.home)))
    assert (others[:10], ours[:8]) == (".other.pt.", ".out.pt.")
    (case.home / f".out.pt.00000000{LEFTOVER}").write_bytes((case.home / ours).read_bytes())
    for name in NOT_OURS:
        (case.home / name).write_bytes(b"mine")
    (case.home / "precious").write_bytes(b"mine")
    (case.home / f".out.pt.76543210{LEFTOVER}").symlink_to("precious")
    os.mkfifo(case.home / f".out.pt.89abcdef{LEFTOVER}")
    assert forks.run(*case.arguments, cwd=case.home).code == 0
    (case.home / f".out.pt.89abcdef{LEFTOVER}").unlink(missing_ok=True)
    (case.home / f".out.pt.76543210{LEFTOVER}").unlink(missing_ok=True)
    (case.home / others).unlink()
    kept = dict.fromkeys((*NOT_OURS, "precious"), b"mine")
    assert snapshot(case.home) == case.new | kept


@pytest.mark.parametrize("link", [f".out.01234567{LEFTOVER}", f".out.01234567{LEFTOVER}/.going"])
def test_links_that_look_like_a_folder_which_a_run_has_left_lead_nowhere(
    link: str, tmp_path: Path
) -> None:
    """A checkpoint that was downloaded may hold any names, and links to any place."""
    index = sharded(tmp_path / "in")
    sharded(tmp_path / "out")
    precious = tmp_path / "precious"
    (precious / ".going").mkdir(parents=True)
    for name in ("work of years", index.name):
        (precious / name).write_bytes(b"mine")
        (precious / ".going" / name).write_bytes(b"mine")
    (tmp_path / "out" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / link).symlink_to(precious)
    before = snapshot(precious)
    wncli.remove(tmp_path / "in", tmp_path / "out", force=True)
    assert snapshot(precious) == before
    assert wncli.compare(tmp_path / "in", tmp_path / "out").equal


@pytest.mark.parametrize("name", ["file onto file", "folder onto folder", "new folder"])
def test_what_a_living_run_writes_is_not_cleared_away(
    name: str, case_of: Prepared, forks: Forks
) -> None:
    """Neither by a run for the same OUTPUT nor by one for another, however often they come."""
    case = case_of(name, "safetensors")
    first = forks.start(*case.arguments, cwd=case.home, fault=Fault(3, signal=STOP, on=("pwrite",)))
    runs = {first: forks.wait(first)}
    assert runs[first].code is None
    written = [path for path in leftovers(snapshot(case.home)) if "-of-" in path or "/" not in path]
    assert written
    for output in (case.output, case.output, "other"):
        run = forks.start(*case.again[:2], output, *case.again[3:], cwd=case.home)
        runs[run] = forks.wait(run, PATIENCE)
    assert set(written) <= set(snapshot(case.home))
    ran, *others = go_on(forks, runs)
    assert ran.code == 0 or name == "new folder"
    assert [other.code for other in others] == [0, 0, 0]
    found = snapshot(case.home)
    assert leftovers(found) == []
    assert {n: c for n, c in found.items() if not n.startswith("other")} == case.new


def test_a_leftover_of_a_stopped_run_goes_once_that_is_killed(
    case_of: Prepared, forks: Forks
) -> None:
    case = case_of("file onto file", "torch")
    run = forks.start(*case.arguments, cwd=case.home, fault=Fault(1, signal=STOP, on=("fsync",)))
    assert forks.wait(run).code is None
    assert forks.run(*case.arguments, cwd=case.home).code == 0
    assert len(leftovers(snapshot(case.home))) == 1
    os.kill(run.pid, signal.SIGKILL)
    assert forks.wait(run).code == -signal.SIGKILL
    assert forks.run(*case.arguments, cwd=case.home).code == 0
    assert snapshot(case.home) == case.new


# -- one overtakes another -----------------------------------------------------------------------

#: The steps that another run can see, or come between.
DECISIVE = ("flock", "link", "mkdir", "rename", "replace", "rmdir", "unlink")
#: OUTPUT, what is there before (see `killing.py`), and how the run that overtakes divides it.
OVERTAKING = {
    "a file": ("file onto file", ()),
    "a new file": ("new file", ()),
    "a folder": ("folder onto folder", ()),
    "a folder in other shards": ("folder onto folder", ("--max-shard-size", "400")),
    "a new folder": ("new folder", ()),
    "an empty folder": ("new folder", ()),
}


def overtaken(forks: Forks, case: Case, old: Snapshot, *, force: bool, more: Sequence[str]) -> None:
    """Stop a run at each step, let one with another result run meanwhile, and see what is left."""
    forced = ("--force",) if force else ()
    slow = tuple(word for word in case.arguments if word != "--force") + forced
    fast = ("convert", *slow[1:], "--naming", "parametrized", *more)
    new: list[Snapshot] = []
    steps: tuple[str, ...] = ()
    for arguments in (fast, slow):
        restore(case.home, old)
        ran = forks.run(*arguments, cwd=case.home)
        assert ran.code == 0
        new.append(snapshot(case.home))
        steps = ran.steps
    for number in [n for n, label in enumerate(steps, 1) if label in DECISIVE]:
        restore(case.home, old)
        run = forks.start(*slow, cwd=case.home, fault=Fault(number, signal=STOP))
        stopped = forks.wait(run)
        assert stopped.code is None
        other = forks.start(*fast, cwd=case.home)
        first, second = go_on(forks, {run: stopped, other: forks.wait(other, PATIENCE)})
        hold_one_of(case.home, old, [(second, new[0]), (first, new[1])])
        done = (first.code, second.code).count(0)
        assert done > 0 if force else done == 1, (number, steps[number - 1])


@pytest.mark.parametrize("what", OVERTAKING)
def test_a_run_that_another_overtakes_with_force_leaves_one_complete_result(
    what: str, case_of: Prepared, forks: Forks
) -> None:
    name, more = OVERTAKING[what]
    case = case_of(name, "safetensors")
    old = case.old | ({"out": None} if what == "an empty folder" else {})
    overtaken(forks, case, old, force=True, more=more)


@pytest.mark.parametrize("what", ["a new file", "a new folder", "an empty folder"])
def test_of_two_runs_without_force_exactly_one_succeeds(
    what: str, case_of: Prepared, forks: Forks
) -> None:
    name, more = OVERTAKING[what]
    case = case_of(name, "torch")
    old = case.old | ({"out": None} if what == "an empty folder" else {})
    overtaken(forks, case, old, force=False, more=more)


@pytest.mark.parametrize("where", ["begins", "ends"])
def test_a_run_that_waits_for_another_can_be_interrupted(
    where: str, case_of: Prepared, forks: Forks
) -> None:
    """While that one puts its files in their places, which takes long where it is stopped."""
    case = case_of("folder onto folder", "safetensors")
    early = Fault(1, signal=STOP, on=("pread" if where == "begins" else "write half",))
    waiting = forks.start(*case.arguments, cwd=case.home, fault=early)
    assert forks.wait(waiting).code is None
    between = Fault(2, signal=STOP, on=("replace",))
    moving = forks.start(*case.arguments, cwd=case.home, fault=between)
    assert forks.wait(moving).code is None
    os.kill(waiting.pid, signal.SIGCONT)
    assert forks.wait(waiting, 0.5).code is None
    os.kill(waiting.pid, signal.SIGINT)
    interrupted = forks.wait(waiting, 5)
    (moved,) = go_on(forks, {moving: forks.wait(moving, 0)})
    assert (interrupted.code, moved.code) == (130, 0)
    assert snapshot(case.home) == case.new


@pytest.mark.parametrize("output", ["out.pt", "out/"])
def test_what_appears_after_the_first_look_is_not_replaced_without_force(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the input is read and everything is laid out, which takes long where it is large."""
    sharded(tmp_path / "in")
    plan, size = wncli.layout.files.lay_out, 100 if output == "out/" else None

    def slowly(*arguments: Any) -> wncli.layout.files.Outputs:  # noqa: ANN401 - as the real one
        found = plan(*arguments)
        monkeypatch.undo()
        wncli.apply(tmp_path / "in", f"{tmp_path}/{output}", max_shard_size=size, layers=["a.*"])
        return found

    wncli.apply(tmp_path / "in", f"{tmp_path}/other", max_shard_size=100, layers=["a.*"])
    monkeypatch.setattr("wncli.layout.files.lay_out", slowly)
    with pytest.raises(FileError):
        wncli.remove(tmp_path / "in", f"{tmp_path}/{output}", max_shard_size=size)
    if output == "out/":
        assert snapshot(tmp_path / "out") == snapshot(tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in", "other", output.rstrip("/")]
    )


# -- many at once --------------------------------------------------------------------------------

COUNT = 8
#: Where all are stopped, to go on at once: when they begin, and when they put their files in place.
BARRIERS = {"file": ("open", "flock", "link"), "folder": ("mkdir", "write half", "rename")}


@dataclass(frozen=True)
class Plain:
    """A folder with a plain checkpoint, as a file and in shards, and what each run makes of it."""

    home: Path
    begin: Snapshot
    alone: dict[str, list[Snapshot]]


def command(output: str, number: int, *more: str) -> tuple[str, ...]:
    """Each run normalizes another layer."""
    source = output.replace("out", "in")
    return ("apply", source, output, "-q", "-l", f"l{number}.weight", *more)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Plain:
    home = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    state = {f"l{n}.weight": torch.randn(8, 40) for n in range(COUNT)}
    save(state, home / "in.pt")
    halves = {k: {n: t for n, t in state.items() if (n < "l4") == (k == 1)} for k in (1, 2)}
    sharded(home / "in", "safetensors", halves)
    begin = snapshot(home)
    alone: dict[str, list[Snapshot]] = {"out": [], "out.pt": []}
    for output, found in alone.items():
        for number in range(COUNT):
            restore(home, begin)
            assert forks.run(*command(output, number), cwd=home).code == 0
            found.append(snapshot(home))
    return Plain(home, begin, alone)


@pytest.mark.parametrize("force", [True, False], ids=["forced", "unforced"])
@pytest.mark.parametrize("what", ["file", "new file", "folder", "new folder"])
@pytest.mark.parametrize("count", [2, COUNT])
def test_of_many_runs_at_once_one_result_is_left_complete(
    count: int, what: str, *, force: bool, plain: Plain, forks: Forks
) -> None:
    is_new, kind = "new" in what, what.removeprefix("new ")
    output = "out.pt" if kind == "file" else "out"
    restore(plain.home, plain.begin)
    if not is_new:
        converting = ("convert", output.replace("out", "in"), output)
        assert forks.run(*converting, cwd=plain.home).code == 0
    before = snapshot(plain.home)
    for label in BARRIERS[kind]:
        restore(plain.home, before)
        at = Fault(1, signal=STOP, on=(label,))
        commands = [command(output, n, *(["--force"] * force)) for n in range(count)]
        runs = [forks.start(*each, cwd=plain.home, fault=at) for each in commands]
        ended = go_on(forks, {run: forks.wait(run, PATIENCE) for run in runs})
        hold_one_of(plain.home, before, list(zip(ended, plain.alone[output][:count], strict=True)))
        done = sum(ran.code == 0 for ran in ended)
        assert done >= 1 if force else done == is_new, label
