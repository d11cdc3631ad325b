"""Finds the members of zips that do not have the checksums recorded for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wncli.formats.torch.archive import archive_of
from wncli.parallel import Advance
from wncli.team import Team, run_shared

if TYPE_CHECKING:
    from wncli.formats.torch.zip_archive import ZipArchive
    from wncli.storage.source import Sources


def damaged_members(sources: Sources, jobs: int | None, team: Team) -> list[list[str]]:
    """Return the names of the damaged members of each file; none of what is no zip.

    Reads all of them, on `jobs` threads of each rank of `team`.

    Raises:
        FormatError: a file is damaged so that its members cannot be told.
        FileError: the system does not let it be read.
    """
    members: list[_Placed] = []
    for file, source in enumerate(sources):
        archive = archive_of(source)
        if archive:
            members += [_Placed(file, archive, name) for name in archive.members]
    damaged = run_shared(
        team, _is_damaged, members, sizes=[member.nbytes for member in members], jobs=jobs,
        progress=lambda _: None,
    )  # fmt: skip
    found: list[list[str]] = [[] for _ in sources]
    for member, is_bad in zip(members, damaged, strict=True):
        if is_bad:
            found[member.file].append(member.name)
    return found


class _Placed(NamedTuple):
    """A member, by its name, of an archive, which is the file of this number."""

    file: int
    archive: ZipArchive
    name: str

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the file."""
        return self.archive.members[self.name].packed


def _is_damaged(member: _Placed, _: Advance) -> bool:
    return member.archive.is_damaged(member.archive.members[member.name])
