"""What is built of the tree: a source archive of all of it, a wheel of the package alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import wncli
from tests.support.run import ROOT, SAMPLES

#: What git ignores, and what a source archive has beside the tree.
IGNORED = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist"),
    *("site", "*.so", "*.pyd", "folded.*", "*.wn-partial", "PKG-INFO", "setup.cfg"),
)
#: Any that takes the options of GCC.
COMPILER = shutil.which("gcc") or shutil.which("clang")


def build(kind: str, tree: Path, **environment: str) -> Path:
    """What setuptools builds of a tree, without a compiler."""
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree, env=os.environ | {"CC": "false"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tree / "dist" / ran.stdout.splitlines()[-1]


def files_of(tree: Path) -> set[str]:
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the tree."""
    copy = tmp_path_factory.mktemp("tree") / "copy"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    return copy


@pytest.fixture(scope="module")
def unpacked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of the tree, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", tree)) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> dict[str, bytes]:
    """The files in the wheel that is built of the source archive."""
    with zipfile.ZipFile(build("wheel", unpacked)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def package_files(*suffixes: str) -> set[str]:
    paths = (path for path in (ROOT / "wncli").rglob("*") if path.suffix in suffixes)
    return {path.relative_to(ROOT).as_posix() for path in paths} | {"wncli/py.typed"}


def without_what_is_built(files: set[str]) -> set[str]:
    built = ("PKG-INFO", "setup.cfg", "wncli.egg-info/", "dist/", "build/")
    return {name for name in files if not name.startswith(built)}


def test_the_source_archive_has_all_that_the_tree_has(tree: Path, unpacked: Path) -> None:
    assert without_what_is_built(files_of(unpacked)) == without_what_is_built(files_of(tree))
    assert os.access(unpacked / "check", os.X_OK)


#: What programs leave in a tree. Not even the last is the package.
LEFT = (
    *("tests/.hypothesis/unicode", "tests/unit/.mypy_cache/a.json", "docs/.pytest_cache/v/a"),
    *("fuzz/__pycache__/a.pyc", "sample_models/.ruff_cache/a", "wncli/a.cpython-310.so"),
    *("sample_models/folded.safetensors", "docs/a.pt.wn-partial", "docs/hooks.py~", "docs/.a.swp"),
    *(".venv/lib/a.py", "build/lib/wncli/a.py", "dist/a.whl", "site/a.html", ".hypothesis/a"),
    "wnclient/__init__.py",
)


def test_the_source_archive_has_nothing_of_what_programs_leave(
    tree: Path, unpacked: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tree, tmp_path / "copy", ignore=IGNORED)
    for name in LEFT:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    with tarfile.open(build("sdist", copy)) as archive:
        found = {one.name.partition("/")[2] for one in archive if one.isfile()}
    assert without_what_is_built(found) == without_what_is_built(files_of(unpacked))


@pytest.mark.slow
def test_tests_run_from_the_source_archive(unpacked: Path) -> None:
    chosen = ["tests/unit/checkpoint", "tests/project/test_docs.py", "tests/project/test_docs.py"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen],
        cwd=unpacked, capture_output=True, text=True, check=False, timeout=300,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^\d+ passed", ran.stdout, re.MULTILINE)


def run_unpacked(folder: Path, *arguments: str | Path) -> str:
    """What `wn` prints, of the package that was unpacked there and of nothing else."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); from wncli.cli import main; main()"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return ran.stdout


def test_a_wheel_for_any_machine_computes_the_same_with_numpy(
    unpacked: Path, tmp_path: Path
) -> None:
    path = build("wheel", unpacked, WNCLI_NO_EXTENSIONS="1")
    assert path.name == f"wncli-{wncli.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        about = f"wncli-{wncli.__version__}.dist-info/WHEEL"
        assert b"Root-Is-Purelib: true" in archive.read(about)
        assert {name for name in archive.namelist() if name.endswith((".so", ".pyd"))} == set()
        archive.extractall(tmp_path / "any")  # noqa: S202 - it is ours
    output = tmp_path / "any.safetensors"
    run_unpacked(tmp_path / "any", "remove", SAMPLES / "hifigan_generator", output)
    assert "\nloops: NumPy" in run_unpacked(tmp_path / "any", "--version", "-v")
    wncli.remove(SAMPLES / "hifigan_generator", tmp_path / "ours.safetensors")
    assert output.read_bytes() == (tmp_path / "ours.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
@pytest.mark.parametrize("flags", ["-ffast-math", "-Ofast", "-funsafe-math-optimizations"])
def test_loops_for_fast_math_leave_subnormals_what_they_are(
    flags: str, unpacked: Path, tmp_path: Path
) -> None:
    tree = shutil.copytree(unpacked, tmp_path / "tree", ignore=IGNORED)
    path = build("wheel", tree, CC=str(COMPILER), CFLAGS=flags)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "fast")  # noqa: S202 - it is ours
    least = "import sys; x = float(sys.argv[2]); assert x * 1.0, 'taken for zero'"
    program = f"import wncli.arithmetic.kernels as k; assert k.kernel; {least}"
    program = f"import sys; sys.path.insert(0, sys.argv[1]); {program}"
    subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path / "fast"), "5e-324"],
        check=True,
    )


def test_the_wheel_has_the_package_and_its_types_and_nothing_else(wheel: dict[str, bytes]) -> None:
    package = {name for name in wheel if ".dist-info/" not in name and ".data/" not in name}
    assert package == package_files(".py", ".pyi")


def test_the_wheel_has_the_manual_where_man_looks(wheel: dict[str, bytes]) -> None:
    (name,) = (name for name in wheel if ".data/" in name)
    assert name == f"wncli-{wncli.__version__}.data/data/share/man/man1/wn.1"
    assert wheel[name] == (ROOT / "docs" / "wn.1").read_bytes()


def test_the_wheel_has_the_licence_and_the_command(wheel: dict[str, bytes]) -> None:
    about = {name.partition(".dist-info/")[2]: content for name, content in wheel.items()}
    assert about["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert about["entry_points.txt"].split() == b"[console_scripts] wn = wncli.cli:program".split()
