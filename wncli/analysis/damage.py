"""Finds what does not have the checksum recorded for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from wncli.formats.torch.archive import archive_of
from wncli.storage.source import Source, Sources, Verified
from wncli.team import Team, run_shared


def damaged_members(sources: Sources, jobs: int | None, team: Team) -> list[list[str]]:
    """Return the names of what is damaged in each file: members of zips, items; none else.

    Reads all of them, on `jobs` threads of each rank of `team`. A source that compares checksums by
    itself refuses these no more.

    Raises:
        FormatError: a file is damaged so that its members cannot be told.
        FileError: the system does not let it be read.
    """
    placed = [one for file, source in enumerate(sources) for one in _all_of(file, source)]
    damaged = run_shared(
        team, lambda one, _: one.is_damaged(), placed, sizes=[one.nbytes for one in placed],
        jobs=jobs, progress=lambda _: None,
    )  # fmt: skip
    found: list[dict[str, None]] = [{} for _ in sources]  # a tensor can have several items
    for one, is_bad in zip(placed, damaged, strict=True):
        if is_bad:
            one.excuse()
            found[one.file][one.name] = None
    return [list(names) for names in found]


class _Placed(NamedTuple):
    """Something in the file of this number, and what compares it, and then refuses it no more."""

    file: int
    name: str
    nbytes: int
    is_damaged: Callable[[], bool]
    excuse: Callable[[], None]


def _all_of(file: int, source: Source) -> Iterator[_Placed]:
    if isinstance(source, Verified):
        for number, (name, nbytes) in enumerate(source.checked()):
            compare, excuse = partial(source.is_damaged, number), partial(source.excuse, number)
            yield _Placed(file, name, nbytes, compare, excuse)
        return
    archive = archive_of(source)
    if archive:
        for name, member in archive.members.items():
            compare = partial(archive.is_damaged, member)
            yield _Placed(file, name, member.packed, compare, lambda: None)
