"""What runs against what: for each command of `wn`, the processes that are measured in turn."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from benchmarks.checkpoints import AGREEMENT, SUFFIXES, Checkpoint
from benchmarks.measure import Process

#: `help` has no file; `respell` is `wn convert --naming parametrized`; `folder` is `wn remove` on
#: what transformers saved.
Command = Literal[
    "help", "inspect", "remove", "apply", "convert", "respell", "compare", "folder"
]  # fmt: skip

SCRIPT = "script"
MAPPED = "script, mmap"
TRANSFORMERS = "transformers"
CP = "cp"
TORCH = "import torch"
TYPER = "import typer, rich"

_SPOKEN = {
    "help": "wn --help",
    "respell": "wn convert --naming parametrized",
    "folder": "wn remove FOLDER",
}
#: As pip installs it.
_WN = (str(Path(sys.executable).with_name("wn")),)


@dataclass(frozen=True, slots=True)
class Contenders:
    """`wn` first, then what it is held against; `missing` has reasons by name."""

    processes: tuple[Process, ...]
    missing: tuple[tuple[str, str], ...] = ()

    @property
    def ours(self) -> Process:
        """`wn` itself."""
        return self.processes[0]

    def only(self, name: str) -> Contenders:
        """`wn` beside the process of this name alone."""
        named = (process for process in self.processes if process.name == name)
        return Contenders((self.ours, *named))

    @property
    def scripts(self) -> tuple[Process, ...]:
        """Those whose output has to be what `wn` writes."""
        alike = {SCRIPT, MAPPED, TRANSFORMERS}
        return tuple(process for process in self.processes if process.name in alike)


def for_help() -> Contenders:
    """`wn --help` beside the bare imports."""
    return Contenders((Process(_SPOKEN["help"], (*_WN, "--help")), *_imports()))


def for_file(case: Checkpoint, command: Command, source: Path, folded: Path) -> Contenders:
    """Return a command on one file, beside both scripts, `cp` and the bare imports.

    Args:
        case: what the file holds.
        command: any but `help` and `folder`.
        source: the file.
        folded: for `compare`, the same with weight norm removed.
    """
    scripts = {SCRIPT: "peer.py", MAPPED: "peer_mmap.py"}
    missing: tuple[tuple[str, str], ...] = ()
    if case.format == "legacy":
        del scripts[MAPPED]
        missing = ((MAPPED, "torch.load cannot map legacy files"),)
    suffix = _suffix(case, command)
    our_options, their_options = _options(case, command, folded)

    def process(name: str, key: str, start: tuple[str, ...], options: tuple[str, ...]) -> Process:
        if command in {"inspect", "compare"}:
            return Process(name, (*start, str(source), *options))
        output = source.with_name(f"out-{key}{suffix}")
        return Process(name, (*start, str(source), str(output), *options), output)

    verb = "convert" if command == "respell" else command
    ours = process(_SPOKEN.get(command, f"wn {command}"), "wn", (*_WN, verb), our_options)
    theirs = [
        process(name, Path(file).stem, (*_python(file), command), their_options)
        for name, file in scripts.items()
    ]
    copy = source.with_name(f"out-cp{source.suffix}")
    cp = Process(CP, ("cp", str(source), str(copy)), copy)
    return Contenders((ours, cp, *theirs, *_imports()), missing)


def for_folder(source: Path) -> Contenders:
    """`wn remove` on a folder beside transformers, `cp -r` and the bare imports."""
    ours, theirs, copy = (source.with_name(f"out-{name}") for name in ("wn", "transformers", "cp"))
    script = (*_python("peer_transformers.py"), "remove", str(source), str(theirs))
    return Contenders(
        (
            Process(_SPOKEN["folder"], (*_WN, "remove", str(source), str(ours)), ours),
            Process(CP, ("cp", "-r", str(source), str(copy)), copy),
            Process(TRANSFORMERS, script, theirs),
            *_imports(),
        )
    )


def writing_folder(folder: Path, nbytes: int) -> Process:
    """Has transformers save a normalized model of that size."""
    command = (*_python("peer_transformers.py"), "write", str(folder), str(nbytes))
    return Process("writing with transformers", command)


def folding(source: Path, folded: Path) -> Process:
    """Make the other side of a comparison."""
    return Process("wn remove", (*_WN, "remove", str(source), str(folded)))


def inspecting(source: Path) -> tuple[str, ...]:
    """`wn inspect` with the time that each import takes on stderr."""
    return (sys.executable, "-X", "importtime", *_WN, "inspect", str(source))


def has_transformers() -> bool:
    """Whether the model with a `remove_weight_norm` of its own can be imported."""
    return find_spec("transformers") is not None


def _suffix(case: Checkpoint, command: Command) -> str:
    if command != "convert":
        return SUFFIXES[case.format]
    return ".pt" if case.format == "safetensors" else ".safetensors"


def _options(
    case: Checkpoint, command: Command, folded: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what `wn` and the scripts take behind their input and output."""
    match command:
        case "compare":
            return (str(folded),), (str(folded), str(AGREEMENT[case.dtype]))
        case "respell":
            return ("--naming", "parametrized"), ()
        case "apply":
            dim = -1 if case.dim is None else case.dim
            layers = [] if case.every == 1 else case.normalized
            names = [f"{layer.module}.weight" for layer in layers]
            rules = [part for name in names for part in ("--layers", name)]
            return ("--dim", case.dim_name, *rules), (str(dim), *names)
    return (), ()


def _python(file: str) -> tuple[str, str, str]:
    return sys.executable, "-m", f"benchmarks.{Path(file).stem}"


def _imports() -> tuple[Process, Process]:
    torch, typer = (Process(name, (sys.executable, "-c", name)) for name in (TORCH, TYPER))
    return torch, typer
