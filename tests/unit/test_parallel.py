"""Large files are converted by several threads, and come out as if one had done it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import wncli
from tests.support.run import environment, on_a_terminal
from tests.support.shards import save
from wncli.parallel import Advance, run_tasks
from wncli.storage.signals import waking

pytestmark = pytest.mark.thinned(5)

#: Runs `wn`, in which `{fault}` comes before each write, and tells which threads have written: past
#: the stream, which may write twice what two threads print.
PROGRAM = """
import os, signal, sys, threading, time
from wncli.cli import program
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests run under
real_write, threads = os.pwrite, set()
def write(descriptor, data, offset):
    if threading.get_ident() not in threads:
        threads.add(threading.get_ident())
        os.write(2, b"thread %d\\n" % len(threads))
    {fault}
    return real_write(descriptor, data, offset)
os.pwrite = write
program()
"""
IN_A_THREAD = "if threading.current_thread() is not threading.main_thread(): "
JOBS = ("--jobs", "3")
#: Until every thread has a task, so that one alone does not do them all.
TOGETHER = (
    "patience = time.monotonic() + 20\n"
    "    while len(threads) < 3 and time.monotonic() < patience: time.sleep(0.01)"
)
LAYERS = 24


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """56 MB: layers of which the first is larger than all others, and what is no layer."""
    torch.manual_seed(3)
    found: dict[str, Tensor] = {"steps": torch.arange(2_000_000)}
    for number in range(LAYERS):
        shape = (512, 768 if number else 7680)
        found[f"{number}.weight_g"] = torch.rand(512, 1) + 0.5
        found[f"{number}.weight_v"] = torch.randn(shape)
        found[f"{number}.bias"] = torch.randn(512)
    return found


@pytest.fixture(scope="module", params=[".safetensors", ".pt"])
def saved(
    request: pytest.FixtureRequest,
    state: dict[str, Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    path = tmp_path_factory.mktemp("large") / f"in{request.param}"
    save(state, path)
    return path


@pytest.fixture
def output(saved: Path, tmp_path: Path) -> Iterator[Path]:
    """Where to write; the two files of a test are large, so they go with it."""
    path = tmp_path / f"out{saved.suffix}"
    yield path
    path.unlink(missing_ok=True)


def command(fault: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(fault=fault), *map(str, arguments)]


def run(fault: str, *arguments: str | Path) -> tuple[int, str]:
    """The exit code, and what `wn` said on stderr once three threads have written, as they must."""
    ran = subprocess.run(
        command(fault, *arguments, *JOBS),
        env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = ran.stderr.splitlines(keepends=True)
    assert sum(line.startswith("thread ") for line in lines) == 3, ran.stderr
    return ran.returncode, "".join(line for line in lines if not line.startswith("thread "))


def read(path: Path) -> dict[str, Tensor]:
    """With every checksum looked at, where there are any."""
    if path.suffix == ".safetensors":
        return load_file(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    loaded: dict[str, Tensor] = torch.load(path, weights_only=True)
    return loaded


def is_folded(path: Path, state: dict[str, Tensor]) -> None:
    """Hold what was written against PyTorch's weights, and the rest against its bits."""
    found = read(path)
    assert len(found) == 1 + 2 * LAYERS
    assert torch.equal(found["steps"], state["steps"])
    for number in range(LAYERS):
        g, v = state[f"{number}.weight_g"].double(), state[f"{number}.weight_v"].double()
        weight = torch._weight_norm(v, g, 0).float()
        torch.testing.assert_close(found[f"{number}.weight"], weight, rtol=2e-7, atol=0)
        assert torch.equal(found[f"{number}.bias"], state[f"{number}.bias"])


def test_threads_write_what_pytorch_computes(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    assert run(TOGETHER, "remove", saved, output, "-q") == (0, "")
    is_folded(output, state)


def test_any_number_of_threads_writes_the_same_bytes(saved: Path, output: Path) -> None:
    assert run(TOGETHER, "remove", saved, output, "-q") == (0, "")
    together = output.read_bytes()
    for jobs in (1, 2, None):
        wncli.remove(saved, output, force=True, jobs=jobs)
        assert output.read_bytes() == together


def test_one_job_is_one_thread(saved: Path, output: Path) -> None:
    ran = subprocess.run(
        command("pass", "remove", saved, output, "-q", "--jobs", "1"),
        env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stderr == "thread 1\n"


def test_an_error_in_a_thread_is_told_once_and_leaves_nothing(saved: Path, output: Path) -> None:
    full = f"{TOGETHER}\n    {IN_A_THREAD}raise OSError(28, 'No space left on device')"
    code, said = run(full, "remove", saved, output, "-q")
    assert code == 2
    assert said.startswith(f"error: {output}: cannot be written (No space left on device)")
    assert said.count("error:") == 1
    assert list(output.parent.iterdir()) == []


def test_a_refusal_in_the_middle_is_one_message_and_leaves_nothing(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    bad = output.with_name(f"bad{saved.suffix}")
    v = state["9.weight_v"].clone()
    v[17] = 0
    save(state | {"9.weight_v": v}, bad)
    code, said = run(TOGETHER, "remove", bad, output)
    assert code == 2
    assert said.startswith(f"error: {bad}: 9.weight: slice 17 (of 512) of 9.weight_v is all zero")
    assert said.count("error:") == 1
    assert [path.name for path in output.parent.iterdir()] == [bad.name]
    bad.unlink()


def test_a_damaged_storage_is_found_by_whoever_reads_it(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pt"
    save(state, bad)
    content = bytearray(bad.read_bytes())
    content[content.index(state["20.weight_v"].numpy().tobytes()) + 12_345] ^= 4
    bad.write_bytes(content)
    code, said = run(TOGETHER, "remove", bad, tmp_path / "out.pt")
    assert code == 2
    assert "is damaged: its bytes have changed since the file was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]
    bad.unlink()


@pytest.mark.parametrize("slow", ["", IN_A_THREAD], ids=["all", "the others"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_ends_its_threads_and_leaves_nothing(
    number: signal.Signals, slow: str, saved: Path, output: Path
) -> None:
    """Whether this thread works or waits for the others."""
    code, said = end_it(number, f"{slow}time.sleep(0.2)", saved, output)
    assert code == 130
    told = [line for line in said.splitlines() if not line.startswith("thread ")]
    assert told == ["interrupted: OUTPUT is as it was before, or complete"]
    assert list(output.parent.iterdir()) == []


def test_what_a_killed_run_leaves_the_next_one_clears_away(saved: Path, output: Path) -> None:
    code, _ = end_it(signal.SIGKILL, "time.sleep(0.2)", saved, output)
    assert code == -signal.SIGKILL
    assert len(list(output.parent.iterdir())) == 1
    wncli.remove(saved, output)
    assert list(output.parent.iterdir()) == [output]


def end_it(number: int, fault: str, saved: Path, output: Path) -> tuple[int, str]:
    """Send a signal to a run whose threads have begun to write, slowly."""
    with subprocess.Popen(
        command(fault, "remove", saved, output, "-q", *JOBS),
        env=environment(), stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for _ in range(3):
            assert process.stderr.readline().startswith("thread ")
        process.send_signal(number)
        said = process.stderr.read()
        return process.wait(30), said


def test_progress_counts_what_all_threads_have_done_one_at_a_time(
    saved: Path, output: Path
) -> None:
    counts: list[int] = []
    busy = threading.Lock()

    def progress(count: int, total: int) -> None:
        assert busy.acquire(blocking=False)
        counts.append(count)
        assert total == saved_total
        time.sleep(0.001)
        busy.release()

    saved_total = len(written(saved, output))
    wncli.remove(saved, output, force=True, jobs=3, progress=progress)
    assert 0.999 * saved_total < sum(counts) <= saved_total


def written(saved: Path, output: Path) -> bytes:
    wncli.remove(saved, output)
    return output.read_bytes()


def test_the_library_leaves_signals_and_processes_alone(saved: Path, output: Path) -> None:
    script = (
        "import signal, sys, wncli\n"
        "seen = []\n"
        "sys.addaudithook(lambda name, _: seen.append(name))\n"
        "before = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "wncli.remove(*sys.argv[1:], jobs=3)\n"
        "assert before == [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "started = {'os.fork', 'os.forkpty', 'os.posix_spawn', 'subprocess.Popen', 'os.exec'}\n"
        "assert not started & set(seen)\n"
    )
    ran = [sys.executable, "-c", script, str(saved), str(output)]
    subprocess.run(ran, env=environment(), check=True, timeout=60)


@pytest.mark.parametrize("jobs", [0, -1, 2.0, True, "2"])
def test_what_is_no_number_of_threads_is_refused(jobs: object, saved: Path, output: Path) -> None:
    anything: Any = jobs
    calls = (
        lambda: wncli.remove(saved, output, jobs=anything),
        lambda: wncli.inspect(saved, check=True, jobs=anything),
        lambda: wncli.compare(saved, saved, jobs=anything),
    )
    for call in calls:
        with pytest.raises(wncli.WnError, match="jobs"):
            call()
    assert not output.exists()


def test_checking_comparing_and_verifying_give_the_same_on_any_number_of_threads(
    saved: Path, output: Path
) -> None:
    wncli.remove(saved, output, verify=True, jobs=3)
    reports = [
        (
            wncli.inspect(saved, check=True, jobs=jobs).to_json() | {"seconds": 0},
            wncli.compare(saved, output, jobs=jobs).to_json() | {"seconds": 0},
        )
        for jobs in (1, 3)
    ]
    assert reports[0] == reports[1]
    assert reports[0][1]["equal"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1024, 5000])
def test_every_task_is_done_once_and_begun_in_its_order(count: int) -> None:
    begun: list[int] = []

    def work(item: int, advance: Advance) -> int:
        begun.append(item)
        advance(1)
        return item

    for jobs in (1, 4):
        begun.clear()
        found = run_tasks(work, range(count), nbytes=1 << 40, jobs=jobs, progress=lambda _: None)
        assert found == list(range(count))
        assert sorted(begun) == list(range(count))
        assert jobs > 1 or begun == list(range(count))


def test_little_work_is_not_worth_a_thread() -> None:
    def work(_item: int, _advance: Advance) -> int:
        time.sleep(0.01)
        return threading.get_ident()

    found = run_tasks(work, range(8), nbytes=1 << 20, jobs=4, progress=lambda _: None)
    assert set(found) == {threading.get_ident()}
    found = run_tasks(work, range(8), nbytes=1 << 30, jobs=4, progress=lambda _: None)
    assert len(set(found)) == 4


def test_after_a_failure_the_other_tasks_end_at_their_next_progress() -> None:
    def work(item: int, advance: Advance) -> None:
        if item == 0:
            raise ZeroDivisionError
        while True:
            time.sleep(0.001)
            advance(1)

    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        run_tasks(work, range(100), nbytes=1 << 40, jobs=2, progress=lambda _: None)
    assert threading.active_count() == before


def test_a_bar_shows_what_threads_do(saved: Path, output: Path) -> None:
    slow = PROGRAM.format(fault="time.sleep(0.05)")
    code, shown = on_a_terminal("remove", saved, output, "--verify", *JOBS, start=("-c", slow))
    assert code == 0
    assert "━" in shown
    assert shown.count("thread ") == 3


@pytest.mark.parametrize("allowed", [0, 1, 2])
@pytest.mark.parametrize("failing", [None, 0, 5, 39])
def test_where_fewer_threads_can_be_started_or_none_every_task_is_done_all_the_same(
    allowed: int, failing: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_some(thread: threading.Thread) -> None:
        if len(started) == allowed:
            message = "can't start new thread"
            raise RuntimeError(message)
        started.append(thread)
        start(thread)

    done: list[int] = []

    def work(item: int, _advance: object) -> int:
        time.sleep(0.001)
        if item == failing:
            raise ZeroDivisionError
        done.append(item)
        return item * item

    monkeypatch.setattr(threading.Thread, "start", start_some)
    if failing is not None:
        with pytest.raises(ZeroDivisionError):
            run_tasks(work, range(40), nbytes=1 << 30, jobs=4, progress=lambda _: None)
        return
    found = run_tasks(work, range(40), nbytes=1 << 30, jobs=4, progress=lambda _: None)
    assert found == [n * n for n in range(40)]
    assert sorted(done) == list(range(40))


@pytest.mark.parametrize("failing", ["this thread", "another"])
def test_what_waits_for_other_machines_is_woken_once_a_task_has_failed(failing: str) -> None:
    woken, begun = threading.Event(), threading.Barrier(2)
    entry = (threading.get_ident(), woken.set)
    here = threading.current_thread()

    def run(_: int, __: Advance) -> None:
        begun.wait(20)
        if (threading.current_thread() is here) is (failing == "this thread"):
            raise ValueError(failing)
        assert woken.wait(20)

    waking.add(entry)
    try:
        with pytest.raises(ValueError, match=failing):
            run_tasks(run, [1, 2], nbytes=1 << 30, jobs=2, progress=lambda _: None)
    finally:
        waking.discard(entry)
    assert woken.is_set()
