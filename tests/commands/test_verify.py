"""`--verify` reads back what was written, and puts nothing in its place that is not right."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import wncli
from wncli.analysis import verify as verifying

pytestmark = pytest.mark.thinned(5)

RUNS: dict[str, Callable[[Path, Path], Any]] = {
    "remove": lambda a, b: wncli.remove(a, b, verify=True, force=True),
    "apply": lambda a, b: wncli.apply(a, b, verify=True, force=True, dim=1, layers=["*"]),
    "convert": lambda a, b: wncli.convert(a, b, verify=True, force=True),
    "respell": lambda a, b: wncli.convert(a, b, verify=True, force=True, naming="parametrized"),
    "shards": lambda a, b: wncli.remove(
        a, b.with_suffix(""), verify=True, force=True, max_shard_size=2000
    ),
}


@pytest.fixture(params=[".pt", ".safetensors"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tensors = {
        "c.weight_g": torch.rand(40, 1) + 1,
        "c.weight_v": torch.randn(40, 30),
        "d.weight": torch.randn(30, 20),
        "e.weight": torch.zeros(3, 2),
        "bias": torch.randn(30),
        "half": torch.randn(7).to(torch.bfloat16),
        "byte": torch.arange(9, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
    }
    path = tmp_path / f"in{request.param}"
    (torch.save if request.param == ".pt" else save_file)(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("command", RUNS)
def test_what_was_written_well_passes(command: str, suffix: str, saved: Path) -> None:
    target = saved.with_name(f"out{suffix}")
    RUNS[command](saved, target)
    assert (target if command != "shards" else target.with_suffix("")).exists()


def places_of_tensors(path: Path) -> list[int]:
    """The places of all bytes of tensors in a file."""
    if not zipfile.is_zipfile(path):
        raw = path.read_bytes()
        return list(range(8 + int.from_bytes(raw[:8], "little"), len(raw)))
    found: list[int] = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            if "/data/" in info.filename:
                file.seek(info.header_offset + 26)
                name, extra = struct.unpack("<2H", file.read(4))
                start = info.header_offset + 30 + name + extra
                found += range(start, start + info.file_size)
    return found


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("command", RUNS)
def test_a_byte_that_the_disk_changed_is_noticed(
    command: str, suffix: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands on the disk is changed between writing and reading back, byte by byte."""
    target = saved.with_name(f"out{suffix}")
    target.write_bytes(b"old")
    forget = verifying._forget_cached

    for part in range(1, 20):

        def spoil(written: Path, part: int = part) -> None:
            forget(written)
            files = sorted(written.iterdir()) if written.is_dir() else [written]
            shards = [path for path in files if path.suffix != ".json"]
            places = places_of_tensors(max(shards, key=lambda path: path.stat().st_size))
            at = places[len(places) * part // 20]
            with max(shards, key=lambda path: path.stat().st_size).open("r+b") as file:
                file.seek(at)
                (found,) = file.read(1)
                file.seek(at)
                file.write(bytes([found ^ 0x40]))

        monkeypatch.setattr(verifying, "_forget_cached", spoil)
        with pytest.raises(wncli.WnError):
            RUNS[command](saved, target)
        assert target.read_bytes() == b"old"
        assert not list(saved.parent.glob(".*"))
