"""Writes what is laid out: a file, or the files of a folder, then puts it in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from wncli.fill.new_files import New, new_files
from wncli.layout.shares import Share, divide, is_whole
from wncli.notes import Note
from wncli.storage.replace_file import unwritable
from wncli.storage.signals import unfinished
from wncli.team import ALONE, Json, Team, pack_note, unpack_note

if TYPE_CHECKING:
    from wncli.checkpoint.output import Output
    from wncli.fill.fill import Filled
    from wncli.layout.files import Outputs
    from wncli.parallel import Progress
    from wncli.plan.destination import Target
    from wncli.storage.source import Sources


class Written(NamedTuple):
    """What writing showed: notes of the data, and how many weights were verified, if any."""

    notes: tuple[Note, ...]
    verified: int | None


def make_parent(target: Target) -> None:
    """Make the directory that the output is to stand in.

    Raises:
        FileError: the system does not let it be made.
    """
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(target.path.parent, error) from None


def write(  # noqa: PLR0913 - what, and how
    outputs: Outputs,
    sources: Sources,
    progress: Progress | None,
    *,
    jobs: int | None,
    force: bool,
    verify_against: Output | None = None,
    team: Team = ALONE,
) -> Written:
    """Write everything, close the sources, then put it in its place.

    What is there already is replaced only with `force`.

    On `jobs` threads at most, of each rank of `team`. With `verify_against`, what the files are
    laid out for, all is read back before it is put there.

    Raises:
        WnError: refused; nothing has been written.
    """
    shares = divide([layout for _, layout in outputs.files], team.size)
    nbytes = outputs.nbytes
    if team.size > 1:
        nbytes = sum(piece.nbytes for ps in shares[team.rank].values() for piece in ps)
    total = nbytes * (2 if verify_against else 1)

    def report(count: int) -> None:
        team.look()
        if progress:
            progress(count, total)

    with unfinished, new_files(outputs, team, force=force) as new:
        notes = _fill(outputs, shares, sources, new, report, jobs, team)
        verified = None
        if verify_against:
            from wncli.analysis.verify import verify

            shown = str(outputs.target.path)
            verified = verify(verify_against, sources, new.path, shown, notes, report, jobs, team)
        for source in sources:  # Windows replaces nothing that is open
            source.close()
        team.wait()
        return Written(notes, verified)


def _fill(  # noqa: PLR0913, PLR0917 - what, from where to where, and who does it
    outputs: Outputs,
    shares: Sequence[Share],
    sources: Sources,
    new: New,
    report: Callable[[int], None],
    jobs: int | None,
    team: Team,
) -> tuple[Note, ...]:
    """Fill this rank's share of the files, and those that are divided with the others'.

    Returns:
        What the data showed, on all ranks.
    """
    from wncli.fill.fill import cloned, fill, seal

    notes: dict[int, list[Note]] = {}
    parts: dict[int, Filled] = {}
    for number, pieces in shares[team.rank].items():
        name, layout = outputs.files[number]
        with new.open(name) as sink:
            done = is_whole(layout, pieces)
            if not (done and cloned(layout, sources, sink)):
                filled = fill(layout, pieces, sources, sink, report, jobs)
                if done:
                    notes[number] = seal(layout, [filled], sources, sink)
                else:
                    parts[number] = filled
            if team.is_spread:
                sink.flush()
    gathered = team.gather(parts, _pack_parts, _unpack_parts)
    if team.rank == 0:
        for number, (name, layout) in enumerate(outputs.files):
            if not any(is_whole(layout, share.get(number, ())) for share in shares):
                found = [one[number] for one in gathered if number in one]
                with new.open(name) as sink:
                    notes[number] = seal(layout, found, sources, sink)
                    if team.is_spread:
                        sink.flush()
        new.finish()
    # From here on all of it is there, for every rank that verifies it.
    every = team.gather(notes, _pack_notes, _unpack_notes)
    notes = {number: found for one in every for number, found in one.items()}
    return tuple(note for number in sorted(notes) for note in notes[number])


def _pack_parts(parts: dict[int, Filled]) -> Json:
    return [[number, filled.pack()] for number, filled in parts.items()]


def _unpack_parts(packed: Json) -> dict[int, Filled]:
    from wncli.fill.fill import Filled

    return {number: Filled.unpack(filled) for number, filled in packed}


def _pack_notes(notes: dict[int, list[Note]]) -> Json:
    return [[number, [pack_note(note) for note in found]] for number, found in notes.items()]


def _unpack_notes(packed: Json) -> dict[int, list[Note]]:
    return {number: [unpack_note(note) for note in found] for number, found in packed}
