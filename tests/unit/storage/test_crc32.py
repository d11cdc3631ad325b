"""Checksums are zlib's, with zlib-ng and without it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wncli.storage.crc32
from tests.support.run import SAMPLES, environment


def test_bytes_of_any_length_and_place_have_the_checksum_of_zlib() -> None:
    data = np.random.default_rng(0).bytes(1200)
    for length in range(1100):
        part = memoryview(data)[length % 17 : length % 17 + length]
        assert wncli.storage.crc32.crc32(part) == zlib.crc32(part)


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_it_goes_on_as_zlib_does(data: bytes, before: int) -> None:
    assert wncli.storage.crc32.crc32(memoryview(data), before) == zlib.crc32(data, before)


@pytest.mark.parametrize(
    "blocked",
    ["", "sys.modules['zlib_ng'] = None;"],
    ids=["with", "without"],
)
def test_a_torch_file_has_its_checksums(blocked: str, tmp_path: Path) -> None:
    output = tmp_path / "out.pt"
    script = f"import sys; {blocked} import wncli; wncli.remove(*sys.argv[1:])"
    source = SAMPLES / "hifigan_generator"
    subprocess.run(
        [sys.executable, "-c", script, source, output], env=environment(), check=True, timeout=60
    )
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        assert sum(member.CRC for member in archive.infolist())
    assert "conv_pre.weight" in torch.load(output, weights_only=True)["generator"]
