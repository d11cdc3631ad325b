"""From a plan to its output: decide where to, guard, lay out, fill, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, TypedDict

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.errors import FileError, UsageError
from wncli.formats.registry import OFFERED, FormatName
from wncli.hints import Text, inspecting, path_word
from wncli.plan.actions import Plan
from wncli.report import NothingToDo, Report, make_report
from wncli.storage.addresses import Address, Place, place_of, refuse_address, traffic_of
from wncli.storage.source import FileSource, Folder, stamps
from wncli.team import ALONE, Team, agree

if TYPE_CHECKING:
    from wncli.parallel import Progress
    from wncli.storage.source import Sources

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How an output is written, the same for all commands that write one.

    Attributes:
        format: of the output; otherwise its suffix says.
        max_shard_size: bytes, or `"5GB"`: write a folder of shards and their index.
        force: replace an existing output.
        dry_run: write nothing.
        verify: read the output back before it takes its place, and compare the effective weights.
        make_folder: make the directory that the output is to be in.
        jobs: threads at most; None for as many as there are processors.
        progress: called while writing.
        team: the ranks that do it together, each of which calls the function alike; see
            `wncli.pytorch.ranks`. Without one, this process alone.
    """

    format: FormatName | None = None
    max_shard_size: int | str | None = None
    force: bool = False
    dry_run: bool = False
    verify: bool = False
    make_folder: bool = False
    jobs: int | None = None
    progress: Progress | None = None
    team: Team = ALONE


class WriteKeywords(TypedDict, total=False):
    """`WriteOptions` as keyword arguments."""

    format: FormatName | None
    max_shard_size: int | str | None
    force: bool
    dry_run: bool
    verify: bool
    make_folder: bool
    jobs: int | None
    progress: Progress | None
    team: Team


def write_checkpoint(  # noqa: PLR0913, PLR0917 - what to write, from where, and how
    make_plan: Callable[[Checkpoint], Plan],
    opening: AbstractContextManager[tuple[Checkpoint, Sources]],
    place: Place,
    output: AnyPath,
    options: WriteOptions,
    more: Sources = (),
) -> Report:
    """Decide where to, plan, guard, lay out, write, report.

    Args:
        make_plan: says what becomes of the checkpoint.
        opening: gives it, and what its tensors are read from.
        place: where it is, or what it is called.
        output: where to write.
        options: how.
        more: files that the plan reads beside the checkpoint's.
    """
    from wncli.analysis.values import read_values
    from wncli.fill.write import make_parent, write
    from wncli.layout.files import lay_out
    from wncli.plan import guards
    from wncli.plan.destination import decide_target, parse_size, suffix_notes
    from wncli.plan.lower import lower_plan

    start = monotonic()
    check_choice("format", options.format, (None, *OFFERED))
    check_jobs(options.jobs)
    size = options.max_shard_size
    limit = parse_size(str(size)) if size is not None else None
    _refuse_output(output)
    with opening as (opened, sources):
        folder = _folder_of(place, opened, sources)
        from_folder = folder is not None
        target = decide_target(
            os.fspath(output),
            opened,
            options.format,
            limit,
            from_folder=from_folder,
            is_named=options.make_folder,
        )
        guards.refuse_destination(
            target,
            place if isinstance(place, Path) else None,
            Path(output),
            force=options.force or options.dry_run,
            make_folder=options.make_folder,
            from_folder=from_folder,
        )
        guards.refuse_among_parts(target, opened)
        plan = make_plan(opened)
        guards.refuse_without_state_dict(plan, target)
        if guards.has_nothing_to_do(plan, target):
            raise _nothing(plan)
        guards.refuse(plan, target, verify=options.verify)
        lowered = lower_plan(plan)
        guards.refuse_same_names(lowered)
        outputs = lay_out(lowered, target, folder)
        notes = (*suffix_notes(target), *outputs.notes)
        if options.dry_run and not options.force:
            notes += guards.existing_notes(target)
        verified = None
        # Of large files of many tensors, what was read takes as much memory as all that follows.
        small = replace(opened, tree=None)
        plan, lowered = plan._replace(checkpoint=small), lowered._replace(checkpoint=small)
        del opened
        if not options.dry_run:
            every = (*sources, *more)
            agree(options.team, stamps(every), outputs.parts())
            if options.make_folder:
                make_parent(target)
            written = write(
                outputs,
                every,
                options.progress,
                jobs=options.jobs or options.team.jobs,
                force=options.force,
                verify_against=lowered if options.verify else None,
                team=options.team,
            )
            notes += written.notes
            verified = written.verified
        names = tuple(name for name, _ in outputs.files) if target.is_folder else ()
        return make_report(
            plan, notes, str(target.path), target.format, names, outputs.nbytes,
            dry_run=options.dry_run, seconds=monotonic() - start, verified=verified,
            reading=partial(read_values, place), remote=traffic_of(place),
        )  # fmt: skip


def _folder_of(place: Place, opened: Checkpoint, sources: Sources) -> Path | Folder | None:
    """Return the folder that the checkpoint is, or whose index it is; None of a single file."""
    if isinstance(place, Address):
        return next((one.folder for one in sources if isinstance(one, FileSource)), None)
    if place.is_dir():
        return place
    return place.parent if opened.shards else None


def find_place(given: AnyPath) -> Place:
    """Return where a checkpoint is; a path that says nothing is refused."""
    _refuse_no_path(given)
    return place_of(given)


def _refuse_output(given: AnyPath) -> None:
    refuse_address(os.fspath(given))
    _refuse_no_path(given)


def _refuse_no_path(given: AnyPath) -> None:
    """Refuse a path that says nothing: an empty one would be the working directory."""
    if not os.fspath(given):
        raise FileError("''", "not a path", expected="a file or a folder")
    if "\0" in os.fspath(given):
        raise FileError(os.fspath(given), "no file can have this name")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise UsageError(name, "no such choice", expected=expected, found=repr(value))


def check_jobs(jobs: int | None) -> None:
    """Refuse what is no number of threads."""
    if jobs is not None and not (type(jobs) is int and jobs > 0):
        raise UsageError("jobs", "not a number of threads", expected="1 or more", found=repr(jobs))


def _nothing(plan: Plan) -> NothingToDo:
    apply = plan.command == "apply"
    return NothingToDo(
        plan.checkpoint.name,
        "no weight to normalize was found (floating, of two or more dimensions, not yet normalized)"
        if apply
        else f"no weight norm to {'remove' if plan.command == 'remove' else 'respell'} was found",
        hint=Text(
            inspecting(plan.checkpoint.name, tensors=True),
            f"wn inspect {path_word(plan.checkpoint.name)} --tensors",
        )
        if apply
        else inspecting(plan.checkpoint.name),
        report=make_report(plan, ()),
    )
