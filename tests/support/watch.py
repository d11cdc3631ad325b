"""Makes the hostile files, and runs `wn` on them under a watch, or loads them with PyTorch."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from tests.corpus.hostile_names import DORMANT
from tests.corpus.hostile_pickles import CALLS, MALFORMED, REPEATED
from tests.corpus.hostile_places import HERE, PLACES, TORCHSCRIPT, state_dict, zipped
from tests.support.audit import Outcome
from tests.support.opcodes import call, text
from tests.support.run import Ran, environment

KINDS: dict[str, Mapping[str, object]] = {
    "call": CALLS,
    "place": PLACES,
    "script": TORCHSCRIPT,
    "bad": MALFORMED,
}

#: Modules that stand nowhere else: the one runs as it is imported, the other when it is called.
MODULES = {
    "wn_canary": "import os, pathlib\npathlib.Path(os.environ['WN_MARKER']).touch()\n",
    "wn_stranger": """
import datetime, logging, os, pathlib, subprocess

def start(path):
    pathlib.Path(path).touch()

def run(*_):
    start(os.environ["WN_MARKER"])

class Handler(logging.FileHandler):
    pass

class Config:
    def load(path):
        start(path)

class Pipe:
    def __iter__(self):
        run()

class Zone(datetime.tzinfo):
    pass
""",
}

#: Loads files as users do. What they start has ended when this ends.
LOAD = """
import json, os, sys, torch
for path, marker in json.load(sys.stdin):
    os.environ["WN_MARKER"] = marker
    sys.modules.pop("wn_canary", None)
    try:
        torch.load(path, weights_only=False)
    except BaseException:
        pass
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""


@dataclass(frozen=True)
class Corpus:
    """A folder with a file for each call, each place, and whatever else there is."""

    folder: Path

    def path(self, kind: str, name: str) -> Path:
        return self.folder / "in" / f"{kind}{list(KINDS[kind]).index(name)}.pt"

    def marker(self, kind: str, name: str) -> Path:
        """What is there once the file's call has been made."""
        return self.folder / "ran" / self.path(kind, name).stem

    @property
    def sound(self) -> Path:
        return self.folder / "in" / "sound.pt"

    @property
    def dormant(self) -> Path:
        """One file with all dormant calls, number n in the entry `x{n}`."""
        return self.folder / "in" / "dormant.pt"

    def out(self, suffix: str = ".pt") -> Path:
        """Where the next command may write to; what the last one left there is gone."""
        for left in (self.folder / "out").iterdir():
            left.unlink()
        return self.folder / "out" / f"out{suffix}"

    def marked(self) -> set[str]:
        """The files whose call has been made."""
        return {path.name for path in (self.folder / "ran").iterdir()}


def make_corpus(folder: Path) -> Corpus:
    made = Corpus(folder)
    for name in ("in", "out", "ran", "modules"):
        (folder / name).mkdir()
    for module, source in MODULES.items():
        (folder / "modules" / f"{module}.py").write_text(source)
    for kind, names in KINDS.items():
        for name in names:
            marker = str(made.marker(kind, name))
            made.path(kind, name).write_bytes(_content(kind, name, marker))
    for name, found in CALLS.items():
        raw = pickle.PROTO + bytes([found.protocol])
        raw += found.opcodes(str(made.marker("call", name))) + pickle.STOP
        made.path("call", name).with_suffix(".pkl").write_bytes(raw)
    sound = {"model": state_dict(), "extra": 1, "é\t…": torch.ones(2), "ema": state_dict()}
    torch.save(sound, made.sound)
    entries = b"".join(
        (text(f"x{place}") if place else b"") + call(full, "x")
        for place, full in enumerate(DORMANT)
    )
    made.dormant.write_bytes(zipped({"model": state_dict(), "x0": HERE}, entries))
    return made


def _content(kind: str, name: str, marker: str) -> bytes:
    if kind == "call":
        return PLACES["entry"].write(CALLS[name].opcodes(marker), CALLS[name].protocol)
    if kind == "bad":
        return PLACES["entry"].write(MALFORMED[name](marker), 4)
    touch = REPEATED.opcodes(marker)
    return PLACES[name].write(touch, 2) if kind == "place" else TORCHSCRIPT[name](touch)


class Watched:
    """`wn` in a process that prevents and lists all that it does not do for a sound file."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.audit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=corpus.folder,
            env=environment_of(corpus),
            text=True,
        )
        sound, out = str(corpus.sound), str(corpus.folder / "out" / "warm")
        self.send(
            [["inspect", sound], ["inspect", sound, "--json"], ["inspect", f"{sound}.none"]]
            + [["inspect", sound, "--check"], ["convert", sound, f"{out}.pt", "--verify"]]
            + [["compare", sound, sound], ["convert", sound, f"{out}.pt", "--like", sound]]
            + [
                [command, sound, f"{out}{suffix}", *more]
                for command in ("convert", "remove", "apply")
                for suffix in (".pt", ".safetensors")
                for more in (
                    [],
                    ["--only", "ema"],
                    ["--drop", "extra"],
                    ["--only=ema", "--dry-run"],
                )
            ]
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: object, _traceback: TracebackType | None
    ) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(10)

    def send(self, what: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def outcome(self, *arguments: str | Path) -> Outcome:
        """What came of a command line, and what was prevented."""
        assert self.process.stdout
        self.send([*map(str, arguments)])
        found: Outcome = json.loads(self.process.stdout.readline())
        return found

    def __call__(self, *arguments: str | Path) -> Ran:
        """Run `wn`, and hold it to have imported and run nothing."""
        found = self.outcome(*arguments)
        assert found["violations"] == [], found
        assert self.corpus.marked() == set(), arguments
        assert not re.search("Traceback|defect", found["stderr"]), found["stderr"]
        assert found["code"] is not None, found["stderr"]
        return Ran(found["code"], found["stdout"], found["stderr"])


def environment_of(corpus: Corpus) -> dict[str, str]:
    """Where both modules are found, so that only importing them is missing."""
    found = environment()
    return found | {"PYTHONPATH": f"{found['PYTHONPATH']}:{corpus.folder / 'modules'}"}


def load_all(corpus: Corpus) -> set[str]:
    """The files whose call a plain `torch.load` makes."""
    files = [
        (str(corpus.path(kind, name)), str(corpus.marker(kind, name)))
        for kind in ("call", "place", "script")
        for name in KINDS[kind]
    ]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD],
        input=json.dumps(files), text=True, env=environment_of(corpus), cwd=corpus.folder,
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    return corpus.marked()
