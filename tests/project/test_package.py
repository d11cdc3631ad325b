"""What is built of the tree: a source archive that builds, and a wheel of the package alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import wncli
from tests.support.run import ROOT

IGNORED = shutil.ignore_patterns(
    ".*", "*.so", "*.pyd", "__pycache__", "*.egg-info", "build", "dist", "seeds", "folded.*"
)


def build(kind: str, tree: Path) -> Path:
    """What setuptools builds of a tree, without a compiler."""
    program = f"from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree, env=os.environ | {"CC": "false"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tree / "dist" / ran.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of a clean copy of the tree, unpacked."""
    copy = tmp_path_factory.mktemp("tree") / "copy"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", copy)) as archive:
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


def test_the_source_archive_has_all_that_builds_and_no_tests(unpacked: Path) -> None:
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.*")}
    assert package_files(".py", ".pyi", ".c", ".h") <= found
    assert {"LICENSE", "README.md"} <= {path.name for path in unpacked.iterdir()}
    folders = {path.name for path in unpacked.iterdir() if path.is_dir()}
    assert folders <= {"wncli", "wncli.egg-info", "build", "dist", "docs"}
    assert [path.name for path in (unpacked / "docs").iterdir()] == ["wn.1"]


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
