"""What several ranks write together is, byte for byte, what one process writes, and so reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import wncli
from tests.support.faults import snapshot
from tests.support.parted import along, put_parts
from tests.support.shards import save, sharded
from tests.support.teams import on_threads
from wncli.errors import FormatError
from wncli.report import Report
from wncli.team import ALONE, Team

pytestmark = pytest.mark.thinned(4)

#: A conversion, from files in the first folder into the second.
Conversion = Callable[[Path, Path, Team], Report]


def state(layers: int = 5) -> dict[str, Tensor]:
    """Normalized layers, some of them tied, and plain tensors of which one is larger than all."""
    generator = torch.Generator().manual_seed(layers)
    found: dict[str, Tensor] = {}
    for number in range(layers):
        v = torch.randn(4 + number, 3, 5, generator=generator)
        found[f"l{number}.weight_g"] = torch.rand(4 + number, 1, 1, generator=generator) + 0.5
        found[f"l{number}.weight_v"] = v
        found[f"l{number}.bias"] = torch.randn(4 + number, generator=generator)
    found["embedding"] = torch.randn(300, 7, generator=generator)
    found["plain.weight"] = torch.randn(9, 11, generator=generator)
    found["plain.weight"][[2, 5]] = 0.0
    found["half.weight"] = torch.randn(6, 4, generator=generator).to(torch.bfloat16)
    found["count"] = torch.tensor(3)
    found["empty"] = torch.empty(0, 3)
    return found


def tied(layers: int = 5) -> dict[str, Any]:
    found: dict[str, Any] = state(layers)
    found["shared"] = found["embedding"][10:200]
    found["table"] = torch.randn(400, 7)
    found["turned"] = torch.randn(8, 6).t()
    found["again.weight_g"], found["again.weight_v"] = found["l0.weight_g"], found["l0.weight_v"]
    return found


def write_inputs(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(1)
    save(state(), folder / "in.safetensors")
    torch.save({"model": tied(), "epoch": 3}, folder / "in.pt")
    torch.save(tied(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    wncli.remove(folder / "in.safetensors", folder / "in.npz")
    nan = state()
    nan["l1.weight_v"][1, 1, 1] = float("nan")
    nan["l3.weight_g"][0] = float("inf")
    save(nan, folder / "nan.safetensors")
    stale = state() | {"l2.weight": torch.zeros(6, 3, 5)}
    save(stale, folder / "stale.safetensors")
    like = {name: t for name, t in state().items() if not name.startswith("l4")}
    like["l4.weight"], like["l4.bias"] = torch.zeros(8, 3, 5), torch.zeros(8)
    for number in range(3):
        g = torch.ones(1, 3, 1)
        like[f"l{number}.weight_g"] = g.clone()
    like |= {"more": torch.randn(50, 2)}
    save(like, folder / "like.pt")
    sharded(
        folder / "shards", "safetensors", {1: state(2), 2: {"only.bias": torch.randn(90)},
                                           3: {f"m.{n}": t for n, t in state(3).items()}},
    )  # fmt: skip
    (folder / "shards" / "config.json").write_bytes(b"{}")
    parts: dict[str, Any] = {f"model.{name}": tensor for name, tensor in state().items()}
    parts |= {"epoch": 3}
    v = {name: tensor for name, tensor in parts.items() if name.endswith("_v")}
    cuts = {name: along(tensor, 1, (1, 2)) for name, tensor in v.items()}
    cuts["model.embedding"] = along(parts["model.embedding"], 0, (100, 150, 50))
    put_parts(folder / "parts", parts, cuts, checkpoint_id="run")


def linked(folder: Path) -> Path:
    """A folder that a link leads to, from another level of the tree."""
    (folder / "deep" / "real").mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / "link").symlink_to(folder / "deep" / "real")
    return folder / "link"


CONVERSIONS: dict[str, Conversion] = {
    "remove, safetensors": lambda i, o, team: wncli.remove(
        i / "in.safetensors", o / "out.safetensors", team=team
    ),
    "remove, safetensors to torch": lambda i, o, team: wncli.remove(
        i / "in.safetensors", o / "out.pt", team=team
    ),
    "remove, safetensors to npz": lambda i, o, team: wncli.remove(
        i / "in.safetensors", o / "out.npz", team=team
    ),
    "remove, torch": lambda i, o, team: wncli.remove(i / "in.pt", o / "out.pt", team=team),
    "remove, torch to safetensors": lambda i, o, team: wncli.remove(
        i / "in.pt", o / "out.safetensors", team=team, verify=True
    ),
    "remove, legacy": lambda i, o, team: wncli.remove(i / "legacy.pt", o / "out.pt", team=team),
    "remove, NaN": lambda i, o, team: wncli.remove(
        i / "nan.safetensors", o / "out.pt", team=team, verify=True
    ),
    "remove, stale": lambda i, o, team: wncli.remove(
        i / "stale.safetensors", o / "out.safetensors", team=team
    ),
    "apply, zeros": lambda i, o, team: wncli.apply(
        i / "in.npz", o / "out.safetensors", team=team, verify=True
    ),
    "apply, zeros, torch": lambda i, o, team: wncli.apply(
        i / "in.pt", o / "out.pt", layers=["plain*", "half*"], team=team
    ),
    "apply, zeros, npz": lambda i, o, team: wncli.apply(
        i / "in.npz", o / "out.npz", layers=["plain*"], dim=None, team=team
    ),
    "respell": lambda i, o, team: wncli.convert(
        i / "in.pt", o / "out.pt", naming="parametrized", team=team, verify=True
    ),
    "convert to safetensors": lambda i, o, team: wncli.convert(
        i / "in.pt", o / "out.safetensors", only="model", team=team
    ),
    "like, other dims": lambda i, o, team: wncli.convert(
        i / "in.safetensors", o / "out.pt", like=i / "like.pt", fill=True, team=team, verify=True
    ),
    "shards": lambda i, o, team: wncli.remove(i / "shards", o / "out", team=team, verify=True),
    "shards to torch": lambda i, o, team: wncli.remove(
        i / "shards", o / "out", format="torch", team=team
    ),
    "many shards": lambda i, o, team: wncli.remove(
        i / "in.pt", o / "out", max_shard_size="2KB", only="model", team=team
    ),
    "one file of shards": lambda i, o, team: wncli.remove(
        i / "shards", o / "out", max_shard_size="1GB", team=team
    ),
    "through a link": lambda i, o, team: wncli.remove(
        i / "shards", linked(o) / "out", format="torch", team=team
    ),
    "distributed to safetensors": lambda i, o, team: wncli.remove(
        i / "parts", o / "out.safetensors", team=team, verify=True
    ),
    "distributed": lambda i, o, team: wncli.convert(
        i / "parts", o / "out", naming="parametrized", team=team, verify=True
    ),
    "torch to distributed": lambda i, o, team: wncli.remove(
        i / "in.pt", o / "out", format="dcp", team=team, verify=True
    ),
    "many files, distributed": lambda i, o, team: wncli.apply(
        i / "in.pt", o / "out", layers=["plain*"], format="dcp", max_shard_size="2KB", team=team
    ),
    "in place": lambda _, o, team: wncli.remove(
        o / "in.pt", o / "in.pt", force=True, team=team, verify=True
    ),
    "shards in place": lambda _, o, team: wncli.convert(
        o / "shards", o / "shards", naming="parametrized", force=True, team=team
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "in"
    write_inputs(folder)
    return folder


def told(report: Report) -> dict[str, Any]:
    """What a report says, but for the time that it took."""
    found = report.to_json()
    found.pop("seconds")
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", CONVERSIONS)
def test_ranks_write_what_one_process_writes(
    name: str, ranks: int, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wncli.layout.shares._EDGE", 64)  # so that tensors of a test are cut
    home = tmp_path / "out"
    copy = shutil.copytree if name.endswith("in place") else lambda _, to: to.mkdir()
    copy(inputs, home)
    expected_report = CONVERSIONS[name](inputs, home, ALONE)
    expected = snapshot(home)
    shutil.rmtree(home)
    copy(inputs, home)
    reports = on_threads(ranks, lambda team: CONVERSIONS[name](inputs, home, team))
    for report in reports:
        assert isinstance(report, Report), report
        assert told(report) == told(expected_report)
    assert snapshot(home) == expected


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["table", "embedding", "l3.weight_v", "turned"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damage_is_refused_by_all_as_by_one_process(  # noqa: PLR0913, PLR0917 - cases, and where
    name: str,
    suffix: str,
    ranks: int,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of a storage that no rank has read all of, and of one of which views are taken."""
    if (name, suffix) == ("table", ".npz"):
        return  # its checksum is passed on, as that of all that is copied unread
    monkeypatch.setattr("wncli.layout.shares._EDGE", 64)
    found = torch.load(inputs / "in.pt")["model"][name]
    raw = bytearray((inputs / "in.pt").read_bytes())
    raw[raw.index(found.t().contiguous().numpy().tobytes() if name == "turned"
                  else found.numpy().tobytes()) + 70] ^= 1  # fmt: skip
    (tmp_path / "in.pt").write_bytes(raw)
    output = tmp_path / f"out{suffix}"
    with pytest.raises(FormatError, match="is damaged: its bytes have changed") as alone:
        wncli.remove(tmp_path / "in.pt", output)
    for error in on_threads(
        ranks, lambda team: wncli.remove(tmp_path / "in.pt", output, team=team)
    ):
        assert isinstance(error, FormatError)
        assert str(error) == str(alone.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]
