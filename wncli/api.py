"""The commands as functions: open, plan, lay out, fill, report. They never print and never exit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Literal, Unpack

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import SPELLINGS, Naming
from wncli.errors import UsageError, WeightNormError, WnError
from wncli.formats.open import open_checkpoint
from wncli.hints import REFERENCE, Text, given, parameter, phrase, setting
from wncli.notes import Note
from wncli.plan.actions import Plan
from wncli.plan.apply import plan_apply
from wncli.plan.convert import plan_convert
from wncli.plan.guards import refuse_ambiguity
from wncli.plan.inspect import plan_inspect
from wncli.plan.remove import plan_remove
from wncli.plan.renames import parse_renames
from wncli.plan.renaming import flattened
from wncli.plan.request import Request
from wncli.report import Report, make_report
from wncli.storage.addresses import Traffic, traffic_of
from wncli.storage.source import is_remote, stamps
from wncli.team import ALONE, Team, agree, together
from wncli.writing import (
    AnyPath,
    WriteKeywords,
    WriteOptions,
    check_choice,
    check_jobs,
    find_place,
    write_checkpoint,
)

if TYPE_CHECKING:
    from wncli.analysis.comparison import Comparison
    from wncli.parallel import Progress
    from wncli.storage.source import Sources


@together
def inspect(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: str | None = None,
    tensors: bool = False,
    check: bool = False,
    statistics: bool = False,
    norms: bool = False,
    p: float = 2,
    dim: int | None = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> Report:
    """List the weight-normalized layers of a checkpoint, and what else is in it.

    Args:
        checkpoint: a safetensors or torch file, whose content says which, a folder or index of
            shards, or a folder of a distributed checkpoint; a path, or the address of one
            (`hf://OWNER/NAME`, `https://…`, `s3://…`), of which only headers are read, and g where
            `statistics` are asked for.
        layers: globs over full names and module paths; all layers where there is none.
        exclude: globs of layers to leave out.
        only: the root of the one state dict to look at, or a prefix of names in it.
        tensors: list every tensor as well.
        check: read everything, and report what is damaged or will not compute.
        statistics: read v as well as g, for g / ||v|| in the report's `statistics`.
        norms: compute the norms of the slices of every floating tensor; `layers` and `exclude`
            are then about all their names.
        p: the order of these norms: more than 0; `math.inf` for the largest element.
        dim: the dim whose slices they are of; None for the norm of the whole tensor.
        jobs: threads at most that read; None for as many as there are processors.
        progress: called while reading.
        team: the ranks that do it together, each of which calls this alike; see
            `wncli.pytorch.ranks`. Without one, this process alone.

    Returns:
        A report with `layers`, their `statistics`, `roots` and `entries`; `tensors`, `findings`
        and `norms` where asked for.

    Raises:
        FileError: the file cannot be read.
        FormatError: it is no checkpoint, or a damaged one.
        UsageError: a rule or root matches nothing.

    Example:
        >>> report = wncli.inspect("sample_models/training.pt", only="model")
        >>> [(layer.module, layer.dim, layer.naming) for layer in report.layers]
        [('last_layer', 0, 'parametrized')]
        >>> [entry.path for entry in report.entries]
        ['optimizer', 'scheduler', 'args', 'epoch', 'steps']
        >>> round(report.statistics[0].g.max, 4), report.layers["last_layer"].g.shape
        (1.095, (64, 1))
    """
    from wncli.analysis.magnitudes import layer_statistics
    from wncli.analysis.values import read_values

    start = monotonic()
    check_jobs(jobs)
    place = find_place(checkpoint)
    request = Request.parse(layers, exclude, only)
    jobs = jobs or team.jobs
    with open_checkpoint(place) as (opened, sources):
        agree(team, stamps(sources), opened.state_dicts)
        of_all = None
        notes: list[Note] = []
        if norms:
            from wncli.analysis.norms import tensor_norms
            from wncli.plan.norms import plan_norms

            chosen = plan_norms(opened, request, p, dim)
            of_all = tensor_norms(chosen, sources, p, progress, jobs, team)
            notes += chosen.notes
            request = request._replace(layers=(), exclude=())
        plan = plan_inspect(opened, request)
        findings = of_layers = None
        if check:
            from wncli.analysis.check import check as check_all

            findings = check_all(plan, sources, progress, jobs, team)
        try:
            if statistics or not any(map(is_remote, sources)):
                of_layers = layer_statistics(
                    plan, sources, with_directions=statistics, progress=progress, jobs=jobs,
                    team=team,
                )  # fmt: skip
        except WnError as error:
            if statistics:
                raise
            notes.append(Note("unread-magnitudes", f"g cannot be read: {error.problem}"))
        return make_report(
            plan, tuple(notes), seconds=monotonic() - start, tensors=tensors, findings=findings,
            statistics=of_layers, norms=of_all, reading=partial(read_values, place),
            remote=traffic_of(place),
        )  # fmt: skip


@together
def apply(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = 0,
    naming: Literal["auto"] | Naming = "auto",
    flatten: bool = False,
    only: str | None = None,
    drop: Iterable[str] = (),
    **options: Unpack[WriteKeywords],
) -> Report:
    """Split weights into magnitude g and direction v.

    Args:
        checkpoint: the input.
        output: the file to write, or an existing folder for it; may be the input, with `force`.
        layers: `GLOB` or `GLOB=DIM` rules, the first match wins; without any, every floating
            `weight` of two or more dimensions that is not normalized already.
        exclude: globs of layers to leave alone.
        dim: the dim of layers whose rule has none; None for the norm of the whole tensor.
        naming: the spelling to write; `auto` takes the one in the checkpoint, else hook.
        flatten: write all state dicts as one: the root before each name, wrappers (`module.`) off.
        only: write the state dict at this root, or below this prefix of names, alone.
        drop: entries of the checkpoint, prefixes of names or globs, to leave out.
        options: how the output is written, see `WriteOptions`.

    Returns:
        A report with the `layers` that have been split, and `parameters` before and after.

    Raises:
        FileError: the input cannot be read, or the output not written.
        FormatError: the input is no checkpoint, or the output's format has no place for it.
        UsageError: a rule or root matches nothing, or is none.
        WeightNormError: a weight has no such dim, or a norm that its dtype cannot hold.
        NothingToDo: no weight can be normalized.

    Example:
        >>> report = wncli.apply("sample_models/linear.pt", "normalized.pt", naming="parametrized")
        >>> [layer.g_name for layer in report.layers]
        ['parametrizations.weight.original0']
        >>> report.parameters
        Parameters(before=18, after=21)
    """
    request = Request.parse(layers, exclude, only, drop, with_dims=True)
    check_choice("naming", naming, ("auto", *SPELLINGS))
    if dim is not None and not (isinstance(dim, int) and not isinstance(dim, bool)):
        raise UsageError("dim", "not a dim", expected="an int or None", found=repr(dim))

    def make_plan(opened: Checkpoint) -> Plan:
        plan = plan_apply(opened, request, dim, naming)
        return flattened(plan, roots=only is None) if flatten else plan

    return _write(make_plan, checkpoint, output, WriteOptions(**options))


@together
def remove(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = None,
    flatten: bool = False,
    only: str | None = None,
    drop: Iterable[str] = (),
    **options: Unpack[WriteKeywords],
) -> Report:
    """Fold magnitudes and directions back into plain weights.

    Args:
        checkpoint: the input.
        output: the file to write, or an existing folder for it; may be the input, with `force`.
        layers: globs over full names and module paths; all normalized layers where there is none.
        exclude: globs of layers to leave alone.
        dim: of layers whose g is a vector that fits several axes of v, where no `GLOB=DIM` rule
            says it.
        flatten: write all state dicts as one: the root before each name, wrappers (`module.`) off.
        only: write the state dict at this root, or below this prefix of names, alone.
        drop: entries of the checkpoint, prefixes of names or globs, to leave out.
        options: how the output is written, see `WriteOptions`.

    Returns:
        A report with the `layers` that have been folded, and `parameters` before and after.

    Raises:
        FileError: the input cannot be read, or the output not written.
        FormatError: the input is no checkpoint, or the output's format has no place for it.
        UsageError: a rule or root matches nothing, or is none.
        WeightNormError: a layer is no pair of g and v, or has no direction.
        NothingToDo: there is no weight norm.

    Example:
        >>> report = wncli.remove("sample_models/wavenet.pt", "plain.safetensors")
        >>> len(report.layers), report.parameters.change
        (27, -752)
        >>> report.notes[0].message
        'safetensors holds one state dict; left out: config, loss'
    """
    request = Request.parse(layers, exclude, only, drop, with_dims=True)._replace(dim=_dim(dim))

    def make_plan(opened: Checkpoint) -> Plan:
        plan = plan_remove(opened, request)
        return flattened(plan, roots=only is None) if flatten else plan

    return _write(make_plan, checkpoint, output, WriteOptions(**options))


@together
def convert(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    naming: Naming | None = None,
    like: AnyPath | None = None,
    partial: bool = False,
    fill: bool = False,
    flatten: bool = False,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = None,
    only: str | None = None,
    drop: Iterable[str] = (),
    rename: Iterable[str] = (),
    **options: Unpack[WriteKeywords],
) -> Report:
    """Write the same weights in another format, spelling or structure.

    Args:
        checkpoint: the input.
        output: what to write, or an existing folder for it; may be the input, with `force`.
        naming: the spelling that normalized layers are to have; g and v keep their bits.
        like: a checkpoint whose structure to take: what is normalized there is decomposed here,
            with its dim and spelling, what is plain there composed; names get its prefixes.
        partial: with `like`, leave out what does not fit instead of refusing.
        fill: with `like`, take from there what the checkpoint lacks, or has in another shape, and
            leave out what is not there; the report lists it (`filled`).
        flatten: write all state dicts as one: the root before each name, wrappers (`module.`) off.
        layers: with `naming`, globs over full names and module paths of layers to respell.
        exclude: with `naming`, globs of layers to leave as they are.
        dim: of layers whose g is a vector that fits several axes of v, where no `GLOB=DIM` rule
            says it; with `like`, also where REFERENCE does not show it.
        only: write the state dict at this root, or below this prefix of names, alone.
        drop: entries of the checkpoint, prefixes of names or globs, to leave out.
        rename: `OLD=NEW` rules for the tensors' names, globs whose `*` NEW takes over; the first
            that matches wins, and all else speaks of the new names.
        options: how the output is written, see `WriteOptions`.

    Returns:
        A report with the `layers` that have changed, each with its `action`.

    Raises:
        FileError: a file cannot be read, or the output not written.
        FormatError: a file is no checkpoint, or the output's format has no place for it.
        UsageError: a rule or root matches nothing, or arguments contradict each other.
        WeightNormError: a layer is no pair of g and v, or the checkpoint does not fit `like`.
        NothingToDo: a spelling was asked for, and there is no weight norm.

    Example:
        >>> report = wncli.convert("sample_models/training.pt", "hook.pt", naming="hook")
        >>> [(layer.root, layer.g_name) for layer in report.layers]
        [('model', 'last_layer.weight_g'), ('ema', 'last_layer.weight_g')]
    """
    request = Request.parse(layers, exclude, only, drop, with_dims=True)._replace(
        rename=parse_renames(rename), dim=_dim(dim)
    )
    check_choice("naming", naming, (None, *SPELLINGS))
    if like is None and (partial or fill):
        raise UsageError(
            setting(fill=True) if fill else setting(partial=True),
            phrase("it says what to do where {} does not fit", parameter("like")),
            hint=phrase(
                "leave it out, or name a checkpoint to be fitted with {}", parameter("like")
            ),
        )
    if like is None:

        def make_plan(opened: Checkpoint) -> Plan:
            plan = plan_convert(opened, request, naming)
            return flattened(plan, roots=only is None) if flatten else plan

        return _write(make_plan, checkpoint, output, WriteOptions(**options))
    if flatten:
        raise UsageError(
            setting(flatten=True),
            phrase("{} takes the names of {}", parameter("like"), REFERENCE),
            hint="leave one out",
        )
    if naming:
        raise UsageError(
            given(naming=naming),
            phrase("{} takes the spelling of {}", parameter("like"), REFERENCE),
            hint="leave one out",
        )
    from wncli.plan.like import plan_like

    there = find_place(like)
    with open_checkpoint(there) as (reference, files):
        refuse_ambiguity(reference)

        def make_plan_like(opened: Checkpoint) -> Plan:
            return plan_like(opened, reference, request, partial=partial, fill=fill)

        more = files if fill else ()
        try:
            report = _write(make_plan_like, checkpoint, output, WriteOptions(**options), more)
            return replace(report, remote=Traffic.sum(report.remote, traffic_of(there)))
        except WeightNormError as error:
            if error.hint.startswith("exclude="):  # which has no place beside `like`
                error.hint = ""
            raise


@together
def compare(  # noqa: PLR0913 - the command's options
    a: AnyPath,
    b: AnyPath,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> Comparison:
    """Compare the effective weights of two checkpoints, tensor by tensor.

    Normalized weights are composed on the way, so that both spellings, folded weights, formats,
    dtypes, roots and prefixes meet.

    Args:
        a: one checkpoint.
        b: the other.
        rtol: allowed difference as a share of B's number; with neither `rtol` nor `atol`, two units
            of the last place of the coarser dtype are allowed.
        atol: allowed absolute difference.
        layers: globs over full names and module paths of the weights to compare.
        exclude: globs of weights to leave out.
        only: compare the state dict at this root, on each side that has it.
        jobs: threads at most; None for as many as there are processors.
        progress: called while comparing.
        team: the ranks that do it together, each of which calls this alike; see
            `wncli.pytorch.ranks`. Without one, this process alone.

    Returns:
        A comparison: whether all is `equal`, the `tensors` sorted by what has changed most, and the
        names `only_in_a` and `only_in_b`.

    Raises:
        FileError: a file cannot be read.
        FormatError: it is no checkpoint, or holds no state dict.
        UsageError: a rule or root matches nothing, or several state dicts could be meant.
        WeightNormError: a layer has no direction.

    Example:
        >>> found = wncli.compare("sample_models/training.pt", "sample_models/training.pt",
        ...                       only="model=ema")
        >>> found.equal, found.only_in_a, found.tensors[0].name
        (False, (), 'last_layer.weight')
    """
    from wncli.analysis.compare import compare_weights
    from wncli.arithmetic.ulps import Tolerance
    from wncli.plan.compare import plan_compare

    start = monotonic()
    request = Request.parse(layers, exclude, only)
    check_jobs(jobs)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0 <= value < math.inf:
            where = Text(name, f"--{name}")
            raise UsageError(where, "not a tolerance", expected="0 or more", found=str(value))
    places = find_place(a), find_place(b)
    with (
        open_checkpoint(places[0], for_weights=True) as (one, files),
        open_checkpoint(places[1], for_weights=True) as (other, others),
    ):
        refuse_ambiguity(one)
        refuse_ambiguity(other)
        plan = plan_compare(one, other, request)
        agree(team, stamps((*files, *others)), plan.counterparts)
        found = compare_weights(
            plan, files, others, Tolerance(rtol, atol), progress, jobs or team.jobs, team
        )
        remote = Traffic.sum(*map(traffic_of, places))
        return replace(found, seconds=monotonic() - start, remote=remote)


def _write(
    make_plan: Callable[[Checkpoint], Plan],
    checkpoint: AnyPath,
    output: AnyPath,
    options: WriteOptions,
    more: Sources = (),
) -> Report:
    """Write what becomes of a file; `more` are REFERENCE's files."""
    place = find_place(checkpoint)
    return write_checkpoint(make_plan, open_checkpoint(place), place, output, options, more)


def _dim(dim: int | None) -> int | None:
    """Return the dim of a vector g: None where none is given."""
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool) or dim < 0):
        raise UsageError("dim", "not a dim", expected="an int from 0, or None", found=repr(dim))
    return dim
