"""Changes the members of zip archives."""

from __future__ import annotations

import zipfile
from pathlib import Path


def flip(path: Path, member: str, place: int = -1) -> None:
    """Change one bit of a member's bytes; `place` counts from its beginning, or its end."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(f"/{member}"))
        info = archive.getinfo(name)
    raw = bytearray(path.read_bytes())
    sizes = raw[info.header_offset + 26 : info.header_offset + 30]
    start = (
        info.header_offset + 30 + sum(int.from_bytes(sizes[i : i + 2], "little") for i in (0, 2))
    )
    raw[start + place % info.file_size] ^= 1
    path.write_bytes(raw)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() == name


def zip_members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def put_together(
    path: Path,
    members: dict[str, bytes] | list[tuple[str, bytes]],
    method: int = zipfile.ZIP_STORED,
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return path


def edited(path: Path, old: bytes, new: bytes, member: str = "data.pkl") -> Path:
    """Exchange bytes inside a member, which must be there."""
    members = zip_members(path)
    (name,) = (name for name in members if name.endswith(member))
    assert old in members[name]
    members[name] = members[name].replace(old, new)
    return put_together(path, members)
