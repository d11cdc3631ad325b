"""Legacy torch files that lie are refused, each for its lie; what only looks hostile is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.corpus.hostile_legacy import FILES, HARMLESS, LIES
from tests.support.bounded_runs import (
    Apart,
    Loaded,
    hold_bounds_of_all,
    hold_refused_untouched,
    hold_same,
    torch_loads,
)
from tests.support.run import Ran

pytestmark = pytest.mark.thinned(7)

RunHere = Callable[..., Ran]

REFUSED_BY_TORCH = [name for name, lie in LIES.items() if not lie.torch_loads]
TAKEN_BY_TORCH = [name for name, lie in LIES.items() if lie.torch_loads]
TOLD = {name: lie.told for name, lie in LIES.items()}
TRUTHS = {lie.truth: name for name, lie in LIES.items()}


@pytest.fixture(scope="module")
def wn() -> Iterator[Apart]:
    with Apart() as started:
        yield started


@pytest.fixture(scope="module")
def in_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """How torch.load takes every lie, and every truth under its name with `true_` before it."""
    truths = {f"true_{name}": content for content, name in TRUTHS.items()}
    return torch_loads(TOLD | truths, tmp_path_factory.mktemp("legacy"))


@pytest.mark.parametrize("name", FILES)
def test_a_legacy_file_that_lies_is_refused_for_its_lie(
    name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    FILES[name].write(tmp_path / name)
    hold_refused_untouched(wn_here, tmp_path / name, FILES[name].says)


def test_no_legacy_file_that_lies_takes_long_or_much_memory(tmp_path: Path) -> None:
    hold_bounds_of_all(TOLD, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS.values())
def test_the_same_legacy_file_that_tells_the_truth_is_read(
    name: str, wn_here: RunHere, in_torch: dict[str, Loaded], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(LIES[name].truth)
    assert in_torch[f"true_{name}"].all == ""
    ran = wn_here("inspect", path)
    assert ran.code == 0, ran.stderr
    wncli.convert(path, tmp_path / "out.pt")
    first, second = (torch.load(tmp_path / file, weights_only=False) for file in (name, "out.pt"))
    hold_same(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED_BY_TORCH)
def test_torch_refuses_the_lie_as_well(name: str, in_torch: dict[str, Loaded]) -> None:
    assert in_torch[name].weights_only != ""
    assert in_torch[name].all != ""


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN_BY_TORCH)
def test_torch_takes_the_lie_for_the_truth(name: str, in_torch: dict[str, Loaded]) -> None:
    assert in_torch[name].weights_only == ""


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_legacy_file_that_pytorch_would_not_write_is_read_as_pytorch_reads_it(
    kind: str, wn: Apart, tmp_path: Path
) -> None:
    path, target = tmp_path / "a", tmp_path / "copy.pt"
    path.write_bytes(HARMLESS[kind])
    for ran in (wn("inspect", path), wn("convert", path, target)):
        assert ran.code == 0, ran
    first, second = (torch.load(file, weights_only=False) for file in (path, target))
    hold_same(first, second)
