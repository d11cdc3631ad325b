"""What the figures were measured on: the machine in general terms, and the versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import wncli
from wncli.arithmetic.kernels import kernel


def machine(folder: Path) -> str:
    """Processor, cores, memory, the system and the file system that holds `folder`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = [
        _processor(),
        f"{cores} cores",
        f"{memory:.0f} GB memory",
        f"{platform.system()} {platform.machine()}",
        _file_system(folder),
    ]
    return ", ".join(fact for fact in facts if fact)


def versions() -> str:
    """Of the interpreter and every package that takes part."""
    packages = ("torch", "transformers", "numpy", "ml_dtypes", "safetensors", "typer", "rich")
    loops = "with" if kernel else "without"
    found = [
        f"Python {platform.python_version()}",
        f"wncli {wncli.__version__} {loops} compiled loops",
    ]
    return ", ".join(found + [_version(package) for package in packages])


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def _processor() -> str:
    """Return the model's name where the system tells (Linux: proc(5))."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _file_system(folder: Path) -> str:
    """Return the type of the file system of `folder`, where the system tells (Linux: proc(5))."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    types = {Path(point): kind for _, point, kind, *_ in mounts}
    return next((types[path] for path in (place, *place.parents) if path in types), "")
