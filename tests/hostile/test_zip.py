"""Torch zips that lie are refused, each for its lie; what only looks hostile is read."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import wncli
from tests.corpus.hostile_zip import FILES, HARMLESS, LIES
from tests.corpus.hostile_zip_large import DEEP, ENDLESS, EXPANDED, EXPANDED_PAIRS, LARGE
from tests.support.bounded_runs import (
    Apart,
    Loaded,
    hold_bounds_of_all,
    hold_refused,
    hold_refused_untouched,
    hold_same,
    torch_loads,
)
from tests.support.run import Ran

pytestmark = pytest.mark.thinned(13)

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
    return torch_loads(TOLD | truths, tmp_path_factory.mktemp("zips"))


# -- lies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_zip_that_lies_is_refused_for_its_lie(
    name: str, wn_here: RunHere, tmp_path: Path
) -> None:
    FILES[name].write(tmp_path / name)
    hold_refused_untouched(wn_here, tmp_path / name, FILES[name].says)


@pytest.mark.slow
def test_no_zip_that_lies_takes_long_or_much_memory(tmp_path: Path) -> None:
    hold_bounds_of_all(TOLD, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS.values())
def test_the_same_zip_that_tells_the_truth_is_read(
    name: str, wn_here: RunHere, in_torch: dict[str, Loaded], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(LIES[name].truth)
    assert in_torch[f"true_{name}"].all == ""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    ran = wn_here("inspect", path)
    assert ran.code == 0, ran.stderr
    wncli.convert(path, tmp_path / "out.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED_BY_TORCH)
def test_torch_refuses_the_lie_as_well(name: str, in_torch: dict[str, Loaded]) -> None:
    assert in_torch[name].weights_only != ""
    assert in_torch[name].all != ""


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN_BY_TORCH)
def test_torch_takes_the_lie_for_the_truth(name: str, in_torch: dict[str, Loaded]) -> None:
    assert in_torch[name].weights_only == ""


def test_of_two_names_that_differ_in_case_torch_reads_the_one_that_was_not_meant(
    tmp_path: Path,
) -> None:
    lie = LIES["storage_twice_but_for_case.pt"]
    weights = []
    for content in (lie.told, lie.truth):
        (tmp_path / "a.pt").write_bytes(content)
        weights.append(torch.load(tmp_path / "a.pt", weights_only=True)["w"])
    told, truth = weights
    assert not told.any()
    assert torch.equal(truth, torch.arange(12.0).reshape(3, 4))


# -- what is no lie ---------------------------------------------------------------------------


def hold_copied(wn: Apart, path: Path) -> None:
    """The file is read, and a copy of it holds what torch finds in the file."""
    target = path.with_name("copy.pt")
    for ran in (wn("inspect", path), wn("convert", path, target)):
        assert ran.code == 0, ran
        ran.hold_bounds()
    assert sorted(entry.name for entry in path.parent.iterdir()) == sorted([path.name, "copy.pt"])
    first, second = (torch.load(file, weights_only=False) for file in (path, target))
    hold_same(first, second)


@pytest.mark.parametrize("kind", HARMLESS)
def test_a_zip_that_pytorch_would_not_write_is_read_as_pytorch_reads_it(
    kind: str, wn: Apart, tmp_path: Path
) -> None:
    (tmp_path / "a.pt").write_bytes(HARMLESS[kind])
    hold_copied(wn, tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_is_read_and_copied(kind: str, wn: Apart, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(ENDLESS[kind])
    hold_copied(wn, tmp_path / "a.pt")
    members = []
    for name in ("a.pt", "copy.pt"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            members.append(archive.read(archive.namelist()[0]))
    assert members[0] == members[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEEP)
def test_100000_levels_are_read_and_copied(kind: str, wn: Apart, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(DEEP[kind])
    hold_copied(wn, tmp_path / "a.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE)
def test_what_unfolds_takes_neither_long_nor_much_memory(
    kind: str, wn: Apart, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(LARGE[kind]())
    ran = wn("inspect", path)
    assert ran.code in (0, 2), ran.stderr[:1000]
    assert "defect of wn" not in ran.stderr
    assert len(ran.stdout + ran.stderr) < max(2000, 10 * path.stat().st_size)
    ran.hold_bounds()


def test_a_key_of_a_million_bytes_is_no_harm_to_what_is_dropped(wn: Apart, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(LARGE["a key of a million bytes"]())
    ran = wn("convert", path, tmp_path / "out.pt", "--drop", "x")
    assert ran.code == 0, ran.stderr
    assert [*torch.load(tmp_path / "out.pt", weights_only=True)] == ["w"]


# -- tensors that are larger than their storage -------------------------------------------------


@pytest.mark.parametrize("name", EXPANDED | EXPANDED_PAIRS)
def test_an_expanded_tensor_is_copied_as_it_is(name: str, wn: Apart, tmp_path: Path) -> None:
    path, target = tmp_path / name, tmp_path / "out.pt"
    (EXPANDED | EXPANDED_PAIRS)[name].write(path)
    for ran in (wn("inspect", path), wn("convert", path, target)):
        assert ran.code == 0, ran.stderr
        ran.hold_bounds()
    assert target.stat().st_size < 2 * path.stat().st_size
    first, second = (torch.load(file, weights_only=True) for file in (path, target))
    assert {key: (value.shape, value.stride()) for key, value in first.items()} == {
        key: (value.shape, value.stride()) for key, value in second.items()
    }


@pytest.mark.parametrize("name", EXPANDED | EXPANDED_PAIRS)
def test_an_expanded_tensor_that_would_have_to_be_written_out_is_refused(
    name: str, wn: Apart, tmp_path: Path
) -> None:
    hostile = (EXPANDED | EXPANDED_PAIRS)[name]
    path = tmp_path / name
    hostile.write(path)
    ways = [("convert", "out.safetensors")]
    if name in EXPANDED_PAIRS:
        ways += [("remove", "out.pt"), ("remove", "out.safetensors")]
    for command, target in ways:
        ran = wn(command, path, tmp_path / target)
        hold_refused(ran, hostile.says)
        ran.hold_bounds()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
