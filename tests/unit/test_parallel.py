"""Large files are converted by several processes, and come out as if one had done it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import wncli
import wncli.parallel.workers
from tests.support.run import environment, on_a_terminal
from tests.support.shards import save
from wncli.parallel.workers import map_shared

#: Runs `wn` with two forks beside it, whatever the machine; `{fault}` comes before each write.
PROGRAM = """
import os, signal, sys, time
from wncli.parallel import workers
from wncli.cli import program
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests run under
workers.worker_count = lambda: 3
parent, real_fork, real_write = os.getpid(), os.fork, os.pwrite
def fork():
    process = real_fork()
    if process:
        print("fork", process, file=sys.stderr, flush=True)
    return process
def write(descriptor, data, offset):
    {fault}
    return real_write(descriptor, data, offset)
os.fork, os.pwrite = fork, write
program()
"""
IN_A_FORK = "if os.getpid() != parent: "
LAYERS = 24

Send = Callable[[int, int], None]


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
    """The exit code, and what `wn` said on stderr once it has forked, as it must."""
    ran = subprocess.run(
        command(fault, *arguments),
        env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    lines = ran.stderr.splitlines(keepends=True)
    assert sum(line.startswith("fork ") for line in lines) == 2, ran.stderr
    return ran.returncode, "".join(line for line in lines if not line.startswith("fork "))


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


def test_processes_write_what_pytorch_computes(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    assert run("pass", "remove", saved, output, "-q") == (0, "")
    is_folded(output, state)


def test_processes_write_the_same_bytes_as_threads(saved: Path, output: Path) -> None:
    assert run("pass", "remove", saved, output, "-q") == (0, "")
    together = output.read_bytes()
    wncli.remove(saved, output, force=True)
    assert output.read_bytes() == together


def test_what_a_killed_process_has_not_done_is_done_all_the_same(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    """As by a system that runs out of memory."""
    killed = f"{IN_A_FORK}os.kill(os.getpid(), signal.SIGKILL)"
    assert run(killed, "remove", saved, output, "-q") == (0, "")
    is_folded(output, state)


def test_where_no_process_can_be_started_one_does_it_all(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    script = PROGRAM.format(fault="pass").replace(
        "os.fork, os.pwrite = fork, write",
        "def fork():\n    raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "os.fork = fork",
    )
    subprocess.run(
        [sys.executable, "-c", script, "remove", saved, output, "-q"],
        env=environment(), check=True, timeout=60,
    )  # fmt: skip
    is_folded(output, state)


def test_a_parent_that_ignores_its_children_does_not_matter(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    """The system then keeps no exit codes, also for those that this process starts."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    ran = subprocess.run(
        [sys.executable, "-c", f"{ignoring} os.execv(sys.argv[1], sys.argv[1:])",
         *command("pass", "remove", saved, output, "-q")],
        env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert [line.split()[0] for line in ran.stderr.splitlines()] == ["fork", "fork"]
    is_folded(output, state)


def test_an_error_in_a_process_is_told_where_it_comes_again(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    full = "raise OSError(28, 'No space left on device')"
    assert run(f"{IN_A_FORK}{full}", "remove", saved, output, "-q") == (0, "")
    is_folded(output, state)
    code, said = run(f"if len(data) > 100_000: {full}", "remove", saved, output, "-q", "--force")
    assert code == 2
    assert said.startswith(f"error: {output}: cannot be written (No space left on device)")
    is_folded(output, state)


def test_a_refusal_in_the_middle_is_one_message_and_leaves_nothing(
    saved: Path, output: Path, state: dict[str, Tensor]
) -> None:
    bad = output.with_name(f"bad{saved.suffix}")
    v = state["9.weight_v"].clone()
    v[17] = 0
    save(state | {"9.weight_v": v}, bad)
    code, said = run("pass", "remove", bad, output)
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
    code, said = run("pass", "remove", bad, tmp_path / "out.pt")
    assert code == 2
    assert "is damaged: its bytes have changed since the file was written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]
    bad.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["itself", "its group"])
def test_an_interrupted_run_ends_its_processes(
    number: signal.Signals, send: Send, saved: Path, output: Path
) -> None:
    """A terminal sends Ctrl-C to all of them, `kill` to one."""
    code, said, forks = end_it(number, send, saved, output)
    assert code == 130
    assert said == "interrupted: OUTPUT is as it was before, or complete\n"
    assert not any(is_living(process) for process in forks)
    assert list(output.parent.iterdir()) == []


def test_a_killed_run_takes_its_processes_with_it(saved: Path, output: Path) -> None:
    """They have its lock on what is left over, which the next run is to clear away."""
    code, _, forks = end_it(signal.SIGKILL, os.kill, saved, output)
    assert code == -signal.SIGKILL
    all_end(forks)
    assert len(list(output.parent.iterdir())) == 1
    wncli.remove(saved, output)
    assert list(output.parent.iterdir()) == [output]


def end_it(number: int, send: Send, saved: Path, output: Path) -> tuple[int, str, list[int]]:
    """Send a signal to a run whose forks have begun to write, slowly."""
    with subprocess.Popen(
        command(f"{IN_A_FORK}time.sleep(0.2)", "remove", saved, output, "-q"),
        env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        forks = [int(process.stderr.readline().split()[1]) for _ in range(2)]
        time.sleep(0.1)
        assert all(is_living(fork) for fork in forks)
        send(process.pid, number)
        said = process.stderr.read()
        return process.wait(30), said, forks


def all_end(processes: list[int]) -> None:
    """Wait until none of them is living, which is not for long."""
    patience = time.monotonic() + 10
    while any(is_living(process) for process in processes):
        assert time.monotonic() < patience
        time.sleep(0.01)


def is_living(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()


def test_progress_counts_what_all_processes_have_done(saved: Path, output: Path) -> None:
    script = PROGRAM.format(fault="pass").replace(
        "program()",
        "workers.allow_forking()\nimport wncli\nfound = []\n"
        "report = wncli.remove(*sys.argv[1:], progress=lambda *counts: found.append(counts))\n"
        "total, = {total for _, total in found}\n"
        "print(sum(count for count, _ in found), total)",
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(saved), str(output)],
        env=environment(), capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    counted, total = map(int, ran.stdout.split())
    assert ran.stderr.count("fork ") == 2
    assert 0.999 * total < counted <= total == output.stat().st_size


ONCE = """
import os, sys
from wncli.parallel import workers
workers.worker_count = lambda: 4
workers.allow_forking()
def work(item, advance):
    return item, os.getpid()
for count in (2, 3, 1023, 1024, 1025, 50_000):
    found = workers.map_shared(work, range(count), 1 << 40, lambda _: None)
    assert [item for item, _ in found] == list(range(count))
class Tally:
    stopping, progress = False, lambda self, _: None
    def work(self, task): self.done.append(task)
    def begin(self): self.done = []
    def results(self): return self.done
    def add(self, results): self.done += results
for count in (1024, 50_000):
    tally = Tally()
    tally.done = []
    workers.share_out(count, tally, 1 << 40)
    assert sorted(tally.done) == list(range(count)), len(tally.done)
"""


def test_every_task_is_done_once() -> None:
    """Two processes that read on in one file at the same time may read the same."""
    subprocess.run([sys.executable, "-c", ONCE], env=environment(), check=True, timeout=60)


SHARES = """
import os, time
from wncli.parallel import workers
workers.worker_count = lambda: 4
workers.allow_forking()
def work(item, advance):
    time.sleep(0.2 * (item < 8))
    return os.getpid()
first = workers.map_shared(work, range(50_000), 1 << 40, lambda _: None)[:8]
assert len(set(first)) > 1, first
"""


def test_the_largest_tasks_of_many_are_not_left_to_one_process() -> None:
    """They come first, and are too many for each to have a number in the pipe."""
    subprocess.run([sys.executable, "-c", SHARES], env=environment(), check=True, timeout=60)


LEFT = """
import os, time
from wncli.parallel import workers
workers.worker_count = lambda: 2
workers.allow_forking()
def work(item, advance):
    if os.getpid() != parent:
        with open({noted!r}, "w") as file:
            file.write(str(os.getpid()))
    time.sleep(0.2)
    if os.getpid() == parent:
        os.kill(parent, 9)
parent = os.getpid()
workers.map_shared(work, range(1000), 1 << 40, lambda _: None)
"""


def test_a_fork_ends_between_two_tasks_that_have_no_progress(tmp_path: Path) -> None:
    """As those that compute a magnitude, which read until they are done."""
    noted = tmp_path / "forks"
    script = LEFT.format(noted=str(noted))
    ran = subprocess.run([sys.executable, "-c", script], env=environment(), check=False, timeout=60)
    assert ran.returncode == -signal.SIGKILL
    all_end([int(noted.read_text())])


FILES = """
import os
from wncli.parallel import workers
workers.worker_count = lambda: 4
workers.allow_forking()
real, forked = os.fork, []
def fork():
    if len(forked) == {allowed}:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    forked.append(real())
    return forked[-1]
os.fork = fork
def work(item, advance):
    if item == {failing}:
        raise ValueError
open_files = os.listdir("/proc/self/fd")
for _ in range(3):
    forked.clear()
    try:
        workers.map_shared(work, range(40), 1 << 40, lambda _: None)
    except ValueError:
        assert {failing} > 0
    assert os.listdir("/proc/self/fd") == open_files
"""


@pytest.mark.parametrize("failing", [-1, 20])
@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_no_file_is_left_open(allowed: int, failing: int) -> None:
    script = FILES.format(allowed=allowed, failing=failing)
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True, timeout=60)


def test_what_comes_after_a_progress_bar_is_shared_out_as_well(saved: Path, output: Path) -> None:
    """A bar with a thread of its own would forbid forks, in which it does not live on."""
    slow = PROGRAM.format(fault="time.sleep(0.05)")
    code, shown = on_a_terminal("remove", saved, output, "--verify", start=("-c", slow))
    assert code == 0
    assert "━" in shown
    assert shown.count("fork ") == 4
    assert shown.rindex("fork ") > shown.index("━")


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
    monkeypatch.setattr(wncli.parallel.workers, "worker_count", lambda: 4)
    monkeypatch.setattr(wncli.parallel.workers, "_may_fork", False)
    if failing is not None:
        with pytest.raises(ZeroDivisionError):
            map_shared(work, range(40), 1 << 30, lambda _: None)
        return
    assert map_shared(work, range(40), 1 << 30, lambda _: None) == [n * n for n in range(40)]
    assert sorted(done) == list(range(40))
