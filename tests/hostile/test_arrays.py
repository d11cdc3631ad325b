"""Plain pickles of arrays that break a rule are refused for it, and run nothing."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

import wncli
from tests.corpus.hostile_arrays import DATA, FILES, SOUND, array, file_of
from tests.support.bounded_runs import hold_bounds_of_all
from tests.support.opcodes import build, call, name
from tests.support.refusals import RunHere, hold_refused, hold_refused_by_all


def numpy_loads(content: bytes) -> bool:
    """Whether Python's own unpickler, with NumPy's own code, takes a file, as it was meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy calls the older names of its modules deprecated
        try:
            pickle.loads(content)  # noqa: S301 - the corpus runs nothing
        except Exception:  # noqa: BLE001 - whatever it is, it does not load
            return False
    return True


@pytest.mark.parametrize("kind", FILES)
def test_a_pickle_that_breaks_a_rule_is_refused_by_its_rule(
    kind: str, wn_here: RunHere, tmp_path: Path
) -> None:
    (tmp_path / "a.pdparams").write_bytes(FILES[kind].content)
    hold_refused_by_all(wn_here, tmp_path / "a.pdparams", FILES[kind].says)


@pytest.mark.parametrize("kind", FILES)
def test_numpy_refuses_it_as_well_or_it_could_be_taken_otherwise(kind: str) -> None:
    assert numpy_loads(FILES[kind].content) == FILES[kind].numpy_loads


def test_no_such_pickle_takes_long_or_much_memory(tmp_path: Path) -> None:
    files = {f"{n}.pkl": wrong.content for n, wrong in enumerate(FILES.values())}
    hold_bounds_of_all(files, tmp_path)


@pytest.mark.parametrize("kind", SOUND)
def test_the_same_without_a_defect_is_read(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(SOUND[kind])
    assert numpy_loads(SOUND[kind])
    assert [root.tensors for root in wncli.inspect(tmp_path / "a.pkl").roots] == [1]


def test_what_would_run_is_listed_and_nothing_is_made_of_it(
    wn_here: RunHere, tmp_path: Path
) -> None:
    runs = call("os.system", "touch ran")
    hidden = build(
        call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), (0,), runs),
        (1, (6,), call("numpy.dtype", "f4"), False, DATA),
    )
    for place, content in enumerate((file_of(array(), runs), file_of(array(), hidden))):
        path = tmp_path / f"{place}.pkl"
        path.write_bytes(content)
        looked = wn_here("inspect", path)
        assert "would run: os.system" in looked.stdout + looked.stderr or looked.code == 2
        refused = wn_here("convert", path, tmp_path / "out.pt")
        assert refused.code == 2
        assert not (tmp_path / "out.pt").exists()
    hold_refused(
        wn_here("convert", tmp_path / "0.pkl", tmp_path / "out.pt"),
        tmp_path / "0.pkl",
        "would run: os.system",
    )
    assert not Path("ran").exists()


@pytest.mark.parametrize("length", [0x280, 0x580, 0x1_0280, 0x7D_0280])
def test_a_header_whose_length_looks_like_a_protocol_is_no_pickle(
    length: int, tmp_path: Path
) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    content = length.to_bytes(8, "little") + header + np.float32(1).tobytes()
    (tmp_path / "a.safetensors").write_bytes(content)
    assert wncli.inspect(tmp_path / "a.safetensors").format == "safetensors"
