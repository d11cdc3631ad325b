"""What checkpoints at a distance cost: requests and bytes of `inspect`, throughput of `remove`.

`python -m benchmarks.remote`: a server on this machine that takes 20 ms before each answer, and the
same files here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import safetensors.torch
import torch

import wncli
from wncli.report import Report
from wncli.storage.addresses import Traffic

_DELAY = 0.02
_RUNS = 5
#: Of a HiFi-GAN generator, and as many as have 0.5 GB.
_LAYERS, _MANY = 78, 702
#: A server of its own process: it shares no lock with what is measured.
_SERVER = f"""
import sys, time
from pathlib import Path
from tests.support.servers import serving
with serving(delay={_DELAY}) as server:
    for path in Path(sys.argv[1]).iterdir():
        server.put(path.name, path)
    print(server.url, flush=True)
    sys.stdin.read()
"""


def main() -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "files"
        folder.mkdir()
        small, large = _small(folder), _large(folder)
        with _serving(folder) as url:
            print(f"{_DELAY * 1000:g} ms a request; medians of {_RUNS}\n")
            print("inspect             requests       bytes       s   s here")
            for file in small:
                _show(file.name, (url, str(folder)), partial(_inspect, file.name))
            print("\nremove, threads     requests       bytes       s   s here     MB/s")
            for file in large:
                for jobs in (1, 4, 8):
                    run = partial(_remove, file.name, Path(made) / "out.safetensors", jobs)
                    _show(f"{file.name}, {jobs}", (url, str(folder)), run, has_rate=True)


def _inspect(name: str, top: str) -> Report:
    return wncli.inspect(f"{top}/{name}")


def _remove(name: str, output: Path, jobs: int, top: str) -> Report:
    return wncli.remove(f"{top}/{name}", output, force=True, jobs=jobs)


def _show(
    name: str, places: tuple[str, str], run: Callable[[str], Report], *, has_rate: bool = False
) -> None:
    """Run it there and here, one after the other, several times, and print the medians."""
    seconds: tuple[list[float], list[float]] = ([], [])
    traffic = Traffic()
    for _ in range(_RUNS):
        for place, known in zip(places, seconds, strict=True):
            begin = perf_counter()
            report = run(place)
            known.append(perf_counter() - begin)
            traffic = report.remote or traffic
    there, here = map(median, seconds)
    rate = f"{traffic.bytes / there / 1e6:9.0f}" if has_rate else ""
    print(f"{name:20}{traffic.requests:8}{traffic.bytes:12,}{there:8.3f}{here:9.3f}{rate}")


@contextmanager
def _serving(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None  # noqa: S101 - it is a pipe
        yield run.stdout.readline().strip()
        run.communicate("")


def _state(layers: int) -> dict[str, torch.Tensor]:
    state = {}
    for number in range(layers):
        state[f"ups.{number}.weight_g"] = torch.rand(256, 1, 1) + 0.5
        state[f"ups.{number}.weight_v"] = torch.rand(256, 100, 7) + 0.5
        state[f"ups.{number}.bias"] = torch.rand(256)
    return state


def _small(folder: Path) -> list[Path]:
    state = _state(_LAYERS)
    torch.save({"generator": state}, folder / "zip.pt")
    safetensors.torch.save_file(state, folder / "model.safetensors")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    np.savez(folder / "arrays.npz", **{name: one.numpy() for name, one in state.items()})  # type: ignore[arg-type]
    return [folder / n for n in ("zip.pt", "model.safetensors", "legacy.pt", "arrays.npz")]


def _large(folder: Path) -> list[Path]:
    state = _state(_MANY)
    torch.save(state, folder / "large.pt")
    safetensors.torch.save_file(state, folder / "large.safetensors")
    return [folder / "large.pt", folder / "large.safetensors"]


if __name__ == "__main__":
    main()
