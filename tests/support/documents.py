"""The documents: their fenced blocks, and a reader who types them one after the other.

Every block of README.md and docs/**/*.md is run in the order of its page, in one fresh folder for
each page, beside `sample_models`. What kind it is, its first word says:

    console   lines `$ COMMAND`, each followed by exactly what it prints; `exit=2` for another exit
              code of the last one
    sh        run by `bash -e`
    python    run, all of a page in one namespace; warnings are errors. What it prints is the `text`
              directly below it, where there is one
    pycon     the same as a doctest
    json, yaml, toml   parsed; all others are text

`norun="REASON"` says why a block cannot be run here. One with `title="NAME"` is written to that
file and not run. On a page, comments say what it works on (`<!-- files: NAME -->`, a function of
`document_files`), which warnings it expects (`<!-- warnings: REGEX -->`), and that it takes long
(`<!-- slow -->`).

`python -m tests.support.documents` lists all blocks.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType

import yaml

from tests.support import document_files
from tests.support.run import ROOT, SAMPLES, environment

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RUN = ("console", "sh", "python", "pycon")
PARSED: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}
KINDS = (*RUN, *PARSED, "diff", "fish", "html", "ini", "text")
ATTRIBUTES = ("exit", "norun", "title")

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
#: What no two runs agree on: how long it took, where it is, and where Python keeps its packages.
_VARYING = (
    (re.compile(r"\d+\.\d s\b"), "N s"),
    (re.compile(r"\S*site-packages/"), "site-packages/"),
    (re.compile(r" +$", re.MULTILINE), ""),
)
_TIMEOUT = 300
#: A message of PyTorch may be shortened, and has tabs.
_LENIENT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is that of its fence."""

    page: Path
    line: int
    kind: str
    attributes: dict[str, str]
    text: str

    @property
    def below(self) -> int:
        """The line of a fence that is directly below it."""
        return self.line + self.text.count("\n") + 3

    @property
    def where(self) -> str:
        """The page and the line, as an editor takes them."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def stands(self) -> str:
        """What the tests make of it, in words."""
        if "norun" in self.attributes:
            return f"not run: {self.attributes['norun']}"
        if "title" in self.attributes:
            return f"written to {self.attributes['title']}"
        return "run" if self.kind in RUN else "parsed" if self.kind in PARSED else "text"


def blocks_of(page: Path) -> Iterator[Block]:
    """Give the fenced blocks of a page, also those in lists."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        kind, *words = shlex.split(found["info"]) or [""]
        attributes = {key: value for key, _, value in (word.partition("=") for word in words)}
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, kind, attributes, textwrap.dedent(found["text"]))


def asked(page: Path, what: str) -> list[str]:
    """What a page says in comments: `<!-- files: pair -->` has `pair`."""
    return re.findall(rf"^<!-- {what}: (.*?) -->$", page.read_text(), re.MULTILINE)


def is_slow(page: Path) -> bool:
    """Whether a page says that it takes long."""
    return "<!-- slow -->" in page.read_text()


class Reader:
    """Types the blocks of one page, in the folder that is the current one."""

    def __init__(self, page: Path, folder: Path) -> None:
        self.page = page
        self.folder = folder / "here"
        self.folder.mkdir()
        (self.folder / "sample_models").symlink_to(SAMPLES)
        for name in " ".join(asked(page, "files")).split():
            getattr(document_files, name)(self.folder)
        self._programs(folder / "bin")
        home = folder / "home"
        home.mkdir()
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.environment = environment(
            COLUMNS="100", HOME=str(home), PATH=path, PYTHONUNBUFFERED="1", PYTHONUTF8="1"
        )
        self._run: dict[str, Callable[[Block], None]] = {
            "console": self._console,
            "sh": self._shell,
            "python": self._python,
            "pycon": self._examples,
            "text": self._text,
        }
        self.printed = (0, "")  # by the last Python: the line below it, and what
        self.module = ModuleType("page")  # in sys.modules, its classes can be pickled

    def _programs(self, folder: Path) -> None:
        """`wn` of this tree, and the Python that runs these tests."""
        folder.mkdir()
        for name, module in (("wn", " -m wncli"), ("python", ""), ("python3", "")):
            script = folder / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{module} "$@"\n')
            script.chmod(0o755)

    def type(self, block: Block) -> None:
        """Do what a block says; raise what tells that it is not true."""
        if "norun" in block.attributes:
            return
        if block.kind in PARSED:
            PARSED[block.kind](block.text)
        if "title" in block.attributes:
            file = self.folder / block.attributes["title"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.kind in self._run:
            self._run[block.kind](block)

    def _bash(self, script: str) -> tuple[int, str]:
        ran = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_TIMEOUT,
        )  # fmt: skip
        return ran.returncode, ran.stdout.decode()

    def _shell(self, block: Block) -> None:
        code, printed = self._bash(block.text)
        assert code == int(block.attributes.get("exit", 0)), f"{block.where}: {code}\n{printed}"

    def _console(self, block: Block) -> None:
        screens = list(_screens(block.text))
        assert screens, f"{block.where} has no line that begins with $"
        wanted = [0] * (len(screens) - 1) + [int(block.attributes.get("exit", 0))]
        for (command, expected), code in zip(screens, wanted, strict=True):
            ended, printed = self._bash(command)
            known, found = self._normalised(expected), self._normalised(printed)
            message = f"{block.where}: {command}\nends with {ended} and prints\n{printed}"
            assert (ended, found) == (code, known), message

    def _normalised(self, text: str) -> str:
        for pattern, word in _VARYING:
            text = pattern.sub(word, text)
        return text.replace(f"{self.folder}/", "").strip("\n")

    def _python(self, block: Block) -> None:
        padded = "\n" * block.line + block.text  # a traceback has the line of the page
        with self._warnings():
            code = compile(padded, str(block.page), "exec")
            with redirect_stdout(StringIO()) as printed:
                exec(code, vars(self.module))  # noqa: S102 - ours
        self.printed = (block.below, printed.getvalue())

    def _text(self, block: Block) -> None:
        line, printed = self.printed
        if line == block.line and printed:
            known, found = self._normalised(block.text), self._normalised(printed)
            assert found == known, f"{block.where}: the block above it prints\n{printed}"

    def _examples(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, {}, block.where, None, block.line)
        test.globs = vars(self.module)
        said: list[str] = []
        with self._warnings():
            runner = doctest.DocTestRunner(optionflags=_LENIENT)
            ran = runner.run(test, out=said.append, clear_globs=False)
        assert not ran.failed, "".join(said)

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(action="error"):
            for pattern in asked(self.page, "warnings"):
                warnings.filterwarnings("ignore", f".*{pattern}")
            yield


def _screens(text: str) -> Iterator[tuple[str, str]]:
    """Give each command of a console, and what it prints."""
    for screen in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = screen.splitlines()
        end = next((n for n, line in enumerate(lines) if not line.endswith("\\")), len(lines))
        command = "\n".join(line.removeprefix("> ") for line in lines[: end + 1])
        yield command, "\n".join(lines[end + 1 :])


def main() -> None:
    """List the blocks of all pages."""
    found = [block for page in PAGES for block in blocks_of(page)]
    width = max(len(block.where) for block in found)
    for block in found:
        print(f"{block.where:{width}}  {block.kind:8}  {block.stands}")  # noqa: T201


if __name__ == "__main__":
    main()
