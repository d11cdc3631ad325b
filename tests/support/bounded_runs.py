"""Runs a program on hostile files: each run is a process of its own, bounded and measured."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import torch

import wncli
from tests.support.run import Ran, environment
from wncli.errors import WnError

#: What a run may take: seconds of work, which others on the machine do not lengthen, and megabytes
#: that are in memory at once.
MOST_SECONDS = 5.0
MOST_MEGABYTES = 300.0

#: Reads arguments from standard input; forks for each, so that nothing is imported twice.
_SERVER = """
import gc, json, os, resource, signal, sys, tempfile
%s
gc.freeze()
for line in sys.stdin:
    arguments, bounds = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            signal.alarm(60)
            for name, most in bounds.items():
                resource.setrlimit(getattr(resource, name), (most, most))
            sys.argv[1:] = arguments
            code = 0
            try:
                run()
            except SystemExit as end:
                code = end.code
            except Exception as error:
                print(type(error).__name__, error, file=sys.stderr)
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status, used = os.wait4(child, 0)
        seconds = used.ru_utime + used.ru_stime
        out.seek(0)
        err.seek(0)
        texts = [file.read().decode(errors="replace") for file in (out, err)]
    code = os.waitstatus_to_exitcode(status)
    print(json.dumps([code, *texts, seconds, used.ru_maxrss / 1024]), flush=True)
"""
#: A claimed gigabyte shows, and so does an output that nobody could want.
_BOUNDS = {"RLIMIT_AS": 1 << 30, "RLIMIT_FSIZE": 1 << 30, "RLIMIT_CORE": 0}
_WN = """
import numpy, rich.console, rich.table, rich.progress
import wncli.cli.commands, wncli.cli.many, wncli.fill.fill, wncli.layout.files
import wncli.storage.replace_file
import wncli.formats.torch.zip_reader, wncli.formats.torch.legacy, wncli.formats.torch.torchscript
import wncli.formats.torch.zip_writer, wncli.formats.safetensors.writer
from wncli.cli import main as run
"""
#: Inspects each file, one after another, and says how many seconds of work each took, and how many
#: kilobytes all; in a fork, since a new program is charged with what started it.
_INSPECT = """
import json, os, resource, sys, time, wncli
paths = json.load(sys.stdin)
if not os.fork():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    seconds = {}
    for path in paths:
        start = time.process_time()
        try:
            wncli.inspect(path)
        except MemoryError:
            raise
        except Exception:  # other tests hold what it is
            pass
        seconds[path] = time.process_time() - start
    json.dump(seconds, sys.stdout)
    sys.exit()
_, status, used = os.wait4(-1, 0)
print("", used.ru_maxrss, sep="\\n")
sys.exit(os.waitstatus_to_exitcode(status))
"""
#: Loads each file with and without `weights_only`, and says why it did not load.
_LOAD = """
import json, sys, warnings, torch
warnings.simplefilter("ignore")
def refusal(path, weights_only):
    try:
        torch.load(path, weights_only=weights_only, map_location="cpu")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
paths = json.load(sys.stdin)
json.dump({path: [refusal(path, weights_only) for weights_only in (True, False)] for path in paths},
          sys.stdout)
"""


@dataclass(frozen=True)
class Measured(Ran):
    """How a run ended, and what it took: seconds of work, and megabytes at its largest."""

    seconds: float
    megabytes: float

    def hold_bounds(self) -> None:
        """Nothing that a file says makes a run long or large."""
        assert self.seconds < MOST_SECONDS
        assert self.megabytes < MOST_MEGABYTES


class Apart:
    """Runs `wn`, each time in a process of its own; use it as a context."""

    def __enter__(self) -> Self:
        self.server = subprocess.Popen(
            [sys.executable, "-c", _SERVER % _WN],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.server.communicate(timeout=60)

    def __call__(self, *arguments: str | Path) -> Measured:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([[*map(str, arguments)], _BOUNDS]), file=self.server.stdin, flush=True)
        return Measured(*json.loads(self.server.stdout.readline()))


def hold_bounds_of_all(files: Mapping[str, bytes], folder: Path) -> None:
    """None of these files, which are put into a folder, takes long or much memory."""
    found, kilobytes = _on_all(_INSPECT, files, folder).splitlines()
    seconds: dict[str, float] = json.loads(found)
    assert max(seconds.values()) < MOST_SECONDS, max(seconds, key=seconds.__getitem__)
    assert int(kilobytes) / 1024 < MOST_MEGABYTES


@dataclass(frozen=True)
class Loaded:
    """Why `torch.load` refuses a file with `weights_only`, and without; empty where it loads."""

    weights_only: str
    all: str


def torch_loads(files: Mapping[str, bytes], folder: Path) -> dict[str, Loaded]:
    """How `torch.load` takes each of these files, which are put into a folder."""
    found = json.loads(_on_all(_LOAD, files, folder))
    return {name: Loaded(*found[str(folder / name)]) for name in files}


def _on_all(program: str, files: Mapping[str, bytes], folder: Path) -> str:
    """What a program prints that is given the paths of these files."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([str(folder / name) for name in files]),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return ran.stdout


def hold_refused(ran: Ran, says: str) -> None:
    """Exit code 2 and one message, which names the rule."""
    assert ran.code == 2, ran
    assert ran.stdout == ""
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("error: ") == 1
    assert "Traceback" not in ran.stderr
    assert "defect of wn" not in ran.stderr
    assert re.search(says, ran.stderr), ran.stderr


def hold_refused_untouched(wn_here: Callable[..., Ran], path: Path, says: str) -> None:
    """The only file of a folder is refused by `inspect` and by `convert`, and nothing changes."""
    before = path.read_bytes()
    hold_refused(wn_here("inspect", path), says)
    with pytest.raises(WnError, match=says):
        wncli.convert(path, path.parent / "out.pt")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == before


def hold_same(first: object, second: object) -> None:
    """Two values are equal in all their parts, however deep they are, or within themselves."""
    seen: set[tuple[int, int]] = set()
    pairs = [(first, second)]
    while pairs:
        a, b = pairs.pop()
        if (id(a), id(b)) in seen:
            continue
        seen.add((id(a), id(b)))
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            assert a.stride() == b.stride()
            assert torch.equal(a, b)
        elif isinstance(a, dict) and isinstance(b, dict):
            assert [*a] == [*b]
            pairs += zip(a.values(), b.values(), strict=True)
        elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            pairs += zip(a, b, strict=True)
        elif isinstance(a, argparse.Namespace) and isinstance(b, argparse.Namespace):
            pairs.append((vars(a), vars(b)))
        else:
            assert a == b
