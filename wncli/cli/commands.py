"""The commands and their options; each calls the function of its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from wncli import __version__, api
from wncli.cli.screen import progress_bar
from wncli.report import Report
from wncli.selection import parse_dim

app = typer.Typer(
    name="wn",
    help="Apply, remove and list weight normalization in saved checkpoints.",
    epilog="Exit codes: 0 done, 1 nothing to do, 2 refused, 130 interrupted.",
    add_completion=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="A safetensors or torch file; its content says which."
    ),
]
Output = Annotated[
    Path, typer.Argument(metavar="OUTPUT", help="The file to write: .safetensors, .pt, .pth, …")
]
Layers = Annotated[
    list[str],
    typer.Option(
        "-l",
        "--layers",
        metavar="GLOB",
        help="Take these layers: a full name or module path, `*` crosses dots. Repeatable. "
        "Without: all normalized layers.",
    ),
]
LayersWithDim = Annotated[
    list[str],
    typer.Option(
        "-l",
        "--layers",
        metavar="GLOB[=DIM]",
        help="Take these layers, along DIM: a full name or module path, `*` crosses dots. "
        "Repeatable, the first match wins. Without: every floating `weight` of two or more "
        "dimensions that is not normalized already.",
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option("-x", "--exclude", metavar="GLOB", help="Leave these layers out. Repeatable."),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="ROOT", help="Take one state dict alone, as `generator`."),
]
Drop = Annotated[
    list[str],
    typer.Option("--drop", metavar="ENTRY", help="Leave an entry out, as `optimizer`. Repeatable."),
]
Dim = Annotated[
    str,
    typer.Option("--dim", metavar="N|none", help="The dim that keeps its size in g; none: whole."),
]
Naming = Annotated[
    Literal["auto", "hook", "parametrized"],
    typer.Option("--naming", help="weight_g/weight_v, or parametrizations.weight.original0/1."),
]
Format = Annotated[
    Literal["torch", "safetensors"] | None,
    typer.Option("--format", help="Of the output; otherwise OUTPUT's suffix says."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing OUTPUT.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
QuietNames = Annotated[bool, typer.Option("-q", "--quiet", help="Print the layers' names only.")]


@dataclass(frozen=True, slots=True)
class Result:
    """What a command comes to, and how it is to be shown."""

    report: Report
    json: bool
    quiet: bool


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer hands the flag over so
    if value:
        print(f"wn {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def wn(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - acted on by its callback
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Apply, remove and list weight normalization in saved checkpoints."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def inspect(  # noqa: PLR0913 - one parameter per option
    checkpoint: Checkpoint,
    *,
    layers: Layers = [],  # noqa: B006 - typer copies it
    exclude: Exclude = [],  # noqa: B006
    only: Only = None,
    json: Json = False,
    quiet: QuietNames = False,
) -> Result:
    """List the g/v parameters, their dims and spelling, and what else is in the file."""
    report = api.inspect(checkpoint, layers=layers, exclude=exclude, only=only)
    return Result(report, json, quiet)


@app.command()
def apply(  # noqa: PLR0913
    checkpoint: Checkpoint,
    output: Output,
    *,
    layers: LayersWithDim = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    dim: Dim = "0",
    naming: Naming = "auto",
    only: Only = None,
    drop: Drop = [],  # noqa: B006
    format: Format = None,  # noqa: A002 - as the option is called
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Split weights into magnitude g and direction v."""
    whole = parse_dim(dim, "--dim")
    return _write(
        lambda progress: api.apply(
            checkpoint, output, layers=layers, exclude=exclude, dim=whole, naming=naming,
            only=only, drop=drop, format=format, force=force, dry_run=dry_run, progress=progress,
        ),
        json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def remove(  # noqa: PLR0913
    checkpoint: Checkpoint,
    output: Output,
    *,
    layers: Layers = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    only: Only = None,
    drop: Drop = [],  # noqa: B006
    format: Format = None,  # noqa: A002
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> Result:
    """Fold g and v back into plain weights."""
    return _write(
        lambda progress: api.remove(
            checkpoint, output, layers=layers, exclude=exclude,
            only=only, drop=drop, format=format, force=force, dry_run=dry_run, progress=progress,
        ),
        json=json, quiet=quiet,
    )  # fmt: skip


def _write(run: Callable[[api.Progress], Report], *, json: bool, quiet: bool) -> Result:
    with progress_bar(quiet=quiet) as progress:
        return Result(run(progress), json, quiet)
