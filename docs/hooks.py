"""What MkDocs does with the pages before it renders them.

The documents beside `docs` become pages of the site, links lead to where these are there, and what
the tests read in a page is taken out: attributes of fences, and comments.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Documents beside `docs`, and the pages that are made of them.
BESIDE = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "project/benchmarks.md",
    "fuzz/README.md": "project/fuzz.md",
    "sample_models/README.md": "project/sample-models.md",
    "README.md": "index.md",
}
FILES = {page: file for file, page in BESIDE.items() if page != "index.md"}

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_FOR_TESTS = re.compile(r"^<!-- (?:files|warnings): .*? -->\n|^<!-- slow -->\n", re.MULTILINE)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_FENCE = re.compile(r"^( *```+\w+) +([^\n`]+)$", re.MULTILINE)
_ATTRIBUTE = re.compile(r' *\b(?:norun="[^"]*"|exit=\d+)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents beside `docs`."""
    for page, file in FILES.items():
        files.append(File.generated(config, page, content=(ROOT / file).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Turn links to files into links to pages, and take out what is for tests."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]  # there is no other page beside it
    here = page.file.src_uri
    file = FILES.get(here, f"docs/{here}")

    def lead(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        to = BESIDE.get(path) or path.removeprefix("docs/")
        if to == path or files.get_file_from_path(to) is None:
            return text if (ROOT / path).exists() else found.group()  # it is in no page
        return f"[{text}]({posixpath.relpath(to, posixpath.dirname(here))}{anchor or ''})"

    # GitHub wants a bar in code escaped in a table; Python-Markdown shows the escape.
    markdown = _ROW.sub(lambda row: _CODE.sub(_with_bars, row[0]), markdown)
    markdown = _LINK.sub(lead, _FOR_TESTS.sub("", markdown))
    return _FENCE.sub(lambda found: f"{found[1]} {_ATTRIBUTE.sub('', found[2])}".rstrip(), markdown)


def _with_bars(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")
