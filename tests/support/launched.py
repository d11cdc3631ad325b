"""Runs `wn --ranks` on several ranks, forks of one process that has imported PyTorch already."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from tests.support.run import Ran, environment

#: Seconds after which a rank counts as one that hangs.
PATIENCE = 40.0
#: The exit code of a rank that was still running then.
HANGS = -1000


class Launcher:
    """Starts ranks as `torchrun` does, as far as they can see."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.launched"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.communicate()

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path | Sequence[Path],
        ranks: int = 2,
        faults: Mapping[int, str] | None = None,
        kill: int | None = None,
    ) -> list[Ran]:
        """Run a command on all ranks.

        Args:
            arguments: those of `wn`.
            cwd: where all run, or where each does.
            ranks: how many there are.
            faults: Python that a rank runs before all else.
            kill: the signal that all others get when one has failed, as from `torchrun`.
        """
        folders = [cwd] * ranks if isinstance(cwd, Path) else cwd
        order = {
            "arguments": list(map(str, arguments)), "folders": list(map(str, folders)),
            "faults": {str(rank): fault for rank, fault in (faults or {}).items()}, "kill": kill,
        }  # fmt: skip
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return [Ran(*ran) for ran in json.loads(self.process.stdout.readline())]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def told(rank: int, size: int, port: int) -> dict[str, str]:
    """What a launcher tells a rank."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
    }  # fmt: skip


def _serve() -> None:
    import wncli.cli.commands
    import wncli.fill.write
    import wncli.pytorch.ranks  # noqa: F401 - the ranks find it imported

    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> list[tuple[int, str, str]]:
    folders, port = order["folders"], free_port()
    files = [[tempfile.TemporaryFile() for _ in range(2)] for _ in folders]  # noqa: SIM115 - below
    streams = [[file.fileno() for file in both] for both in files]
    pids: dict[int, int] = {}
    for rank in range(len(folders)):
        pids[os.fork()] = rank
        if 0 in pids:
            _become(rank, port, order, streams[rank])
    codes = _wait(pids, order["kill"])
    found = []
    for rank in range(len(folders)):
        texts = []
        for file in files[rank]:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        found.append((codes[rank], texts[0], texts[1]))
    return found


def _wait(pids: dict[int, int], kill: int | None) -> dict[int, int]:
    codes: dict[int, int] = {}
    end = time.monotonic() + PATIENCE
    while pids:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            if time.monotonic() > end:
                for left, rank in pids.items():
                    os.kill(left, signal.SIGKILL)
                    codes[rank] = HANGS
                    os.waitpid(left, 0)
                break
            time.sleep(0.01)
            continue
        rank = pids.pop(pid)
        codes[rank] = os.waitstatus_to_exitcode(status)
        if codes[rank] and kill is not None:
            for left in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, kill)
    return codes


def _become(rank: int, port: int, order: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    os.environ |= told(rank, len(order["folders"]), port)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, *streams)):
        os.dup2(descriptor, number)
    os.chdir(order["folders"][rank])
    sys.argv[:] = ["wn", "--ranks", *order["arguments"]]
    exec(order["faults"].get(str(rank), ""), {})  # noqa: S102 - a test says what goes wrong
    from wncli.cli import program

    program()


if __name__ == "__main__":
    _serve()
