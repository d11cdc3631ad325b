"""The tutorial: what it says of real trainings, which are short here, and its pictures."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.support.documents import blocks_of
from tests.support.run import ROOT, SAMPLES, environment

PAGE = ROOT / "docs" / "tutorial.md"
SCRIPT = ROOT / "docs" / "tutorial" / "make.py"
#: Rounding differs from machine to machine, and training magnifies it.
MARGIN = 1.5


@pytest.fixture(scope="module")
def tutorial() -> Iterator[ModuleType]:
    """`docs/tutorial/make.py`, which is a script."""
    spec = importlib.util.spec_from_file_location("tutorial_make", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # nothing is written into the tree
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def train(tutorial: ModuleType) -> Callable[..., Any]:
    """Its training, once for each start, optimizer and seed."""
    return cache(tutorial.train)


def table() -> dict[str, list[tuple[float, float, float]]]:
    """The median, least and largest loss of each start, by optimizer, as the page has them."""
    number = r"(\d\.\d\d)"
    cell = rf"{number} \({number} to {number}\)"
    rows = re.findall(rf"^\| ([^|]+) \| {cell} \| {cell} \|$", PAGE.read_text(), re.MULTILINE)
    return {
        start: [tuple(map(float, found[i : i + 3])) for i in (0, 3)]  # type: ignore[misc]
        for start, *found in rows
    }


def test_its_python_can_be_pasted_at_pythons_prompt(tmp_path: Path) -> None:
    (tmp_path / "sample_models").symlink_to(SAMPLES)
    pasted = []
    for block in blocks_of(PAGE):
        if block.kind == "python":
            pasted += [block.text, ""]  # as one presses Enter behind a loop
        elif block.kind == "console":
            commands = [line[2:] for line in block.text.splitlines() if line.startswith("$ wn ")]
            for command in commands:
                arguments = [sys.executable, "-m", "wncli", *shlex.split(command)[1:]]
                pasted.append(f"import subprocess; _ = subprocess.run({arguments!r}, check=True)")
    ran = subprocess.run(
        [sys.executable, "-i", "-q"], input="\n".join(pasted) + "\n",
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Error" not in ran.stderr


def test_its_pictures_are_small_and_name_their_axes() -> None:
    for name, labels in {
        "losses": ["loss (nats per sample)", "step"],
        "norms": ["‖v‖ ÷ ‖v‖ at the start", "g ÷ ‖v‖", "step"],
    }.items():
        path = SCRIPT.with_name(f"{name}.svg")
        assert f"(tutorial/{path.name})" in PAGE.read_text()
        assert path.stat().st_size < 60_000
        assert all(f">{label}</text>" in path.read_text(encoding="utf-8") for label in labels)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["gradient descent", "Adam"])
def test_its_table_is_what_trainings_give(
    optimizer: str, tutorial: ModuleType, train: Callable[..., Any]
) -> None:
    assert list(table()) == list(tutorial.STARTS)
    column = list(tutorial.OPTIMIZERS).index(optimizer)
    for start, cells in table().items():
        _, least, largest = cells[column]
        loss = train(start, optimizer, 1).losses[-1]
        assert least / MARGIN < loss < largest * MARGIN, start


@pytest.mark.slow
def test_weight_norm_alone_changes_no_output(
    tutorial: ModuleType, train: Callable[..., Any]
) -> None:
    plain, normalized, initialized, folded = (
        train(start, "Adam", 0, steps=0).losses[0] for start in tutorial.STARTS
    )
    assert normalized == pytest.approx(plain, rel=1e-6)
    assert folded == pytest.approx(initialized, rel=1e-6)
    assert initialized != pytest.approx(plain, rel=1e-2)


@pytest.mark.slow
def test_directions_never_shrink_in_gradient_descent_and_do_in_adam(
    train: Callable[..., Any],
) -> None:
    rounding = 1e-6  # of float32
    descent, adam = (
        train("weight norm", optimizer, 1).norms for optimizer in ("gradient descent", "Adam")
    )
    assert (descent[1:] > descent[:-1] * (1 - rounding)).all()
    assert (descent[-1] > descent[0] * (1 - rounding)).all()
    assert np.median(descent[-1] / descent[0]) > 1
    assert 0.15 < np.mean(adam[1:] < adam[:-1] * (1 - rounding)) < 0.35
    assert np.mean(adam[-1] > adam[0]) > 0.9
