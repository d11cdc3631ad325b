"""Every block of the documents does what it says, when it is typed in the order of its page."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import (
    ATTRIBUTES,
    KINDS,
    PAGES,
    Block,
    Reader,
    blocks_of,
    is_slow,
    main,
)
from tests.support.run import ROOT

COMMANDS = ("inspect", "apply", "remove", "convert", "compare")
RUNNING = [page for page in PAGES if any(blocks_of(page))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def marked(page: Path) -> Any:  # noqa: ANN401 - pytest hides its type
    marks = [pytest.mark.slow] if is_slow(page) else []
    return pytest.param(page, marks=marks, id=name_of(page))


@pytest.fixture
def _modules_of_a_page(tmp_path: Path) -> Iterator[None]:
    """Each page imports the modules beside it, whatever another page has by these names."""
    yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.usefixtures("_modules_of_a_page")
@pytest.mark.parametrize("page", [marked(page) for page in RUNNING])
def test_a_page_does_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(page, tmp_path)
    monkeypatch.chdir(reader.folder)
    monkeypatch.syspath_prepend(reader.folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setitem(sys.modules, "page", reader.module)
    for block in blocks_of(page):
        reader.type(block)


@pytest.mark.parametrize("page", RUNNING, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    for block in blocks_of(page):
        assert block.kind in KINDS, block.where
        assert set(block.attributes) <= {*ATTRIBUTES}, block.where
        assert block.attributes.get("norun") != "", f"{block.where}: no reason is given"


def test_the_readme_shows_every_command() -> None:
    shown = "".join(block.text for block in blocks_of(ROOT / "README.md"))
    assert all(f"$ wn {command} " in shown for command in COMMANDS)


def test_all_blocks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == sum(1 for page in PAGES for _ in blocks_of(page))
    assert any(line.startswith("README.md:") and " console " in line for line in listed)


LYING: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("console", "$ wn --version\nwn 0\n", {}),
    ("console", "$ wn --version --nothing\n", {}),
    ("console", "no command\n", {}),
    ("sh", "false\ntrue\n", {}),
    ("sh", "true\n", {"exit": "1"}),
    ("python", "assert False\n", {}),
    ("python", "import warnings\nwarnings.warn('this', stacklevel=1)\n", {}),
    ("pycon", ">>> 1 + 1\n3\n", {}),
    ("json", "{'no': 1}", {}),
    ("yaml", "a: [", {}),
    ("toml", "a = ", {}),
)


@pytest.mark.parametrize(("kind", "text", "attributes"), LYING)
def test_a_block_that_lies_is_found(
    kind: str, text: str, attributes: dict[str, str], tmp_path: Path
) -> None:
    page = ROOT / "README.md"
    with pytest.raises((AssertionError, ValueError, yaml.YAMLError, Warning)):
        Reader(page, tmp_path).type(Block(page, 1, kind, attributes, text))


def test_what_python_prints_is_the_text_below_it(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    reader = Reader(page, tmp_path)
    reader.type(Block(page, 1, "python", {}, "print(1)\n"))
    reader.type(Block(page, 6, "text", {}, "it is further below\n"))
    reader.type(Block(page, 5, "text", {}, "1\n"))
    with pytest.raises(AssertionError, match="prints"):
        reader.type(Block(page, 5, "text", {}, "2\n"))


def test_a_page_goes_on_where_it_was(tmp_path: Path) -> None:
    page = ROOT / "README.md"
    reader = Reader(page, tmp_path)
    for kind, text, attributes in (
        ("python", "found = 1 + 1\n", {}),
        ("pycon", ">>> found\n2\n", {}),
        ("text", "one\n", {"title": "folder/one.txt"}),
        ("console", "$ cat folder/one.txt\none\n$ false\n", {"exit": "1"}),
        ("sh", "wn --version\npython -c 'import wncli'\n", {}),
        ("sh", "false\n", {"norun": "it would fail"}),
    ):
        reader.type(Block(page, 1, kind, attributes, text))
