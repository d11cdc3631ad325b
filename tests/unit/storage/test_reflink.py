"""Unchanged bytes arrive the same, copied or shared."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import wncli


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {"a": torch.randn(3_000_001), "b.weight": torch.randn(40, 30), "c": torch.randn(7)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def test_long_runs_of_unchanged_bytes_arrive_whole(saved: Path) -> None:
    """`a` is longer than the pieces that threads copy, and stands elsewhere in its pages."""
    copy = saved.with_name("out.safetensors")
    wncli.convert(saved, copy, drop=["c"])
    before, after = load_file(saved), load_file(copy)
    assert before.keys() == after.keys() | {"c"}
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_an_unchanged_shard_shares_its_blocks_where_the_file_system_can(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that can is not at hand: what it would do is done by hand, and counted."""
    wncli.convert(saved, saved.with_name("shards"), max_shard_size="100KB")
    cloned: list[int] = []

    def clone(target: int, request: int, source: int) -> int:
        assert request == fcntl_ficlone()
        cloned.append(os.fstat(source).st_size)
        os.pwrite(target, os.pread(source, cloned[-1], 0), 0)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", clone)
    wncli.apply(saved.with_name("shards"), saved.with_name("out"), layers=["b"])
    monkeypatch.undo()
    assert len(cloned) == 1
    assert wncli.compare(saved, saved.with_name("out")).equal


def fcntl_ficlone() -> int:
    """`_IOW(0x94, 9, int)`, as asm-generic/ioctl.h puts it together."""
    write, size = 1, 4
    return write << 30 | size << 16 | 0x94 << 8 | 9
