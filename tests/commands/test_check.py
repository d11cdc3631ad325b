"""`wn inspect --check` finds what is damaged or will not compute, and nothing in sound files."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import wncli
from tests.support.run import SAMPLES, Ran, Wn
from tests.support.zips import flip

pytestmark = pytest.mark.thinned(3)

SOUND = ["hifigan_generator", "training.pt", "bfloat16.safetensors", "lstm.pt", "wavenet.pt"]


@pytest.mark.parametrize("sample", SOUND)
def test_sound_files_have_no_findings(sample: str, wn: Wn) -> None:
    ran = wn("inspect", "--check", SAMPLES / sample)
    assert (ran.code, ran.stderr) == (0, "")
    assert "nothing is wrong" in ran.stdout


def state() -> dict[str, Tensor]:
    return {"c.weight_g": torch.rand(4, 1) + 1, "c.weight_v": torch.randn(4, 3), "b": torch.ones(3)}


def with_nan(tensors: dict[str, Tensor]) -> None:
    tensors["b"][1] = torch.nan
    tensors["b"][2] = torch.nan


def with_inf(tensors: dict[str, Tensor]) -> None:
    tensors["c.weight_v"][1, 1] = -torch.inf


def with_zero_slice(tensors: dict[str, Tensor]) -> None:
    tensors["c.weight_v"][2] = 0
    tensors["c.weight_g"][2] = 0


def with_zero_direction(tensors: dict[str, Tensor]) -> None:
    tensors["c.weight_v"][2] = 0


def with_stale_weight(tensors: dict[str, Tensor]) -> None:
    tensors["c.weight"] = torch.randn(4, 3)


def with_float16_overflow(tensors: dict[str, Tensor]) -> None:
    v = torch.ones(4, 3, dtype=torch.float16)
    v[0] = torch.tensor([1.0, 0.0, 0.0])
    tensors["c.weight_v"] = v
    tensors["c.weight_g"] = torch.full((4, 1), 60000.0, dtype=torch.float16)
    tensors["c.weight_v"][1] = 60000.0


def with_half_a_pair(tensors: dict[str, Tensor]) -> None:
    del tensors["c.weight_g"]


CASES: dict[str, tuple[Callable[[dict[str, Tensor]], None], str, str]] = {
    "nan": (with_nan, "b", "b has 2 NaN"),
    "inf": (with_inf, "c.weight_v", "c.weight_v has 1 Inf"),
    "zero-slices": (with_zero_slice, "c.weight", "slice 2 (of 4)"),
    "zero-direction": (with_zero_direction, "c.weight", "slice 2 (of 4)"),
    "stale-weight": (with_stale_weight, "c.weight", "differs"),
    "overflow": (with_float16_overflow, "c.weight", "slice 1 (of 4)"),
    "half-pair": (with_half_a_pair, "c.weight", "c.weight_g is missing"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("code", CASES)
def test_a_defect_is_found(
    code: str, suffix: str, tmp_path: Path, wn_here: Callable[..., Ran]
) -> None:
    spoil, where, words = CASES[code]
    tensors = state()
    spoil(tensors)
    path = tmp_path / f"in{suffix}"
    (torch.save if suffix == ".pt" else save_file)(tensors, path)
    ran = wn_here("inspect", "--check", path)
    assert ran.code == 1
    assert not ran.stderr
    assert f"{code}: " in ran.stdout
    told = json.loads(wn_here("inspect", "--check", "--json", path).stdout)["findings"]
    assert [f for f in told if f["code"] == code and f["where"] == where and words in f["message"]]
    assert wn_here("inspect", path).code == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_findings_agree_with_what_pytorch_computes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever gives NaN or Inf in PyTorch is found, and what gives numbers is not."""
    for seed in range(40):
        torch.manual_seed(seed)
        g, v = torch.rand(4, 1).to(dtype), torch.randn(4, 3).to(dtype)
        odd = torch.tensor([torch.nan, torch.inf, 0.0, 1.0])
        if seed % 4:
            g[seed % 3] = odd[seed % 4]
        if seed % 5 == 0:
            v[seed % 4] = odd[seed % 3]
        torch.save({"weight_g": g, "weight_v": v}, tmp_path / "in.pt")
        product = torch._weight_norm(v, g, 0)
        found = wncli.inspect(tmp_path / "in.pt", check=True).findings
        assert bool(found) == (not bool(product.isfinite().all()))


@pytest.mark.parametrize(
    "member", ["data/0", "data/1", "data/2", "version", "byteorder", ".format_version", "data.pkl"]
)
def test_a_flipped_bit_anywhere_in_a_zip_is_found(
    member: str, tmp_path: Path, wn_here: Callable[..., Ran]
) -> None:
    path = tmp_path / "in.pt"
    torch.save(state(), path)
    flip(path, member, 0 if member == "version" else -2)
    ran = wn_here("inspect", "--check", path)
    assert ran.code in {1, 2}  # what says how to read the rest may not be readable any more
    assert f"checksum: {member} is damaged" in ran.stdout or ran.stderr.startswith("error: ")
    if member.startswith("data/"):
        assert ran.code == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["c.weight_g", "c.weight_v", "b", "text"])
def test_a_damaged_array_of_an_npz_is_found_and_named(
    name: str, save: Callable[..., None], tmp_path: Path, wn_here: Callable[..., Ran]
) -> None:
    path = tmp_path / "in.npz"
    arrays = {key: tensor.numpy() for key, tensor in state().items()}
    arrays["b"] = np.arange(5000, dtype="f4")
    arrays["text"] = np.array(["what", "ever"] * 40)
    save(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
    raw = bytearray(path.read_bytes())
    raw[info.header_offset + 30 + len(info.filename) + 20 + info.compress_size - 3] ^= 0x21
    path.write_bytes(raw)
    with np.load(path) as loaded, pytest.raises((zipfile.BadZipFile, zlib.error)):
        loaded[name]
    ran = wn_here("inspect", "--check", path)
    assert ran.code == 1
    assert not ran.stderr
    assert f"checksum: {name}.npy is damaged" in ran.stdout
    told = json.loads(wn_here("inspect", "--check", "--json", path).stdout)["findings"]
    is_unreadable = save is np.savez_compressed and name != "text"
    assert [f["where"] for f in told if f["code"] == "unreadable"] == [name] * is_unreadable
    if name.startswith("c."):  # what is copied unread keeps its checksum
        assert wn_here("remove", path, tmp_path / "out.pt").code == 2
        assert not (tmp_path / "out.pt").exists()


def test_the_tensors_of_shards_are_checked(tmp_path: Path) -> None:
    tensors = state()
    with_nan(tensors)
    save_file(tensors, tmp_path / "in.safetensors")
    wncli.convert(tmp_path / "in.safetensors", tmp_path / "shards", max_shard_size="50")
    found = wncli.inspect(tmp_path / "shards", check=True).findings
    assert found is not None
    assert [note.code for note in found] == ["nan"]


def test_without_check_there_are_no_findings_to_report() -> None:
    assert wncli.inspect(SAMPLES / "lstm.pt").findings is None
