"""The site: what is made of the code is up to date, and nothing is fetched."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.run import ROOT, environment


def test_what_the_reference_says_of_the_code_is_up_to_date() -> None:
    ran = subprocess.run(
        [sys.executable, "docs/reference/make.py", "--check"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, f"run python docs/reference/make.py\n{ran.stdout}{ran.stderr}"


class Page(HTMLParser):
    """What a page loads, and what it says."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.titles = 0
        self.text: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.titles += tag == "h1"
        if tag != "a":
            self.loads += [found[key] or "" for key in ("src", "href", "srcset") if key in found]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors, which `--quiet` would hide from `--strict`."""
    made = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(made)],
        cwd=ROOT, env=environment(NO_MKDOCS_2_WARNING="1"), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return made


@pytest.mark.slow
def test_the_site_has_all_documents(site: Path) -> None:
    documents = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    missing = {path for path in documents if not (site / path.with_suffix(".html")).is_file()}
    assert not missing
    for name in ("changelog", "security", "architecture", "contributing", "benchmarks"):
        assert (site / "project" / f"{name}.html").is_file()
    assert not list(site.rglob("*.py"))


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        found = Page(path)
        elsewhere = [place for place in found.loads if re.match(r"(https?:)?//", place)]
        assert not elsewhere, path
    for path in (*site.rglob("*.css"), *site.rglob("*.svg")):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path


@pytest.mark.slow
def test_pages_show_nothing_that_is_for_the_tests(site: Path) -> None:
    for path in site.rglob("*.html"):
        found = Page(path)
        text = "".join(found.text)
        assert path.name == "404.html" or found.titles >= 1, path
        if path.parent.name != "project":
            assert not re.search(r"```|norun=|<!-- (files|warnings|slow|made)", text), path


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import wncli
    import wncli.pytorch

    for module, page in ((wncli, "python"), (wncli.pytorch, "pytorch")):
        text = (site / "reference" / f"{page}.html").read_text()
        for name in {*module.__all__} - {"__version__"}:
            assert f'id="{module.__name__}.{name}"' in text, name
