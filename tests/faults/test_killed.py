"""Whenever a run is ended while it writes: the old OUTPUT is there as it was, or all of the new."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.faults import (
    CASES,
    Case,
    Fault,
    Forks,
    Kind,
    Prepared,
    faulty,
    layers,
    leftovers,
    points,
    snapshot,
    without_leftovers,
)
from tests.support.run import environment
from tests.support.shards import save

pytestmark = pytest.mark.thinned(12)

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


KINDS: tuple[Kind, ...] = ("torch", "safetensors")


@pytest.fixture(params=[f"{name}, {kind}" for name in CASES for kind in KINDS])
def case(request: pytest.FixtureRequest, case_of: Prepared) -> Case:
    name, _, kind = request.param.partition(", ")
    return case_of(name, kind)


@pytest.fixture(params=[f"{name}, {KINDS[place % 2]}" for place, name in enumerate(CASES)])
def either(request: pytest.FixtureRequest, case_of: Prepared) -> Case:
    """Each case with files of one kind."""
    name, _, kind = request.param.partition(", ")
    return case_of(name, kind)


# -- killed --------------------------------------------------------------------------------------


def test_steps_are_counted_where_files_change(case_of: Prepared) -> None:
    """Else the other tests would kill nothing."""
    place = case_of("file onto file", "torch").steps.index
    assert place("open") < place("posix_fallocate")
    assert place("pwrite half") < place("fsync") < place("replace")
    folder = Counter(case_of("folder onto folder", "safetensors").steps)
    assert (folder["rename"], folder["replace"]) == (1, 4)
    assert folder["unlink"] == 2 * 5
    assert folder["write half"] == 2
    assert {"mkdir", "fsync", "unlink", "rmdir", "flock"} <= set(folder)
    assert "link" in case_of("new file", "safetensors").steps


def test_a_killed_run_leaves_the_old_output_or_the_complete_new_one(
    case: Case, forks: Forks
) -> None:
    verdicts = Counter[str]()
    for number in points(case.steps, 34 if case.is_folder else 20):
        ran = faulty(forks, case, Fault(number, signal=signal.SIGKILL))
        assert ran.code == -signal.SIGKILL
        state = snapshot(case.home)
        verdict = case.judge(state)
        assert verdict != "wrong", (number, ran.steps[-1], sorted(state))
        verdicts[verdict] += 1
        for name in leftovers(state):
            top = next(part for part in name.split("/") if part.endswith(".wn-partial"))
            assert top.startswith(f".{case.output}."), name
        if verdict == "moving":
            refused = forks.run("inspect", case.output, cwd=case.home)
            assert (refused.code, refused.stderr[:7]) == (2, "error: ")
    assert verdicts["old"] > 5
    assert verdicts["new"]
    assert bool(verdicts["moving"]) == (case.is_folder and case.output in case.old)


def test_a_run_that_is_killed_where_there_are_no_hard_links_leaves_no_part_of_a_new_file(
    case_of: Prepared, forks: Forks
) -> None:
    """As on FAT: the new file gets its name in another way."""
    case = case_of("new file", "torch")
    ran = faulty(forks, case, Fault(0, missing=("link",)))
    assert (ran.code, snapshot(case.home)) == (0, case.new)
    for number in range(len(ran.steps) - 8, len(ran.steps)):
        killed = faulty(forks, case, Fault(number, signal.SIGKILL, missing=("link",)))
        assert killed.code == -signal.SIGKILL
        assert case.judge(snapshot(case.home)) in {"old", "new"}, killed.steps[-1]


def test_the_run_after_a_killed_one_succeeds_and_clears_what_that_left(
    case: Case, forks: Forks
) -> None:
    cleared = 0
    for number in points(case.steps, 0):
        if number % 2 and "rename" not in case.steps[number - 1]:
            continue
        ran = faulty(forks, case, Fault(number, signal=signal.SIGKILL))
        state = snapshot(case.home)
        verdict = case.judge(state)
        if case.is_in_place and verdict != "old":
            continue  # the next command would be another one
        again = forks.run(*case.again, cwd=case.home)
        assert (again.code, again.stderr) == (0, ""), (number, ran.steps[-1])
        assert snapshot(case.home) == case.new, (number, ran.steps[-1])
        cleared += bool(leftovers(state))
    assert cleared > 1


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_where_moving_files_in_place_was_killed_the_next_run_says_how_to_go_on(
    kind: Kind, case_of: Prepared, forks: Forks
) -> None:
    case, tried = case_of("folder in place", kind), 0
    for number, label in enumerate(case.steps, 1):
        if label not in {"unlink", "replace"}:
            continue
        faulty(forks, case, Fault(number, signal=signal.SIGKILL))
        state = snapshot(case.home)
        if case.judge(state) != "moving":
            continue
        tried += 1
        refused = forks.run(*case.again, cwd=case.home)
        assert refused.code == 2
        assert snapshot(case.home) == state  # nothing is lost by trying
        command = refused.stderr.partition("try:")[2].strip()
        subprocess.run(["sh", "-c", command], cwd=case.home, check=True)
        assert without_leftovers(snapshot(case.home)) == case.new
        ran = forks.run(*case.again, cwd=case.home)
        assert (ran.code, ran.stderr) == (0, "")
        assert snapshot(case.home) == case.new
    assert tried > 3


def test_what_a_killed_run_had_begun_to_move_in_is_all_there_before_the_next_run_begins(
    case_of: Prepared, forks: Forks
) -> None:
    """Also files that bear other names than what stood there, and than what comes."""
    case = case_of("folder onto folder", "safetensors")
    (case.home / "in" / "brought.json").write_bytes(b"{}")
    smaller = [*case.arguments, "--max-shard-size", "400"]
    count = forks.run(*smaller, cwd=case.home).steps.count("replace")
    whole = snapshot(case.home)
    case.begin()
    (case.home / "in" / "brought.json").write_bytes(b"{}")
    at = Fault(count, signal=signal.SIGKILL, on=("replace",))
    assert forks.run(*smaller, cwd=case.home, fault=at).code == -signal.SIGKILL
    state = snapshot(case.home)
    assert "out/brought.json" in state
    assert "out/model.safetensors.index.json" not in state
    early = Fault(1, signal=signal.SIGKILL, on=("pwrite",))
    assert forks.run(*case.arguments, cwd=case.home, fault=early).code == -signal.SIGKILL
    assert without_leftovers(snapshot(case.home)) == whole
    assert forks.run(*case.arguments, cwd=case.home).code == 0
    assert snapshot(case.home) == case.new | {
        f"{folder}/brought.json": b"{}" for folder in ("in", "out")
    }


def test_an_empty_folder_is_written_into_after_a_killed_run_without_force(
    case_of: Prepared, forks: Forks
) -> None:
    case = case_of("new folder", "torch")
    (case.home / "out").mkdir()
    at = Fault(1, signal=signal.SIGKILL, on=("pwrite",))
    assert forks.run(*case.arguments, cwd=case.home, fault=at).code == -signal.SIGKILL
    assert leftovers(snapshot(case.home))
    ran = forks.run(*case.arguments, cwd=case.home)
    assert (ran.code, ran.stderr) == (0, "")
    assert snapshot(case.home) == case.new


def test_a_new_folder_that_was_made_since_the_run_was_killed_is_written_and_cleared(
    case_of: Prepared, forks: Forks
) -> None:
    case = case_of("new folder", "torch")
    at = Fault(1, signal=signal.SIGKILL, on=("pwrite",))
    assert forks.run(*case.arguments, cwd=case.home, fault=at).code == -signal.SIGKILL
    (case.home / "out").mkdir()
    assert forks.run(*case.arguments, cwd=case.home).code == 0
    assert snapshot(case.home) == case.new


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_leaves_the_old_file_or_the_new(
    tmp_path: Path,
) -> None:
    """By the clock, with nothing in the process's way."""
    save(layers(40, size=100_000), tmp_path / "in.pt")
    save(layers(1), tmp_path / "old.pt")
    old, out = (tmp_path / "old.pt").read_bytes(), tmp_path / "out.pt"
    command = [sys.executable, "-m", "wncli", "remove", "in.pt", "out.pt", "--force"]
    out.write_bytes(old)
    start = time.monotonic()
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    took, new = time.monotonic() - start, out.read_bytes()
    for part in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1):
        out.write_bytes(old)
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(took * part)
            process.kill()
        assert out.read_bytes() in (old, new)
        assert set(without_leftovers(snapshot(tmp_path))) == {"in.pt", "old.pt", "out.pt"}


# -- interrupted ---------------------------------------------------------------------------------


def test_an_interrupted_run_leaves_the_old_output_or_the_new_one_and_nothing_else(
    either: Case, forks: Forks
) -> None:
    line = "interrupted: OUTPUT is as it was before, or complete\n"
    failed = []
    chosen = points(either.steps, 36 if either.is_folder else 20, ends=True)
    for place, number in enumerate(chosen):
        ran = faulty(forks, either, Fault(number, signal=SIGNALS[place % 3]))
        state = snapshot(either.home)
        verdict = either.judge(state)
        is_well = (ran.code, ran.stderr, leftovers(state)) == (130, line, [])
        if not is_well or verdict not in {"old", "new"}:
            failed.append((number, either.steps[number - 1], ran.code, verdict, ran.stderr))
    assert failed == []


@pytest.mark.parametrize("name", ["folder onto folder", "folder in place"])
def test_who_interrupts_twice_loses_nothing(name: str, case_of: Prepared, forks: Forks) -> None:
    """Also the second time while the files are moved."""
    case = case_of(name, "safetensors")
    moves = [number for number, label in enumerate(case.steps, 1) if label == "rename"]
    for again in range(1, 12):
        fault = Fault(moves[0], signal=signal.SIGINT, again=again)
        assert faulty(forks, case, fault).code == 130
        assert case.judge(snapshot(case.home)) != "wrong", again


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_is_ignored_as_nohup_has_it_does_not_interrupt(
    number: signal.Signals, case_of: Prepared, forks: Forks
) -> None:
    case = case_of("file onto file", "torch")
    at = Fault(1, signal=number, on=("pwrite",))
    ran = forks.run(*case.arguments, cwd=case.home, fault=at, ignored=[number])
    assert (ran.code, ran.stderr) == (0, "")
    assert snapshot(case.home) == case.new
