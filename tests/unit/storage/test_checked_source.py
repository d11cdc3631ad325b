"""What the zip's checksums say is believed: nothing is made of bytes that have changed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wncli
from tests.support.oracles import bits, load
from tests.support.zips import flip

MEMBERS = {"weight_g": 0, "weight_v": 1, "whole": 2, "part": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pair of several blocks, a whole tensor, and one that is a part of its storage."""
    path = tmp_path / "in.pt"
    torch.save(
        {
            "weight_g": torch.rand(700, 1) + 0.5,
            "weight_v": torch.randn(700, 1000),
            "whole": torch.randn(600_000),
            "part": torch.randn(600_000)[1000:2000],
        },
        path,
    )
    return path


@pytest.mark.parametrize("place", [0, -1], ids=["first byte", "last byte"])
@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_is_made_of_a_changed_byte(name: str, place: int, saved: Path) -> None:
    flip(saved, f"data/{MEMBERS[name]}", place)
    target = saved.with_name("out.safetensors")
    with pytest.raises(wncli.FormatError, match=f"storage '{MEMBERS[name]}' is damaged"):
        wncli.remove(saved, target)
    assert list(saved.parent.iterdir()) == [saved]


def test_what_is_copied_unread_keeps_the_checksum_that_tells(saved: Path) -> None:
    flip(saved, "data/2", 5)
    target = saved.with_name("out.pt")
    wncli.remove(saved, target)
    with zipfile.ZipFile(target) as archive:
        assert str(archive.testzip()).startswith("out/data/")


def test_a_changed_byte_of_what_is_folded_is_noticed_in_torch_files_too(saved: Path) -> None:
    flip(saved, "data/1", 1_500_000)
    with pytest.raises(wncli.FormatError, match="storage '1' is damaged"):
        wncli.remove(saved, saved.with_name("out.pt"))


def test_a_changed_pickle_is_shown_with_a_warning_and_not_converted(saved: Path) -> None:
    raw = saved.read_bytes()
    saved.write_bytes(raw.replace(b"whole", b"whale", 1))
    (note,) = wncli.inspect(saved).notes
    assert (note.code, note.is_warning) == ("checksum", True)
    with pytest.raises(wncli.FormatError, match=r"data\.pkl is damaged"):
        wncli.convert(saved, saved.with_name("out.safetensors"))


def test_files_that_were_written_without_checksums_are_read(tmp_path: Path) -> None:
    state = {"weight_g": torch.rand(3, 1), "weight_v": torch.randn(3, 4), "b": torch.ones(5)}
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "in.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert not wncli.inspect(tmp_path / "in.pt").notes
    wncli.remove(tmp_path / "in.pt", tmp_path / "out.pt")
    wncli.convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None
    assert bits(load(tmp_path / "out.pt")["b"]) == bits(state["b"])
    read = load_file(tmp_path / "out.safetensors")
    assert {name: bits(t) for name, t in read.items()} == {n: bits(t) for n, t in state.items()}
