"""The messages that documents quote are those that PyTorch, transformers and safetensors print."""

from __future__ import annotations

import argparse
import copy
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrize, remove_weight_norm

import wncli
from tests.support import how_to_files
from tests.support.documents import blocks_of
from tests.support.families import BUILT_IN
from tests.support.layers import Spelling, normalize
from tests.support.run import ROOT, environment

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]

PAGE = (ROOT / "docs" / "errors.md").read_text()
#: What other programs say: the first text block of each section, by its heading.
SECTIONS = {
    heading.replace("\\", ""): message
    for heading, section in re.findall(
        r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL
    )
    for message in re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[:1]
}
FED = torch.ones(1, 4, 5)


def conv(spelling: Spelling | None = None, dim: int = 0) -> Any:  # noqa: ANN401 - it has g and v
    layer = nn.Conv1d(4, 8, 3)
    if spelling:
        normalize(layer, "weight", dim, spelling)
    return layer


def load(into: Spelling | None, given: Spelling | None) -> Callable[[Path], object]:
    """Load the state of one layer into another, both as the first of a model."""

    def loading(_: Path) -> object:
        state = nn.Sequential(conv(given)).state_dict()
        return nn.Sequential(conv(into)).load_state_dict(state)

    return loading


def load_along_another_dim(_: Path) -> None:
    conv("parametrized", 1).load_state_dict(conv("parametrized").state_dict())


def load_an_optimizer(_: Path) -> None:
    plain = conv()
    state = torch.optim.Adam(plain.parameters()).state_dict()
    torch.optim.Adam(conv("hook").parameters()).load_state_dict(state)


def apply_twice(_: Path) -> None:
    normalize(conv("hook"), "weight", 0, "hook")


def parametrize_twice(_: Path) -> None:
    layer = conv("parametrized")
    normalize(layer, "weight", 0, "parametrized")
    layer(FED)


def deprecated(_: Path) -> None:
    with warnings.catch_warnings(action="error"):
        nn.utils.weight_norm(conv())


def copy_after_a_forward(_: Path) -> None:
    layer = conv("hook")
    layer(FED)
    copy.deepcopy(layer)


def script(spelling: Spelling) -> Callable[[Path], object]:
    return lambda _: torch.jit.script(nn.Sequential(conv(spelling)))(FED)


def save_tied(folder: Path) -> None:
    one = torch.ones(3, 3)
    safetensors.torch.save_file({"a": one, "b": one}, folder / "tied.safetensors")


def load_a_namespace(folder: Path) -> None:
    torch.save({"args": argparse.Namespace(epochs=3)}, folder / "args.pt")
    torch.load(folder / "args.pt")


def load_a_class_that_is_gone(folder: Path) -> None:
    module = ModuleType("utils_of_the_training")
    module.AttrDict = type("AttrDict", (dict,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(module.AttrDict(), folder / "config.pt")
    torch.load(folder / "config.pt", weights_only=False)


def load_a_pointer(folder: Path) -> str:
    (folder / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    safely = said(lambda _: torch.load(folder / "pointer.pt"), folder)
    return safely + said(lambda _: torch.load(folder / "pointer.pt", weights_only=False), folder)


def load_half_a_safetensors(folder: Path) -> None:
    whole = safetensors.torch.save({"a": torch.ones(100)})
    (folder / "half.safetensors").write_bytes(whole[:-10])
    safetensors.torch.load_file(folder / "half.safetensors")


def load_half_a_zip(folder: Path) -> None:
    torch.save({"a": torch.ones(100_000)}, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    torch.load(folder / "half.pt")


PROVOKED: dict[str, Callable[[Path], object]] = {
    "Missing key(s): weight_g, weight_v": load("hook", "parametrized"),
    "Missing key(s): parametrizations.weight.original0": load("parametrized", None),
    "Missing key(s): weight": load(None, "hook"),
    "size mismatch for parametrizations.weight.original0": load_along_another_dim,
    (
        "loaded state dict contains a parameter group that doesn't match the size of "
        "optimizer's group"
    ): load_an_optimizer,
    "weight_norm of 'weight' not found in": lambda _: remove_weight_norm(conv()),
    "does not have a parametrization on weight": (
        lambda _: parametrize.remove_parametrizations(conv("hook"), "weight")
    ),
    "Cannot register two weight_norm hooks on the same parameter": apply_twice,
    "_WeightNorm.forward() missing 1 required positional argument: 'weight_v'": parametrize_twice,
    "object has no attribute 'weight_g'": lambda _: conv("parametrized").weight_g,
    "torch.nn.utils.weight_norm is deprecated": deprecated,
    "Only Tensors created explicitly by the user support the deepcopy protocol": (
        copy_after_a_forward
    ),
    "Serialization of parametrized modules is only supported through state_dict()": (
        lambda folder: torch.save(conv("parametrized"), folder / "whole.pt")
    ),
    "'WeightNorm' object has no attribute '__name__'": script("hook"),
    "Parametrization is not working with scripting": script("parametrized"),
    "Some tensors share memory": save_tied,
    "Weights only load failed": load_a_namespace,
    "No module named": load_a_class_that_is_gone,
    "Unsupported operand 118; invalid load key, 'v'": load_a_pointer,
    "Error while deserializing header": load_half_a_safetensors,
    "failed finding central directory": load_half_a_zip,
}
#: What transformers 4 has printed, and 5 no longer does.
OF_TRANSFORMERS_4 = {
    "Some weights were not initialized from the model checkpoint": "were not initialized from the",
    "Some weights of the model checkpoint were not used": "were not used when initializing",
}
REPORT = "LOAD REPORT: MISSING parametrizations.weight.original0"


def said(provoke: Callable[[Path], object], folder: Path) -> str:
    """What is said when something fails, as Python shows it behind the traceback."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is, its text is compared
        provoke(folder)
    return f"{type(caught.value).__name__}: {caught.value}"


def words(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[\d*m", "", text).split())


def assert_has_lines(found: str, message: str) -> None:
    """Every line is in what was said, in this order; others, and what `…` is for, between them."""
    at = 0
    for line in map(words, message.replace("…", "\n").splitlines()):
        at = found.find(line, at)
        assert at >= 0, f"{line}\n--- is not in ---\n{found}"


@pytest.mark.parametrize("heading", PROVOKED)
def test_a_message_is_what_is_said(heading: str, tmp_path: Path) -> None:
    provoke = PROVOKED[heading]
    found = provoke(tmp_path) if provoke is load_a_pointer else said(provoke, tmp_path)
    assert isinstance(found, str)
    assert_has_lines(words(found), SECTIONS[heading])


def test_every_message_of_other_programs_is_provoked() -> None:
    assert {*SECTIONS} == {*PROVOKED, *OF_TRANSFORMERS_4, REPORT}


@pytest.mark.slow
def test_a_folded_folder_gets_the_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    family = BUILT_IN[0]
    family.kind(family.config).save_pretrained("original")
    wncli.remove("original", "folded")
    wncli.convert("folded", "restored", like="original")
    caplog.clear()
    family.kind.from_pretrained("folded")
    for line in SECTIONS[REPORT].splitlines():
        assert words(line) in words(caplog.text)
    caplog.clear()
    family.kind.from_pretrained("restored")
    assert "MISSING" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("heading", OF_TRANSFORMERS_4)
def test_what_a_version_no_longer_says_names_the_version(heading: str) -> None:
    assert "transformers 4" in PAGE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    sources = Path(transformers.__file__).parent
    modules = [*sources.glob("*.py"), *(sources / "utils").glob("*.py")]
    text = OF_TRANSFORMERS_4[heading]
    assert text in SECTIONS[heading]
    assert not [path for path in modules if text in path.read_text()]


HOW_TO = ROOT / "docs" / "how-to"


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
    (found,) = (block for block in blocks_of(HOW_TO / page) if block.text.startswith(beginning))
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
