"""The commands; each calls the function of its name.

What a command needs is imported when it runs, so that `--help` need not wait for it.
"""

# Without `from __future__ import annotations`, or typer would compile every annotation once more.

import functools
from collections.abc import Callable, Iterable
from copy import copy
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

import wncli
from wncli.cli import options as o
from wncli.cli.progress import progress_bar
from wncli.cli.ranks import team
from wncli.cli.results import Shown, print_comparison
from wncli.cli.streams import from_stdin, result_as_typed

if TYPE_CHECKING:
    from wncli.report import Report


def _take_as_typed(parameters: Iterable[Any]) -> None:
    """Have words stay words; flags, `--help` among them, are left to typer.

    From 0.29 on it has pydantic make a string of each string, and of each that is not there. To
    import that takes as long as all of `wn inspect`.
    """
    for parameter in parameters:
        parameter.process_value = functools.partial(_as_typed, parameter)


def _as_typed(parameter: Any, context: Any, value: Any) -> Any:  # noqa: ANN401 - typer hides types
    if isinstance(value, bool):
        return type(parameter).process_value(parameter, context, value)
    if value is None and parameter.required:
        from wncli.errors import UsageError

        arguments = [one.metavar for one in context.command.params if not hasattr(one, "is_flag")]
        hint = f"{context.command_path} --help"
        raise UsageError(
            parameter.metavar,
            "missing",
            expected=" ".join((context.command_path, *arguments)),
            hint=hint,
        )
    return value


class Command(TyperCommand):
    """A command that takes its words as they are, and has our help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401, D102
        _take_as_typed(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002, D102
        _show_help(self, ctx)


class Group(TyperGroup):
    """The same for the options before a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401, D102
        _take_as_typed(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002, D102
        _show_help(self, ctx)


def _show_help(command: TyperCommand | TyperGroup, context: Any) -> None:  # noqa: ANN401
    from wncli.cli.help import describe, show_help

    show_help(describe(command, context))
    raise typer.Exit  # typer would print a line of its own


app = typer.Typer(
    name="wn",
    cls=Group,
    help="Apply, remove, list and convert weight normalization in saved checkpoints.",
    epilog="Exit codes: 0 done, 1 nothing to do, a difference or a finding, 2 refused, "
    "130 interrupted.",
    add_completion=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def writes(command: "Callable[..., functools.partial[Report]]") -> Callable[..., int]:
    """Add the options of `Writing` to those of a command, which returns what is to be run."""

    @functools.wraps(command)
    def run(**typed: Any) -> int:  # noqa: ANN401 - what typer has read
        from wncli.cli.many import write_all

        writing = o.Writing(**{name: typed.pop(name) for name in o.Writing._fields})
        return write_all(command(**typed), writing)

    own = signature(command).parameters.values()
    shared = signature(o.Writing).parameters.values()
    parameters = [*own, *(one.replace(kind=Parameter.KEYWORD_ONLY) for one in shared)]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def app_for(command: str) -> typer.Typer:
    """Give the app this command alone, if there is one: typer looks at every option of all."""
    known = app.registered_commands
    chosen = [one for one in known if getattr(one.callback, "__name__", "") == command]
    if not chosen:
        return app
    narrowed = copy(app)
    narrowed.registered_commands = chosen
    return narrowed


@app.callback(invoke_without_command=True)
def wn(  # noqa: PLR0913
    context: typer.Context,
    *,
    ranks: o.Ranks = False,  # noqa: ARG001 - `edge` has taken it
    version: o.Version = False,
    verbose: o.Verbose = False,
    install_completion: o.InstallCompletion = None,
    show_completion: o.ShowCompletion = None,
) -> None:
    """Apply, remove, list and convert weight normalization in saved checkpoints."""
    if version:
        from wncli.cli.version import print_version

        print_version(verbose=verbose)
        raise typer.Exit
    if install_completion is not None or show_completion is not None:
        from wncli.cli.shells import install, script

        shell = install_completion
        print(script(show_completion or "") if shell is None else install(shell))
        raise typer.Exit
    if verbose:
        from wncli.errors import UsageError

        raise UsageError("-v", "goes with --version alone", hint="wn --version -v")
    if context.invoked_subcommand is None:
        context.get_help()


@app.command(cls=Command)
def inspect(  # noqa: PLR0913 - one parameter per option
    checkpoints: o.Checkpoints,
    *,
    layers: o.Layers = [],  # noqa: B006 - nothing changes it
    exclude: o.Exclude = [],  # noqa: B006
    only: o.Only = [],  # noqa: B006
    tensors: o.Tensors = False,
    stats: o.Stats = False,
    norms: o.Norms = False,
    p: o.Order = None,
    dim: o.NormDim = None,
    check: o.Check = False,
    show_all: o.All = False,
    sort: o.Sort = None,
    plot: o.Plot = None,
    csv: o.Csv = None,
    jobs: o.Jobs = None,
    json: o.Json = False,
    quiet: o.QuietInspect = False,
) -> int:
    """List the g/v parameters, their dims and spelling, and what else is in the file.

    Counts of parameters include buffers, which a state dict does not tell apart.
    """
    from wncli.cli.many import inspect_all
    from wncli.plan.rules import parse_dim

    if not norms and (p or dim) is not None:
        o.refuse_without("--norms", "--p" if p is not None else "--dim")
    sort = o.one_of("--sort", sort, o.SORTS)
    o.refuse_sort(sort, tensors=tensors, norms=norms)
    order = o.number("--p", p)
    run = functools.partial(
        wncli.inspect, layers=layers, exclude=exclude, only=o.single("--only", only),
        tensors=tensors, check=check, statistics=stats, norms=norms,
        p=2 if order is None else order, dim=0 if dim is None else parse_dim(dim, "--dim"),
        jobs=o.count("--jobs", jobs), team=team(),
    )  # fmt: skip
    if csv is not None:
        from wncli.cli.csv_files import check_csv

        check_csv(csv, json=json)
    if plot is not None:
        from wncli.cli.exports import check_plot

        check_plot(plot)
    shown = Shown(json, quiet, shows_all=show_all, sort=sort, plot=plot, csv=csv)
    return inspect_all(run, checkpoints, shown)


@app.command(cls=Command)
@writes
def apply(
    *,
    layers: o.LayersWithDim = [],  # noqa: B006
    exclude: o.Exclude = [],  # noqa: B006
    dim: o.Dim = "0",
    naming: o.NamingToWrite = "auto",
    flatten: o.Flatten = False,
) -> "functools.partial[Report]":
    """Split weights into magnitude g and direction v."""
    from wncli.plan.rules import parse_dim

    return functools.partial(
        wncli.apply, layers=layers, exclude=exclude, dim=parse_dim(dim, "--dim"),
        naming=o.one_of("--naming", naming, o.NAMINGS_TO_WRITE), flatten=flatten,
    )  # fmt: skip


@app.command(cls=Command)
@writes
def remove(
    *,
    layers: o.LayersToFold = [],  # noqa: B006
    exclude: o.Exclude = [],  # noqa: B006
    dim: o.VectorDim = None,
    flatten: o.Flatten = False,
) -> "functools.partial[Report]":
    """Fold g and v back into plain weights."""
    return functools.partial(
        wncli.remove,
        layers=layers,
        exclude=exclude,
        dim=o.count("--dim", dim, least=0),
        flatten=flatten,
    )


@app.command(cls=Command)
@writes
def convert(  # noqa: PLR0913
    *,
    naming: o.Naming = None,
    like: o.Like = None,
    partial: o.Partial = False,
    fill: o.Fill = False,
    rename: o.Rename = [],  # noqa: B006
    flatten: o.Flatten = False,
    layers: o.LayersToRespell = [],  # noqa: B006
    exclude: o.Exclude = [],  # noqa: B006
    dim: o.VectorDim = None,
) -> "functools.partial[Report]":
    """Write the same weights in another format, spelling or structure."""
    from wncli.cli.rule_files import expand_files

    return functools.partial(
        wncli.convert, naming=o.one_of("--naming", naming, o.NAMINGS),
        like=like and from_stdin(like), partial=partial, fill=fill,
        rename=expand_files("--rename", rename), flatten=flatten, layers=layers,
        exclude=exclude, dim=o.count("--dim", dim, least=0),
    )  # fmt: skip


@app.command(cls=Command)
def compare(  # noqa: PLR0913
    a: o.A,
    b: o.B,
    *,
    rtol: o.Rtol = None,
    atol: o.Atol = None,
    layers: o.LayersToCompare = [],  # noqa: B006
    exclude: o.Exclude = [],  # noqa: B006
    only: o.OnlyOfTwo = [],  # noqa: B006
    show_all: o.All = False,
    csv: o.Csv = None,
    plot: o.PlotOfTwo = None,
    jobs: o.Jobs = None,
    json: o.Json = False,
    quiet: o.QuietCompare = False,
) -> int:
    """Compare the effective weights of two checkpoints, sorted by what has changed most."""
    if csv is not None:
        from wncli.cli.csv_files import check_csv

        check_csv(csv, json=json)
    if plot is not None:
        from wncli.cli.exports import check_plot, draw_comparison, show_written

        check_plot(plot)
    with progress_bar(("comparing",), quiet=quiet or json or csv == "-") as progress:
        found = wncli.compare(
            from_stdin(a), from_stdin(b), rtol=o.number("--rtol", rtol),
            atol=o.number("--atol", atol), layers=layers, exclude=exclude,
            only=o.single("--only", only), jobs=o.count("--jobs", jobs), progress=progress,
            team=team(),
        )  # fmt: skip
    if plot is not None and team().rank == 0:
        narrowed = bool(layers or exclude)
        draw_comparison(plot, found, o.single("--only", only), is_narrowed=narrowed)
    found = result_as_typed(found)
    code = print_comparison(found, json=json, quiet=quiet, shows_all=show_all, csv=csv)
    if plot is not None and not (json or quiet or csv == "-"):
        show_written(plot)
    return code
