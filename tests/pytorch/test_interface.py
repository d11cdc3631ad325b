"""The face of `wncli.pytorch`: its names, documentation, examples, and what refusals say to do."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import inspect
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import wncli
import wncli.pytorch as wn
from tests.support.live import vocoder
from tests.support.run import ROOT, environment

FUNCTIONS = [name for name in wn.__all__ if name != "Loaded"]


def test_the_public_names_are_these() -> None:
    assert set(wn.__all__) == {
        *("load_weights", "remove_weight_norm", "apply_weight_norm", "initialize"),
        *("fold", "split", "respell", "fit", "save", "Loaded"),
    }
    assert all(hasattr(wn, name) for name in wn.__all__)


def section(doc: str | None, title: str) -> list[str]:
    assert doc
    body = re.search(rf"^( *){title}:\n((?:\1 +.*\n|\n)*)", doc + "\n", re.MULTILINE)
    assert body, f"no {title}"
    return re.findall(rf"^{body[1]}    (\w+): ", body[2], re.MULTILINE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(wn, name)
    doc = inspect.getdoc(function)
    assert section(doc, "Args") == list(inspect.signature(function).parameters)
    assert set(section(doc, "Raises")) <= set(wncli.__all__)
    section(doc, "Returns")
    section(doc, "Example")


@pytest.mark.parametrize("name", ["", *FUNCTIONS])
def test_an_example_gives_what_it_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subject = getattr(wn, name) if name else wn
    known = {"wn": wn, "torch": torch}
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(subject, name or "wn", globs=known)
    said: list[str] = []
    result = doctest.DocTestRunner().run(example, out=said.append)
    assert result.attempted
    assert not result.failed, "".join(said)


def test_the_result_is_frozen_and_each_of_its_fields_is_documented() -> None:
    names = [field.name for field in dataclasses.fields(wn.Loaded)]
    assert section(inspect.getdoc(wn.Loaded), "Attributes") == names
    made = wn.load_weights(vocoder("hook"), vocoder(None))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.missing = ()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == made  # noqa: S301 - made here


def test_without_torch_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport wncli.pytorch"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        "ImportError: wncli.pytorch needs PyTorch: pip install 'wncli[torch]'"
    )
    assert ran.stderr.count("Traceback") == 1


def test_the_extra_that_it_names_is_there() -> None:
    assert 'torch = ["torch>=2.6"]' in (ROOT / "pyproject.toml").read_text()


# -- what refusals say to do ----------------------------------------------------------------------


def lazy() -> Any:  # noqa: ANN401
    return nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(5))


def tied() -> Any:  # noqa: ANN401
    embedding, head = nn.Embedding(5, 3), nn.Linear(3, 5)
    head.weight = embedding.weight
    return nn.ModuleDict({"embedding": embedding, "head": head, "other": nn.Linear(3, 3)})


def without_direction() -> Any:  # noqa: ANN401
    model = vocoder("hook")
    model[2].weight_v.data[1] = 0
    return model


def odd(model: Any) -> Any:  # noqa: ANN401
    return model.state_dict() | {"9.weight": torch.ones(2)}


def constant() -> Any:  # noqa: ANN401
    first = nn.Linear(3, 4)
    nn.init.zeros_(first.weight)
    model = nn.Sequential(first, nn.Linear(4, 2))
    wn.apply_weight_norm(model, layers=["1"])
    return model


#: What is refused, and what the hint is then added to.
REFUSED: dict[str, tuple[Callable[..., object], Callable[[], tuple[Any, ...]], dict[str, Any]]] = {
    "a tie": (wn.apply_weight_norm, lambda: (tied(),), {}),
    "no direction": (wn.remove_weight_norm, lambda: (without_direction(),), {}),
    "no direction in memory": (wn.fold, lambda: (without_direction().state_dict(),), {}),
    "no variance": (wn.initialize, lambda: (constant(), torch.randn(9, 3)), {}),
    "names that do not meet": (wn.load_weights, lambda: (vocoder(None), odd(vocoder("hook"))), {}),
    "the meta device": (
        wn.load_weights, lambda: (vocoder(None).to("meta"), vocoder("hook")), {}
    ),
    "two copies": (
        wn.load_weights,
        lambda: (vocoder(None), {key: vocoder("hook").state_dict() for key in "ab"}),
        {},
    ),
    "a rule": (wn.remove_weight_norm, lambda: (vocoder("hook"),), {"layers": ["2.wieght"]}),
    "a rule with a dim": (
        wn.apply_weight_norm, lambda: (vocoder(None),), {"layers": ["0.wieght=1"]}
    ),
    "an exclusion": (wn.fold, lambda: (vocoder("hook").state_dict(),), {"exclude": ["2.wieght"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_refusal_says_works_as_python(name: str) -> None:
    function, make, given = REFUSED[name]
    with pytest.raises(wncli.WnError) as caught:
        function(*make(), **given)
    hint = caught.value.hint
    argument = re.search(r"\w+=(?:True|False|\[[^]]*\]|'[^']*')", hint)
    assert argument, hint
    keyword = ast.parse(f"f({argument[0]})", mode="eval").body
    assert isinstance(keyword, ast.Call)
    more = {one.arg: ast.literal_eval(one.value) for one in keyword.keywords}
    function(*make(), **given | more)  # type: ignore[arg-type]


def test_a_lazy_model_is_normalized_once_a_batch_went_through_it() -> None:
    model = lazy()
    with pytest.raises(wncli.WeightNormError) as caught:
        wn.apply_weight_norm(model)
    assert caught.value.hint == "run a batch through the model first"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(torch.ones(1, 3))
    assert wn.apply_weight_norm(model) == ("0.weight", "1.weight")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_neither_options_nor_what_lists_a_file(name: str) -> None:
    function, make, given = REFUSED[name]
    with pytest.raises(wncli.WnError) as caught:
        function(*make(), **given)
    assert not re.search(r"(?<!\S)-[-a-z]|wncli\.inspect|wn inspect|REFERENCE", str(caught.value))
