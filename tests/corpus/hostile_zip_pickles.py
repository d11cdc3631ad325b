"""Torch zips, sound as archives, whose pickle breaks a rule or asks for more than it can have."""

from __future__ import annotations

import collections
import struct
from typing import Any

import torch

from tests.support.lying_zips import (
    SOUND,
    Lie,
    Pid,
    Rebuild,
    beside,
    pickled,
    state_dict,
    storage,
    tensor,
    zip_of_pickle,
)

_MANY = 1_000_000


def _of(value: object, says: str, *, torch_loads: bool = False) -> Lie:
    """A pickle of this value."""
    return Lie(zip_of_pickle(pickled(value)), says, SOUND, torch_loads)


def _storage(says: str, *args: object, torch_loads: bool = False) -> Lie:
    """A weight in another storage, or in what is none."""
    return _of(state_dict(tensor(storage(*args))), says, torch_loads=torch_loads)


def _pid(parts: Any) -> Lie:  # noqa: ANN401 - a tuple or what should be one
    return _of(state_dict(tensor(Pid(parts))), _NO_STORAGE)


def _tensor(says: str, *, torch_loads: bool = False, **lies: object) -> Lie:
    """A weight that is placed otherwise."""
    return _of(state_dict(tensor(**lies)), says, torch_loads=torch_loads)  # type: ignore[arg-type]


def _opcodes(says: str, told: bytes, truth: bytes, *, torch_loads: bool = False) -> Lie:
    """These opcodes beside the weight."""
    return Lie(zip_of_pickle(beside(told)), says, zip_of_pickle(beside(truth)), torch_loads)


def _whole(says: str, told: bytes, truth: bytes | None = None, *, torch_loads: bool = False) -> Lie:
    """A pickle of its own."""
    return Lie(zip_of_pickle(told), says, zip_of_pickle(truth) if truth else SOUND, torch_loads)


_NO_STORAGE = "the pickle refers to something outside it that is no tensor storage"
_WRONG_SIZE = "storage data/0 has the wrong size"
_FLOAT = torch.FloatStorage
_KIND = ("storage", _FLOAT, "0", "cpu")

STORAGES: dict[str, Lie] = {
    "numel_one_too_small.pt": _storage(_WRONG_SIZE, "0", 11),
    "numel_one_too_large.pt": _storage(_WRONG_SIZE, "0", 13),
    "numel_zero.pt": _storage(_WRONG_SIZE, "0", 0),
    "numel_negative.pt": _storage(_NO_STORAGE, "0", -12),
    "numel_2_to_the_62_too_large.pt": _storage(_WRONG_SIZE, "0", 12 + (1 << 62)),
    "numel_2_to_the_63.pt": _storage(_NO_STORAGE, "0", 1 << 63),
    "numel_2_to_the_64_too_large.pt": _storage(_NO_STORAGE, "0", 12 + (1 << 64)),
    "numel_of_2000_bytes.pt": _storage(_NO_STORAGE, "0", 1 << 16_000),
    "numel_a_float.pt": _storage(_NO_STORAGE, "0", 12.0),
    "numel_a_bool.pt": _storage(_NO_STORAGE, "0", True),  # noqa: FBT003
    "numel_none.pt": _storage(_NO_STORAGE, "0", None),
    "numel_text.pt": _storage(_NO_STORAGE, "0", "12"),
    "storage_of_wider_elements.pt": _storage(_WRONG_SIZE, "0", 12, torch.DoubleStorage),
    "storage_of_no_known_kind.pt": _storage(_NO_STORAGE, "0", 12, collections.OrderedDict),
    "storage_whose_kind_is_text.pt": _storage(_NO_STORAGE, "0", 12, "FloatStorage"),
    "storage_key_without_a_member.pt": _storage("storage data/9 is missing", "9"),
    "storage_key_empty.pt": _storage("storage data/ is missing", ""),
    "storage_key_a_number.pt": _storage(_NO_STORAGE, 0, torch_loads=True),
    "storage_key_bytes.pt": _storage(_NO_STORAGE, b"0"),
    "storage_key_none.pt": _storage(_NO_STORAGE, None),
    "storage_key_a_path.pt": _storage(r"storage data/\.\./data/0 is missing", "../data/0"),
    "storage_key_that_leads_to_the_pickle.pt": _storage(
        r"storage data/\.\./data.pkl is missing", "../data.pkl"
    ),
    "storage_key_with_nul.pt": _storage(r"storage data/0\\x00 is missing", "0\0", torch_loads=True),
    "storage_of_two_sizes.pt": _of(
        {"w": tensor(), "v": tensor(storage("0", 6), 0, (6,), (1,))}, _WRONG_SIZE, torch_loads=True
    ),
    "storage_with_view_metadata.pt": _storage(
        "view|no tensor storage", "0", 12, _FLOAT, ("v", 4, 8)
    ),
    "storage_that_nothing_uses_missing.pt": _of(
        {"w": tensor(), "x": storage("7")}, "storage data/7 is missing"
    ),
    "reference_of_another_tag.pt": _pid(("storages", *_KIND[1:], 12)),
    "reference_to_a_class_for_a_storage.pt": _of(
        state_dict(tensor(Pid(("module", collections.OrderedDict, "f", "s")))), "no tensor storage"
    ),
    "reference_too_short.pt": _pid(_KIND),
    "reference_too_long.pt": _pid((*_KIND, 12, None, None)),
    "reference_that_is_text.pt": _pid("storage"),
    "reference_that_is_none_of_them.pt": _of({"w": tensor(), "x": Pid(())}, _NO_STORAGE),
    "tensor_of_no_storage.pt": _of(
        state_dict(Rebuild((5, 0, (3, 4), (4, 1), False, {}))), "no tensor storage"
    ),
    "tensor_without_arguments.pt": _of(state_dict(Rebuild(())), "not as torch.save makes it"),
    "tensor_without_a_stride.pt": _of(
        state_dict(Rebuild((storage(), 0, (3, 4)))), "not as torch.save makes it"
    ),
}

_BEYOND = "tensor 'w' reaches beyond its storage"
_SHAPE = "tensor 'w' has an impossible shape"
_LARGE = "tensor 'w' claims more than any memory holds"

TENSORS: dict[str, Lie] = {
    "offset_one_too_large.pt": _tensor(_BEYOND, offset=1),
    "offset_at_the_end.pt": _tensor(_BEYOND, offset=12),
    "offset_of_a_scalar_behind_the_end.pt": _tensor(_BEYOND, offset=12, size=(), stride=()),
    "offset_2_to_the_62.pt": _tensor(_BEYOND, offset=1 << 62),
    "offset_2_to_the_63.pt": _tensor(_SHAPE, offset=1 << 63),
    "offset_2_to_the_64.pt": _tensor(_SHAPE, offset=1 << 64),
    "offset_negative.pt": _tensor(_SHAPE, offset=-1),
    "offset_a_bool.pt": _tensor(_SHAPE, offset=False),
    "offset_a_float.pt": _tensor(_SHAPE, offset=0.0),
    "offset_none.pt": _tensor(_SHAPE, offset=None),
    "offset_text.pt": _tensor(_SHAPE, offset="0"),
    "size_one_too_large.pt": _tensor(_BEYOND, size=(3, 5)),
    "size_negative.pt": _tensor(_SHAPE, size=(-3, 4)),
    "sizes_both_negative.pt": _tensor(_SHAPE, size=(-3, -4)),
    "size_2_to_the_62.pt": _tensor(_LARGE, size=(1 << 62, 4)),
    "size_2_to_the_63.pt": _tensor(_SHAPE, size=(1 << 63, 1)),
    "size_2_to_the_64_too_large.pt": _tensor(_SHAPE, size=(3 + (1 << 64), 4)),
    "sizes_whose_product_is_2_to_the_64.pt": _tensor(
        _LARGE, size=(1 << 32, 1 << 32), stride=(0, 0)
    ),
    "sizes_whose_product_is_2_to_the_63.pt": _tensor(
        _LARGE, size=(1 << 31, 1 << 32), stride=(0, 0)
    ),
    "sizes_whose_product_overflows_to_12.pt": _tensor(
        _SHAPE, size=((1 << 64) + 12, 1), stride=(0, 0)
    ),
    "sizes_that_overflow_before_a_zero.pt": _tensor(
        _LARGE, size=(1 << 62, 1 << 62, 0), stride=(1, 1, 1)
    ),
    "size_a_float.pt": _tensor(_SHAPE, size=(3.0, 4)),
    "size_a_bool.pt": _tensor(_SHAPE, size=(True, 4)),
    "size_none.pt": _tensor(_SHAPE, size=(None, 4)),
    "size_text.pt": _tensor(_SHAPE, size=("3", 4)),
    "size_a_tuple.pt": _tensor(_SHAPE, size=((3,), 4)),
    "sizes_none.pt": _tensor(_SHAPE, size=None),
    "sizes_one_number.pt": _tensor(_SHAPE, size=12, stride=(1,)),
    "sizes_text.pt": _tensor(_SHAPE, size="34"),
    "sizes_a_dict.pt": _tensor(_SHAPE, size={3: 4}),
    "stride_one_too_large.pt": _tensor(_BEYOND, stride=(5, 1)),
    "stride_of_the_last_dim_too_large.pt": _tensor(_BEYOND, stride=(4, 2)),
    "stride_negative.pt": _tensor(_SHAPE, offset=3, stride=(4, -1)),
    "strides_all_negative.pt": _tensor(_SHAPE, offset=11, stride=(-4, -1)),
    "stride_2_to_the_62.pt": _tensor(_BEYOND, stride=(1 << 62, 1)),
    "stride_2_to_the_63.pt": _tensor(_SHAPE, stride=(1 << 63, 1)),
    "strides_that_overflow_to_the_start.pt": _tensor(_SHAPE, size=(2, 2), stride=(1 << 64, 1)),
    "offset_and_stride_that_overflow_together.pt": _tensor(
        _BEYOND, offset=1 << 62, size=(4,), stride=(1 << 62,)
    ),
    "stride_a_float.pt": _tensor(_SHAPE, stride=(4.0, 1)),
    "stride_a_bool.pt": _tensor(_SHAPE, stride=(4, True), torch_loads=True),
    "stride_text.pt": _tensor(_SHAPE, stride=("4", 1)),
    "strides_none.pt": _tensor(_SHAPE, stride=None, torch_loads=True),
    "strides_missing.pt": _tensor(_SHAPE, stride=(), torch_loads=True),
    "strides_fewer_than_sizes.pt": _tensor(_SHAPE, stride=(4,)),
    "strides_more_than_sizes.pt": _tensor(_SHAPE, stride=(4, 1, 1)),
}

_CLAIMS = r"an item claims \d+ bytes, more than there are"
_EMPTY = "its stack is empty"
_NO_MARK = "a mark is missing"
_EARLY = "the pickle cannot be read: it ends early"
_DIGITS = b"9" * 1_000_000


def _claims() -> dict[str, Lie]:
    """Items that claim gigabytes; their truth is the three bytes that are there."""
    narrow = {"text": b"X", "bytes": b"B", "python_2_text": b"T", "integer": b"\x8b"}
    wide = {"long_text": b"\x8d", "long_bytes": b"\x8e", "bytearray": b"\x96", "frame": b"\x95"}
    sizes = {"a_gigabyte": 1 << 30, "2_to_the_32": (1 << 32) - 1}
    wide_sizes = {"a_gigabyte": 1 << 30, "a_terabyte": 1 << 40, "2_to_the_64": (1 << 64) - 1}
    found = {}
    for kinds, code, claims in ((narrow, "<I", sizes), (wide, "<Q", wide_sizes)):
        for kind, opcode in kinds.items():
            data = b"NNN00" if kind == "frame" else b"abc"
            for claim, size in claims.items():
                told, truth = (opcode + struct.pack(code, n) + data for n in (size, len(data)))
                found[f"{kind}_claims_{claim}.pt"] = _opcodes(_CLAIMS, told, truth)
    return found


#: What takes more from the stack than there is; the same with all that it takes.
_TOO_LITTLE: dict[str, tuple[bytes, bytes, str]] = {
    "call": (b"R", b"ccollections\nOrderedDict\n)R", _EMPTY),
    "new_object": (b"\x81", b"ccollections\nOrderedDict\n)\x81", _EMPTY),
    "state": (b"b", b"ccollections\nOrderedDict\n)R}b", _EMPTY),
    "item_of_a_dict": (b"s", b"}NNs", _EMPTY),
    "item_of_a_list": (b"a", b"]Na", _EMPTY),
    "tuple_of_one": (b"\x85", b"N\x85", _EMPTY),
    "tuple_of_three": (b"NN\x87", b"NNN\x87", _EMPTY),
    "reference": (b"Q", b"N", _EMPTY),
    "name": (b"\x93", b"X\x05\0\0\0torchX\x04\0\0\0Size\x93", _EMPTY),
    "memo": (b"q\0", b"Nq\0", _EMPTY),
    "numbered_memo": (b"\x94", b"N\x94", _EMPTY),
    "copy": (b"2", b"N20", _EMPTY),
    "removal": (b"0", b"NN0", _EMPTY),
    "tuple_without_a_mark": (b"Nt", b"(Nt", _NO_MARK),
    "list_without_a_mark": (b"Nl", b"(Nl", _NO_MARK),
    "dict_without_a_mark": (b"NNd", b"(NNd", _NO_MARK),
    "items_without_a_mark": (b"}NNu", b"}(NNu", _NO_MARK),
    "removal_to_no_mark": (b"N1", b"N(N1", _NO_MARK),
    "stop": (b"", b"N", _EMPTY),
}

OPCODES: dict[str, Lie] = {
    **_claims(),
    **{
        f"pickle_without_what_its_{kind}_takes.pt": _whole(
            says, b"\x80\x02" + told + b".", b"\x80\x02}X\x01\0\0\0x" + truth + b"s."
        )
        for kind, (told, truth, says) in _TOO_LITTLE.items()
    },
    "pickle_empty.pt": _whole(_EARLY, b""),
    "pickle_of_text.pt": _whole("the pickle cannot be read", b"hello, world\n"),
    "pickle_of_zeros.pt": _whole(r"opcode b'\\x00' is unknown", bytes(100)),
    "pickle_without_stop.pt": _whole(_EARLY, pickled(state_dict(tensor()))[:-1]),
    "pickle_cut_in_an_opcode.pt": _whole(_EARLY, pickled(state_dict(tensor()))[:-9]),
    "pickle_cut_in_a_name.pt": _opcodes(_EARLY, b"ccollections\nOrderedDict", b"N"),
    "pickle_of_protocol_6.pt": _whole(
        "protocol 6 is unknown", beside(b"N", 6), beside(b"N", 5), torch_loads=True
    ),
    "pickle_of_protocol_255.pt": _whole(
        "protocol 255 is unknown", beside(b"N", 255), beside(b"N", 2), torch_loads=True
    ),
    "pickle_with_an_unknown_opcode.pt": _opcodes(r"opcode b'\\xff' is unknown", b"\xff", b"N"),
    "pickle_with_a_memo_never_written.pt": _opcodes(
        "memo 4294967295 is read before", b"j\xff\xff\xff\xff", b"Nr\xff\xff\0\0"
    ),
    "pickle_with_a_negative_memo_place.pt": _opcodes("memo|negative", b"Np-1\n", b"Np1\n"),
    "pickle_with_a_memo_place_of_no_number.pt": _opcodes("memo|invalid", b"Npx\n", b"Np101\n"),
    "pickle_with_a_key_without_value.pt": _opcodes(
        "a key has no value", b"}(K\x01u", b"}(K\x01Nu"
    ),
    "pickle_with_items_in_a_tuple.pt": _opcodes("takes none", b")Na", b"]Na"),
    "pickle_with_items_of_a_dict_in_a_list.pt": _opcodes("takes none", b"]NNs", b"}NNs"),
    "pickle_with_a_state_for_a_list.pt": _opcodes(
        "state is given to something that takes none", b"]}b", b"ccollections\nOrderedDict\n)R}b"
    ),
    "pickle_with_a_call_of_a_list.pt": _opcodes(
        "arguments of a call are no tuple",
        b"ccollections\nOrderedDict\n]R", b"ccollections\nOrderedDict\n)R",
        torch_loads=True,
    ),
    "pickle_with_a_name_that_is_no_text.pt": _opcodes(
        "name is no text", b"NN\x93", b"X\x05\0\0\0torchX\x04\0\0\0Size\x93"
    ),
    "pickle_with_a_name_of_two_lines.pt": _opcodes(
        "line break", b"X\x06\0\0\0torch\nX\x04\0\0\0Size\x93",
        b"X\x05\0\0\0torchX\x04\0\0\0Size\x93",
    ),
    "pickle_with_text_that_is_no_utf8.pt": _opcodes("utf-8", b"X\x01\0\0\0\xff", b"X\x01\0\0\0a"),
    "pickle_with_an_extension.pt": _opcodes("extension registry", b"\x82\x01", b"N"),
    "pickle_with_a_buffer_elsewhere.pt": _opcodes("out-of-band", b"\x97", b"N"),
    "pickle_with_a_line_of_a_million_digits.pt": _opcodes(
        "digits", b"L" + _DIGITS + b"L\n", b"L" + _DIGITS[:4000] + b"L\n"
    ),
    "pickle_with_an_int_of_a_million_digits.pt": _opcodes(
        "digits", b"I" + _DIGITS + b"\n", b"I" + _DIGITS[:4000] + b"\n"
    ),
    "pickle_with_a_memo_place_of_a_million_digits.pt": _opcodes(
        "digits", b"Np" + _DIGITS + b"\n", b"Np101\n"
    ),
    "pickle_with_letters_for_a_number.pt": _opcodes("not a number", b"Iten\n", b"I10\n"),
    "pickle_with_a_line_that_never_ends.pt": _opcodes(_EARLY, b"L" + _DIGITS, b"L9L\n"),
    "pickle_with_a_million_marks_open.pt": _opcodes(
        _EMPTY, b"(" * _MANY, b"(" * _MANY + b"1" * _MANY + b"N"
    ),
}  # fmt: skip

LIES = STORAGES | TENSORS | OPCODES
