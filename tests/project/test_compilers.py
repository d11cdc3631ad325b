"""The loops build without a warning by GCC and Clang, to the same bits; `wn` tells which run."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import zlib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from zlib_ng.zlib_ng import ZLIBNG_VERSION

import wncli
from tests.support.loops import NAMES, compiled_dtypes, every_shape, numbers, raw
from tests.support.run import ROOT, Ran, environment
from tests.support.strategies import Dtype, normal
from wncli.arithmetic.kernels import kernel

#: What setup.py compiles with, and every warning as an error.
FLAGS = [
    "-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-DPy_LIMITED_API=0x030B0000",
    "-fPIC", "-shared",
]  # fmt: skip
STRICT = ["-Wall", "-Wextra", "-Werror"]

pytestmark = [
    pytest.mark.skipif(kernel is None, reason="not built for this processor or system"),
    pytest.mark.thinned(5),
]


@pytest.fixture(scope="module", params=["gcc", "clang"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The kernel as this compiler builds it."""
    compiler = request.param
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler} here")
    library = tmp_path_factory.mktemp(compiler) / "kernel.so"
    source = Path(wncli.__file__).parent / "arithmetic" / "kernels" / "kernel.c"
    include = f"-I{sysconfig.get_paths()['include']}"
    ran = subprocess.run(
        [compiler, *FLAGS, *STRICT, include, str(source), "-o", str(library)],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    spec = importlib.util.spec_from_file_location("kernel", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@compiled_dtypes
@every_shape
def test_every_compiler_gives_the_same_bits(
    built: ModuleType, dtype: Dtype, shape: tuple[int, int, int]
) -> None:
    v, g = normal(shape, dtype), np.abs(normal((shape[1],), dtype, seed=1))
    results = []
    for loops in (built, kernel):
        sums, w, norms = numbers(shape[1]), v.copy(), bytearray(g.nbytes)
        loops.add_squares(NAMES[dtype], raw(v), sums, shape[2])
        usual = [loops.to_magnitudes(NAMES[dtype], sums, norms)]
        usual.append(loops.fold(NAMES[dtype], raw(w), raw(g), None, shape[2]))
        results.append((bytes(sums), bytes(norms), w.tobytes(), usual))
    assert results[0] == results[1]
    assert len(results[0][0]) == shape[1] * 16


# -- what `wn --version --verbose` says ----------------------------------------------------------


def run_version(before: str, *arguments: str) -> Ran:
    script = f"import sys; {before}; from wncli.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=False, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60,
    )  # fmt: skip
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.parametrize("arguments", [("--version", "-v"), ("--verbose", "--version")])
def test_version_and_verbose_say_what_runs_one_fact_a_line(arguments: tuple[str, ...]) -> None:
    python = sys.version.split()[0]
    lines = [f"wn {wncli.__version__}", f"Python: {python}", f"NumPy: {metadata.version('numpy')}"]
    ran = run_version("pass", *arguments)
    checksums = f"checksums: zlib-ng {ZLIBNG_VERSION}\n"
    assert ran == Ran(0, "\n".join((*lines, "loops: compiled", checksums)), "")
    missing = ("zlib_ng", "wncli.arithmetic.kernels.kernel")
    without = run_version(f"sys.modules.update(dict.fromkeys({missing}))", *arguments).stdout
    lines += ["loops: NumPy (the compiled ones were not built)"]
    assert without == "\n".join((*lines, f"checksums: zlib {zlib.ZLIB_RUNTIME_VERSION}\n"))


def test_loops_that_are_not_for_this_processor_are_told_with_the_reason(tmp_path: Path) -> None:
    package = tmp_path / "wncli"
    shutil.copytree(
        Path(wncli.__file__).parent, package, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    kernel_py = package / "arithmetic" / "kernels" / "kernel.py"
    kernel_py.write_text("raise ImportError('this processor has not the instructions for it')\n")
    ran = subprocess.run(
        [sys.executable, "-m", "wncli", "--version", "-v"],
        check=True, capture_output=True, text=True, cwd=tmp_path, timeout=60,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    reason = "this processor has not the instructions for it"
    assert f"\nloops: NumPy (the compiled ones do not run here: {reason})\n" in ran.stdout


def test_verbose_alone_is_refused_with_what_to_type() -> None:
    ran = run_version("pass", "-v")
    assert (ran.code, ran.stdout) == (2, "")
    assert "wn --version -v" in ran.stderr
