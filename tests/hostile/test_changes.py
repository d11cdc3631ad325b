"""Files that change while they are read: a refusal, or a complete output; never half of one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import wncli
from tests.support.oracles import bits
from tests.support.refusals import RunHere, hold_refused
from tests.support.shards import FIRST, SECOND, shard_name, sharded
from wncli.errors import WnError
from wncli.storage.source import LocalSource

pytestmark = pytest.mark.thinned(5)

FORMATS = ("safetensors", "torch", "legacy")
#: Of some blocks each, so that a file can change between two of them.
STATE = {
    f"l{number}.weight_{half}": torch.full(shape, number + 1.0)
    for number in range(4)
    for half, shape in (("g", (40, 1)), ("v", (40, 1000)))
} | {"bias": torch.arange(1000.0)}

Change = Callable[[Path], object]


def write(state: dict[str, Tensor], path: Path, kind: str) -> None:
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")


def replace(path: Path) -> None:
    """By another checkpoint, in one step, as editors and downloads do it."""
    other = path.with_name("new")
    torch.save({"other": torch.zeros(3)}, other)
    other.replace(path)


def replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 1000)


def scribble(start: float, count: int = 4096) -> Change:
    """Write noise into it, from this part of its length on."""

    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(int(path.stat().st_size * start))
            file.write(bytes(range(256)) * (count // 256))

    return change


def cut(*, to: float = 0, by: int = 0) -> Change:
    return lambda path: os.truncate(path, int(path.stat().st_size * to) - by)


#: After these, all that was there is still to be read.
HARMLESS: dict[str, Change] = {
    "it is replaced": replace,
    "it is replaced by a FIFO": replace_by_a_fifo,
    "it is deleted": Path.unlink,
    "it grows": append,
    "it may no longer be read": lambda path: path.chmod(0),
    "it stays": lambda _: None,
}
#: After these, there is less.
SHRINKING: dict[str, Change] = {
    "it is emptied": cut(),
    "it shrinks to a tenth": cut(to=0.1),
    "it shrinks to a half": cut(to=0.5),
    "it loses its last byte": cut(to=1, by=1),
}
#: After these, there is something else.
SCRIBBLED: dict[str, Change] = {
    "its start is written over": scribble(0),
    "its middle is written over": scribble(0.5),
    "its end is written over": scribble(0.99),
    "it is written anew": lambda path: path.write_bytes(b"something else" * 1000),
}
CHANGES = HARMLESS | SHRINKING | SCRIBBLED


def refusal_of(run: Callable[[], object]) -> WnError | None:
    try:
        run()
    except WnError as refusal:
        return refusal
    return None


def at_first(change: Change, path: Path) -> Callable[[int, int], None]:
    """Changes a file once something has been done; many threads report that."""
    calls = itertools.count()

    def progress(_done: int, _total: int) -> None:
        if next(calls) == 0:
            change(path)

    return progress


def result(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = (
        load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    )
    return found


def layout(state: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}


class Run:
    """One conversion, and what came of it, held against the same without a change."""

    def __init__(self, folder: Path, command: str, kind: str, suffix: str) -> None:
        self.command = command
        self.path = folder / "in" / "model"
        self.output = folder / "out" / f"model{suffix}"
        for place in (self.path, self.output):
            place.parent.mkdir()
        write(STATE, self.path, kind)
        expected = folder / f"expected{suffix}"
        self.run(expected)
        self.expected = result(expected)

    def run(self, output: Path, progress: Callable[[int, int], None] | None = None) -> None:
        getattr(wncli, self.command)(self.path, output, progress=progress)

    def hold(self, change: str, progress: Callable[[int, int], None] | None = None) -> bool:
        """Whether it was refused; nothing is left then, and all is there otherwise."""
        refusal = refusal_of(lambda: self.run(self.output, progress))
        if refusal:
            assert change not in HARMLESS
            assert str(self.path) in str(refusal)
            assert list(self.output.parent.iterdir()) == []
            return True
        assert list(self.output.parent.iterdir()) == [self.output]
        found = result(self.output)
        assert layout(found) == layout(self.expected)
        if change not in SCRIBBLED:
            expected = {name: bits(tensor) for name, tensor in self.expected.items()}
            assert {name: bits(tensor) for name, tensor in found.items()} == expected
        return False


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("command", "suffix"), [("convert", ".pt"), ("convert", ".safetensors"), ("remove", ".pt")]
)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_changes_before_it_is_copied_is_refused_or_copied_whole(  # noqa: PLR0913, PLR0917
    kind: str,
    command: str,
    suffix: str,
    change: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "safetensors" and suffix == ".safetensors":
        command = "remove"  # nothing is to be converted
    run = Run(tmp_path, command, kind, suffix)

    def changed(*arguments: Any) -> Any:  # noqa: ANN401
        CHANGES[change](run.path)
        return fill(*arguments)

    from wncli.fill.fill import fill

    monkeypatch.setattr("wncli.fill.fill.fill", changed)
    assert run.hold(change) or change not in SHRINKING or "last byte" in change


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_changes_while_it_is_folded_is_refused_or_folded_whole(
    kind: str, change: str, tmp_path: Path
) -> None:
    run = Run(tmp_path, "remove", kind, ".pt")
    done: list[int] = []
    change_it = at_first(CHANGES[change], run.path)

    def progress(count: int, total: int) -> None:
        assert 0 <= count <= total
        change_it(count, total)
        done.append(count)

    run.hold(change, progress)
    assert done


@pytest.mark.parametrize("change", SHRINKING | SCRIBBLED)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("command", ["inspect", "remove"])
def test_a_file_that_changes_once_it_is_open_is_refused_or_read(  # noqa: PLR0913, PLR0917
    command: str,
    kind: str,
    change: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wn_here: RunHere,
) -> None:
    path, output = tmp_path / "model", tmp_path / "out.pt"
    write(STATE, path, kind)

    class Changing(LocalSource):
        def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
            super().__init__(*arguments)
            CHANGES[change](path)

    monkeypatch.setattr("wncli.formats.open.LocalSource", Changing)
    ran = wn_here(command, path, *([output] if command == "remove" else []))
    if ran.code == 2:
        hold_refused(ran, path, "truncated|damaged|again|not a checkpoint|not a|ends")
        assert not output.exists()
    else:
        assert ran.code == 0
        assert all(line.startswith("warning: ") for line in ran.stderr.splitlines())
        assert command == "inspect" or len(torch.load(output)) == 5
    assert {*tmp_path.iterdir()} <= {path, output}


@pytest.mark.parametrize("change", ["it shrinks to a half", "it is emptied", *SCRIBBLED])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_changes_before_any_read_is_refused_or_folded_whole(
    kind: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, "remove", kind, ".safetensors")
    whole = run.path.read_bytes()
    left = [0]

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:  # noqa: ANN401 - as the real one
            left[0] -= 1
            if left[0] == 0:
                CHANGES[change](run.path)
            return read(*arguments)

        return counting

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    for number in range(1, 100):
        run.path.write_bytes(whole)
        left[0] = number
        run.hold(change)
        run.output.unlink(missing_ok=True)
        if left[0] > 0:
            break
    assert 3 < number < 99


@pytest.mark.parametrize("kind", FORMATS)
def test_a_system_that_reads_little_at_a_time_gives_all_of_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As read(2) may, of any file, and does of more than 2 GB."""
    pread, preadv, most = os.pread, os.preadv, 100
    path = tmp_path / "in"
    write(STATE, path, kind)
    monkeypatch.setattr(os, "pread", lambda fd, count, place: pread(fd, min(count, most), place))
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, place: preadv(fd, [buffers[0][:most]], place)
    )
    wncli.convert(path, tmp_path / "out.pt", naming="parametrized")
    wncli.convert(tmp_path / "out.pt", tmp_path / "again.safetensors", naming="hook")
    again = load_file(tmp_path / "again.safetensors")
    assert {name: bits(tensor) for name, tensor in again.items()} == {
        name: bits(tensor) for name, tensor in STATE.items()
    }


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("changed", ["A", "B"])
def test_a_file_that_changes_while_it_is_compared_is_refused_or_compared_whole(
    changed: str, change: str, tmp_path: Path
) -> None:
    paths = {"A": tmp_path / "a", "B": tmp_path / "b"}
    write(STATE, paths["A"], "torch")
    write(STATE, paths["B"], "safetensors")
    found: list[wncli.Comparison] = []
    progress = at_first(CHANGES[change], paths[changed])
    refusal = refusal_of(
        lambda: found.append(wncli.compare(paths["A"], paths["B"], progress=progress))
    )
    if refusal:
        assert change not in HARMLESS
        assert str(paths[changed]) in str(refusal)
        return
    assert len(found[0].tensors) == 5
    assert change in SCRIBBLED or all(tensor.within for tensor in found[0].tensors)


@pytest.mark.parametrize("change", CHANGES)
def test_a_shard_that_changes_before_it_is_copied_leaves_all_shards_or_none(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = sharded(tmp_path / "model")
    shard = index.with_name(shard_name(2))
    output = tmp_path / "new" / "out"
    output.parent.mkdir()
    from wncli.fill.fill import fill

    filled: list[int] = []

    def changed(*arguments: Any) -> Any:  # noqa: ANN401
        if filled:
            CHANGES[change](shard)
        filled.append(1)
        return fill(*arguments)

    monkeypatch.setattr("wncli.fill.fill.fill", changed)
    refusal = refusal_of(lambda: wncli.convert(index, f"{output}/", format="torch"))
    if refusal:
        assert change not in HARMLESS
        assert str(shard) in str(refusal)
        assert list(output.parent.iterdir()) == []
        return
    assert change not in SHRINKING
    names = {name for path in output.glob("*.bin") for name in torch.load(path)}
    assert names == {*FIRST, *SECOND}


@pytest.mark.parametrize("change", HARMLESS | SHRINKING)
def test_a_shard_that_changes_before_its_blocks_are_shared_leaves_all_shards_or_none(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = sharded(tmp_path / "model")
    names = [shard_name(number) for number in (1, 2)]
    whole = {name: index.with_name(name).read_bytes() for name in names}
    output = tmp_path / "new" / "out"
    output.parent.mkdir()
    shared: list[int] = []

    def ficlone(target: int, _request: int, source: int) -> int:
        """As ioctl_ficlone(2) has it: all that the source holds; the target gets no shorter."""
        if shared:
            CHANGES[change](index.with_name(names[1]))
        data = os.pread(source, os.fstat(source).st_size, 0)
        shared.append(os.pwrite(target, data, 0))
        return 0

    monkeypatch.setattr("fcntl.ioctl", ficlone)
    refusal = refusal_of(lambda: wncli.convert(index, f"{output}/"))
    assert len(shared) == 2
    if refusal:
        assert change not in HARMLESS
        assert names[1] in str(refusal)
        assert list(output.parent.iterdir()) == []
        return
    assert change not in SHRINKING
    assert {name: (output / name).read_bytes() for name in names} == whole


def test_a_file_that_shrinks_is_refused_with_one_message(
    wn_here: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    write(STATE, path, "safetensors")
    from wncli.fill.fill import fill

    def changed(*arguments: Any) -> Any:  # noqa: ANN401
        cut(to=0.5)(path)
        return fill(*arguments)

    monkeypatch.setattr("wncli.fill.fill.fill", changed)
    for command in ("convert", "remove"):
        write(STATE, path, "safetensors")
        ran = wn_here(command, path, tmp_path / "out.pt")
        hold_refused(ran, path, "the file ends inside .*truncated")
        assert list(tmp_path.iterdir()) == [path]
