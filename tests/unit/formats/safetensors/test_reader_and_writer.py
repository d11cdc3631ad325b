"""The safetensors reader and writer, held against the reference implementation."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wncli
from tests.support.every_dtype import SAFETENSORS_DTYPES, tensor_of
from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import FormatError, WnError
from wncli.formats.open import open_checkpoint

ODD_NAMES = (
    "", " ", "é", "\U0001f600", "名前", '"quoted"', "back\\slash", "\x00", "\x01\x1f", "\x7f\x80",
    "\n\r\t\b\f", "/", "../../etc/passwd", "a.b.c", "\u2028", "\ufeff", "dtype", "shape",
    "data_offsets", "__metadata", "null", "z" * 300,
)  # fmt: skip


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def header_of(**members: str) -> bytes:
    """The header of one tensor `a`; JSON text can be put in place of each member."""
    found = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"} | members
    inner = ",".join(f'"{name}":{text}' for name, text in found.items())
    return b'{"a":{' + inner.encode() + b"}}"


def opened(path: Path, content: bytes) -> Checkpoint:
    path.write_bytes(content)
    with open_checkpoint(path) as (checkpoint, _):
        return checkpoint


#: The reference reader; its stubs leave it without types.
deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize


def reference_refuses(content: bytes) -> bool:
    try:
        deserialize(content)
    except safetensors.SafetensorError:
        return True
    return False


def copied(source: Path, target: Path) -> bytes:
    """What is written when every tensor of `source` is copied into a new safetensors file."""
    wncli.convert(source, target, format="safetensors", force=True)
    return target.read_bytes()


# -- files that the reference reads -----------------------------------------------------------

ACCEPTED = {
    "one tensor": file_of(header_of(), b"abcd"),
    "no tensors": file_of(b"{}      "),
    "metadata alone": file_of(b'{"__metadata__":{"a":"b"}}'),
    "metadata behind the tensors": file_of(
        header_of()[:-1] + b',"__metadata__":{"a":"b"}}', b"abcd"),
    "null metadata": file_of(b'{"__metadata__":null}'),
    "0-dimensional": file_of(header_of(shape="[]"), b"abcd"),
    "empty tensor": file_of(header_of(shape="[3,0]", data_offsets="[0,0]")),
    "padding of spaces": file_of(header_of() + b" " * 90, b"abcd"),
    "white space inside": file_of(header_of().replace(b":", b" :\n\t"), b"abcd"),
    "escaped name": file_of(header_of().replace(b'"a"', b'"\\u0061\\ud83d\\ude00"'), b"abcd"),
    "F4 in pairs": file_of(header_of(dtype='"F4"', shape="[8]"), b"abcd"),
    "F6 in fours": file_of(header_of(dtype='"F6_E2M3"', shape="[4]", data_offsets="[0,3]"), b"abc"),
    "file order apart from header order": file_of(
        b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xy"),
    "empty tensors between": file_of(
        b'{"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},'
        b'"c":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"xy"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_the_reference_reads_is_read_alike(kind: str, tmp_path: Path) -> None:
    content = ACCEPTED[kind]
    checkpoint = opened(tmp_path / "a", content)
    expected = dict(deserialize(content))
    found = {spec.name: spec for sd in checkpoint.state_dicts for spec in sd.tensors}
    assert found.keys() == expected.keys()
    for name, spec in found.items():
        assert spec.dtype.safetensors == expected[name]["dtype"]
        assert list(spec.shape) == expected[name]["shape"]
        start = spec.storage.offset
        assert content[start : start + spec.storage.nbytes] == bytes(expected[name]["data"])


def test_metadata_is_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"format": "pt", "é\n\x00": '"', "": ""}
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata)
    with safetensors.safe_open(path, "pt") as reference, open_checkpoint(path) as (checkpoint, _):
        assert checkpoint.metadata == reference.metadata() == metadata


# -- files that the reference refuses ---------------------------------------------------------

_HUGE = 1 << 63
DEFECTS = {
    "empty file": b"",
    "fewer than 8 bytes": b"\x02\0\0\0\0\0\0",
    "nothing but the length": struct.pack("<Q", 2),
    "header longer than the file": struct.pack("<Q", 3) + b"{}",
    "header of 100000001 bytes": struct.pack("<Q", 100_000_001) + b"{}",
    "header of 2 to the 64": b"\xff" * 8 + b"{}",
    "length 0": file_of(b""),
    "not UTF-8": file_of(header_of().replace(b'"a"', b'"\xff"'), b"abcd"),
    "overlong UTF-8": file_of(header_of().replace(b'"a"', b'"\xc0\xaf"'), b"abcd"),
    "surrogate in UTF-8": file_of(header_of().replace(b'"a"', b'"\xed\xa0\x80"'), b"abcd"),
    "lone surrogate escape": file_of(header_of().replace(b'"a"', b'"\\ud800"'), b"abcd"),
    "lone low surrogate escape": file_of(header_of().replace(b'"a"', b'"\\udc00"'), b"abcd"),
    "lone surrogate in metadata": file_of(b'{"__metadata__":{"a":"\\ud800"}}'),
    "byte order mark": file_of(b"\xef\xbb\xbf" + header_of(), b"abcd"),
    "UTF-16": file_of(header_of().decode().encode("utf-16"), b"abcd"),
    "NUL padding": file_of(header_of() + b"\0" * 8, b"abcd"),
    "text behind the object": file_of(header_of() + b"x", b"abcd"),
    "control character in a name": file_of(header_of().replace(b'"a"', b'"\n"'), b"abcd"),
    "NaN": file_of(header_of(shape="[NaN]"), b"abcd"),
    "Infinity": file_of(header_of(shape="[Infinity]"), b"abcd"),
    "NaN in metadata": file_of(b'{"__metadata__":{"a":NaN}}'),
    "trailing comma": file_of(header_of(shape="[1,]"), b"abcd"),
    "single quotes": file_of(header_of().replace(b'"', b"'"), b"abcd"),
    "nesting past the recursion limit": file_of(header_of(x="[" * 5000 + "]" * 5000), b"abcd"),
    "nesting past any limit": file_of(header_of(x="[" * 200_000 + "]" * 200_000), b"abcd"),
    "deeply nested dtype": file_of(header_of(dtype="[" * 500 + "]" * 500), b"abcd"),
    "nesting at the top": file_of(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "array at the top": file_of(b"[]"),
    "string at the top": file_of(b'"a"'),
    "null at the top": file_of(b"null"),
    "number at the top": file_of(b"1"),
    "unfinished object": file_of(b'{"a":'),
    "number in metadata": file_of(b'{"__metadata__":{"a":1}}'),
    "null in metadata": file_of(b'{"__metadata__":{"a":null}}'),
    "object in metadata": file_of(b'{"__metadata__":{"a":{}}}'),
    "metadata is an array": file_of(b'{"__metadata__":[]}'),
    "metadata is text": file_of(b'{"__metadata__":"a"}'),
    "duplicated metadata": file_of(b'{"__metadata__":{},"__metadata__":{}}'),
    "duplicated dtype": file_of(header_of(shape='[1],"dtype":"F32"'), b"abcd"),
    "duplicated shape": file_of(header_of(shape='[1],"shape":[1]'), b"abcd"),
    "duplicated offsets": file_of(header_of(data_offsets='[0,4],"data_offsets":[0,4]'), b"abcd"),
    "unknown dtype": file_of(header_of(dtype='"F33"'), b"abcd"),
    "lower-case dtype": file_of(header_of(dtype='"f32"'), b"abcd"),
    "torch's dtype": file_of(header_of(dtype='"float32"'), b"abcd"),
    "complex128": file_of(header_of(dtype='"C128"', data_offsets="[0,16]"), bytes(16)),
    "empty dtype": file_of(header_of(dtype='""'), b"abcd"),
    "dtype is a number": file_of(header_of(dtype="32"), b"abcd"),
    "dtype is null": file_of(header_of(dtype="null"), b"abcd"),
    "dtype is an array": file_of(header_of(dtype='["F32"]'), b"abcd"),
    "no dtype": file_of(b'{"a":{"shape":[1],"data_offsets":[0,4]}}', b"abcd"),
    "no shape": file_of(b'{"a":{"dtype":"F32","data_offsets":[0,4]}}', b"abcd"),
    "no offsets": file_of(b'{"a":{"dtype":"F32","shape":[1]}}', b"abcd"),
    "tensor is null": file_of(b'{"a":null}'),
    "tensor is text": file_of(b'{"a":"b"}'),
    "tensor is an empty object": file_of(b'{"a":{}}'),
    "negative size": file_of(header_of(shape="[-1]"), b"abcd"),
    "two negative sizes": file_of(header_of(shape="[-1,-1]"), b"abcd"),
    "negative zero": file_of(header_of(shape="[-0]", data_offsets="[0,0]")),
    "float size": file_of(header_of(shape="[1.0]"), b"abcd"),
    "exponent size": file_of(header_of(shape="[1e0]"), b"abcd"),
    "bool size": file_of(header_of(shape="[true]"), b"abcd"),
    "null size": file_of(header_of(shape="[null]"), b"abcd"),
    "text size": file_of(header_of(shape='["1"]'), b"abcd"),
    "nested size": file_of(header_of(shape="[[1]]"), b"abcd"),
    "shape is null": file_of(header_of(shape="null"), b"abcd"),
    "shape is a number": file_of(header_of(shape="1"), b"abcd"),
    "leading zero": file_of(header_of(shape="[01]"), b"abcd"),
    "size of 2 to the 64": file_of(header_of(shape=f"[{1 << 64},0]", data_offsets="[0,0]")),
    "size of 5000 digits": file_of(header_of(shape=f"[{'9' * 5000}]"), b"abcd"),
    "negative offset": file_of(header_of(data_offsets="[-4,0]"), b"abcd"),
    "negative zero offset": file_of(header_of(data_offsets="[-0,4]"), b"abcd"),
    "float offset": file_of(header_of(data_offsets="[0.0,4.0]"), b"abcd"),
    "bool offset": file_of(header_of(dtype='"U8"', data_offsets="[false,true]"), b"a"),
    "null offset": file_of(header_of(data_offsets="[null,4]"), b"abcd"),
    "offset of 2 to the 64": file_of(header_of(data_offsets=f"[0,{(1 << 64) + 4}]"), b"abcd"),
    "no offset": file_of(header_of(data_offsets="[]"), b"abcd"),
    "one offset": file_of(header_of(data_offsets="[4]"), b"abcd"),
    "three offsets": file_of(header_of(data_offsets="[0,4,4]"), b"abcd"),
    "offsets are an object": file_of(header_of(data_offsets='{"0":0,"1":4}'), b"abcd"),
    "offsets descend": file_of(header_of(data_offsets="[4,0]"), b"abcd"),
    "first offset is not 0": file_of(header_of(data_offsets="[4,8]"), b"abcdefgh"),
    "hole": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}', b"xyz"),
    "overlap": file_of(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', b"xyz"),
    "same bytes twice": file_of(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xy"),
    "empty tensor inside another": file_of(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[0],"data_offsets":[1,1]}}', b"xy"),
    "too few bytes for the shape": file_of(header_of(shape="[2]"), b"abcd"),
    "too many bytes for the shape": file_of(header_of(data_offsets="[0,8]"), b"abcdefgh"),
    "product overflow": file_of(header_of(shape=f"[{1 << 32},{1 << 32}]", data_offsets="[0,0]")),
    "product overflow before a 0": file_of(
        header_of(shape=f"[{_HUGE},2,0]", data_offsets="[0,0]")),
    "bits overflow": file_of(header_of(shape=f"[{1 << 59}]", data_offsets="[0,0]")),
    "F4 of odd length": file_of(header_of(dtype='"F4"', shape="[3]", data_offsets="[0,1]"), b"a"),
    "F4 rounded up": file_of(header_of(dtype='"F4"', shape="[3]", data_offsets="[0,2]"), b"ab"),
    "F6 of 3": file_of(header_of(dtype='"F6_E3M2"', shape="[3]", data_offsets="[0,2]"), b"ab"),
    "trailing bytes": file_of(header_of(), b"abcde"),
    "missing bytes": file_of(header_of(), b"abc"),
    "bytes without a tensor": file_of(b"{}", b"a"),
}  # fmt: skip
#: What the reference takes, against the format's own README.
STRICTER = {
    "duplicated name": file_of(header_of()[:-1] + b"," + header_of()[1:], b"abcd"),
    "duplicated name of equal tensors": file_of(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_the_reference_refuses_is_refused(defect: str, tmp_path: Path) -> None:
    assert reference_refuses(DEFECTS[defect])
    with pytest.raises(FormatError):
        opened(tmp_path / "a.safetensors", DEFECTS[defect])


@pytest.mark.parametrize("defect", STRICTER)
def test_duplicated_names_are_refused_although_the_reference_takes_the_last(
    defect: str, tmp_path: Path
) -> None:
    assert not reference_refuses(STRICTER[defect])
    with pytest.raises(FormatError, match="twice"):
        opened(tmp_path / "a.safetensors", STRICTER[defect])


@pytest.mark.parametrize("depth", [100, 500, *range(900, 1000, 3), 1100, 3000])
def test_nesting_of_any_depth_is_refused_as_a_format_error(depth: int, tmp_path: Path) -> None:
    nested = "[" * depth + "]" * depth
    for content in (
        header_of(dtype=nested),
        header_of(shape=nested),
        header_of(data_offsets=nested),
    ):
        with pytest.raises(FormatError):
            opened(tmp_path / "a.safetensors", file_of(content, b"abcd"))


def test_a_shape_of_50000_huge_sizes_is_refused_without_multiplying_them(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    shape = json.dumps([_HUGE - 1] * 50_000)
    content = file_of(header_of(shape=shape), b"abcd")
    assert reference_refuses(content)
    path.write_bytes(content)
    program = (
        "import sys\nfrom pathlib import Path\nfrom wncli.errors import FormatError\n"
        "from wncli.formats.open import open_checkpoint\n"
        "try:\n    open_checkpoint(Path(sys.argv[1])).__enter__()\n"
        "except FormatError:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=15)
    assert done.returncode == 7


SMALL = file_of(
    b'{"__metadata__":{"k":"v"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"U8","shape":[],"data_offsets":[4,5]}}', b"abcde"
)  # fmt: skip


def test_a_file_cut_off_at_any_byte_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "a", SMALL)
    for end in range(len(SMALL)):
        assert reference_refuses(SMALL[:end])
        with pytest.raises(FormatError):
            opened(tmp_path / "a", SMALL[:end])


@pytest.mark.slow
def test_a_file_with_any_byte_changed_is_refused_wherever_the_reference_refuses_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    for place in range(len(SMALL)):
        for byte in b'\x000-"{[]},:\\ e\xff' + bytes([SMALL[place] ^ 1]):
            content = SMALL[:place] + bytes([byte]) + SMALL[place + 1 :]
            if reference_refuses(content):
                with pytest.raises(FormatError):
                    opened(path, content)
            else:
                with suppress(FormatError):
                    opened(path, content)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.floats(0, 4)
    | st.sampled_from(["F32", "U8", "F4", "BOOL", "f32", ""])
)
FLAT = SCALARS | st.lists(SCALARS, max_size=3)
JSON = FLAT | st.lists(FLAT, max_size=3) | st.dictionaries(st.text(max_size=2), FLAT, max_size=2)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F4", "F6_E2M3", "BOOL"]) | JSON,
        "shape": st.lists(st.integers(0, 3), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(0, 8), st.integers(0, 8)).map(list) | JSON,
    }
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.text(max_size=2), ENTRY | JSON, max_size=3), st.integers(0, 8))
def test_any_header_that_the_reference_refuses_is_refused(
    tmp_path: Path, header: dict[str, Any], nbytes: int
) -> None:
    content = file_of(json.dumps(header).encode(), bytes(nbytes))
    if reference_refuses(content):
        with pytest.raises(FormatError):
            opened(tmp_path / "a.safetensors", content)


# -- writing ----------------------------------------------------------------------------------


def expected_bytes(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None) -> bytes:
    return safetensors.torch.save(dict(tensors), metadata)


def check_written(
    tmp_path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Hold what is written from a safetensors file and from a torch file against `save_file`."""
    source = tmp_path / "source.safetensors"
    source.write_bytes(expected_bytes(tensors, metadata))
    assert copied(source, tmp_path / "a.safetensors") == source.read_bytes()
    torch.save(dict(tensors), tmp_path / "source.pt")
    written = copied(tmp_path / "source.pt", tmp_path / "b.safetensors")
    assert written == expected_bytes(tensors, {"format": "pt"})


@pytest.mark.parametrize("dtype", SAFETENSORS_DTYPES)
def test_written_bytes_are_the_reference_writers_for_every_dtype(
    dtype: str, tmp_path: Path
) -> None:
    shapes = [(2, 3), (), (0,), (5,), (1, 1, 2)]
    check_written(tmp_path, {f"t{n}": tensor_of(dtype, *shape) for n, shape in enumerate(shapes)})


def test_written_bytes_order_all_dtypes_as_the_reference_writer(tmp_path: Path) -> None:
    tensors = {
        f"{n % 3}.{dtype}": tensor_of(dtype, 2) for n, dtype in enumerate(SAFETENSORS_DTYPES)
    }
    check_written(tmp_path, tensors, {"k": "v"})


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_packed_dtypes_that_numpy_and_torch_lack_are_copied(code: str, tmp_path: Path) -> None:
    nbytes = {"F4": 4}.get(code, 6)
    header = (
        f'{{"w":{{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}},'
        f'"p":{{"dtype":"{code}","shape":[8],"data_offsets":[8,{8 + nbytes}]}}}}'
    )
    content = file_of(header.encode() + b" " * (-len(header) % 8), bytes(range(8 + nbytes)))
    assert not reference_refuses(content)
    (tmp_path / "source").write_bytes(content)
    written = copied(tmp_path / "source", tmp_path / "target")
    assert written == content


@pytest.mark.parametrize("name", ODD_NAMES)
def test_written_bytes_are_the_reference_writers_for_odd_names(name: str, tmp_path: Path) -> None:
    check_written(
        tmp_path, {name: tensor_of("float32", 2, 2), "b": torch.ones(3)}, {"key": name, name: "x"}
    )


def test_names_are_ordered_as_the_reference_writer_orders_them(tmp_path: Path) -> None:
    check_written(
        tmp_path, {name: torch.full((2, 2), float(n)) for n, name in enumerate(ODD_NAMES)}
    )


def test_metadata_keeps_the_reference_writers_order_and_escapes(tmp_path: Path) -> None:
    metadata = {name: name[::-1] for name in reversed(ODD_NAMES)}
    check_written(tmp_path, {"a": torch.zeros(2, 2)}, metadata)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.text(max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(SAFETENSORS_DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1, max_size=3),
)
def test_any_tensors_and_metadata_give_the_reference_writers_bytes(
    tmp_path: Path, spec: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    tensors = {name: tensor_of(dtype, *shape) for name, (dtype, shape) in spec.items()}
    source = tmp_path / "source.safetensors"
    source.write_bytes(expected_bytes(tensors, metadata))
    assert copied(source, tmp_path / "target.safetensors") == source.read_bytes()


def test_views_are_written_out_in_row_major_order(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    views = {
        "transposed": base.transpose(0, 2), "sliced": base[:, 1:, ::2],
        "expanded": base[:1, :1].expand(
            2, 3, 4), "offset": base[1], "column": base[..., 1], "permuted": base.permute(1, 2, 0),
    }  # fmt: skip
    torch.save(views, tmp_path / "views.pt")
    copies = {name: view.contiguous().clone() for name, view in views.items()}
    written = copied(tmp_path / "views.pt", tmp_path / "views.safetensors")
    assert written == expected_bytes(copies, {"format": "pt"})


def test_tied_tensors_are_written_as_save_model_writes_them(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 3), "b": torch.nn.Linear(2, 3)})
    model["b"].weight = model["a"].weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    safetensors.torch.save_model(model, str(tmp_path / "expected.safetensors"), {"format": "pt"})
    written = copied(tmp_path / "tied.pt", tmp_path / "tied.safetensors")
    expected = (tmp_path / "expected.safetensors").read_bytes()
    # The reference writes metadata in no fixed order, so the headers are compared as objects.
    length = 8 + int.from_bytes(expected[:8], "little")
    assert json.loads(written[8:length]) == json.loads(expected[8:length])
    assert (written[:8], written[length:]) == (expected[:8], expected[length:])


@pytest.mark.parametrize("dtype", ["complex128", "complex32"])
def test_a_dtype_that_safetensors_lacks_is_refused(dtype: str, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2, 2), "c": tensor_of(dtype, 2, 2)}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match=f"no {dtype}"):
        copied(tmp_path / "a.pt", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"], ids=["__metadata__", "surrogate"])
def test_a_name_that_safetensors_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(2, 2), "b": torch.ones(2, 2)}, tmp_path / "a.pt")
    with pytest.raises(WnError):
        copied(tmp_path / "a.pt", tmp_path / "a.safetensors")
