"""NumPy arrays in pickles: read as NumPy reads them, and written as tensors."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wncli
from tests.corpus.hostile_arrays import array, dtype, file_of
from tests.support.arrays import EVERY, ORDERS, arrays, hold_folded, network
from tests.support.opcodes import call
from tests.support.oracles import bits, load
from tests.support.run import Ran

Wn = Callable[..., Ran]
PROTOCOLS = (2, 3, 4, 5)


class PaddleTensor:
    """As Paddle pickles its tensors below the top: a call that makes their name and the array."""

    def __init__(self, name: str, value: Any) -> None:  # noqa: ANN401
        self.name, self.value = name, value

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[tuple[str, Any]]]:
        return tuple, ((self.name, self.value),)


def dumped(state: Any, path: Path, protocol: int) -> Path:  # noqa: ANN401
    with path.open("wb") as file:
        pickle.dump(state, file, protocol)
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("target", ["out.pt", "out.safetensors"])
@pytest.mark.parametrize("container", ["paddle", "torch", "torch legacy", "order F"])
def test_names_and_arrays_are_folded(
    container: str, target: str, protocol: int, wn: Wn, tmp_path: Path
) -> None:
    state = arrays(network())
    path = tmp_path / "model"
    if container.startswith("torch"):
        torch.save(
            state, path, pickle_protocol=protocol,
            _use_new_zipfile_serialization=container == "torch",
        )  # fmt: skip
    elif container == "paddle":
        names = {name: f"conv1d_0.{name}" for name in state}
        dumped(state | {"StructuredToParameterName@@": names}, path, protocol)
    else:
        dumped({k: np.asfortranarray(v) for k, v in state.items()}, path, protocol)
    ran = wn("remove", path, tmp_path / target, "--verify")
    assert ran.code == 0, ran.stderr
    hold_folded(tmp_path / target)
    assert wn("compare", path, tmp_path / target).code == 0
    assert wn("inspect", "--check", path).code == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ORDERS)
def test_every_dtype_and_order_is_what_numpy_loads(
    order: str, protocol: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (2, 3, 4, 16), dtype=np.uint8)
    state: dict[str, Any] = {
        f"{code}.w": ORDERS[order](raw[..., : np.dtype(code).itemsize].copy().view(code)[..., 0])
        for code in EVERY[1:]
    }
    state["b1.w"] = ORDERS[order](raw[..., 0] > 99)
    state["a.weight"] = np.ones((2, 2), "f4")
    path = dumped(state, tmp_path / "a.pkl", protocol)
    expected = {k: torch.from_numpy(v.copy(order="K")) for k, v in state.items()}
    for target in ("a.pt", "a.safetensors"):
        wncli.convert(path, tmp_path / target, drop=["c16.w"] if target.endswith("s") else [])
    found = load(tmp_path / "a.pt")
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in expected.items()}
    if order in {"C", "F"}:
        assert all(found[k].stride() == expected[k].stride() for k in expected)
    del expected["c16.w"]
    found = load_file(tmp_path / "a.safetensors")
    assert {k: bits(v) for k, v in found.items()} == {k: bits(v) for k, v in expected.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dtypes_of_ml_dtypes_are_read(protocol: int, tmp_path: Path) -> None:
    names = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]
    values = np.linspace(-2, 2, 6).reshape(2, 3)
    state = {f"{name}.weight": values.astype(getattr(ml_dtypes, name)) for name in names}
    wncli.convert(dumped(state, tmp_path / "a.pkl", protocol), tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    for name in names:
        assert found[f"{name}.weight"].dtype == getattr(torch, name)
        raw = found[f"{name}.weight"].view(torch.uint8).numpy().tobytes()
        assert raw == state[f"{name}.weight"].tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nested_trees_and_what_is_beside_them_are_kept(
    protocol: int, wn: Wn, tmp_path: Path
) -> None:
    """As PaddleSpeech has them: tensors as pairs of their name and an array."""
    state = {name: PaddleTensor(name, value) for name, value in arrays(network()).items()}
    path = dumped({"main_params": state, "epoch": 3}, tmp_path / "snapshot.pdz", protocol)
    ran = wn("remove", path, tmp_path / "out.pt")
    assert ran.code == 0, ran.stderr
    found = load(tmp_path / "out.pt")
    assert found["epoch"] == 3
    torch.save(found["main_params"], tmp_path / "flat.pt")
    hold_folded(tmp_path / "flat.pt")


def test_one_array_under_two_names_is_one_tensor(tmp_path: Path) -> None:
    shared = np.ones((3, 2), "f4")
    state = {"a.weight": shared, "b.weight": shared, "c.weight": shared.copy()}
    wncli.convert(dumped(state, tmp_path / "a.pkl", 4), tmp_path / "a.pt")
    found = load(tmp_path / "a.pt")
    pointers = [found[f"{name}.weight"].data_ptr() for name in "abc"]
    assert pointers[0] == pointers[1] != pointers[2]


def test_arrays_beside_tensors_stay_arrays(tmp_path: Path) -> None:
    state = {"model": network().state_dict(), "stats": {"mean": np.ones(3), "std": np.ones(3)}}
    torch.save(state, tmp_path / "a.pt")
    report = wncli.remove(tmp_path / "a.pt", tmp_path / "b.pt")
    assert [root.root for root in report.roots] == ["model"]
    found = load(tmp_path / "b.pt", weights_only=False)
    assert isinstance(found["stats"]["mean"], np.ndarray)


def test_a_random_state_alone_makes_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"rng": np.random.RandomState(0).get_state()}, tmp_path / "a.pt")
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    found = load(tmp_path / "b.pt", weights_only=False)
    assert isinstance(found["rng"][1], np.ndarray)


def test_the_report_says_that_arrays_become_tensors(wn: Wn, tmp_path: Path) -> None:
    path = dumped(arrays(network()), tmp_path / "a.pdparams", 4)
    told = json.loads(wn("inspect", path, "--json").stdout)
    assert told["format"] == "pickle of NumPy arrays"
    assert "arrays" in [note["code"] for note in told["notes"]]
    assert wn("convert", path, tmp_path / "a.pt").code == 0
    assert wn("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--like", path).code == 0
    assert wn("inspect", path, tmp_path / "b.pdparams").code == 2


# -- what is long ---------------------------------------------------------------------------------

MANY = 1 << 20


def long_arrays() -> dict[str, Any]:
    """Return some of which each takes several reads, and bytes of all values."""
    rng = np.random.default_rng(1)
    return {
        "a.weight": rng.standard_normal((MANY, 3), dtype="f4"),
        "f.weight": np.asfortranarray(rng.standard_normal((512, 800))),
        "t.weight": rng.integers(-9, 9, (300, 200, 5)).transpose(2, 0, 1),
        "b.bias": np.ones(3, "f4"),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("container", ["pickle", "zip", "legacy", "nemo"])
def test_large_arrays_are_what_numpy_loads(container: str, protocol: int, tmp_path: Path) -> None:
    state = long_arrays()
    path = tmp_path / "a"
    if container == "pickle":
        dumped(state, path, protocol)
    else:
        torch.save(
            state, path, pickle_protocol=protocol,
            _use_new_zipfile_serialization=container != "legacy",
        )  # fmt: skip
    if container == "nemo":
        with tarfile.open(tmp_path / "b", "w") as archive:
            archive.add(path, "model_weights.ckpt")
        path = tmp_path / "b"
    wncli.convert(path, tmp_path / "a.safetensors", verify=True)
    found = load_file(tmp_path / "a.safetensors")
    assert {k: bits(v) for k, v in found.items()} == {
        k: bits(torch.from_numpy(v.copy())) for k, v in state.items()
    }
    assert wncli.compare(path, tmp_path / "a.safetensors").equal
    assert not wncli.inspect(path, check=True).findings


@pytest.mark.parametrize("protocol", [2, 4])
def test_large_arrays_beside_tensors_are_written_as_they_were(
    protocol: int, tmp_path: Path
) -> None:
    stats = long_arrays() | {"text": "é" * MANY, "raw": b"\xff" * MANY}
    torch.save(
        {"model": network().state_dict(), "stats": stats},
        tmp_path / "a.pt",
        pickle_protocol=protocol,
    )
    wncli.remove(tmp_path / "a.pt", tmp_path / "a.pt", force=True)
    found = load(tmp_path / "a.pt", weights_only=False)["stats"]
    assert found.keys() == stats.keys()
    assert all(np.array_equal(found[name], stats[name]) for name in stats)


def spelled(text: str) -> bytes:
    """A pickle of protocol 2 with an array of 100,000 bytes, in these characters."""
    kind = dtype("u1", "|")
    encoded = call("_codecs.encode", text, "latin1")
    return file_of(array(), array(encoded, (100_000,), kind))


def test_a_long_text_of_the_right_length_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(spelled("é~" * 50_000))
    wncli.convert(tmp_path / "a", tmp_path / "b.safetensors")
    found = load_file(tmp_path / "b.safetensors")
    assert found["b.weight"].numpy().tobytes() == b"\xe9~" * 50_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("é" * 99_999, "bytes do not fill"), ("é" * 100_001, "bytes do not fill"),
        ("~" * 99_999, "bytes do not fill"), ("~" * 100_001, "bytes do not fill"),
        ("~" * 100_000 + "é", "bytes do not fill"), ("\u0100" * 100_000, "is no bytes"),
        ("~" * 99_999 + "\u0100", "is no bytes"), ("~" * 99_999 + "\u8000", "is no bytes"),
    ],
)  # fmt: skip
def test_a_long_text_of_other_characters_is_refused_and_found(
    text: str, says: str, wn: Wn, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(spelled(text))
    with pytest.raises((UnicodeError, ValueError)):
        pickle.loads((tmp_path / "a").read_bytes())  # noqa: S301 - it was made here
    ran = wn("convert", tmp_path / "a", tmp_path / "b.pt")
    assert ran.code == 2
    assert says in ran.stderr
    assert not (tmp_path / "b.pt").exists()
    assert wn("inspect", "--check", tmp_path / "a").code in {1, 2}
