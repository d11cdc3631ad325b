"""Unchanged bytes arrive the same by every way of copying them."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import wncli


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {"a": torch.randn(3_000_001), "b.weight": torch.randn(40, 30), "c": torch.randn(7)}
    save_file(tensors, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def failing(number: int) -> Any:  # noqa: ANN401 - stands in for calls of any kind
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("missing", [("copy_file_range",), ("copy_file_range", "sendfile")])
def test_where_the_kernel_does_not_copy_another_way_does(
    missing: tuple[str, ...], number: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in missing:
        monkeypatch.setattr(os, name, failing(number))
    copy = saved.with_name("out.safetensors")
    wncli.convert(saved, copy, force=True, drop=["c"])
    monkeypatch.undo()
    wncli.convert(saved, saved.with_name("expected.safetensors"), drop=["c"])
    assert copy.read_bytes() == saved.with_name("expected.safetensors").read_bytes()


def test_sendfile_is_used_where_copy_file_range_is_not_there(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = os.sendfile

    def counted(*arguments: Any) -> int:  # noqa: ANN401
        sent.append(send(*arguments))
        return sent[-1]

    monkeypatch.setattr(os, "copy_file_range", failing(errno.EXDEV))
    monkeypatch.setattr(os, "sendfile", counted)
    wncli.convert(saved, saved.with_name("out.safetensors"), drop=["c"])
    assert sum(sent) == (3_000_001 + 1200) * 4


def test_a_full_disk_is_no_reason_to_try_another_way(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "copy_file_range", failing(errno.ENOSPC))
    with pytest.raises(wncli.FileError, match="No space left"):
        wncli.convert(saved, saved.with_name("out.safetensors"), drop=["c"])
    assert list(saved.parent.iterdir()) == [saved]


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
