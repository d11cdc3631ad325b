"""How the tests are kept: none imports another; what they share is in `support` and `corpus`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.run import ROOT

TESTS = ROOT / "tests"
MODULES = sorted(TESTS.rglob("*.py"))
#: The folders that tests may import from.
SHARED = ("tests.support", "tests.corpus")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The full names of all that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "names are written in full"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_what_is_shared_is_imported(path: Path) -> None:
    ours = {name for name in imported(path) if name.partition(".")[0] in {"tests", "conftest"}}
    assert {name for name in ours if not is_below(name, SHARED)} == set()


def test_fuzzers_and_benchmarks_import_only_what_is_shared() -> None:
    for path in (*(ROOT / "fuzz").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")):
        ours = {name for name in imported(path) if name.startswith("tests.")}
        assert {name for name in ours if not is_below(name, SHARED)} == set(), path
        assert "sys.path" not in path.read_text(), path


def test_helpers_are_in_the_shared_folders_and_tests_are_not() -> None:
    for path in MODULES:
        is_test = path.name.startswith("test_")
        is_helper = path.name not in {"__init__.py", "conftest.py"} and not is_test
        assert is_helper == (is_below(name_of(path), SHARED) and path.name != "__init__.py"), path


def test_every_folder_is_a_package_so_that_two_tests_may_have_one_name() -> None:
    assert all((path.parent / "__init__.py").is_file() for path in MODULES)


def test_conftest_has_fixtures_and_hooks_only() -> None:
    assert [path for path in MODULES if path.name == "conftest.py"] == [TESTS / "conftest.py"]
    for node in ast.parse((TESTS / "conftest.py").read_text()).body:
        assert not isinstance(node, ast.ClassDef)
        if isinstance(node, ast.FunctionDef):
            marks = [ast.unparse(mark) for mark in node.decorator_list]
            is_fixture = any(mark.startswith("pytest.fixture") for mark in marks)
            assert is_fixture or node.name.startswith("pytest_"), node.name


def test_unit_tests_are_in_the_folders_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS / "unit") for path in (TESTS / "unit").rglob("*.py")}
    assert all((ROOT / "wncli" / folder).is_dir() for folder in folders)


def test_the_fast_lane_has_a_part_of_every_module(request: pytest.FixtureRequest) -> None:
    items = request.session.items
    fast = {item.path for item in items if not item.get_closest_marker("slow")}
    assert {item.path for item in items} == fast
