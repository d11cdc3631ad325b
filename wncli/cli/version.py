"""What `wn --version` prints, and with `--verbose` what the program runs with, one fact a line."""

from __future__ import annotations

import platform
from importlib import import_module

import wncli


def print_version(*, verbose: bool) -> None:
    """Print the version; `verbose` adds Python's, NumPy's, and which loops and checksums run."""
    print(f"wn {wncli.__version__}")
    if verbose:
        from wncli.storage.crc32 import LIBRARY

        print(f"Python: {platform.python_version()}")
        print(f"NumPy: {_numpy()}")
        print(f"loops: {_loops()}")
        print(f"checksums: {LIBRARY}")


def _numpy() -> str:
    try:
        return str(import_module("numpy").__version__)
    except ImportError as error:
        return f"cannot be imported ({str(error).strip().partition(chr(10))[0]})"


def _loops() -> str:
    try:
        import_module("wncli.arithmetic.kernels.kernel")
    except ModuleNotFoundError:
        return "NumPy (the compiled ones were not built)"
    except ImportError as error:
        return f"NumPy (the compiled ones do not run here: {error})"
    return "compiled"
