"""What the documents lead to is there: links, anchors, paths, commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.support.run import ROOT

PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "fuzz/*.md", "sample_models/*.md")
DOCUMENTS = [path for place in PLACES for path in sorted(ROOT.glob(place))]
each = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT).as_posix())
)


def anchors_of(document: Path) -> set[str]:
    """As GitHub makes them of headings, and mkdocstrings of names."""
    names = re.findall(r"^::: (.*)$", document.read_text(), re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain} | set(names)


@each
def test_links_lead_to_files_and_headings_that_are_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), target
        assert not anchor or anchor in anchors_of(found), target


@each
def test_paths_of_tests_and_tools_are_there(document: Path) -> None:
    for path in re.findall(r"\b(?:tests|fuzz|benchmarks|wncli)/[\w/]+\.py\b", document.read_text()):
        assert (ROOT / path).is_file(), path


@each
def test_programs_that_are_to_be_run_are_there(document: Path) -> None:
    for module in re.findall(
        r"python -m ((?:fuzz|benchmarks|tests)\.[\w.]+)", document.read_text()
    ):
        assert importlib.util.find_spec(module) is not None, module


def test_the_map_names_every_module() -> None:
    named = set(re.findall(r"`(\w+)`", (ROOT / "ARCHITECTURE.md").read_text()))
    modules = {path.stem for path in (ROOT / "wncli").glob("*/**/*.py")} - {"__init__"}
    assert modules <= named, modules - named
