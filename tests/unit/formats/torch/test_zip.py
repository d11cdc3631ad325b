"""Torch zip checkpoints: read and written as torch does, and refused where they are damaged."""

from __future__ import annotations

import argparse
import collections
import io
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wncli
from tests.support.every_dtype import BITS, DTYPES, raw_of, tensor_of
from tests.support.zips import edited, put_together, zip_members
from wncli.checkpoint.layout import Whole
from wncli.checkpoint.tensors import Storage, TensorSpec
from wncli.errors import FormatError, WnError
from wncli.formats.open import open_checkpoint
from wncli.formats.torch.writer import TorchContent
from wncli.formats.torch.zip_writer import lay_out_torch_zip

pytestmark = pytest.mark.thinned(7)


def specs_of(path: Path) -> dict[str, TensorSpec]:
    with open_checkpoint(path) as (checkpoint, _):
        return {spec.name: spec for sd in checkpoint.state_dicts for spec in sd.tensors}


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


def copied(source: Path, target: Path) -> Path:
    """Write all of `source` into a new torch zip."""
    wncli.convert(source, target, format="torch", force=True)
    return target


def refusal(path: Path) -> str:
    with pytest.raises(FormatError) as caught, open_checkpoint(path):
        pass
    return str(caught.value)


def assert_same(found: Any, expected: Any) -> None:  # noqa: ANN401
    """Hold two trees against each other: types, tensors bit for bit with their strides."""
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.stride() == expected.stride()
        assert found.storage_offset() == expected.storage_offset()
        assert found.requires_grad == expected.requires_grad
        assert raw_of(found) == raw_of(expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
        assert vars(found) == vars(expected) if hasattr(expected, "__dict__") else True
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)
    else:
        assert found == expected


# -- reading ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [*DTYPES, *BITS])
def test_tensors_of_every_dtype_that_torch_saves_are_read(dtype: str, tmp_path: Path) -> None:
    tensor = tensor_of(dtype, 2, 3)
    torch.save({"w": tensor, "b": torch.zeros(2)}, tmp_path / "a.pt")
    spec = specs_of(tmp_path / "a.pt")["w"]
    assert (spec.dtype.torch, spec.shape) == (dtype, (2, 3))
    assert elements(tmp_path / "a.pt", spec) == raw_of(tensor)


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "base": base, "transposed": base.transpose(0, 2), "permuted": base.permute(1, 2, 0),
        "sliced": base[1:, ::2, 1::2], "offset": base[2], "element": base[1, 2, 3],
        "expanded": base[:1].expand(6, 4, 5), "expanded scalar": base[0, 0, 1].expand(2, 3),
        "diagonal": base[0].diagonal(), "empty": base[3:], "empty inside": base[:, 2:2],
        "overlapping": base.as_strided((4, 3), (1, 1), 7), "flat": base.reshape(-1)[5:9],
        "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).to(
            memory_format=torch.channels_last),
    }  # fmt: skip


@pytest.mark.parametrize("name", views())
def test_views_are_read_as_torch_reads_them(name: str, tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "a.pt")
    spec = specs_of(tmp_path / "a.pt")[name]
    expected = views()[name]
    assert spec.shape == tuple(expected.shape)
    assert spec.strides == expected.stride()
    assert spec.offset == expected.storage_offset()
    assert elements(tmp_path / "a.pt", spec) == raw_of(expected)


def test_tied_tensors_are_seen_as_the_same_elements(tmp_path: Path) -> None:
    weight = torch.ones(2, 3)
    others = {"c": weight.view(2, 3), "d": weight.t(), "e": torch.ones(2, 3)}
    torch.save({"a": weight, "b": weight} | others, tmp_path / "a.pt")
    specs = specs_of(tmp_path / "a.pt")
    assert specs["a"].view == specs["b"].view == specs["c"].view
    assert specs["d"].storage == specs["a"].storage
    assert len({specs[name].view for name in "ade"}) == 3


def test_parameters_and_subclasses_are_read(tmp_path: Path) -> None:
    tensors = {
        "parameter": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "frozen": torch.nn.Parameter(torch.ones(2, 2), requires_grad=False),
        "with grad": torch.ones(2, 2, requires_grad=True),
        "buffer": torch.nn.Buffer(torch.ones(2, 2)),
        "float8 parameter": torch.nn.Parameter(
            torch.ones(2, 2).to(torch.float8_e4m3fn), requires_grad=False
        ),
    }
    tensors["with attribute"] = torch.nn.Parameter(torch.ones(2, 2))
    tensors["with attribute"].note = "x"  # type: ignore[attr-defined]
    torch.save(tensors, tmp_path / "a.pt")
    specs = specs_of(tmp_path / "a.pt")
    assert list(specs) == list(tensors)
    for name, spec in specs.items():
        assert elements(tmp_path / "a.pt", spec) == raw_of(tensors[name])


@pytest.mark.parametrize("tensor", [torch.tensor(2.5), torch.zeros(0), torch.zeros(3, 0, 2)])
def test_empty_and_0_dimensional_tensors_are_read(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2), "t": tensor}, tmp_path / "a.pt")
    spec = specs_of(tmp_path / "a.pt")["t"]
    assert spec.shape == tuple(tensor.shape)
    assert elements(tmp_path / "a.pt", spec) == raw_of(tensor)


def test_a_float8_view_of_a_uint8_tensor_shares_its_storage(tmp_path: Path) -> None:
    base = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    value = {"bytes": base, "float8": base.view(torch.float8_e4m3fn)}
    torch.save(value, tmp_path / "a.pt")
    specs = specs_of(tmp_path / "a.pt")
    assert specs["bytes"].storage == specs["float8"].storage
    assert specs["bytes"].view != specs["float8"].view
    found = torch.load(copied(tmp_path / "a.pt", tmp_path / "b.pt"), weights_only=True)
    assert found["bytes"].data_ptr() == found["float8"].data_ptr()


def test_tensors_on_cuda_are_read_and_stay_there(tmp_path: Path) -> None:
    tensors = {"w": tensor_of("float32", 2, 3)}
    torch.save(tensors, tmp_path / "a.pt")
    edited(tmp_path / "a.pt", b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "a.pt", weights_only=True)
    spec = specs_of(tmp_path / "a.pt")["w"]
    assert elements(tmp_path / "a.pt", spec) == raw_of(tensors["w"])
    written = copied(tmp_path / "a.pt", tmp_path / "b.pt")
    assert b"cuda:0" in zip_members(written)["b/data.pkl"]
    assert_same(torch.load(written, map_location="cpu", weights_only=True), tensors)
    wncli.apply(tmp_path / "a.pt", tmp_path / "c.pt", layers=["w"])
    assert zip_members(tmp_path / "c.pt")["c/data.pkl"].count(b"cpu") == 0


def test_a_typed_storage_rebuilt_as_another_dtype_is_read_as_torch_does_or_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": tensor_of("float32", 2, 3)}, path)
    edited(path, b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    edited(path, b")Rq\x0bt", b")Rq\x0bctorch\nint32\nt")
    expected = torch.load(path, weights_only=True)["w"]
    assert expected.dtype is torch.int32
    try:
        spec = specs_of(path)["w"]
    except FormatError:
        return
    assert spec.dtype.torch == "int32"


def test_the_file_is_known_by_its_content_and_the_folder_by_its_name_in_the_zip(
    tmp_path: Path,
) -> None:
    for name in ("a", "a.safetensors", "a.bin"):
        torch.save({"w": torch.ones(2, 2)}, tmp_path / "model.pt")
        shutil.move(tmp_path / "model.pt", tmp_path / name)
        assert specs_of(tmp_path / name)["w"].shape == (2, 2)


# -- writing ----------------------------------------------------------------------------------


def a_checkpoint() -> dict[Any, Any]:
    model = torch.nn.Sequential(collections.OrderedDict(conv=torch.nn.Conv1d(2, 3, 3)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": views(),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "epoch": 3,
        "score": torch.tensor(0.5),
        "numbers": [1, 2.5, None, True, 1 << 70, (1, "x"), b"\x00\xff", {1, 2}, 1j],
        "dtypes": [torch.float16, torch.Size([1]), torch.device("cpu")],
        "new": [tensor_of("float8_e4m3fn", 3), tensor_of("uint16", 3)],
        5: "a number as key",
    }


@pytest.mark.parametrize("mmap", [False, True])
def test_written_files_load_in_torch_as_the_original_does(mmap: bool, tmp_path: Path) -> None:  # noqa: FBT001
    torch.save(a_checkpoint(), tmp_path / "a.pt")
    written = copied(tmp_path / "a.pt", tmp_path / "b.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=True)
    found = torch.load(written, weights_only=True, mmap=mmap)
    assert_same(found, expected)
    assert found["model"]._metadata == expected["model"]._metadata
    assert found["views"]["base"].data_ptr() != found["model"]["conv.weight"].data_ptr()
    storages = {
        v.untyped_storage().data_ptr() for k, v in found["views"].items() if "last" not in k
    }
    assert len(storages) == 1


def test_written_files_pass_zipfile_and_unzip(tmp_path: Path) -> None:
    torch.save(a_checkpoint(), tmp_path / "a.pt")
    written = copied(tmp_path / "a.pt", tmp_path / "b.pt")
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tqq", written], check=False, capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"")


@pytest.mark.parametrize(
    "value",
    [
        {"w": torch.ones(2, 3), "b": torch.zeros(5)},
        {f"layer{n}.weight": torch.full((n, 3), 0.5) for n in range(1, 120)},
        {"model": views(), "step": 1},
        {"w": torch.nn.Parameter(torch.ones(2, 2)), "f8": tensor_of("float8_e5m2", 2, 2)},
        {"w": torch.ones(2, 2), "odd": [torch.zeros(0), torch.tensor(1), torch.ones(63).bool()]},
    ],
    ids=["two", "many", "views", "parameter", "odd"],
)
@pytest.mark.parametrize("stem", ["a", "model.v2", "a" * 120, "é"])
def test_the_layout_is_torchs_own_byte_for_byte(
    value: dict[str, Any], stem: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    original = tmp_path / "in" / f"{stem}.pt"
    torch.save(value, original)
    with zipfile.ZipFile(original) as archive:
        expected = archive.infolist()
    written = copied(original, tmp_path / f"{stem}.pt")
    with zipfile.ZipFile(written) as archive:
        found = archive.infolist()
    assert expected.pop().filename.endswith("/.data/serialization_id")
    fields = ("filename", "date_time", "compress_type", "extra", "create_version", "create_system",
              "extract_version", "flag_bits", "external_attr", "header_offset", "CRC", "file_size",
              "compress_size", "volume", "internal_attr", "comment")  # fmt: skip
    assert [[getattr(info, field) for field in fields] for info in found] == [
        [getattr(info, field) for field in fields] for info in expected
    ]
    content, reference = written.read_bytes(), original.read_bytes()
    with zipfile.ZipFile(written) as archive:
        assert content[: archive.start_dir] == reference[: archive.start_dir]
        assert len(content) - archive.start_dir > 46 * len(found)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_any_state_dict_comes_back_bit_for_bit(
    tmp_path: Path, spec: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {name: tensor_of(dtype, *shape) for name, (dtype, shape) in spec.items()}
    torch.save(tensors, tmp_path / "a.pt")
    found = torch.load(copied(tmp_path / "a.pt", tmp_path / "b.pt"), weights_only=True)
    assert_same(found, tensors)


def test_objects_that_weights_only_refuses_survive(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 3, 3), torch.nn.BatchNorm1d(3))
    value = {
        "w": torch.ones(2, 2),
        "args": argparse.Namespace(lr=1e-3, path=pathlib.PurePosixPath("a")),
        "module": module,
        "default": collections.defaultdict(list, {"a": [1]}),
    }
    torch.save(value, tmp_path / "a.pt")
    found = torch.load(copied(tmp_path / "a.pt", tmp_path / "b.pt"), weights_only=False)
    assert found["args"] == value["args"]
    assert found["default"] == value["default"]
    assert_same(found["module"].state_dict(), module.state_dict())
    assert repr(found["module"]) == repr(module)


def test_a_corrupted_storage_stays_detectable_after_a_copy(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(64, 64)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        offset = archive.getinfo("a/data/0").header_offset
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[offset + 1000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    written = copied(tmp_path / "a.pt", tmp_path / "b.pt")
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() == "b/data/0"


def test_members_beyond_4_gigabytes_are_laid_out_as_zip64(tmp_path: Path) -> None:
    nbytes = 5 << 30
    numel = nbytes // 4
    pickled = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, value[1:], "cpu", numel) if (
                isinstance(value, str) and value[:1] == "#") else None  # fmt: skip

        def reducer_override(self, value: object) -> Any:  # noqa: ANN401
            if not isinstance(value, range):
                return NotImplemented
            hooks: collections.OrderedDict[int, int] = collections.OrderedDict()
            args = (f"#{value.start}", 0, (numel,), (1,), False, hooks)
            return torch._utils._rebuild_tensor_v2, args

    Pickler(pickled, 2).dump({"a": range(1), "b": range(1, 2)})
    data = pickled.getvalue()
    contents = tuple(Whole(Storage(key, 0, nbytes)) for key in "01")
    layout = lay_out_torch_zip(TorchContent(data, (), contents, ()), "big")
    assert layout.seal
    with (tmp_path / "big.pt").open("wb") as file:
        file.truncate(layout.nbytes)
        for offset, part in [*layout.fixed, *layout.seal([0, 0])]:
            file.seek(offset)
            file.write(part)
        for slot in layout.slots:
            file.seek(slot.offset + nbytes - 4)
            file.write(struct.pack("<f", 2.5))
    with zipfile.ZipFile(tmp_path / "big.pt") as archive:
        assert [archive.getinfo(f"big/data/{key}").file_size for key in "01"] == [nbytes, nbytes]
        assert archive.read("big/version") == b"3\n"
        assert archive.getinfo("big/version").header_offset > 2 * nbytes
    found = torch.load(tmp_path / "big.pt", mmap=True, weights_only=True)
    for name, slot in zip("ab", layout.slots, strict=True):
        assert found[name].shape == (numel,)
        assert found[name][-1] == 2.5
        assert slot.offset % 64 == 0
    specs = specs_of(tmp_path / "big.pt")
    assert [specs[name].storage.offset for name in "ab"] == [slot.offset for slot in layout.slots]
    del found
    (tmp_path / "big.pt").unlink()


# -- damaged files ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt"
    torch.save({"w": tensor_of("float32", 3, 4), "b": tensor_of("float32", 4)}, path)
    return path


def test_a_file_cut_off_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for end in [*range(0, len(content), 29), *range(len(content) - 100, len(content))]:
        saved.write_bytes(content[:end])
        refusal(saved)


def test_a_file_whose_start_is_cut_off_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for start in (1, 64, 512):
        saved.write_bytes(b"PK\x03\x04" + content[start + 4 :])
        refusal(saved)


@pytest.mark.slow
def test_a_file_with_any_byte_of_its_directory_changed_is_read_or_refused(saved: Path) -> None:
    content = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        start = archive.start_dir
    for place in range(start, len(content)):
        for byte in (0xFF, content[place] ^ 1):
            saved.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with suppress(FormatError):
                specs_of(saved)


@pytest.mark.slow
def test_a_file_with_any_byte_of_its_pickle_changed_is_read_or_refused(saved: Path) -> None:
    members = zip_members(saved)
    pickled = members["a/data.pkl"]
    put_together(saved, members)
    content = saved.read_bytes()
    start = content.index(pickled)
    for place in range(start, start + len(pickled)):
        for byte in (0x2E, 0xFF, content[place] ^ 1):
            saved.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with suppress(FormatError):
                specs_of(saved)


@pytest.mark.parametrize("name", ["data/0", "data.pkl", "version"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members_are_refused(name: str, saved: Path) -> None:
    members = list(zip_members(saved).items())
    again = next(item for item in members if item[0] == f"a/{name}")
    put_together(saved, [*members, again])
    assert "twice" in refusal(saved)


def test_deflated_members_are_refused(saved: Path) -> None:
    put_together(saved, zip_members(saved), zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(saved)


@pytest.mark.parametrize("name", ["data/9", "b/data/9", "/a/data/9", "../a/data/9", "stray", "a"])
def test_members_outside_the_folder_are_refused(name: str, saved: Path) -> None:
    put_together(saved, zip_members(saved) | {name: b"x"})
    assert "outside" in refusal(saved)


@pytest.mark.parametrize("size", [0, 4, 44, 47, 49, 96])
def test_a_storage_of_another_size_than_declared_is_refused(size: int, saved: Path) -> None:
    put_together(saved, zip_members(saved) | {"a/data/0": bytes(size)})
    assert "data/0 has the wrong size" in refusal(saved)


def test_a_missing_storage_is_refused(saved: Path) -> None:
    members = zip_members(saved)
    del members["a/data/1"]
    put_together(saved, members)
    assert "data/1 is missing" in refusal(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04K\x01\x86", b"K\x05K\x01\x86"),
        (b"K\x04K\x01\x86", b"K\xffK\xff\x86"),
        (b"K\x04K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86"),
        (b"K\x04K\x01\x86", b"K\x04G?\xf0\0\0\0\0\0\0\x86"),
        (b"K\x04K\x01\x86", b"K\x04\x88\x86"),
        (b"K\x04K\x01\x86", b"K\x04\x85"),
        (b"K\x04K\x01\x86", b"N"),
        (b"K\x03K\x04\x86", b"K\x04K\x04\x86"),
        (b"K\x03K\x04\x86", b"J\xff\xff\xff\xffK\x04\x86"),
        (b"K\x03K\x04\x86", b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"),
        (b"K\x03K\x04\x86", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x04\x86"),
        (b"K\x03K\x04\x86", b"\x8b\x00\x08\x00\x00" + b"\x7f" * 2048 + b"K\x04\x86"),
        (b"QK\x00K\x03", b"QK\x01K\x03"),
        (b"QK\x00K\x03", b"QJ\xff\xff\xff\xffK\x03"),
        (b"QK\x00K\x03", b"Q\x8b\x00\x08\x00\x00" + b"\x7f" * 2048 + b"K\x03"),
        (b"QK\x00K\x03", b"QNK\x03"),
    ],
    ids=[
        "stride one too large", "strides overrun", "negative stride", "float stride", "bool stride",
        "too few strides", "no strides", "size one too large", "negative size",
        "two negative sizes",
        "huge size", "size of 2048 bytes", "offset overruns", "negative offset",
        "offset of 2048 bytes", "no offset",
    ],
)  # fmt: skip
def test_a_tensor_that_leaves_its_storage_is_refused(old: bytes, new: bytes, saved: Path) -> None:
    edited(saved, old, new)
    refusal(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x0ctq", b"K\x0dtq"),
        (b"K\x0ctq", b"J\xf4\xff\xff\xfftq"),
        (b"K\x0ctq", b"Ntq"),
        (b"K\x0ctq", b"\x8b\x00\x08\x00\x00" + b"\x7f" * 2048 + b"tq"),
        (b"K\x0ctq", b"\x8a\x08\x0c\0\0\0\0\0\0@tq"),
        (b"ctorch\nFloatStorage", b"ctorch\nFlatStorage"),
        (b"ctorch\nFloatStorage", b"cos\nsystem"),
        (b"ctorch\nFloatStorage", b"ctorch\nDoubleStorage"),
        (b"X\x07\0\0\0storage", b"X\x06\0\0\0module"),
        (b"X\x01\0\0\x000", b"K\x00"),
        (b"X\x01\0\0\x000", b"X\x0b\0\0\0../data.pkl"),
        (b"K\x0ctq", b"K\x0c}]" + b"]a" * 3 + b"K\x01s\x86tq"),
    ],
    ids=[
        "numel too large", "negative numel", "no numel", "numel of 2048 bytes", "numel overflow",
        "unknown storage", "no storage", "other storage", "other tag", "number as key",
        "path as key", "nested numel",
    ],
)  # fmt: skip
def test_a_persistent_id_that_fits_no_storage_is_refused(
    old: bytes, new: bytes, saved: Path
) -> None:
    edited(saved, old, new)
    refusal(saved)


def test_a_deep_persistent_id_is_refused(saved: Path) -> None:
    deep = b"}K\x01" * 20_000 + b"N" + b"s" * 20_000
    edited(saved, b"X\x07\0\0\0storage", b"X\x06\0\0\0module" + deep + b"0")
    refusal(saved)
    torch.save({"w": torch.ones(2, 2)}, saved)
    edited(saved, b"K\x04tq", deep + b"tq")
    refusal(saved)


@pytest.mark.parametrize("kind", ["tensors", "calls", "lists"])
def test_deep_nesting_beside_the_tensors_survives(kind: str, saved: Path) -> None:
    depth = 20_000
    deep = {
        "lists": b"]" * depth + b"a" * (depth - 1),
        "calls": b"cbuiltins\nlist\n" * depth + b")R" + b"\x85R" * (depth - 1),
        "tensors": b"}X\x01\0\0\0w" * depth + b"N" + b"s" * depth,
    }[kind]
    torch.save({"w": torch.ones(2, 2), "x": 123456}, saved)
    edited(saved, b"J\x40\xe2\x01\x00", deep)
    assert specs_of(saved)["w"].shape == (2, 2)
    copied(saved, saved.with_name("b.pt"))


def test_a_shape_of_50000_huge_sizes_is_refused_without_multiplying_them(saved: Path) -> None:
    many = b"(" + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f" * 50_000 + b"t"
    edited(saved, b"K\x03K\x04\x86", many)
    edited(saved, b"K\x04K\x01\x86", many)
    program = (
        "import sys\nfrom pathlib import Path\nfrom wncli.errors import FormatError\n"
        "from wncli.formats.open import open_checkpoint\n"
        "try:\n    open_checkpoint(Path(sys.argv[1])).__enter__()\n"
        "except FormatError:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(saved)], check=False, timeout=15)
    assert done.returncode == 7


@pytest.mark.parametrize("bits", [40, 60, 61, 62])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bomb_of_stride_0_is_refused_and_leaves_nothing(
    bits: int, suffix: str, saved: Path
) -> None:
    size = (1 << bits).to_bytes(8, "little")
    edited(saved, b"K\x03K\x04\x86", b"\x8a\x08" + size + b"K\x04\x86")
    edited(saved, b"K\x04K\x01\x86", b"K\x00K\x01\x86")
    with pytest.raises(WnError):
        wncli.apply(saved, saved.with_name(f"b{suffix}"), layers=["w"])
    assert [path.name for path in saved.parent.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("order", [b"big", b"", b"middle", b"little\n", b"\xff" * 9])
def test_another_byte_order_is_refused(order: bytes, saved: Path) -> None:
    put_together(saved, zip_members(saved) | {"a/byteorder": order})
    assert "byteorder" in refusal(saved)


def test_a_missing_byte_order_means_little_endian_as_in_older_files(saved: Path) -> None:
    members = zip_members(saved)
    del members["a/byteorder"]
    put_together(saved, members)
    assert specs_of(saved)["w"].shape == (3, 4)


@pytest.mark.filterwarnings("ignore")
def test_a_torch_package_is_named(tmp_path: Path) -> None:
    with torch.package.package_exporter.PackageExporter(str(tmp_path / "a.pt")) as exporter:
        exporter.save_pickle("model", "model.pkl", {"a": torch.ones(2)})
        exporter.save_text("code", "notes.txt", "a folder that TorchScript archives have, too")
    assert "torch.package" in refusal(tmp_path / "a.pt")
    assert "PackageImporter" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("members", [{}, {"a/b": b"x"}, {"a/data/0": b"x", "a/version": b"3\n"}])
def test_a_plain_zip_is_named(members: dict[str, bytes], tmp_path: Path) -> None:
    put_together(tmp_path / "a.pt", members)
    refusal(tmp_path / "a.pt")


def change_end(saved: Path, edit: Callable[[bytearray, int], None]) -> str:
    content = bytearray(saved.read_bytes())
    edit(content, content.rindex(b"PK\x05\x06"))
    saved.write_bytes(content)
    return refusal(saved)


@pytest.mark.parametrize("value", [0, 1, 1 << 20, (1 << 40), (1 << 63), (1 << 64) - 1])
@pytest.mark.parametrize("field", [32, 40, 48], ids=["count", "size", "offset"])
def test_lies_of_the_zip64_end_record_are_refused(field: int, value: int, saved: Path) -> None:
    def edit(content: bytearray, _end: int) -> None:
        place = content.rindex(b"PK\x06\x06")
        struct.pack_into("<Q", content, place + field, value)

    change_end(saved, edit)


@pytest.mark.parametrize("value", [0, 1, 1 << 40, (1 << 64) - 1])
def test_a_zip64_locator_that_leads_nowhere_is_refused(value: int, saved: Path) -> None:
    def edit(content: bytearray, _end: int) -> None:
        struct.pack_into("<Q", content, content.rindex(b"PK\x06\x07") + 8, value)

    change_end(saved, edit)


@pytest.mark.parametrize("value", [0, 7, 47, 49, 1 << 20, 0xFFFFFFFE, 0xFFFFFFFF])
@pytest.mark.parametrize("field", [20, 24, 42], ids=["packed", "size", "header"])
def test_lies_of_a_directory_entry_are_refused(field: int, value: int, saved: Path) -> None:
    def edit(content: bytearray, _end: int) -> None:
        place = content.index(b"PK\x01\x02")
        while content[place + 46 : place + 54] != b"a/data/0":
            place = content.index(b"PK\x01\x02", place + 4)
        struct.pack_into("<L", content, place + field, value)

    change_end(saved, edit)


def test_an_encrypted_member_is_refused(saved: Path) -> None:
    def edit(content: bytearray, _end: int) -> None:
        place = content.index(b"PK\x01\x02")
        content[place + 8] |= 1

    assert "encrypted" in change_end(saved, edit)


def test_nothing_in_a_hostile_file_runs(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent)

    class Runs:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            import os

            return os.system, ("touch ran",)

    torch.save(
        {"w": torch.ones(2, 2), "x": Runs(), "o": {"state": Runs(), "param_groups": []}}, saved
    )
    with open_checkpoint(saved) as (checkpoint, _):
        assert checkpoint.refused_names == ("posix.system",)
    with pytest.raises(FormatError, match="would run"):
        wncli.convert(saved, saved.with_name("b.pt"))
    wncli.convert(saved, saved.with_name("b.pt"), drop=["x", "o"])
    assert torch.load(saved.with_name("b.pt"), weights_only=True).keys() == {"w"}
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", [b"\xff.pt", "\u00e9\n.pt".encode(), b"a b'\".pt"])
def test_output_names_of_any_bytes_are_written_or_refused(name: bytes, saved: Path) -> None:
    target = saved.parent / name.decode("utf-8", "surrogateescape")
    try:
        wncli.apply(saved, target, layers=["w"])
    except WnError:
        assert not target.exists()
        return
    assert torch.load(target, weights_only=True)["w_v"].shape == (3, 4)
