"""Conversions on whose way something goes wrong, and what may stand in their places then."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import pytest
import torch
from torch import Tensor

from tests.support.dcp import save_dcp
from tests.support.run import environment
from tests.support.shards import save, sharded
from tests.support.steps import BROKEN

Kind = Literal["safetensors", "torch"]
#: Every file below a folder with its content, and every folder with None.
Snapshot = dict[str, bytes | None]
#: `moving` is a folder without an index, so that nothing takes it for a checkpoint, while every
#: byte of the new one is there.
Verdict = Literal["old", "new", "moving", "wrong"]

SUFFIXES: dict[Kind, str] = {"safetensors": ".safetensors", "torch": ".pt"}
#: Ends the names of what a killed run leaves behind.
LEFTOVER = ".wn-partial"
#: The calls with which files take their places.
_MOVING = {"link", "rename", "replace", "unlink"}
#: Seconds after which a run counts as one that never ends.
_PATIENCE = 30.0


@dataclass(frozen=True)
class Fault:
    """What goes wrong in a run: a signal or an error at a step, counted from 1.

    Only steps with a label in `on` are counted, where there are any. A `lasting` error comes back
    at all further ones; a signal comes `again` so many steps later. Calls that are `missing` fail
    throughout, as they do on some file systems.
    """

    at: int
    signal: int | None = None
    errno: int | None = None
    on: tuple[str, ...] = ()
    lasting: bool = False
    again: int | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How far a run came. `code` is None where it is stopped or still goes on."""

    code: int | None
    stdout: str
    stderr: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """A run that was begun, and the beginning of the names of its streams."""

    pid: int
    streams: str


class Forks:
    """Runs of `wn` as forks of one process that has imported everything, `folder` for its files."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.steps", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The children end with it, also those that are stopped.
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(_PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, **order: object) -> dict[str, object]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], _PATIENCE)
        if not ready:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail("a run of wn does not end")
        found: dict[str, object] = json.loads(self.process.stdout.readline())
        return found

    def warm(self, *arguments: str, cwd: Path) -> None:
        """Run in the parent of all further runs, so that they find everything imported."""
        assert self.ask(do="warm", arguments=arguments, cwd=str(cwd)) == {"code": 0}

    def start(
        self,
        *arguments: str | Path,
        cwd: Path,
        fault: Fault | None = None,
        ignored: Sequence[int] = (),
    ) -> Run:
        """Begin a run, with what goes wrong in it, and signals that it finds ignored."""
        found = self.ask(
            do="start",
            arguments=[str(argument) for argument in arguments],
            cwd=str(cwd),
            fault=asdict(fault) if fault else None,
            ignored=[int(number) for number in ignored],
        )
        assert isinstance(found["pid"], int)
        return Run(found["pid"], str(found["streams"]))

    def wait(self, run: Run, seconds: float | None = None) -> Outcome:
        """Wait until a run ends or stops, no longer than `seconds`."""
        code = self.ask(do="wait", pid=run.pid, seconds=seconds)["code"]
        assert code is None or isinstance(code, int)
        texts = []
        for name in ("out", "err", "trace"):
            path = Path(f"{run.streams}.{name}")
            texts.append(path.read_text() if path.exists() else "")
            if code is not None:
                path.unlink(missing_ok=True)
        stdout, stderr, trace = texts
        assert code != BROKEN, stderr
        return Outcome(code, stdout, stderr, tuple(trace.splitlines()))

    def run(
        self,
        *arguments: str | Path,
        cwd: Path,
        fault: Fault | None = None,
        ignored: Sequence[int] = (),
    ) -> Outcome:
        """Begin a run and wait for it."""
        return self.wait(self.start(*arguments, cwd=cwd, fault=fault, ignored=ignored))


# -- what stands in a folder ---------------------------------------------------------------------


def snapshot(folder: Path) -> Snapshot:
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


def restore(folder: Path, state: Snapshot) -> None:
    """Make a folder hold what it held at a snapshot, and nothing else."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def _is_left_over(name: str) -> bool:
    return any(part.endswith(LEFTOVER) for part in name.split("/"))


def leftovers(state: Snapshot) -> list[str]:
    """What a run left behind; nothing of it is to be taken for a checkpoint."""
    found = [name for name in state if _is_left_over(name)]
    for name in found:
        (part,) = [part for part in name.split("/") if part.endswith(LEFTOVER)]
        assert part.startswith("."), name
    return found


def without_leftovers(state: Snapshot) -> Snapshot:
    return {name: content for name, content in state.items() if not _is_left_over(name)}


# -- the conversions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A conversion in the folder `home`: what stands there before and after, and what it does.

    `again` writes the same once more, whatever has become of the first run. Names of files are
    relative to `home`.
    """

    name: str
    home: Path
    arguments: tuple[str, ...]
    again: tuple[str, ...]
    output: str
    old: Snapshot
    new: Snapshot
    steps: tuple[str, ...]

    @property
    def is_folder(self) -> bool:
        return self.new[self.output] is None

    @property
    def is_in_place(self) -> bool:
        return self.arguments[1] == self.output

    def begin(self) -> None:
        """Put everything back as it stood before."""
        restore(self.home, self.old)

    def judge(self, state: Snapshot) -> Verdict:
        """What a killed run left of OUTPUT, and of everything else in the folder."""
        found = without_leftovers(state)
        if found in (self.old, self.new):
            return "old" if found == self.old else "new"
        if (
            self.old.get(self.output, b"") is None
            and self._others(found) == self._others(self.old)
            and not any(self._is_index(name) for name in found)
            and set(self.new.values()) <= set(state.values())
        ):
            return "moving"
        return "wrong"

    def _others(self, state: Snapshot) -> Snapshot:
        return {n: content for n, content in state.items() if not n.startswith(f"{self.output}/")}

    def _is_index(self, name: str) -> bool:
        return name.startswith(f"{self.output}/") and name.endswith((".index.json", ".metadata"))


@dataclass(frozen=True)
class _Plan:
    arguments: tuple[str, ...]
    output: str
    has_old: bool = True
    is_distributed: bool = False


def _plans(kind: Kind) -> dict[str, _Plan]:
    file, out = f"in{SUFFIXES[kind]}", f"out{SUFFIXES[kind]}"
    quiet, replace = ("--quiet",), ("--quiet", "--force")
    respell = (*replace, "--naming", "parametrized")
    return {
        "file onto file": _Plan(("remove", file, out, *replace), out),
        "new file": _Plan(("remove", file, out, *quiet), out, has_old=False),
        "file in place": _Plan(("convert", file, file, *respell), file),
        "folder onto folder": _Plan(("remove", "in", "out", *replace), "out"),
        "new folder": _Plan(("remove", "in", "out", *quiet), "out", has_old=False),
        "folder in place": _Plan(("convert", "in", "in", *respell), "in"),
        "distributed": _Plan(("remove", "in", "out", *replace), "out", is_distributed=True),
        "distributed in place": _Plan(("convert", "in", "in", *respell), "in", is_distributed=True),
    }


CASES = tuple(_plans("torch"))


def layers(count: int, prefix: str = "l", size: int = 64) -> dict[str, Tensor]:
    """Weight-normalized layers with a bias each; v and the bias have `size` elements."""
    state: dict[str, Tensor] = {}
    for number in range(count):
        state[f"{prefix}{number}.weight_g"] = torch.rand(2, 1) + 0.5
        state[f"{prefix}{number}.weight_v"] = torch.randn(2, size // 2)
        state[f"{prefix}{number}.bias"] = torch.randn(size)
    return state


def _write_files(home: Path, kind: Kind, plan: _Plan, count: int) -> None:
    replaces = plan.has_old and not plan.output.startswith("in")
    if plan.arguments[1] != "in":
        save(layers(count), home / plan.arguments[1])
        if replaces:
            save(layers(1, "old"), home / plan.output)
        return
    if plan.is_distributed:
        save_dcp(layers(count), home / "in", thread_count=2)
        if replaces:
            save_dcp(layers(3, "old"), home / "out", single_file_per_rank=False)
            (home / "out" / "notes.txt").write_bytes(b"mine")
        return
    half = count // 2
    sharded(home / "in", kind, {1: layers(half), 2: layers(count - half, "m")})
    (home / "in" / "config.json").write_bytes(b"{}")
    if replaces:
        sharded(home / "out", kind, {n: layers(1, f"old{n}.") for n in (1, 2, 3)})
        (home / "out" / "config.json").write_bytes(b"old")
        (home / "out" / "notes.txt").write_bytes(b"mine")


def prepare(forks: Forks, home: Path, kind: Kind, name: str, count: int = 2) -> Case:
    """Write a case's files into an empty folder, and see what an undisturbed run makes of them."""
    plan = _plans(kind)[name]
    _write_files(home, kind, plan, count)
    old = snapshot(home)
    forks.warm(*plan.arguments, cwd=home)
    restore(home, old)
    ran = forks.run(*plan.arguments, cwd=home)
    assert (ran.code, ran.stderr) == (0, "")
    new = snapshot(home)
    assert new != old
    assert leftovers(new) == []
    again = plan.arguments if "--force" in plan.arguments else (*plan.arguments, "--force")
    restore(home, old)
    return Case(f"{name}, {kind}", home, plan.arguments, again, plan.output, old, new, ran.steps)


def points(labels: Sequence[str], most: int, *, ends: bool = False) -> list[int]:
    """The numbers of steps to do something at, from 1: some `most`.

    All that move files are taken, and at least two of each label. The end of a call differs from
    the beginning of the next for a run that goes on behind it, and only there it is one (`ends`).
    """
    places: dict[str, list[int]] = {}
    for number, label in enumerate(labels, 1):
        if ends or not label.endswith(" done"):
            places.setdefault(label, []).append(number)
    found = {len(labels)}
    for label, of in places.items():
        found |= set(of if label.removesuffix(" done") in _MOVING else (of[0], of[-1]))
    others = sorted({number for of in places.values() for number in of} - found)
    room = min(max(0, most - len(found)), len(others))
    found |= {others[len(others) * n // room] for n in range(room)}
    return sorted(found)


class Prepared:
    """Cases, each prepared once and put back as it was for everyone who asks."""

    def __init__(self, forks: Forks, new_folder: Callable[[str], Path]) -> None:
        self.forks = forks
        self.new_folder = new_folder
        self.cases: dict[tuple[str, Kind], Case] = {}

    def __call__(self, name: str, kind: Kind) -> Case:
        if (name, kind) not in self.cases:
            torch.manual_seed(0)
            self.cases[name, kind] = prepare(self.forks, self.new_folder("case"), kind, name)
        self.cases[name, kind].begin()
        return self.cases[name, kind]


def faulty(forks: Forks, case: Case, fault: Fault) -> Outcome:
    """Run a case from its beginning with a fault on the way."""
    case.begin()
    return forks.run(*case.arguments, cwd=case.home, fault=fault)
