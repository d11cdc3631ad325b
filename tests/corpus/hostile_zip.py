"""Torch zips that break a rule of the archive; `hostile_zip_pickles.py` has those of its pickle."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

from tests.corpus.hostile_zip_pickles import LIES as PICKLES
from tests.support.lying_zips import (
    DATA,
    END,
    MEMBERS,
    SOUND,
    Ends,
    Lie,
    Member,
    Records,
    archive,
    changed,
    corpus,
    deflated,
    pickled,
    raw_zip64,
    record,
    storage,
    tensor,
    without,
    zip_of,
)

_BIG = 0xFFFFFFFF
_PLAIN = zip_of(MEMBERS, Ends(is_zip64=False))
_COUNT = len(MEMBERS)
#: Where the central directory begins, and how many bytes it takes.
_START, _SIZE = struct.unpack_from("<2Q", SOUND[SOUND.index(b"PK\x06\x06") :], 40)[::-1]
#: Where the first storage's local header and bytes are.
_HEADER = SOUND.index(b"m/data/0") - 30
_BYTES = SOUND.index(DATA)


def _ends(says: str, *, torch_loads: bool = False, truth: Ends | None = None, **lies: Any) -> Lie:  # noqa: ANN401
    """The sound members, and records at the end that say something else."""
    ends = Ends(**lies)
    sound = truth or Ends(is_zip64=ends.is_zip64)
    return Lie(zip_of(MEMBERS, ends), says, zip_of(MEMBERS, sound), torch_loads)


def _both(name: str, says: str, *, torch_loads: bool = False, **lies: int) -> dict[str, Lie]:
    """A lie of the end record, and the same one of the zip64 end record."""
    narrow = {
        field: value & (0xFFFF if "count" in field else _BIG) for field, value in lies.items()
    }
    return {
        f"{name}.pt": _ends(says, end=narrow, is_zip64=False, torch_loads=torch_loads),
        f"zip64_{name}.pt": _ends(says, end64=lies, torch_loads=torch_loads),
    }


def _lie(
    says: str, told: list[Member], truth: list[Member] | None = None, *, torch_loads: bool = False
) -> Lie:
    return Lie(zip_of(told), says, zip_of(truth) if truth else SOUND, torch_loads)


def _member(
    says: str,
    *,
    torch_loads: bool = False,
    truth: Records | None = None,
    **changes: Any,  # noqa: ANN401
) -> Lie:
    """The first storage with other records, and with others again where those are the truth."""
    sound = changed(MEMBERS, "m/data/0", **truth) if truth else None
    return _lie(says, changed(MEMBERS, "m/data/0", **changes), sound, torch_loads=torch_loads)


def _content(name: str, data: bytes, says: str, *, torch_loads: bool = False) -> Lie:
    """A member that holds something else."""
    return _lie(says, changed(MEMBERS, name, data=data), torch_loads=torch_loads)


def _extra(name: bytes, says: str, *, sound: bytes = b"m/x", torch_loads: bool = False) -> Lie:
    """One more member, whose name is the defect; under the name `sound` it is none."""
    told, truth = ([*MEMBERS, Member(called, b"x")] for called in (name, sound))
    return _lie(says, told, truth, torch_loads=torch_loads)


_DAMAGED = "the zip archive is damaged: "
_NO_END = r"the zip archive: its end record is missing"
_EARLY = _DAMAGED + "the central directory ends early"
_LONG = _DAMAGED + "the central directory has a wrong length"
_ENTRY = _DAMAGED + "an entry of the central directory is broken"
_DIRECTORY = "the file ends inside the zip's central directory"
_DISKS = "disk|several parts"

TRUNCATED: dict[str, Lie] = {
    f"truncated_{where}.pt": Lie(SOUND[:place], _NO_END, SOUND)
    for where, place in {
        "in_the_first_local_header": 20,
        "behind_the_first_local_header": 40,
        "in_the_pickle": 80,
        "before_a_storage": _HEADER,
        "in_the_local_header_of_a_storage": _HEADER + 15,
        "in_a_storage": _BYTES + 20,
        "behind_a_storage": _BYTES + len(DATA),
        "before_the_directory": _START,
        "in_the_directory": _START + _SIZE // 2,
        "behind_the_directory": _START + _SIZE,
        "in_the_zip64_end_record": _START + _SIZE + 30,
        "behind_the_zip64_end_record": _START + _SIZE + 56,
        "in_the_locator": _START + _SIZE + 66,
        "before_the_end_record": len(SOUND) - 22,
        "in_the_end_record": len(SOUND) - 11,
        "by_one_byte": len(SOUND) - 1,
    }.items()
}

ENDS: dict[str, Lie] = {
    "first_bytes_missing.pt": Lie(SOUND[100:], "first 100 bytes are missing", SOUND),
    "behind_a_script.pt": Lie(b"#!/bin/sh\n" + SOUND, "behind 10 bytes", SOUND),
    "behind_another_archive.pt": Lie(
        zip_of([Member(b"a/b", b"x")]) + SOUND, "a file of several zip archives", SOUND
    ),
    "behind_it_more_than_a_comment_can_be.pt": Lie(SOUND + bytes(70_000), _NO_END, SOUND),
    "no_members.pt": Lie(zip_of([]), "not a checkpoint", SOUND),
    "no_members_and_no_zip64_record.pt": Lie(
        zip_of([], Ends(is_zip64=False)), "not a checkpoint", _PLAIN
    ),
    "comment_that_begins_as_an_end_record.pt": _ends(
        f"{_DIRECTORY}|{_DISKS}", comment=END + b"x" * 30, truth=Ends(comment=b"x" * 34)
    ),
    "comment_that_is_an_end_record.pt": _ends(
        "not in front of its end record", comment=record(END, {}, {}), truth=Ends(comment=b"x" * 22)
    ),
    **_both("count_of_members_zero", _LONG, count=0, count_here=0),
    **_both("count_of_members_one_too_small", _LONG, count=_COUNT - 1, count_here=_COUNT - 1),
    **_both("count_of_members_one_too_large", _EARLY, count=_COUNT + 1, count_here=_COUNT + 1),
    **_both("count_of_members_largest", _EARLY, count=(1 << 64) - 1, count_here=(1 << 64) - 1),
    **_both("directory_size_zero", _EARLY, size=0),
    **_both("directory_size_one_too_small", _EARLY, size=_SIZE - 1),
    **_both("directory_size_one_too_large", _LONG, size=_SIZE + 1, torch_loads=True),
    **_both("directory_size_largest", _DIRECTORY, size=(1 << 64) - 1),
    **_both("directory_at_the_start", _ENTRY, offset=0),
    **_both("directory_one_byte_early", _ENTRY, offset=_START - 1),
    **_both("directory_one_byte_late", _ENTRY, offset=_START + 1),
    **_both("directory_at_the_end", _DIRECTORY, offset=len(SOUND)),
    **_both("directory_beyond_the_file", _DIRECTORY, offset=(1 << 64) - 2),
    **_both("archive_of_several_disks", _DISKS, disk=1),
    **_both("directory_on_another_disk", _DISKS, directory_disk=1),
    "zip64_locator_of_several_disks.pt": _ends(_DISKS, locator={"disks": 2}),
    "zip64_end_record_at_the_start.pt": _ends(
        _DAMAGED + "the zip64 end record is missing", locator={"end64": 0}, torch_loads=True
    ),
    **{
        f"zip64_end_record_{where}.pt": _ends(
            "the file ends inside the zip64 end record", locator={"end64": place}
        )
        for where, place in {
            "that_the_file_cuts_off": len(SOUND) - 10,
            "at_the_end": len(SOUND),
            "beyond_the_file": 1 << 40,
            "at_2_to_the_63": 1 << 63,
            "at_2_to_the_64": (1 << 64) - 1,
        }.items()
    },
}  # fmt: skip

_WIDE: Records = {"central": {"nbytes": _BIG, "packed": _BIG}}
_TRUE_WIDE: Records = {**_WIDE, "central_extra": raw_zip64(48, 48)}
_FAR: Records = {"central": {"header": _BIG}}
_TRUE_FAR: Records = {**_FAR, "central_extra": raw_zip64(_HEADER)}

_PACKED = "member 'm/data/0' is compressed or encrypted"
_WRONG_SIZE = "storage data/0 has the wrong size"
_OVERLAP = "overlap|inside another"
_ELSEWHERE = "member 'm/data/0' is not where the directory says"
_BEYOND = "the file ends inside member m/data/0"
_NO_WIDE = "member 'm/data/0' has no zip64 sizes"

ENTRIES: dict[str, Lie] = {
    "entry_with_a_name_longer_than_the_directory.pt": _member(_EARLY, central={"name_size": 65535}),
    "entry_with_extra_longer_than_the_directory.pt": _member(_EARLY, central={"extra_size": 65535}),
    "entry_with_a_comment_beyond_the_directory.pt": _member(
        _EARLY, central={"comment_size": 65535}
    ),
    "entry_with_half_its_name.pt": _member(_ENTRY, central={"name_size": 4}),
    "entry_of_a_deflated_storage.pt": _member(
        _PACKED, data=bytes(48), stored=deflated(bytes(48)), truth={"data": bytes(48)},
        torch_loads=True,
    ),
    "entry_of_a_deflated_pickle.pt": _lie(
        "member 'm/data.pkl' is compressed",
        changed(MEMBERS, "m/data.pkl", stored=deflated(MEMBERS[0].data)),
        torch_loads=True,
    ),
    "entry_that_calls_a_stored_storage_deflated.pt": _member(
        _PACKED, central={"method": 8}, torch_loads=True
    ),
    "entry_of_an_unknown_method.pt": _member(_PACKED, central={"method": 99}),
    "entry_of_an_encrypted_storage.pt": _member(
        _PACKED, central={"flags": 0x801}, local={"flags": 0x801}
    ),
    "entry_of_an_encrypted_storage_that_only_the_directory_tells.pt": _member(
        _PACKED, central={"flags": 0x801}
    ),
    "entry_packed_to_less_than_it_holds.pt": _member(_PACKED, central={"packed": 40}),
    "entry_packed_to_more_than_it_holds.pt": _member(_PACKED, central={"packed": 52}),
    "entry_smaller_than_the_storage.pt": _member(
        _WRONG_SIZE, central={"packed": 44, "nbytes": 44}
    ),
    "entry_larger_than_the_storage.pt": _member(
        f"{_WRONG_SIZE}|{_OVERLAP}", central={"packed": 52, "nbytes": 52}
    ),
    "entry_of_an_empty_storage.pt": _member(_WRONG_SIZE, central={"packed": 0, "nbytes": 0}),
    "header_beyond_the_file.pt": _member(_BEYOND, central={"header": len(SOUND)}),
    "header_at_4_gigabytes.pt": _member(_BEYOND, central={"header": _BIG - 1}),
    "header_of_another_member.pt": _member(_ELSEWHERE, central={"header": 0}, torch_loads=True),
    "header_in_the_directory.pt": _member(_ELSEWHERE, central={"header": _START}),
    "header_one_byte_early.pt": _member(
        f"{_BEYOND}|{_ELSEWHERE}|{_OVERLAP}", central={"header": _HEADER - 1}
    ),
    "header_inside_its_own_data.pt": _member(
        f"{_BEYOND}|{_ELSEWHERE}", central={"header": _BYTES + 1}
    ),
    "zip64_field_missing.pt": _member(_NO_WIDE, **_WIDE, truth=_TRUE_WIDE),
    "zip64_field_empty.pt": _member(_NO_WIDE, **_WIDE, central_extra=raw_zip64(), truth=_TRUE_WIDE),
    "zip64_field_of_one_size.pt": _member(
        _NO_WIDE, **_WIDE, central_extra=raw_zip64(48), truth=_TRUE_WIDE
    ),
    "zip64_field_cut_off.pt": _member(
        _NO_WIDE, **_WIDE, central_extra=raw_zip64(48, 48)[:-1], truth=_TRUE_WIDE
    ),
    "zip64_field_that_claims_more_than_there_is.pt": _member(
        _NO_WIDE, **_WIDE, central_extra=raw_zip64(48, size=16), truth=_TRUE_WIDE
    ),
    "zip64_field_of_another_kind.pt": _member(
        _NO_WIDE, **_WIDE, central_extra=raw_zip64(48, 48, kind=2), truth=_TRUE_WIDE
    ),
    "zip64_sizes_smaller_than_the_storage.pt": _member(
        _WRONG_SIZE, **_WIDE, central_extra=raw_zip64(44, 44), truth=_TRUE_WIDE
    ),
    "zip64_sizes_larger_than_the_storage.pt": _member(
        f"{_WRONG_SIZE}|{_OVERLAP}", **_WIDE, central_extra=raw_zip64(52, 52), truth=_TRUE_WIDE
    ),
    "zip64_sizes_that_disagree.pt": _member(
        _PACKED, **_WIDE, central_extra=raw_zip64(48, 52), truth=_TRUE_WIDE
    ),
    "zip64_sizes_beyond_any_file.pt": _member(
        "ends inside storage data/0", **_WIDE, central_extra=raw_zip64(*[(1 << 64) - 1] * 2),
        truth=_TRUE_WIDE,
    ),
    "zip64_header_beyond_the_file.pt": _member(
        _BEYOND, **_FAR, central_extra=raw_zip64(len(SOUND)), truth=_TRUE_FAR
    ),
    "zip64_header_at_2_to_the_64.pt": _member(
        _BEYOND, **_FAR, central_extra=raw_zip64((1 << 64) - 1), truth=_TRUE_FAR
    ),
    "zip64_header_missing.pt": _member(_NO_WIDE, **_FAR, truth=_TRUE_FAR),
    "local_header_of_another_name.pt": _member(
        _ELSEWHERE, local_name=b"m/data/7", torch_loads=True
    ),
    "local_header_of_a_shorter_name.pt": _member(_ELSEWHERE, local_name=b"m/da", torch_loads=True),
    "local_header_with_a_name_beyond_the_file.pt": _member(_BEYOND, local={"name_size": 65535}),
    "local_header_with_extra_beyond_the_file.pt": _member(
        "the file ends inside storage data/0", local={"extra_size": 65535}
    ),
}  # fmt: skip


def _overlapping() -> Lie:
    """A storage that holds the whole other member; apart, both are sound.

    Of n members each within the one before, a file of n kilobytes would unfold to n² of them.
    """
    inner = Member(b"m/data/1", DATA[:16])
    raw = inner.head() + inner.data
    outer = raw.ljust(-len(raw) % 4 + len(raw), b"\0")
    count = len(outer) // 4
    weight = tensor(storage(numel=count), 0, (count,), (1,))
    other = tensor(storage("1", 4), 0, (4,), (1,))
    members = archive(pickled({"w": weight, "b": other}), outer)
    header = zip_of(members).index(b"m/data/1") - 30
    told = changed(members, "m/data/1", central={"header": header})
    return _lie(_OVERLAP, told, members, torch_loads=True)


_OUTSIDE = "outside the archive's folder"
_TWICE = "stands there twice"
_ZEROS = Member(b"m/data/0", bytes(48))
_BYTE_ORDER = r"(?s)\A(?!.*big-endian).*byte ?order"
_VERSION = "version"

MEMBERSHIP: dict[str, Lie] = {
    "member_inside_another.pt": _overlapping(),
    "storage_that_runs_into_the_next_member.pt": _member(
        _OVERLAP, local={"extra_size": 4}, torch_loads=True
    ),
    "storage_twice.pt": _lie(_TWICE, [*MEMBERS, MEMBERS[4]], torch_loads=True),
    "storage_twice_and_different.pt": _lie(_TWICE, [*MEMBERS, _ZEROS], torch_loads=True),
    "pickle_twice.pt": _lie(_TWICE, [*MEMBERS, MEMBERS[0]], torch_loads=True),
    "version_twice.pt": _lie(_TWICE, [*MEMBERS, MEMBERS[-1]], torch_loads=True),
    "storage_twice_but_for_case.pt": _lie(
        f"{_TWICE}|case", [*MEMBERS, replace(_ZEROS, name=b"m/DATA/0")], torch_loads=True
    ),
    "member_without_a_folder.pt": _extra(b"x", _OUTSIDE),
    "member_in_another_folder.pt": _extra(b"n/x", _OUTSIDE),
    "member_in_the_folder_in_capitals.pt": _extra(b"M/x", _OUTSIDE),
    "member_above_the_folder.pt": _extra(b"../m/x", _OUTSIDE),
    "member_of_an_absolute_name.pt": _extra(b"/m/x", _OUTSIDE),
    "member_of_a_windows_path.pt": _extra(b"C:\\m\\x", _OUTSIDE),
    "member_with_a_backslash.pt": _extra(b"m\\x", _OUTSIDE),
    "member_called_as_the_folder.pt": _extra(b"m", _OUTSIDE),
    "member_without_a_name.pt": _extra(b"", _OUTSIDE),
    "member_with_nul_in_its_name.pt": _extra(b"m/data/0\0", "NUL|name", torch_loads=True),
    "member_whose_name_is_no_utf8.pt": _extra(b"m/\xff", "UTF-8|name"),
    "folder_with_nul_in_its_name.pt": _lie(
        "NUL|name", [replace(member, name=b"\0" + member.name) for member in MEMBERS]
    ),
    "no_folder.pt": _lie(
        "not a torch checkpoint",
        [replace(member, name=member.name[2:].replace(b"/", b"_")) for member in MEMBERS],
    ),
    "two_folders_deep.pt": _lie(
        "not a torch checkpoint", [replace(member, name=b"m/" + member.name) for member in MEMBERS]
    ),
    "no_pickle.pt": _lie("not a torch checkpoint", without(MEMBERS, "m/data.pkl")),
    "storage_missing.pt": _lie("storage data/0 is missing", without(MEMBERS, "m/data/0")),
    "storage_smaller_than_the_pickle_says.pt": _content("m/data/0", DATA[:44], _WRONG_SIZE),
    "storage_larger_than_the_pickle_says.pt": _content("m/data/0", DATA + DATA[:4], _WRONG_SIZE),
    "storage_empty.pt": _content("m/data/0", b"", _WRONG_SIZE),
    "byteorder_big.pt": _content("m/byteorder", b"big", "stored big-endian", torch_loads=True),
    "byteorder_of_no_order.pt": _content("m/byteorder", b"middle", _BYTE_ORDER),
    "byteorder_empty.pt": _content("m/byteorder", b"", _BYTE_ORDER),
    "byteorder_with_a_line_break.pt": _content("m/byteorder", b"little\n", _BYTE_ORDER),
    "version_missing.pt": _lie(_VERSION, without(MEMBERS, "m/version")),
    "version_empty.pt": _content("m/version", b"", _VERSION),
    "version_of_no_number.pt": _content("m/version", b"three", _VERSION),
    "version_zero.pt": _content("m/version", b"0\n", _VERSION),
    "version_that_no_torch_has.pt": _content("m/version", b"4096\n", _VERSION),
    "torch_package.pt": _lie(
        "torch.package archive", [*MEMBERS, Member(b"m/.data/extern_modules", b"")],
        torch_loads=True,
    ),
    "torchscript_before_1_4.pt": _lie(
        "TorchScript archive as PyTorch wrote it before",
        [*without(MEMBERS, "m/data.pkl"), Member(b"m/model.json", b"{}")],
    ),
    "torchscript_without_a_module.pt": _lie(
        "the content of this TorchScript archive is no module",
        [*MEMBERS, Member(b"m/constants.pkl", b"\x80\x02).")],
    ),
    "torchscript_without_a_pickle.pt": _lie(
        "this TorchScript archive has no module",
        [*without(MEMBERS, "m/data.pkl"), Member(b"m/code/__torch__.py", b"")],
    ),
    "torch_export.pt": _lie(
        "not a torch checkpoint",
        [Member(b"m/archive_format", b"pt2"), Member(b"m/models/model.json", b"{}"),
         Member(b"m/data/weights/weight_0", DATA)],
    ),
}  # fmt: skip

LIES = TRUNCATED | ENDS | ENTRIES | MEMBERSHIP | PICKLES
FILES = corpus(LIES)

#: What zips may have although PyTorch does not write it: it changes nothing that is read.
HARMLESS: dict[str, bytes] = {
    "no zip64 record": _PLAIN,
    "a comment": zip_of(MEMBERS, Ends(comment=b"made by hand")),
    "a comment that claims to be longer": zip_of(MEMBERS, Ends(end={"comment_size": 5})),
    "bytes behind the end": SOUND + b"more",
    "an end record that leaves the count to the zip64 record": zip_of(
        MEMBERS, Ends(end={"count": 0xFFFF, "count_here": 0xFFFF, "size": _BIG, "offset": _BIG})
    ),
    "zip64 sizes": zip_of(changed(MEMBERS, "m/data/0", **_TRUE_WIDE)),
    "a zip64 header": zip_of(changed(MEMBERS, "m/data/0", **_TRUE_FAR)),
    "zip64 sizes that nothing asks for": zip_of(
        changed(MEMBERS, "m/data/0", central_extra=raw_zip64(7, 7))
    ),
    "an extra field cut off": zip_of(changed(MEMBERS, "m/data/0", central_extra=b"abc")),
    "other sizes in a local header": zip_of(
        changed(MEMBERS, "m/data/0", local={"nbytes": 7, "packed": 7})
    ),
    "another method in a local header": zip_of(
        changed(MEMBERS, "m/data/0", local={"method": 8})
    ),
    "a path in a name": zip_of([*MEMBERS, Member(b"m/../../escaped", b"x")]),
    "a folder without a name": zip_of([replace(m, name=m.name[1:]) for m in MEMBERS]),
    "a folder above": zip_of([replace(m, name=b".." + m.name[1:]) for m in MEMBERS]),
    "an entry for the folder": zip_of([Member(b"m/", b""), *MEMBERS]),
    "no byteorder": zip_of(without(MEMBERS, "m/byteorder")),
}  # fmt: skip
