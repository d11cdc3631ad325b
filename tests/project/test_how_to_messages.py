"""The messages of other programs on the how-to pages are what these programs print today."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import wncli
from tests.support import how_to_files
from tests.support.documents import blocks_of
from tests.support.run import ROOT, environment

PAGES = ROOT / "docs" / "how-to"


def printed(*code: str, folder: Path) -> str:
    """What Python prints to stderr, without colours and with single spaces."""
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=folder, env=environment(HF_HUB_OFFLINE="1"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return re.sub(r"\x1b\[[\d;]*m", "", ran.stderr)


def lines(text: str) -> set[str]:
    return {" ".join(line.split()) for line in text.splitlines()} - {""}


def told(page: str, beginning: str) -> set[str]:
    """The lines of the text block that begins so."""
    (found,) = (block for block in blocks_of(PAGES / page) if block.text.startswith(beginning))
    return lines(found.text)


@pytest.mark.slow
def test_transformers_reports_a_folded_wav2vec2_as_the_page_says(tmp_path: Path) -> None:
    how_to_files.wav2vec2(tmp_path)
    base, folded, wrong = (tmp_path / name for name in ("wav2vec2-base", "folded", "wrong"))
    wncli.remove(base, folded)
    wncli.apply(folded, wrong, layers=["*pos_conv_embed.conv"], naming="parametrized")
    load = "from transformers import Wav2Vec2Model as M; M.from_pretrained('{}')"
    found = printed(load.format("folded"), folder=tmp_path).replace("[transformers] ", "")
    assert told("wav2vec2-hubert.md", "Wav2Vec2Model LOAD REPORT") <= lines(found)
    found = printed(load.format("wrong"), folder=tmp_path)
    assert told("wav2vec2-hubert.md", "Key ") <= lines(found)
