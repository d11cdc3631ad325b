"""Legacy torch files, of five pickles and raw storages, that break a rule of their format."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.support.lying_zips import DATA, Lie, Pid, Rebuild, corpus, pickled, storage, tensor

SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
_OTHER = DATA[:16]
_DEEP = 100_000


def _weight(*args: object, **placed: Any) -> dict[str, Rebuild]:  # noqa: ANN401
    """A weight in a storage of these parts, and a bias in a storage of four elements."""
    inside = legacy_storage(*args) if args else legacy_storage()
    return {
        "w": tensor(inside, **placed),
        "b": tensor(legacy_storage("1", 4), 0, (4,), (1,)),
    }


def legacy_storage(
    key: object = "0", numel: object = 12, view: object = None, kind: object = torch.FloatStorage
) -> Pid:
    """A storage, whose persistent id ends with its view metadata."""
    return storage(key, numel, kind, view)


@dataclass(frozen=True)
class Legacy:
    """The parts of a file, each a pickle that may be another; `storages` are counts and bytes."""

    magic: bytes = pickled(0x1950A86A20F9469CFC6C)
    version: bytes = pickled(1001)
    system: bytes = pickled(SYSTEM)
    root: bytes = pickled(_weight())
    keys: bytes = pickled(["0", "1"])
    storages: tuple[tuple[int, bytes], ...] = ((12, DATA), (4, _OTHER))

    def parts(self) -> list[bytes]:
        """Pickles, counts and bytes in their order in the file."""
        raw = [part for n, data in self.storages for part in (struct.pack("<q", n), data)]
        return [self.magic, self.version, self.system, self.root, self.keys, *raw]


TRUE = Legacy()
SOUND = b"".join(TRUE.parts())


def _lie(says: str, *, torch_loads: bool = False, truth: Legacy = TRUE, **parts: Any) -> Lie:  # noqa: ANN401
    """The truth with other parts."""
    told = b"".join(replace(truth, **parts).parts())
    return Lie(told, says, b"".join(truth.parts()), torch_loads)


def _root(value: object, says: str, *, torch_loads: bool = False) -> Lie:
    return _lie(says, root=pickled(value), torch_loads=torch_loads)


def _keys(value: object, *, torch_loads: bool = False, **parts: Any) -> Lie:  # noqa: ANN401
    says = "the list of storages does not fit the tensors"
    return _lie(says, keys=pickled(value), torch_loads=torch_loads, **parts)


def _count(numel: int, *, torch_loads: bool = False) -> Lie:
    """Another count in front of the first storage."""
    says = "storage '0' has the wrong size"
    return _lie(says, storages=((numel, DATA), (4, _OTHER)), torch_loads=torch_loads)


def _system(says: str, value: object) -> Lie:
    return _lie(says, system=pickled(value), torch_loads=True)


def _without(key: str) -> dict[str, object]:
    return {name: value for name, value in SYSTEM.items() if name != key}


_EARLY = "the pickle cannot be read: it ends early"
_PARTS = (
    "magic_number", "version", "system_record", "object", "list_of_storages",
    "count", "storage", "last_count", "last_storage",
)  # fmt: skip
_ENDS = [*itertools.accumulate(map(len, TRUE.parts()))]


def _truncated() -> dict[str, Lie]:
    """The sound file cut in each part, in front of its last byte, and behind it."""
    found = {}
    for name, part, end in zip(_PARTS, TRUE.parts(), _ENDS, strict=True):
        raw = "storage" in name and "list" not in name
        inside = f"the file ends inside storage '{'1' if 'last' in name else '0'}'"
        says = inside if raw or "count" in name else _EARLY
        if name == "magic_number":
            says = "not a checkpoint|" + says
        found[f"legacy_cut_in_its_{name}.pt"] = Lie(SOUND[: end - len(part) // 2], says, SOUND)
        found[f"legacy_without_the_last_byte_of_its_{name}.pt"] = Lie(SOUND[: end - 1], says, SOUND)
        if end < len(SOUND):
            after = "ends inside|ends early"
            found[f"legacy_cut_behind_its_{name}.pt"] = Lie(SOUND[:end], after, SOUND)
    return found


_BIG_ENDIAN = "stored big-endian"
_BYTE_ORDER = r"(?s)\A(?!.*big-endian).*(little_endian|byte order)"
_VERSION = "this legacy torch file has an unknown version"

HEADS: dict[str, Lie] = {
    "legacy_magic_number_one_too_large.pt": _lie(
        "not a checkpoint", magic=pickled(0x1950A86A20F9469CFC6D)
    ),
    "legacy_magic_number_text.pt": _lie("not a checkpoint", magic=pickled("1950a86a20f9")),
    "legacy_version_one_too_large.pt": _lie(_VERSION, version=pickled(1002)),
    "legacy_version_zero.pt": _lie(_VERSION, version=pickled(0)),
    "legacy_version_negative.pt": _lie(_VERSION, version=pickled(-1001)),
    "legacy_version_none.pt": _lie(_VERSION, version=pickled(None)),
    "legacy_version_text.pt": _lie(_VERSION, version=pickled("1001")),
    "legacy_version_a_list.pt": _lie(_VERSION, version=pickled([1001])),
    "legacy_version_of_2000_bytes.pt": _lie(_VERSION, version=pickled(1 << 16_000)),
    "legacy_version_of_a_million_digits.pt": _lie(
        "digits", version=b"L" + b"9" * 1_000_000 + b"L\n."
    ),
    "legacy_version_100000_lists_deep.pt": _lie(
        _VERSION, version=b"\x80\x02" + b"]" * _DEEP + b"a" * (_DEEP - 1) + b"."
    ),
    "legacy_big_endian.pt": _system(_BIG_ENDIAN, SYSTEM | {"little_endian": False}),
    "legacy_byte_order_a_number.pt": _system(_BYTE_ORDER, SYSTEM | {"little_endian": 2}),
    "legacy_byte_order_none.pt": _system(_BYTE_ORDER, SYSTEM | {"little_endian": None}),
    "legacy_byte_order_text.pt": _system(_BYTE_ORDER, SYSTEM | {"little_endian": "yes"}),
    "legacy_byte_order_missing.pt": _system(_BYTE_ORDER, _without("little_endian")),
    "legacy_system_record_empty.pt": _system(_BYTE_ORDER, {}),
    "legacy_system_record_a_list.pt": _system(_BYTE_ORDER, [True]),
    "legacy_system_record_none.pt": _system(_BYTE_ORDER, None),
}  # fmt: skip

KEYS: dict[str, Lie] = {
    "legacy_list_without_a_storage.pt": _keys(["0"], torch_loads=True),
    "legacy_list_empty.pt": _keys([], torch_loads=True),
    "legacy_list_with_a_storage_that_is_not_used.pt": _keys(
        ["0", "1", "2"], storages=((12, DATA), (4, _OTHER), (4, _OTHER))
    ),
    "legacy_list_with_a_storage_twice.pt": _keys(
        ["0", "1", "0"], storages=((12, DATA), (4, _OTHER), (12, bytes(48))), torch_loads=True
    ),
    "legacy_list_with_another_storage.pt": _keys(["0", "2"]),
    "legacy_list_of_numbers.pt": _keys([0, 1]),
    "legacy_list_of_bytes.pt": _keys([b"0", b"1"]),
    "legacy_list_of_lists.pt": _keys([["0"], ["1"]]),
    "legacy_list_with_none.pt": _keys(["0", None]),
    "legacy_list_a_tuple.pt": _keys(("0", "1"), torch_loads=True),
    "legacy_list_a_dict.pt": _keys({"0": 1, "1": 2}, torch_loads=True),
    "legacy_list_text.pt": _keys("01", torch_loads=True),
    "legacy_list_a_number.pt": _keys(2),
    "legacy_list_none.pt": _keys(None),
    "legacy_list_of_100000_keys.pt": _keys([*map(str, range(100_000))]),
    "legacy_list_within_itself.pt": _lie(
        "the list of storages does not fit", keys=b"\x80\x02]q\0h\0a."
    ),
    "legacy_list_100000_lists_deep.pt": _lie(
        "the list of storages does not fit",
        keys=b"\x80\x02]" + b"]" * _DEEP + b"a" * _DEEP + b".",
    ),
}

COUNTS: dict[str, Lie] = {
    "legacy_count_one_too_small.pt": _count(11),
    "legacy_count_one_too_large.pt": _count(13),
    "legacy_count_zero.pt": _count(0),
    "legacy_count_negative.pt": _count(-12),
    "legacy_count_largest.pt": _count((1 << 63) - 1),
    "legacy_count_smallest.pt": _count(-(1 << 63)),
    "legacy_count_that_overflows_to_48_bytes.pt": _count(12 + (1 << 62), torch_loads=True),
    "legacy_storages_in_another_order.pt": _lie(
        "storage '0' has the wrong size", storages=((4, _OTHER), (12, DATA))
    ),
    "legacy_storages_missing.pt": _lie("the file ends inside storage '0'", storages=()),
    "legacy_last_storage_missing.pt": _lie(
        "the file ends inside storage '1'", storages=((12, DATA),)
    ),
    "legacy_storage_of_a_terabyte.pt": _lie(
        "the file ends inside storage '0'",
        root=pickled(_weight("0", 1 << 38)),
        storages=((1 << 38, DATA), (4, _OTHER)),
    ),
    "legacy_storage_beyond_any_file.pt": _lie(
        "the file ends inside storage '0'",
        root=pickled(_weight("0", 1 << 62)),
        storages=((1 << 62, DATA), (4, _OTHER)),
    ),
    "legacy_storage_of_another_size_than_its_count.pt": _root(
        _weight("0", 13), "storage '0' has the wrong size"
    ),
    "legacy_storage_of_two_sizes.pt": _root(
        _weight() | {"v": tensor(legacy_storage("0", 6), 0, (6,), (1,))},
        "storage '0' has two sizes",
        torch_loads=True,
    ),
}

_NO_STORAGE = "the pickle refers to something outside it that is no tensor storage"
_KIND = ("storage", torch.FloatStorage, "0", "cpu")


def _view(says: str, view: object, *, torch_loads: bool = False, **placed: Any) -> Lie:  # noqa: ANN401
    """A bias that is a view of the weight's storage; true where it is elements 8 to 12."""
    truth = _weight() | {"v": tensor(legacy_storage("0", 12, ("v", 8, 4)), 0, (4,), (1,))}
    placed = {"offset": 0, "size": (4,), "stride": (1,)} | placed
    told = truth | {"v": tensor(legacy_storage("0", 12, view), **placed)}
    return _lie(
        says, root=pickled(told), truth=Legacy(root=pickled(truth)), torch_loads=torch_loads
    )


VIEWS: dict[str, Lie] = {
    "legacy_view_beyond_its_storage.pt": _view("view 'v' reaches beyond", ("v", 9, 4)),
    "legacy_view_behind_its_storage.pt": _view("view 'v' reaches beyond", ("v", 13, 4)),
    "legacy_view_larger_than_its_storage.pt": _view(
        "view 'v' reaches beyond", ("v", 0, 13), torch_loads=True
    ),
    "legacy_view_of_a_terabyte.pt": _view(
        "view 'v' reaches beyond", ("v", 0, 1 << 38), torch_loads=True
    ),
    "legacy_view_that_overflows.pt": _view("view 'v' reaches beyond", ("v", 1 << 62, 1 << 62)),
    "legacy_view_at_a_negative_place.pt": _view(_NO_STORAGE, ("v", -1, 4)),
    "legacy_view_of_a_negative_size.pt": _view(_NO_STORAGE, ("v", 8, -4)),
    "legacy_view_at_2_to_the_63.pt": _view(_NO_STORAGE, ("v", 1 << 63, 4)),
    "legacy_view_at_a_float.pt": _view(_NO_STORAGE, ("v", 8.0, 4)),
    "legacy_view_at_a_bool.pt": _view(_NO_STORAGE, ("v", True, 4), torch_loads=True),
    "legacy_view_at_text.pt": _view(_NO_STORAGE, ("v", "8", 4)),
    "legacy_view_whose_key_is_a_number.pt": _view(_NO_STORAGE, (7, 8, 4), torch_loads=True),
    "legacy_view_of_two_parts.pt": _view(_NO_STORAGE, ("v", 8)),
    "legacy_view_of_four_parts.pt": _view(_NO_STORAGE, ("v", 8, 4, 0)),
    "legacy_view_that_is_text.pt": _view(_NO_STORAGE, "v84"),
    "legacy_view_that_is_a_dict.pt": _view(_NO_STORAGE, {"v": 8}),
    "legacy_view_smaller_than_its_tensor.pt": _view(
        "tensor 'v' reaches beyond its storage", ("v", 8, 3)
    ),
    "legacy_tensor_that_leaves_its_view.pt": _view(
        "tensor 'v' reaches beyond its storage", ("v", 4, 4), offset=1
    ),
}


def _beside(opcodes: bytes) -> bytes:
    """The object, and beside its tensors what these opcodes make."""
    return pickled(_weight())[:-1] + b"X\1\0\0\0x" + opcodes + b"s."


def _opcodes(says: str, told: bytes, truth: bytes) -> Lie:
    return _lie(says, root=_beside(told), truth=Legacy(root=_beside(truth)))


_SHAPE = "tensor 'w' has an impossible shape"
_BEYOND = "tensor 'w' reaches beyond its storage"
_CLAIMS = r"an item claims \d+ bytes, more than there are"

OBJECTS: dict[str, Lie] = {
    "legacy_numel_negative.pt": _root(_weight("0", -12), _NO_STORAGE),
    "legacy_numel_a_float.pt": _root(_weight("0", 12.0), _NO_STORAGE),
    "legacy_numel_a_bool.pt": _root(
        _weight("0", True), _NO_STORAGE, torch_loads=True  # noqa: FBT003
    ),
    "legacy_numel_2_to_the_63.pt": _root(_weight("0", 1 << 63), _NO_STORAGE),
    "legacy_storage_key_a_number.pt": _root(_weight(0), _NO_STORAGE),
    "legacy_storage_key_none.pt": _root(_weight(None), _NO_STORAGE),
    "legacy_storage_of_no_known_kind.pt": _root(_weight("0", 12, None, dict), _NO_STORAGE),
    "legacy_reference_too_short.pt": _root(
        _weight() | {"x": Pid(("storage", torch.FloatStorage, "0"))}, _NO_STORAGE
    ),
    "legacy_reference_too_long.pt": _root(
        _weight() | {"x": Pid((*_KIND, 12, None, None))}, _NO_STORAGE
    ),
    "legacy_reference_of_another_tag.pt": _root(
        _weight() | {"x": Pid(("tensor", torch.FloatStorage, "0", "cpu", 12, None))}, _NO_STORAGE
    ),
    "legacy_reference_to_a_class_for_a_storage.pt": _root(
        _weight() | {"v": tensor(Pid(("module", dict, "a.py", "class A")))}, "no tensor storage"
    ),
    "legacy_offset_one_too_large.pt": _root(_weight(offset=1), _BEYOND),
    "legacy_offset_negative.pt": _root(_weight(offset=-1), _SHAPE),
    "legacy_stride_one_too_large.pt": _root(_weight(stride=(5, 1)), _BEYOND),
    "legacy_stride_negative.pt": _root(_weight(offset=3, stride=(4, -1)), _SHAPE),
    "legacy_size_negative.pt": _root(_weight(size=(-3, 4)), _SHAPE),
    "legacy_size_a_float.pt": _root(_weight(size=(3.0, 4)), _SHAPE),
    "legacy_sizes_whose_product_is_2_to_the_64.pt": _root(
        _weight(size=(1 << 32, 1 << 32), stride=(0, 0)),
        "tensor 'w' claims more than any memory holds",
    ),
    "legacy_strides_fewer_than_sizes.pt": _root(_weight(stride=(4,)), _SHAPE),
    "legacy_text_claims_a_gigabyte.pt": _opcodes(
        _CLAIMS, b"X\0\0\0\x40abc", b"X\3\0\0\0abc"
    ),
    "legacy_bytes_claim_2_to_the_64.pt": _opcodes(
        _CLAIMS, b"\x8e" + b"\xff" * 8 + b"abc", b"\x8e\3" + bytes(7) + b"abc"
    ),
    "legacy_integer_claims_a_gigabyte.pt": _opcodes(
        _CLAIMS, b"\x8b\0\0\0\x40abc", b"\x8b\3\0\0\0abc"
    ),
    "legacy_frame_claims_a_terabyte.pt": _opcodes(
        _CLAIMS, b"\x95" + struct.pack("<Q", 1 << 40) + b"NN0", b"\x95\3" + bytes(7) + b"NN0"
    ),
    "legacy_text_that_swallows_the_rest.pt": _opcodes(
        "ends early|no tensor storage|the pickle cannot be read|ends inside",
        b"X" + struct.pack("<I", len(SOUND) - _ENDS[3]) + b"abc", b"X\3\0\0\0abc",
    ),
    "legacy_memo_never_written.pt": _opcodes(
        "memo 4294967295 is read before", b"j\xff\xff\xff\xff", b"N"
    ),
    "legacy_unknown_opcode.pt": _opcodes(r"opcode b'\\xff' is unknown", b"\xff", b"N"),
    "legacy_line_of_a_million_digits.pt": _opcodes(
        "digits", b"L" + b"9" * 1_000_000 + b"L\n", b"L9L\n"
    ),
    "legacy_protocol_6.pt": _lie(
        "protocol 6 is unknown", root=b"\x80\6" + TRUE.root[2:], torch_loads=True
    ),
}  # fmt: skip

LIES = _truncated() | HEADS | KEYS | COUNTS | VIEWS | OBJECTS
FILES = corpus(LIES)

#: What is no defect, although no PyTorch writes it.
HARMLESS: dict[str, bytes] = {
    "bytes behind the end": SOUND + b"more",
    "storages in another order": b"".join(
        replace(TRUE, keys=pickled(["1", "0"]), storages=TRUE.storages[::-1]).parts()
    ),
    "a view": VIEWS["legacy_view_beyond_its_storage.pt"].truth,
    "other type sizes": b"".join(
        replace(TRUE, system=pickled(SYSTEM | {"type_sizes": {"long": 8}})).parts()
    ),
    "pickles of several protocols": b"".join(
        replace(TRUE, version=b"I1001\n.", keys=b"(V0\nV1\nl.").parts()
    ),
}
