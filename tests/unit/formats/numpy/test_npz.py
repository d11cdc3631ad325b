"""npz files: read as NumPy and MLX write them, and written as NumPy reads them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wncli
from tests.support.arrays import EVERY, ORDERS, arrays, hold_folded, network
from tests.support.oracles import bits, load
from tests.support.run import Ran
from wncli.storage.crc32 import moved_on

Wn = Callable[..., Ran]
SAVE: dict[str, Callable[..., None]] = {"stored": np.savez, "deflated": np.savez_compressed}


def every(order: str = "C") -> dict[str, Any]:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (2, 3, 4, 16), dtype=np.uint8)
    state: dict[str, Any] = {
        f"{code}.w": ORDERS[order](raw[..., : np.dtype(code).itemsize].copy().view(code)[..., 0])
        for code in EVERY[1:]
    }
    state["b1.w"] = ORDERS[order](raw[..., 0] > 99)
    state["a.weight"] = np.ones((2, 2), "f4")
    return state


def mlx_npy(array: Any) -> bytes:  # noqa: ANN401
    """An array as MLX writes it (`mlx/io/load.cpp`, `save`): no room to grow, bfloat16 as V2."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}}}"
    text += " " * (-(len(text) + 11) % 16) + "\n"
    return (
        b"\x93NUMPY\x01\x00"
        + len(text).to_bytes(2, "little")
        + text.encode()
        + bytes(array.tobytes())
    )


@pytest.mark.parametrize("saved", SAVE)
@pytest.mark.parametrize("target", ["out.pt", "out.safetensors"])
def test_normalized_layers_are_folded(saved: str, target: str, wn: Wn, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    SAVE[saved](path, **arrays(network()))
    ran = wn("remove", path, tmp_path / target, "--verify")
    assert ran.code == 0, ran.stderr
    hold_folded(tmp_path / target)
    assert wn("compare", path, tmp_path / target).code == 0
    assert wn("inspect", "--check", path).code == 0


@pytest.mark.parametrize("source", ["model.pt", "model.safetensors", "model.npz"])
def test_what_is_written_loads_with_numpy_into_a_module(
    source: str, wn: Wn, tmp_path: Path
) -> None:
    torch.save(network().state_dict(), tmp_path / "model.pt")
    if source != "model.pt":
        wncli.convert(tmp_path / "model.pt", tmp_path / source)
    for command in (["remove"], ["convert", "--naming", "parametrized"], ["convert"]):
        out = tmp_path / "out.npz"
        ran = wn(command[0], tmp_path / source, out, *command[1:], "--verify", "--force")
        assert ran.code in {0, 1}, ran.stderr
        if ran.code == 1:  # the same, in the same format
            continue
        with np.load(out) as file:
            state = {name: torch.from_numpy(file[name]) for name in file.files}
        if command[0] == "convert":
            made = network("parametrized" if "--naming" in command else "hook")
            made.load_state_dict(state, strict=True)
        else:
            torch.save(state, tmp_path / "flat.pt")
            hold_folded(tmp_path / "flat.pt")
    assert wn("apply", tmp_path / "out.npz", tmp_path / "again.npz").code in {0, 1}


@pytest.mark.parametrize("saved", SAVE)
@pytest.mark.parametrize("order", ORDERS)
def test_every_dtype_and_order_is_what_numpy_loads(order: str, saved: str, tmp_path: Path) -> None:
    state = every(order)
    SAVE[saved](tmp_path / "a.npz", **state)
    wncli.convert(tmp_path / "a.npz", tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    expected = {k: bits(torch.from_numpy(v.copy())) for k, v in state.items()}
    assert {k: bits(v) for k, v in found.items()} == expected
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as again:
        assert {k: bits(torch.from_numpy(again[k])) for k in again.files} == expected


def test_members_are_byte_for_byte_those_that_numpy_writes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **every())
    wncli.convert(tmp_path / "a.npz", tmp_path / "a.pt")
    for name in ("b.npz", "c.npz"):
        wncli.convert(tmp_path / "a.pt", tmp_path / name)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as one, zipfile.ZipFile(tmp_path / "b.npz") as other:
        assert other.testzip() is None
        assert one.namelist() == other.namelist()
        for name in one.namelist():
            assert one.read(name) == other.read(name)
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tqq", tmp_path / "b.npz"], check=False)
        assert done.returncode == 0


def test_bfloat16_is_spelled_as_mlx_and_ml_dtypes_spell_it(tmp_path: Path) -> None:
    values = np.linspace(-2, 2, 6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    SAVE["stored"](tmp_path / "a.npz", **{"a.weight": values})
    with zipfile.ZipFile(tmp_path / "mlx.npz", "w") as archive:
        archive.writestr("a.weight.npy", mlx_npy(values))
        archive.writestr("b.npy", mlx_npy(np.arange(3, dtype=np.float16)))
        archive.writestr("c.npy", mlx_npy(np.float32(1).reshape(())))
    for name in ("a.npz", "mlx.npz"):
        wncli.convert(tmp_path / name, tmp_path / "a.pt", force=True)
        found = load(tmp_path / "a.pt")["a.weight"]
        assert found.dtype == torch.bfloat16
        assert found.view(torch.uint8).numpy().tobytes() == values.tobytes()
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as again:
        assert again["a.weight"].dtype == np.dtype("V2")
        assert (again["a.weight"].view(ml_dtypes.bfloat16) == values).all()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_a_dtype_that_npz_has_not_is_refused_by_name(dtype: str, wn: Wn, tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2).to(getattr(torch, dtype))}, tmp_path / "a.pt")
    ran = wn("convert", tmp_path / "a.pt", tmp_path / "a.npz")
    assert ran.code == 2
    assert f"npz has no {dtype}" in ran.stderr
    assert not (tmp_path / "a.npz").exists()


def test_what_has_no_place_in_it_is_named(wn: Wn, tmp_path: Path) -> None:
    torch.save({"model": network().state_dict(), "epoch": 3}, tmp_path / "a.pt")
    ran = wn("remove", tmp_path / "a.pt", tmp_path / "a.npz")
    assert ran.code == 0
    assert "left out: epoch" in ran.stdout + ran.stderr
    np.savez(tmp_path / "b.npz", w=np.ones((2, 2)), config="text", when=np.datetime64("2026-01-01"))
    ran = wn("convert", tmp_path / "b.npz", tmp_path / "b.pt")
    assert ran.code == 0
    assert "left out: config, when" in ran.stdout + ran.stderr
    assert list(load(tmp_path / "b.pt")) == ["w"]


def test_tied_tensors_are_written_under_each_name(wn: Wn, tmp_path: Path) -> None:
    shared = torch.nn.Parameter(torch.ones(3, 2))
    zero = torch.zeros(3, 2)
    state = {"a.weight": shared, "b.weight": shared, "c.weight": zero, "d.weight": zero}
    torch.save(state, tmp_path / "a.pt")
    ran = wn("apply", tmp_path / "a.pt", tmp_path / "a.npz", "--verify")
    assert ran.code == 0, ran.stderr
    assert "tied tensors are written under each" in ran.stdout
    wncli.remove(tmp_path / "a.npz", tmp_path / "b.npz", verify=True)
    with np.load(tmp_path / "b.npz") as found:
        assert all((found[k] == v.detach().numpy()).all() for k, v in state.items())


def test_tied_tensors_are_not_written_without_bound(wn: Wn, tmp_path: Path) -> None:
    shared = torch.zeros(1 << 20)
    torch.save({f"{n}.weight": shared for n in range(40)}, tmp_path / "a.pt")
    ran = wn("convert", tmp_path / "a.pt", tmp_path / "a.npz")
    assert ran.code == 2
    assert "over and over" in ran.stderr
    ran = wn("convert", tmp_path / "a.pt", tmp_path / "a", "--format", "safetensors")
    assert ran.code == 0


def test_names_of_any_letters_come_back(tmp_path: Path) -> None:
    names = ["é.weight", "../x", "a b.npy", "层.0", "/y", "-z", ""]
    torch.save(
        {name: torch.full((2, 2), float(n)) for n, name in enumerate(names)}, tmp_path / "a.pt"
    )
    wncli.convert(tmp_path / "a.pt", tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert sorted(found.files) == sorted(names)
    wncli.convert(tmp_path / "a.npz", tmp_path / "b.pt")
    assert list(load(tmp_path / "b.pt")) == names


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 70_000])
def test_a_name_that_no_zip_holds_is_refused(name: str, wn: Wn, tmp_path: Path) -> None:
    torch.save({name: torch.ones(2, 2)}, tmp_path / "a.pt")
    ran = wn("convert", tmp_path / "a.pt", tmp_path / "a.npz")
    assert ran.code == 2
    assert "none that a zip can hold" in ran.stderr


def test_a_name_that_numpy_takes_for_another_is_refused(wn: Wn, tmp_path: Path) -> None:
    state: dict[str, Any] = {"w": np.ones((2, 2)), "w.npy": np.zeros((3, 3))}
    np.savez(tmp_path / "a.npz", **state)
    with np.load(tmp_path / "a.npz") as found:
        assert found["w.npy"].shape == (2, 2)
    torch.save({"w": torch.ones(2, 2), "w.npy": torch.zeros(3, 3)}, tmp_path / "a.pt")
    ran = wn("convert", tmp_path / "a.pt", tmp_path / "b.npz")
    assert ran.code == 2
    assert "under this name" in ran.stderr
    assert not (tmp_path / "b.npz").exists()


def test_shards_and_several_files(wn: Wn, tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "a.pt")
    ran = wn("convert", tmp_path / "a.pt", f"{tmp_path}/s/", "--format", "npz",
             "--max-shard-size", "400")  # fmt: skip
    assert ran.code == 0, ran.stderr
    index = json.loads((tmp_path / "s/model.npz.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert wn("remove", tmp_path / "s", tmp_path / "b.pt").code == 0
    hold_folded(tmp_path / "b.pt")
    assert (
        wn("remove", tmp_path / "a.pt", "--output-dir", tmp_path / "o", "--format", "npz").code == 0
    )
    assert wn("compare", tmp_path / "o/a.npz", tmp_path / "b.pt").code == 0


def test_in_a_folder_it_is_taken_where_there_is_nothing_else(wn: Wn, tmp_path: Path) -> None:
    np.savez(tmp_path / "stats.npz", mean=np.ones((3, 3)))
    assert wn("inspect", tmp_path).code == 0
    torch.save(network().state_dict(), tmp_path / "G_100.pth")
    told = json.loads(wn("inspect", tmp_path, "--json").stdout)
    assert told["format"] == "torch"


def test_an_empty_archive_and_a_bare_array_are_refused_by_name(wn: Wn, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.ones(3))
    for name in ("a.npz", "b.npy"):
        assert wn("inspect", tmp_path / name).code == 2


@given(st.binary(max_size=40), st.binary(max_size=300))
def test_checksums_of_two_runs_are_put_together_as_zlib_has_them(one: bytes, other: bytes) -> None:
    whole = zlib.crc32(one + other)
    assert moved_on(zlib.crc32(one), len(other)) ^ zlib.crc32(other) == whole


def test_a_file_of_more_members_than_16_bits_count_is_read_and_written(tmp_path: Path) -> None:
    state = {f"layer.{n}.weight": np.full((1, 2), n, "f4") for n in range(70_000)}
    buffer = io.BytesIO()
    SAVE["stored"](buffer, **state)
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    wncli.convert(tmp_path / "a.npz", tmp_path / "a.pt")
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "b.npz") as archive:
        assert len(archive.namelist()) == 70_000
        assert archive.testzip() is None
