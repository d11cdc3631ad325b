"""The examples of the documents run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.run import ROOT, SAMPLES

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
]


def blocks(document: str, section: str = "") -> str:
    """The Python of a document, or of one section of it."""
    text = (ROOT / document).read_text()
    if section:
        text = text[text.index(f"## {section}") :]
        text = text[: text.index("\n## ", 1)]
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    return "\n".join(found)


@pytest.mark.parametrize(
    ("document", "section"), [("README.md", "With the model at hand"), ("docs/how-to/pytorch-models.md", "")]
)
def test_the_examples_run(
    document: str, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sample_models").symlink_to(SAMPLES)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(compile(blocks(document, section), document, "exec"), known)  # noqa: S102 - ours
