"""Legacy torch checkpoints, as torch wrote them before 1.6, held against `torch.load`."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wncli
from tests.support.every_dtype import DTYPES, raw_of, tensor_of
from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FormatError
from wncli.formats.open import open_checkpoint

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def save(value: object, path: Path) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def opened(path: Path) -> Checkpoint:
    with open_checkpoint(path) as (checkpoint, _):
        return checkpoint


def specs_of(path: Path) -> dict[str, TensorSpec]:
    return {spec.name: spec for sd in opened(path).state_dicts for spec in sd.tensors}


def elements(path: Path, spec: TensorSpec) -> bytes:
    """The elements that a spec leads to, picked one by one."""
    content = path.read_bytes()
    size = spec.dtype.itemsize
    storage = content[spec.storage.offset : spec.storage.offset + spec.storage.nbytes]

    def walk(axis: int, place: int) -> bytes:
        if axis == len(spec.shape):
            return storage[place * size : place * size + size]
        steps = range(spec.shape[axis])
        return b"".join(walk(axis + 1, place + step * spec.strides[axis]) for step in steps)

    return walk(0, spec.offset)


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        opened(path)
    return str(caught.value)


class Storage:
    """Stands for a storage in a pickle that is made by hand."""

    def __init__(self, *pid: object) -> None:
        self.pid = pid


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> object:
        return value.pid if isinstance(value, Storage) else None

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401
        if isinstance(value, Rebuild):
            hooks: collections.OrderedDict[str, int] = collections.OrderedDict()
            args = (*value.parts, False, hooks)
            return torch._utils._rebuild_tensor_v2, args
        return NotImplemented


class Rebuild:
    """Stands for a tensor: storage, offset, size, stride."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts


def dumped(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, 2).dump(value)
    return file.getvalue()


def by_hand(  # noqa: PLR0913 - the parts of the file, each to be damaged
    root: object,
    keys: object,
    storages: list[tuple[int, bytes]],
    *,
    magic: object = MAGIC_NUMBER,
    version: object = 1001,
    system: object = SYSTEM,
) -> bytes:
    heads = b"".join(dumped(part) for part in (magic, version, system, root, keys))
    return heads + b"".join(struct.pack("<q", count) + data for count, data in storages)


def storage(key: object = "0", numel: object = 4, view: object = None) -> Storage:
    return Storage("storage", torch.FloatStorage, key, "cpu", numel, view)


def tensor(
    inside: Storage, offset: object = 0, size: object = (2, 2), stride: object = (2, 1)
) -> Rebuild:
    return Rebuild(inside, offset, size, stride)


FOUR = struct.pack("<4f", 1, 2, 3, 4)


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_are_read(dtype: str, tmp_path: Path) -> None:
    value = {"w": tensor_of(dtype, 2, 3), "b": torch.ones(3), "c": tensor_of(dtype, 5)}
    path = save(value, tmp_path / "a")
    specs = specs_of(path)
    assert opened(path).format == "torch legacy"
    for name, spec in specs.items():
        assert spec.dtype.torch == str(value[name].dtype).removeprefix("torch.")
        assert spec.shape == tuple(value[name].shape)
        assert elements(path, spec) == raw_of(value[name])
    assert list(specs) == list(value)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(max_size=6),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_any_state_dict_is_read_bit_for_bit(
    tmp_path: Path, spec: dict[str, tuple[str, list[int]]]
) -> None:
    value = {name: tensor_of(dtype, *shape) for name, (dtype, shape) in spec.items()}
    value["always a weight"] = torch.ones(2, 2)
    path = save(value, tmp_path / "a")
    specs = specs_of(path)
    assert {name: elements(path, found) for name, found in specs.items()} == {
        name: raw_of(expected) for name, expected in value.items()
    }


def test_views_ties_and_parameters_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    value = {
        "base": base, "tied": base, "transposed": base.transpose(0, 2), "sliced": base[:, 1:, ::2],
        "expanded": base[:1].expand(3, 3, 4), "element": base[1, 1, 1], "empty": base[2:],
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    }  # fmt: skip
    path = save(value, tmp_path / "a")
    specs = specs_of(path)
    assert specs["base"].view == specs["tied"].view
    assert specs["base"].storage == specs["sliced"].storage
    for name, spec in specs.items():
        assert elements(path, spec) == raw_of(value[name])


def test_many_storages_are_found_in_the_order_of_the_files_own_list(tmp_path: Path) -> None:
    value = {f"layer{n}.weight": torch.full((n, 2), float(n)) for n in range(1, 60)}
    path = save(value, tmp_path / "a")
    for name, spec in specs_of(path).items():
        assert elements(path, spec) == raw_of(value[name])


def test_a_file_made_by_hand_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(by_hand({"w": tensor(storage())}, ["0"], [(4, FOUR)]))
    expected = torch.load(path, weights_only=True)["w"]
    assert elements(path, specs_of(path)["w"]) == raw_of(expected) == FOUR


@pytest.mark.parametrize(("offset", "start", "stop"), [(0, 1, 3), (1, 0, 3), (0, 0, 4)])
def test_view_metadata_is_read_as_torch_reads_it(
    offset: int, start: int, stop: int, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    view = storage(view=("7", start, stop - start))
    root = {"w": tensor(storage()), "v": tensor(view, offset, (2, 1), (1, 1))}
    path.write_bytes(by_hand(root, ["0"], [(4, FOUR)]))
    expected = torch.load(path, weights_only=True)["v"]
    assert elements(path, specs_of(path)["v"]) == raw_of(expected)
    wncli.apply(path, tmp_path / "b.pt", layers=["w"])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert raw_of(found["v"]) == raw_of(expected)


def test_a_view_and_a_storage_whose_names_could_be_confused_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "a"
    root = {
        "w": tensor(storage("0/7")),
        "v": tensor(storage("0", view=("7", 0, 4))),
        "u": tensor(storage("1")),
    }
    other = struct.pack("<4f", 5, 6, 7, 8)
    path.write_bytes(by_hand(root, ["0", "0/7", "1"], [(4, FOUR), (4, other), (4, FOUR)]))
    expected = torch.load(path, weights_only=True)
    wncli.apply(path, tmp_path / "b.pt", layers=["u"])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert raw_of(found["w"]) == raw_of(expected["w"]) == other
    assert raw_of(found["v"]) == raw_of(expected["v"]) == FOUR


def test_an_ordered_dict_that_python_2_pickled_is_read_and_written(tmp_path: Path) -> None:
    items = [["w", tensor(storage())], ["b", tensor(storage("1"), 0, (4,), (1,))]]

    class Python2:
        def __reduce__(self) -> tuple[type, tuple[list[list[Any]]]]:
            return collections.OrderedDict, (items,)

    root = {"generator": Python2(), "step": 7}
    path = tmp_path / "a"
    path.write_bytes(by_hand(root, ["0", "1"], [(4, FOUR), (4, FOUR)]))
    expected = torch.load(path, weights_only=False)
    (state_dict,) = opened(path).state_dicts
    assert state_dict.root == "generator"
    assert [spec.name for spec in state_dict.tensors] == list(expected["generator"]) == ["w", "b"]
    wncli.apply(path, tmp_path / "b.pt", layers=["w"])
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert found["step"] == 7
    assert list(found["generator"]) == ["w_g", "w_v", "b"]
    assert isinstance(found["generator"], collections.OrderedDict)


def test_a_legacy_file_comes_out_as_a_zip_that_torch_loads(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3))
    save({"model": model.state_dict(), "epoch": 3}, tmp_path / "a")
    wncli.apply(tmp_path / "a", tmp_path / "b.pt")
    for mmap in (False, True):
        found = torch.load(tmp_path / "b.pt", weights_only=True, mmap=mmap)
        assert found["epoch"] == 3
        assert found["model"]._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
        assert torch.equal(found["model"]["0.weight_v"], model.state_dict()["0.weight"])
        assert torch.equal(found["model"]["1.running_var"], model.state_dict()["1.running_var"])


# -- damaged files ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save({"w": tensor_of("float32", 3, 4), "b": tensor_of("float32", 4)}, tmp_path / "a")


@pytest.mark.slow
def test_a_file_cut_off_at_any_byte_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for end in range(len(content)):
        saved.write_bytes(content[:end])
        refusal(saved)


@pytest.mark.slow
def test_a_file_with_any_byte_changed_is_read_or_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(len(content)):
        for byte in (0x2E, 0xFF, content[place] ^ 1):
            saved.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with suppress(FormatError):
                specs_of(saved)


GOOD = {"w": tensor(storage())}
DEFECTS: dict[str, bytes] = {
    "too many elements counted": by_hand(GOOD, ["0"], [(5, FOUR + bytes(4))]),
    "too few elements counted": by_hand(GOOD, ["0"], [(3, FOUR)]),
    "no elements counted": by_hand(GOOD, ["0"], [(0, FOUR)]),
    "negative count": by_hand(GOOD, ["0"], [(-4, FOUR)]),
    "huge count": by_hand(GOOD, ["0"], [((1 << 63) - 1, FOUR)]),
    "no storages": by_hand(GOOD, ["0"], []),
    "an unlisted storage": by_hand(GOOD, [], [(4, FOUR)]),
    "an unused storage in the list": by_hand(GOOD, ["0", "1"], [(4, FOUR), (4, FOUR)]),
    "a storage listed twice": by_hand(GOOD, ["0", "0"], [(4, FOUR), (4, FOUR)]),
    "another key": by_hand(GOOD, ["1"], [(4, FOUR)]),
    "a number as key": by_hand(GOOD, [0], [(4, FOUR)]),
    "a list as key": by_hand(GOOD, [["0"]], [(4, FOUR)]),
    "bytes as key": by_hand(GOOD, [b"0"], [(4, FOUR)]),
    "a number for the list": by_hand(GOOD, 1, [(4, FOUR)]),
    "nothing for the list": by_hand(GOOD, None, [(4, FOUR)]),
    "text for the list": by_hand(GOOD, "0", [(4, FOUR)]),
    "a dict for the list": by_hand(GOOD, {"0": 1}, [(4, FOUR)]),
    "unknown version": by_hand(GOOD, ["0"], [(4, FOUR)], version=1002),
    "version of no number": by_hand(GOOD, ["0"], [(4, FOUR)], version=[1001]),
    "version of 5000 digits": by_hand(GOOD, ["0"], [(4, FOUR)], version=10**5000),
    "another magic number": by_hand(GOOD, ["0"], [(4, FOUR)], magic=MAGIC_NUMBER + 1),
    "big-endian": by_hand(GOOD, ["0"], [(4, FOUR)], system=SYSTEM | {"little_endian": False}),
    "byte order of no bool": by_hand(
        GOOD, ["0"], [(4, FOUR)], system=SYSTEM | {"little_endian": 0}),
    "no byte order": by_hand(GOOD, ["0"], [(4, FOUR)], system={}),
    "system is a list": by_hand(GOOD, ["0"], [(4, FOUR)], system=[1]),
    "system is nothing": by_hand(GOOD, ["0"], [(4, FOUR)], system=None),
    "two sizes of one storage": by_hand(
        {"w": tensor(storage()), "v": tensor(storage(numel=5))}, ["0"], [(4, FOUR)]),
    "storage larger than the file": by_hand(
        {"w": tensor(storage(numel=1 << 40))}, ["0"], [(1 << 40, FOUR)]),
    "size beyond any file": by_hand(
        {"w": tensor(storage(numel=1 << 62))}, ["0"], [(1 << 62, FOUR)]),
    "negative size of a storage": by_hand({"w": tensor(storage(numel=-4))}, ["0"], [(-4, FOUR)]),
    "a storage's size of 5000 digits": by_hand(
        {"w": tensor(storage(numel=10**5000))}, ["0"], [(4, FOUR)]),
    "float size of a storage": by_hand({"w": tensor(storage(numel=4.0))}, ["0"], [(4, FOUR)]),
    "number as a storage's key": by_hand({"w": tensor(storage(key=0))}, ["0"], [(4, FOUR)]),
    "tensor beyond its storage": by_hand({"w": tensor(storage(), 1)}, ["0"], [(4, FOUR)]),
    "negative stride": by_hand(
        {"w": tensor(storage(), 3, (2, 2), (-2, -1))}, ["0"], [(4, FOUR)]),
    "negative offset": by_hand({"w": tensor(storage(), -1)}, ["0"], [(4, FOUR)]),
    "tensor without strides": by_hand({"w": tensor(storage(), 0, (2, 2), ())}, ["0"], [(4, FOUR)]),
    "view beyond its storage": by_hand(
        {"w": tensor(storage(view=("1", 1, 4)))}, ["0"], [(4, FOUR)]),
    "view of a negative offset": by_hand(
        {"w": tensor(storage(view=("1", -1, 4)))}, ["0"], [(4, FOUR)]),
    "view smaller than its tensor": by_hand(
        {"w": tensor(storage(view=("1", 0, 3)))}, ["0"], [(4, FOUR)]),
    "view of two parts": by_hand({"w": tensor(storage(view=("1", 0)))}, ["0"], [(4, FOUR)]),
    "view of text": by_hand({"w": tensor(storage(view="abc"))}, ["0"], [(4, FOUR)]),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_file_is_refused(defect: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DEFECTS[defect])
    refusal(tmp_path / "a")


def test_a_system_record_with_keys_that_cannot_be_hashed_is_refused(saved: Path) -> None:
    heads = b"".join(dumped(part) for part in (MAGIC_NUMBER, 1001))
    saved.write_bytes(heads + b"\x80\x02}]K\x01s." + dumped(GOOD) + dumped(["0"]))
    refusal(saved)


@pytest.mark.parametrize("place", range(1, 5))
def test_deep_nesting_anywhere_in_the_file_is_survived(place: int, saved: Path) -> None:
    parts = [dumped(part) for part in (MAGIC_NUMBER, 1001, SYSTEM, GOOD, ["0"])]
    for deep in (b"]" * 20_000 + b"a" * 19_999, b"}K\x01" * 20_000 + b"N" + b"s" * 20_000):
        exchanged = [*parts]
        exchanged[place] = b"\x80\x02" + (b"]" if place == 4 else b"") + deep
        exchanged[place] += b"a." if place == 4 else b"."
        saved.write_bytes(b"".join(exchanged) + struct.pack("<q", 4) + FOUR)
        refusal(saved)


def test_bytes_behind_the_last_storage_are_no_harm(saved: Path) -> None:
    """`torch.load` reads such files, from streams that hold more."""
    saved.write_bytes(saved.read_bytes() + b"more")
    assert torch.load(saved, weights_only=True)["w"].shape == (3, 4)
    assert specs_of(saved)["w"].shape == (3, 4)


def test_a_big_endian_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DEFECTS["big-endian"])
    assert "big-endian" in refusal(tmp_path / "a")


def test_a_tar_of_older_torch_is_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pt", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    assert "tar" in refusal(tmp_path / "a.pt")


def test_a_plain_pickle_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": 1}))
    assert "plain pickle" in refusal(tmp_path / "a.pkl")


@pytest.mark.slow
def test_a_pickle_larger_than_what_is_read_at_once_is_read(tmp_path: Path) -> None:
    state = {f"{'long ' * 200}{n}.weight": torch.full((1, 1), float(n)) for n in range(3000)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    wncli.convert(tmp_path / "a.pt", tmp_path / "b.pt")
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
