"""Safetensors files that each break one rule of the format, and the same files mended.

The rules are those of the reference reader, safetensors `safetensors/src/tensor.rs`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tests.corpus.hostile import Hostile, holding

DATA = b"abcd"
#: A name that leads out of a folder, and would move the cursor, rename the window and hide text, as
#: it stands in JSON.
HOSTILE_NAME = r"../../\u001b[2J\u001b]0;x\u0007\u0000\r\n\u202e\u2066\u009b31m.weight"
#: Sizes of no tensor; the reference counts elements and bits in 64 bits.
_HUGE = 1 << 63


def file_of(header: bytes, data: bytes = b"", *, claimed: int | None = None) -> bytes:
    """A safetensors file; `claimed` is what it says of the header's length."""
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + data


def entry_of(**members: str) -> str:
    """The JSON of one tensor of four bytes; other JSON can be put in place of each member."""
    found = {"dtype": '"F32"', "shape": "[1]", "data_offsets": "[0,4]"} | members
    return "{" + ",".join(f'"{name}":{text}' for name, text in found.items()) + "}"


def header_of(*entries: str, name: str = "a") -> bytes:
    """The JSON of tensors `a`, `b` and so on, or of one tensor by its name as JSON spells it."""
    names = [name, *(chr(ord("a") + place) for place in range(1, len(entries)))]
    members = (f'"{n}":{entry}' for n, entry in zip(names, entries, strict=True))
    return ("{" + ",".join(members) + "}").encode()


def one(data: bytes = DATA, **members: str) -> bytes:
    """A file of one tensor."""
    return file_of(header_of(entry_of(**members)), data)


def named(name: bytes) -> bytes:
    """A file of one tensor, whose name is given as it stands between the quotes."""
    return file_of(header_of(entry_of()).replace(b'"a"', b'"' + name + b'"', 1), DATA)


def bytes_at(*places: tuple[int, int], data: bytes) -> bytes:
    """A file of tensors of single bytes at these offsets."""
    entries = (
        entry_of(dtype='"U8"', shape=f"[{end - begin}]", data_offsets=f"[{begin},{end}]")
        for begin, end in places
    )
    return file_of(header_of(*entries), data)


def metadata(text: str) -> bytes:
    """A file with this JSON for its metadata, and nothing else."""
    return file_of(b'{"__metadata__":' + text.encode() + b"}")


SOUND = one()
_HEADER = header_of(entry_of())
_ENTRY = _HEADER[1:-1]
_PACKED_HALVES = one(b"ab", dtype='"F4"', shape="[4]", data_offsets="[0,2]")
_PACKED_QUARTERS = one(b"abc", dtype='"F6_E2M3"', shape="[4]", data_offsets="[0,3]")
_EMPTY = one(b"", shape="[0]", data_offsets="[0,0]")
_TWO = bytes_at((0, 2), (2, 3), data=b"xyz")


@dataclass(frozen=True)
class Defect:
    """A file that breaks a rule, what the refusal says of it, and the same file without it."""

    broken: bytes
    says: str
    mended: bytes = SOUND


_LONG = r"the header is too long\n.*up to 100,000,000 bytes"
_NO_OBJECT = "the header is no object"
_SURROGATE = "the header .*surrogate"
_NO_COUNT = "'a' has a size or offset that is no count"
_NO_METADATA = "__metadata__ must map names to text"
_OFFSETS = "'a' needs two ascending offsets"
_NEEDS = "'a' needs dtype, shape and data_offsets"
_TOO_MANY = "'a' has more elements than 64 bits can count"
_DIGITS = "too many digits|too long a number|no count"
_CONSTANT = "the header holds {}, which is no JSON"
_DEEP = "recursion depth|nested too deep"

DEFECTS: dict[str, Defect] = {
    # 1. the length of the header
    "empty_file": Defect(b"", "an empty file"),
    "fewer_than_8_bytes": Defect(SOUND[:7], "inside the header's length"),
    "nothing_but_the_length": Defect(SOUND[:8], "inside the header"),
    "header_longer_than_the_file": Defect(
        file_of(_HEADER, claimed=len(_HEADER) + 1), "inside the header\n"
    ),
    "header_of_100000001_bytes": Defect(file_of(_HEADER, claimed=100_000_001), _LONG),
    "header_of_100000000_bytes_in_a_short_file": Defect(
        file_of(_HEADER, claimed=100_000_000), r"inside the header\n.*at least 100,000,008 bytes"
    ),
    "header_of_a_gigabyte_in_a_short_file": Defect(file_of(_HEADER, claimed=1 << 30), _LONG),
    "header_of_2_to_the_63_bytes": Defect(file_of(_HEADER, claimed=_HUGE), _LONG),
    "header_of_2_to_the_64_less_1_bytes": Defect(file_of(_HEADER, claimed=2 * _HUGE - 1), _LONG),
    "header_length_big_endian": Defect(
        struct.pack(">Q", len(_HEADER)) + _HEADER + DATA, _LONG
    ),
    "header_longer_by_a_byte_of_data": Defect(
        file_of(_HEADER, b"abcde", claimed=len(_HEADER) + 1), r"not JSON \(Extra data"
    ),
    "header_of_no_bytes": Defect(file_of(b""), r"the header (is empty|is not JSON)"),
    # 2. its text
    "name_not_utf8": Defect(named(b"\xff"), "the header is not UTF-8"),
    "name_in_overlong_utf8": Defect(named(b"\xc0\xaf"), "the header is not UTF-8", named(b"/")),
    "name_with_a_surrogate_in_utf8": Defect(named(b"\xed\xa0\x80"), "the header is not UTF-8"),
    "name_in_latin_1": Defect(named(b"\xe9"), "the header is not UTF-8", named("é".encode())),
    "name_with_a_lone_surrogate": Defect(
        named(rb"\ud83d"), _SURROGATE, named(rb"\ud83d\ude00")
    ),
    "name_with_a_lone_low_surrogate": Defect(
        named(rb"\ude00"), _SURROGATE, named(rb"\ud83d\ude00")
    ),
    "name_with_surrogates_in_reverse": Defect(
        named(rb"\ude00\ud83d"), _SURROGATE, named(rb"\ud83d\ude00")
    ),
    "metadata_with_a_lone_surrogate": Defect(
        metadata(r'{"a":"\ud83d"}'), _SURROGATE, metadata(r'{"a":"\ud83d\ude00"}')
    ),
    "byte_order_mark": Defect(file_of(b"\xef\xbb\xbf" + _HEADER, DATA), "(?i)byte order mark|BOM"),
    "header_in_utf16": Defect(
        file_of(_HEADER.decode().encode("utf-16-le"), DATA), "not JSON|not UTF-8"
    ),
    "nul_padding": Defect(
        file_of(_HEADER + b"\0" * 8, DATA), r"not JSON \((Extra data|NUL)",
        file_of(_HEADER + b" " * 8, DATA),
    ),
    "text_behind_the_object": Defect(file_of(_HEADER + b"x", DATA), r"not JSON \(Extra data"),
    "second_object": Defect(file_of(_HEADER + b"{}", DATA), r"not JSON \(Extra data"),
    "line_feed_in_a_name": Defect(named(b"\n"), r"not JSON \(Invalid control", named(rb"\n")),
    "nul_in_a_name": Defect(
        named(b"\0"), r"not JSON \((Invalid control|NUL)", named(rb"\u0000")
    ),
    "unknown_escape": Defect(named(rb"\x41"), r"not JSON \(Invalid \\escape", named(rb"\u0041")),
    "nan": Defect(one(shape="[NaN]"), _CONSTANT.format("NaN")),
    "nan_in_metadata": Defect(
        metadata('{"a":NaN}'), _CONSTANT.format("NaN"), metadata('{"a":"NaN"}')
    ),
    "infinity": Defect(one(data_offsets="[0,Infinity]"), _CONSTANT.format("Infinity")),
    "minus_infinity": Defect(one(data_offsets="[-Infinity,4]"), _CONSTANT.format("-Infinity")),
    "trailing_comma": Defect(one(shape="[1,]"), r"not JSON \("),
    "trailing_comma_in_the_object": Defect(
        file_of(_HEADER[:-1] + b",}", DATA), r"not JSON \("
    ),
    "comment": Defect(one(shape="[1/**/]"), r"not JSON \("),
    "single_quotes": Defect(file_of(_HEADER.replace(b'"', b"'"), DATA), r"not JSON \("),
    "leading_zero": Defect(one(shape="[01]"), r"not JSON \("),
    "plus_sign": Defect(one(shape="[+1]"), r"not JSON \("),
    "hexadecimal": Defect(one(shape="[0x1]"), r"not JSON \("),
    "unfinished_object": Defect(file_of(_HEADER[:-1], DATA), r"not JSON \("),
    "unfinished_name": Defect(file_of(b'{"a'), r"not JSON \(Unterminated string"),
    "nested_arrays": Defect(one(shape="[" * 5000 + "1" + "]" * 5000), _DEEP),
    "nested_100000_arrays": Defect(one(shape="[" * 100_000 + "1" + "]" * 100_000), _DEEP),
    "nested_100000_objects": Defect(
        file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), _DEEP, file_of(b"{}")
    ),
    "unfinished_100000_objects": Defect(file_of(b'{"a":' * 100_000), _DEEP, file_of(b"{}")),
    "nested_metadata": Defect(
        metadata('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), _DEEP, metadata('{"a":"[]"}')
    ),
    # 3. what stands at its top
    "array_at_the_top": Defect(file_of(b"[" + _HEADER + b"]", DATA), _NO_OBJECT),
    "text_at_the_top": Defect(file_of(b'"a"'), _NO_OBJECT, file_of(b'{"__metadata__":{}}')),
    "number_at_the_top": Defect(file_of(b"1"), _NO_OBJECT, file_of(b"{}")),
    "null_at_the_top": Defect(file_of(b"null"), _NO_OBJECT, file_of(b"{}")),
    "spaces_at_the_top": Defect(file_of(b" " * 8), r"not JSON \(", file_of(b"{}      ")),
    # 4. metadata
    "metadata_with_a_number": Defect(metadata('{"a":1}'), _NO_METADATA, metadata('{"a":"1"}')),
    "metadata_with_null": Defect(metadata('{"a":null}'), _NO_METADATA, metadata('{"a":"null"}')),
    "metadata_with_a_bool": Defect(metadata('{"a":true}'), _NO_METADATA, metadata('{"a":"true"}')),
    "metadata_with_an_object": Defect(metadata('{"a":{}}'), _NO_METADATA, metadata('{"a":"{}"}')),
    "metadata_with_an_array": Defect(metadata('{"a":[]}'), _NO_METADATA, metadata('{"a":"[]"}')),
    "metadata_is_an_array": Defect(metadata("[]"), _NO_METADATA, metadata("{}")),
    "metadata_is_text": Defect(metadata('"a"'), _NO_METADATA, metadata("null")),
    "metadata_is_a_tensor": Defect(
        file_of(header_of(entry_of(), name="__metadata__"), DATA), _NO_METADATA
    ),
    "metadata_twice": Defect(
        file_of(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' stands there twice",
        metadata("{}"),
    ),
    # 5. the members of a tensor
    "dtype_twice": Defect(one(shape='[1],"dtype":"F32"'), "'dtype' stands there twice"),
    "shape_twice": Defect(one(shape='[1],"shape":[1]'), "'shape' stands there twice"),
    "offsets_twice": Defect(
        one(data_offsets='[0,4],"data_offsets":[0,4]'), "'data_offsets' stands there twice"
    ),
    "dtype_unknown": Defect(one(dtype='"F33"'), "'a' has the unknown dtype 'F33'"),
    "dtype_in_lower_case": Defect(one(dtype='"f32"'), "'a' has the unknown dtype 'f32'"),
    "dtype_as_torch_calls_it": Defect(one(dtype='"float32"'), "unknown dtype 'float32'"),
    "dtype_with_a_space": Defect(one(dtype='"F32 "'), "unknown dtype 'F32 '"),
    "dtype_is_empty": Defect(one(dtype='""'), "unknown dtype ''"),
    "dtype_is_a_number": Defect(one(dtype="32"), "unknown dtype 32"),
    "dtype_is_null": Defect(one(dtype="null"), "unknown dtype None"),
    "dtype_of_a_million_characters": Defect(
        one(dtype=f'"{"F" * 1_000_000}"'), "'a' has the unknown dtype 'FFF"
    ),
    "dtype_an_array_of_a_million": Defect(
        one(dtype=f"[0{',0' * 1_000_000}]"), "'a' has the unknown dtype"
    ),
    "dtype_is_an_array": Defect(one(dtype='["F32"]'), "unknown dtype"),
    "no_dtype": Defect(file_of(b'{"a":{"shape":[1],"data_offsets":[0,4]}}', DATA), _NEEDS),
    "no_shape": Defect(file_of(b'{"a":{"dtype":"F32","data_offsets":[0,4]}}', DATA), _NEEDS),
    "no_offsets": Defect(file_of(b'{"a":{"dtype":"F32","shape":[1]}}', DATA), _NEEDS),
    "tensor_is_null": Defect(file_of(header_of("null")), _NEEDS, file_of(b"{}")),
    "tensor_is_text": Defect(file_of(header_of('"b"')), _NEEDS, metadata('{"a":"b"}')),
    "tensor_is_an_empty_object": Defect(file_of(header_of("{}")), _NEEDS, file_of(b"{}")),
    # 6. counts
    "size_negative": Defect(one(shape="[-1]"), "-1, which is no count"),
    "sizes_negative_whose_product_fits": Defect(one(shape="[-1,-1]"), "-1, which is no count"),
    "size_of_minus_zero": Defect(
        one(b"", shape="[-0]", data_offsets="[0,0]"), "-0, which is no count", _EMPTY
    ),
    "size_with_a_point": Defect(one(shape="[1.0]"), _NO_COUNT),
    "size_with_an_exponent": Defect(one(shape="[1e0]"), _NO_COUNT),
    "size_true": Defect(one(shape="[true]"), _NO_COUNT),
    "size_null": Defect(one(shape="[null]"), _NO_COUNT),
    "size_in_quotes": Defect(one(shape='["1"]'), _NO_COUNT),
    "size_in_an_array": Defect(one(shape="[[1]]"), _NO_COUNT),
    "size_of_2_to_the_64": Defect(
        one(b"", shape=f"[{2 * _HUGE},0]", data_offsets="[0,0]"), _NO_COUNT, _EMPTY
    ),
    "size_of_100000_digits": Defect(one(shape=f"[{'9' * 100_000}]"), _DIGITS),
    "shape_null": Defect(one(shape="null"), _NO_COUNT),
    "shape_a_number": Defect(one(shape="1"), _NO_COUNT),
    "shape_an_object": Defect(one(shape='{"0":1}'), _NO_COUNT),
    "offset_negative": Defect(one(data_offsets="[-4,0]"), "-4, which is no count"),
    "offset_of_minus_zero": Defect(one(data_offsets="[-0,4]"), "-0, which is no count"),
    "offset_with_a_point": Defect(one(data_offsets="[0,4.0]"), _NO_COUNT),
    "offset_with_an_exponent": Defect(one(data_offsets="[0,4e0]"), _NO_COUNT),
    "offset_of_a_million_digits_with_a_point": Defect(
        one(data_offsets=f"[0,{'9' * 1_000_000}.0]"), _NO_COUNT
    ),
    "offset_true": Defect(
        one(b"a", dtype='"U8"', data_offsets="[0,true]"), _NO_COUNT,
        one(b"a", dtype='"U8"', data_offsets="[0,1]"),
    ),
    "offset_null": Defect(one(data_offsets="[null,4]"), _NO_COUNT),
    "offset_in_quotes": Defect(one(data_offsets='[0,"4"]'), _NO_COUNT),
    "offset_of_2_to_the_64": Defect(one(data_offsets=f"[0,{2 * _HUGE + 4}]"), _NO_COUNT),
    "offset_of_100000_digits": Defect(one(data_offsets=f"[0,{'9' * 100_000}]"), _DIGITS),
    "offset_of_100000_digits_below_zero": Defect(
        one(data_offsets=f"[0,-{'9' * 100_000}]"), _DIGITS
    ),
    "offsets_none": Defect(one(data_offsets="[]"), _OFFSETS),
    "offsets_one": Defect(one(data_offsets="[4]"), _OFFSETS),
    "offsets_three": Defect(one(data_offsets="[0,4,4]"), _OFFSETS),
    "offsets_a_million": Defect(one(data_offsets=f"[0{',4' * 1_000_000}]"), _OFFSETS),
    "offsets_null": Defect(one(data_offsets="null"), _NO_COUNT),
    "offsets_an_object": Defect(one(data_offsets='{"0":0,"1":4}'), _NO_COUNT),
    "offsets_descend": Defect(one(data_offsets="[4,0]"), _OFFSETS),
    # 7. neither holes nor overlaps
    "first_offset_not_0": Defect(
        bytes_at((1, 2), data=b"xy"), r"'a' leaves a hole.*from 0\n.*from 1",
        bytes_at((0, 2), data=b"xy"),
    ),
    "hole": Defect(
        bytes_at((0, 1), (2, 3), data=b"xyz"), r"'b' leaves a hole.*from 1\n.*from 2", _TWO
    ),
    "overlap": Defect(
        bytes_at((0, 2), (1, 3), data=b"xyz"), r"'b' leaves.*overlaps.*from 2\n.*from 1", _TWO
    ),
    "same_bytes_twice": Defect(
        bytes_at((0, 2), (0, 2), data=b"xy"), r"leaves.*overlaps.*from 2\n.*from 0", _TWO
    ),
    "empty_tensor_inside_another": Defect(
        bytes_at((0, 2), (1, 1), data=b"xy"), r"'b' leaves.*overlaps.*from 2\n.*from 1",
        bytes_at((0, 2), (2, 2), data=b"xy"),
    ),
    "empty_tensor_behind_the_end": Defect(
        bytes_at((0, 2), (9, 9), data=b"xy"), r"'b' leaves a hole.*from 2\n.*from 9",
        bytes_at((0, 2), (2, 2), data=b"xy"),
    ),
    "name_twice_and_a_hole": Defect(
        file_of(bytes_at((0, 2), (2, 3), data=b"")[8:].replace(b'"b"', b'"a"'), b"xyz"),
        "'a' stands there twice", _TWO,
    ),
    # 8. as many bytes as the shape takes
    "bytes_fewer_than_the_shape": Defect(
        one(shape="[2]"), r"'a' does not fill its bytes\n.*8 bytes.*\n.*4 bytes"
    ),
    "bytes_more_than_the_shape": Defect(
        one(DATA * 2, data_offsets="[0,8]"), r"'a' does not fill its bytes\n.*4 bytes.*\n.*8 bytes"
    ),
    "bytes_without_elements": Defect(
        one(shape="[3,0]"), r"'a' does not fill its bytes\n.*0 bytes.*\n.*4 bytes"
    ),
    "bytes_of_another_dtype": Defect(
        one(dtype='"F64"'), r"'a' does not fill its bytes\n.*8 bytes.*\n.*4 bytes"
    ),
    "bytes_fewer_than_the_shape_of_a_name_of_a_million_characters": Defect(
        file_of(header_of(entry_of(shape="[2]"), name="a" * 1_000_000), DATA),
        "'aaa.*does not fill its bytes", named(b"a" * 1_000_000),
    ),
    "bytes_fewer_than_the_shape_of_a_hostile_name": Defect(
        file_of(header_of(entry_of(shape="[2]"), name=HOSTILE_NAME), DATA),
        "does not fill its bytes", named(HOSTILE_NAME.encode()),
    ),
    "elements_2_to_the_64": Defect(
        one(b"", shape=f"[{_HUGE},2]", data_offsets="[0,0]"), _TOO_MANY, _EMPTY
    ),
    "elements_2_to_the_64_and_a_size_of_0": Defect(
        one(b"", shape=f"[{_HUGE},2,0]", data_offsets="[0,0]"), _TOO_MANY,
        one(b"", shape=f"[0,{_HUGE},2]", data_offsets="[0,0]"),
    ),
    "elements_2_to_the_64_and_one": Defect(
        one(DATA, shape="[274177,67280421310721]"), _TOO_MANY
    ),
    "elements_beyond_counting": Defect(
        one(shape=json.dumps([_HUGE - 1] * 50_000)), _TOO_MANY
    ),
    "bits_2_to_the_64": Defect(
        one(b"", shape=f"[{1 << 59}]", data_offsets="[0,0]"), "'a' does not fill its bytes", _EMPTY
    ),
    "bits_2_to_the_64_and_32": Defect(
        one(shape=f"[{(1 << 59) + 1}]"), "'a' does not fill its bytes"
    ),
    "f4_of_3_elements_in_1_byte": Defect(
        one(b"a", dtype='"F4"', shape="[3]", data_offsets="[0,1]"),
        r"'a' does not fill its bytes\n.*1.5 bytes.*\n.*1 bytes", _PACKED_HALVES,
    ),
    "f4_of_3_elements_in_2_bytes": Defect(
        one(b"ab", dtype='"F4"', shape="[3]", data_offsets="[0,2]"),
        r"'a' does not fill its bytes\n.*1.5 bytes.*\n.*2 bytes", _PACKED_HALVES,
    ),
    "f6_of_3_elements_in_2_bytes": Defect(
        one(b"ab", dtype='"F6_E2M3"', shape="[3]", data_offsets="[0,2]"),
        r"'a' does not fill its bytes\n.*2.25 bytes.*\n.*2 bytes", _PACKED_QUARTERS,
    ),
    "f6_of_3_elements_in_3_bytes": Defect(
        one(b"abc", dtype='"F6_E3M2"', shape="[3]", data_offsets="[0,3]"),
        r"'a' does not fill its bytes\n.*2.25 bytes.*\n.*3 bytes", _PACKED_QUARTERS,
    ),
    # 9. the end of the file
    "trailing_byte_behind_a_name_of_a_million_characters": Defect(
        named(b"a" * 1_000_000) + b"e", "bytes follow the last tensor",
        named(b"a" * 1_000_000),
    ),
    "trailing_byte": Defect(SOUND + b"e", "bytes follow the last tensor"),
    "trailing_nuls": Defect(SOUND + bytes(4096), "bytes follow the last tensor"),
    "bytes_without_a_tensor": Defect(
        file_of(b"{}", b"a"), "bytes follow the last tensor", file_of(b"{}")
    ),
    "missing_byte": Defect(SOUND[:-1], r"inside the tensors\n.*66 bytes\n.*65 bytes"),
    "missing_tensors": Defect(SOUND[:-4], r"inside the tensors\n"),
    "missing_exabytes": Defect(
        one(shape=f"[{1 << 58}]", data_offsets=f"[0,{1 << 60}]"), r"inside the tensors\n"
    ),
}  # fmt: skip

#: What the reference reads, of what stands twice the last, and an array as the object it is not.
STRICTER: dict[str, Defect] = {
    "name_twice": Defect(
        file_of(b"{" + _ENTRY + b"," + _ENTRY + b"}", DATA), "'a' stands there twice"
    ),
    "name_twice_in_two_spellings": Defect(
        file_of(b"{" + _ENTRY + b"," + _ENTRY.replace(b'"a"', rb'"\u0061"') + b"}", DATA),
        "'a' stands there twice",
    ),
    "metadata_name_twice": Defect(
        metadata('{"a":"b","a":"c"}'), "'a' stands there twice", metadata('{"a":"c"}')
    ),
    "tensor_is_an_array": Defect(file_of(header_of('["F32",[1],[0,4]]'), DATA), _NEEDS),
}  # fmt: skip


def _files(defects: Mapping[str, Defect]) -> dict[str, Hostile]:
    return {f"{n}.safetensors": holding(d.broken, d.says) for n, d in defects.items()}


#: All of them, by their file names.
FILES: dict[str, Hostile] = _files(DEFECTS) | _files(STRICTER)
