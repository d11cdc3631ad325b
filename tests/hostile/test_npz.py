"""npz files that break a rule are refused for it; what NumPy reads as well is read alike."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

import wncli
from tests.corpus.hostile_npz import BOMB, DATA, DEFLATED, FILES, SOUND, npy, npz, one
from tests.support.bounded_runs import hold_bounds_of_all
from tests.support.refusals import RunHere, hold_refused, hold_refused_by_all


def numpy_loads(content: bytes) -> bool:
    """Whether NumPy reads every member, without running a pickle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with np.load(io.BytesIO(content)) as file:
                for name in file.files:
                    file[name]
        except Exception:  # noqa: BLE001 - whatever it is, it does not load
            return False
    return True


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_breaks_a_rule_is_refused_by_its_rule(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "a.npz").write_bytes(FILES[kind].content)
    hold_refused_by_all(wn_here, tmp_path / "a.npz", FILES[kind].says)


@pytest.mark.parametrize("kind", FILES)
def test_numpy_refuses_it_as_well_or_others_take_it_otherwise(kind: str) -> None:
    assert numpy_loads(FILES[kind].content) == FILES[kind].numpy_loads


def test_no_such_file_takes_long_or_much_memory(tmp_path: Path) -> None:
    files = {f"{n}.npz": wrong.content for n, wrong in enumerate(FILES.values())}
    hold_bounds_of_all(files, tmp_path)
    assert len(BOMB) < 100_000


@pytest.mark.parametrize("content", [SOUND, DEFLATED], ids=["stored", "deflated"])
def test_the_same_without_a_defect_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert numpy_loads(content)
    wncli.convert(tmp_path / "a.npz", tmp_path / "b.npz", format="npz")
    with np.load(tmp_path / "b.npz") as found:
        assert found["a.weight"].tobytes() == DATA


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",
    ],
)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00"])
def test_every_way_to_write_a_header_is_read(text: str, version: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(one(npy(text=text, version=version)))
    wncli.convert(tmp_path / "a.npz", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes().endswith(DATA)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("place", range(0, 152, 5))
def test_a_byte_that_has_changed_is_found(
    place: int, method: int, wn_here: RunHere, tmp_path: Path
) -> None:
    raw = bytearray(
        npz({"a.weight_g.npy": npy(DATA[:8], "(2, 1)"), "a.weight_v.npy": npy()}, method)
    )
    start = raw.index(b"a.weight_v.npy") + len("a.weight_v.npy")
    end = raw.index(b"PK\x01\x02")
    raw[start + place % (end - start)] ^= 0x10
    (tmp_path / "a.npz").write_bytes(raw)
    assert not numpy_loads(bytes(raw))
    ran = wn_here("remove", tmp_path / "a.npz", tmp_path / "b.pt")
    hold_refused(ran, tmp_path / "a.npz", "damaged|as NumPy writes it|no known|cannot be unpacked")
