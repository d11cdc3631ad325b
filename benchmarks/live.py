"""Measures `wncli.pytorch` beside PyTorch's and transformers' own functions, in one process.

Rounds alternate: ours, theirs, ours, theirs. What a function adds to the model's memory is measured
by itself, each in a process of its own: anonymous pages, which mapped files are not.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

import wncli.pytorch as wn
from wncli.checkpoint.naming import Naming

#: Seconds between two looks at the memory.
_PAUSE = 0.0005


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured: a model, made anew for each round, and two ways to do one thing to it."""

    name: str
    make: Callable[[], Any]
    ours: Callable[[Any], object]
    theirs: Callable[[Any], object]


def convolutions(count: int, naming: Naming | None) -> nn.Module:
    """Make a model of large layers, 7.3 MB each, whose magnitudes are no norms."""
    model = nn.Sequential(*(nn.Conv1d(512, 512, 7) for _ in range(count)))
    if naming:
        wn.apply_weight_norm(model, naming=naming)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.uniform_(0.5, 1.5)
    return model


def vocoder(naming: Naming | None) -> Any:  # noqa: ANN401 - transformers' types are not read
    """Make transformers' HiFi-GAN, 51 MB in 236 tensors."""
    import transformers

    model = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig())
    if naming:
        wn.apply_weight_norm(model, naming=naming)
    return model


def pytorchs_removal(model: nn.Module) -> None:
    """Do as scripts do: look at every module, and call the function of its spelling."""
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)


def loading(name: str, make: Callable[[Naming | None], Any], folder: Path) -> list[Case]:
    """Load files of the model's spelling, and of the older one, mapped on both sides."""
    same, old, safe = (folder / f"{name}{end}" for end in (".pt", " hook.pt", ".safetensors"))
    torch.save(make("parametrized").state_dict(), same)
    torch.save(make("hook").state_dict(), old)
    save_file(make("parametrized").state_dict(), safe)
    model = make("parametrized")

    def ours(path: Path) -> Callable[[Any], object]:
        return lambda model: wn.load_weights(model, path)

    def theirs(path: Path) -> Callable[[Any], object]:
        return lambda model: model.load_state_dict(torch.load(path, mmap=True))

    cases = [
        Case(f"load {name}, {what}", lambda: model, ours(path), theirs(path))
        for what, path in (("torch", same), ("torch, hook", old))
    ]
    return [
        *cases,
        Case(
            f"load {name}, safetensors",
            lambda: model,
            ours(safe),
            lambda model: model.load_state_dict(load_file(safe)),
        ),
    ]


def removal(name: str, make: Callable[[Naming | None], Any]) -> list[Case]:
    """Fold a model, against PyTorch's loop, and the model's own method where it has one."""
    spellings: tuple[Naming, ...] = ("parametrized", "hook")
    cases = [
        Case(f"remove {name}, {naming}", lambda naming=naming: make(naming),  # type: ignore[misc]
             wn.remove_weight_norm, pytorchs_removal)
        for naming in spellings
    ]  # fmt: skip
    if hasattr(make(None), "remove_weight_norm"):
        cases.append(
            Case(
                f"remove {name}, its own method",
                lambda: make("hook"),
                wn.remove_weight_norm,
                lambda model: model.remove_weight_norm(),
            )
        )
    return cases


def measure(case: Case, rounds: int) -> tuple[float, float, float]:
    """Return our median seconds, and the medians of ours by theirs: wall time, and CPU time."""
    walls, ratios, cpu_ratios = [], [], []
    for number in range(rounds + 1):
        taken = []
        for function in (case.ours, case.theirs):
            model = case.make()
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            function(model)
            taken.append((time.perf_counter() - wall, time.process_time() - cpu))
            del model
        if number:  # the first fills caches
            (our_wall, our_cpu), (wall, cpu) = taken
            walls.append(our_wall)
            ratios.append(our_wall / wall)
            cpu_ratios.append(our_cpu / cpu)
    return statistics.median(walls), statistics.median(ratios), statistics.median(cpu_ratios)


def anonymous() -> int:
    """Return the bytes of this process's memory that no file is mapped to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _added(queue: SimpleQueue[int], what: str, path: str, count: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = convolutions(count, "parametrized" if what != "load folded" else None)
    run = {
        "remove": lambda: wn.remove_weight_norm(model),
        "remove, PyTorch": lambda: pytorchs_removal(model),
        "load": lambda: wn.load_weights(model, path),
        "load folded": lambda: wn.load_weights(model, path),
    }[what]
    gc.collect()
    before, most, done = anonymous(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(_PAUSE)

    thread = threading.Thread(target=look)
    thread.start()
    run()  # type: ignore[no-untyped-call]
    done.set()
    thread.join()
    queue.put(max(0, most - before))


def memory(what: str, path: Path, count: int) -> int:
    """Return the bytes beyond the model's own that something takes at the most."""
    context = get_context("spawn")
    queue: SimpleQueue[int] = context.SimpleQueue()
    process = context.Process(target=_added, args=(queue, what, str(path), count))
    process.start()
    process.join()
    return queue.get()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=35, help="large layers, 7.3 MB each")
    parser.add_argument("--runs", type=int, default=7, help="rounds that are counted")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    def large(naming: Naming | None) -> nn.Module:
        return convolutions(options.layers, naming)

    megabytes = round(options.layers * 512 * 512 * 7 * 4 / 1e6)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"PyTorch {torch.__version__}, {cores} cores, {options.runs} rounds\n")
    print("| what | s | ours ÷ theirs | CPU, ours ÷ theirs |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = loading(f"{megabytes} MB", large, folder)
        cases += loading("HiFi-GAN, 51 MB", vocoder, folder)
        cases += removal(f"{megabytes} MB", large) + removal("HiFi-GAN, 51 MB", vocoder)
        for case in cases:
            wall, ratio, cpu = measure(case, options.runs)
            print(f"| {case.name} | {wall:.3f} | {ratio:.2f} | {cpu:.2f} |", flush=True)
        layer = 512 * 512 * 7 * 4
        print("\n| what | MB beyond the model | layers |\n|---|---|---|")
        for what in ("remove", "remove, PyTorch", "load", "load folded"):
            added = memory(what, folder / f"{megabytes} MB.pt", options.layers)
            print(f"| {what} | {added / 1e6:.1f} | {added / layer:.1f} |", flush=True)


if __name__ == "__main__":
    main()
