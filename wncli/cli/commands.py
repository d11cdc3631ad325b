"""The commands and their options; each calls the function of its name.

What a command needs is imported when it runs, so that `--help` need not wait for it.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Annotated, Literal

import typer

import wncli
from wncli.cli.progress import progress_bar
from wncli.cli.results import print_comparison, print_report

app = typer.Typer(
    name="wn",
    help="Apply, remove, list and convert weight normalization in saved checkpoints.",
    epilog="Exit codes: 0 done, 1 nothing to do, a difference or a finding, 2 refused, "
    "130 interrupted.",
    add_completion=False,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A safetensors or torch file, whose content says which; or a folder of shards.",
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OUTPUT",
        help="The file to write: .safetensors, .pt, .pth, …; for shards a folder. With "
        "--output-dir, further checkpoints.",
        show_default=False,
    ),
]
OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        metavar="DIR",
        help="Write each of several checkpoints under its own name in DIR.",
    ),
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
RemoveLayers = Annotated[
    list[str],
    typer.Option(
        "-l",
        "--layers",
        metavar="GLOB[=DIM]",
        help="Take these layers: a full name or module path, `*` crosses dots; DIM where g is a "
        "vector that fits several axes. Repeatable. Without: all normalized layers.",
    ),
]
ConvertLayers = Annotated[
    list[str],
    typer.Option(
        "-l",
        "--layers",
        metavar="GLOB[=DIM]",
        help="With --naming, spell these layers so: a full name or module path, `*` crosses dots. "
        "Repeatable. Without: all normalized layers.",
    ),
]
CompareLayers = Annotated[
    list[str],
    typer.Option(
        "-l",
        "--layers",
        metavar="GLOB",
        help="Compare these weights: a full name or module path, `*` crosses dots. Repeatable. "
        "Without: all.",
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
    typer.Option(
        "--only",
        metavar="ROOT",
        help="Take one state dict alone, as `generator`, or names below a dotted prefix, as "
        "`model.teacher`; with two files also `ROOT=OTHER`.",
    ),
]
Drop = Annotated[
    list[str],
    typer.Option(
        "--drop",
        metavar="ENTRY",
        help="Leave an entry, or what is below a prefix of names, out. Repeatable.",
    ),
]
Rename = Annotated[
    list[str],
    typer.Option(
        "--rename",
        metavar="OLD=NEW",
        help="Rename tensors: globs, each `*` of NEW is what that of OLD took. Repeatable, the "
        "first match wins; `@FILE` has one rule a line.",
    ),
]
Dim = Annotated[
    str,
    typer.Option("--dim", metavar="N|none", help="The dim that keeps its size in g; none: whole."),
]
VectorDim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        metavar="N",
        min=0,
        help="The dim of layers whose g is a vector that fits several axes of v.",
    ),
]
ApplyNaming = Annotated[
    Literal["auto", "hook", "parametrized"],
    typer.Option("--naming", help="weight_g/weight_v, or parametrizations.weight.original0/1."),
]
ConvertNaming = Annotated[
    Literal["hook", "parametrized"] | None,
    typer.Option(
        "--naming", help="Spell the layers weight_g/weight_v, or …weight.original0/original1."
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="REFERENCE",
        help="Take the structure of REFERENCE, a checkpoint that the target code loads: what is "
        "normalized, along which dim, in which spelling, under which names and roots.",
    ),
]
Partial = Annotated[
    bool, typer.Option("--partial", help="With --like, leave out what does not fit.")
]
Fill = Annotated[
    bool,
    typer.Option(
        "--fill", help="With --like, take what CHECKPOINT lacks from REFERENCE; --partial besides."
    ),
]
Flatten = Annotated[
    bool,
    typer.Option(
        "--flatten",
        help="Write all state dicts as one, the root before each name, without `module.` and the "
        "other wrappers.",
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        help="Write a folder of shards of at most SIZE, as 5GB, and their index.",
    ),
]
Rtol = Annotated[
    float | None,
    typer.Option(
        "--rtol",
        metavar="X",
        help="Allowed difference as a share of B's number. Without --rtol and --atol: 2 units of "
        "the last place of the coarser dtype.",
        show_default=False,
    ),
]
Atol = Annotated[
    float | None,
    typer.Option("--atol", metavar="X", help="Allowed absolute difference.", show_default=False),
]
Format = Annotated[
    Literal["torch", "safetensors"] | None,
    typer.Option("--format", help="Of the output; otherwise OUTPUT's suffix says."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing OUTPUT.")]
Verify = Annotated[
    bool, typer.Option("--verify", help="Read OUTPUT back and compare before it takes its place.")
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor, plain ones too.")]
Check = Annotated[
    bool,
    typer.Option("--check", help="Read everything; report what is damaged or does not compute."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")]
QuietCompare = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print errors only: the exit code tells.")
]
QuietNames = Annotated[bool, typer.Option("-q", "--quiet", help="Print names only.")]


def app_for(command: str) -> typer.Typer:
    """The app with this command alone, if there is one: typer looks at every option of all."""
    known = app.registered_commands
    chosen = [one for one in known if getattr(one.callback, "__name__", "") == command]
    if not chosen:
        return app
    narrowed = copy(app)
    narrowed.registered_commands = chosen
    return narrowed


@app.callback(invoke_without_command=True)
def wn(
    context: typer.Context,
    *,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            help="With --version: Python, NumPy, and which loops and checksums run.",
        ),
    ] = False,
) -> None:
    """Apply, remove, list and convert weight normalization in saved checkpoints."""
    if version:
        from wncli.cli.version import print_version

        print_version(verbose=verbose)
        raise typer.Exit
    if verbose:
        from wncli.errors import UsageError

        raise UsageError("-v", "goes with --version alone", hint="wn --version -v")
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def inspect(  # noqa: PLR0913 - one parameter per option
    checkpoint: Checkpoint,
    *,
    layers: Layers = [],  # noqa: B006 - typer copies it
    exclude: Exclude = [],  # noqa: B006
    only: Only = None,
    tensors: Tensors = False,
    check: Check = False,
    json: Json = False,
    quiet: QuietNames = False,
) -> int:
    """List the g/v parameters, their dims and spelling, and what else is in the file."""
    if check:
        from wncli.parallel.workers import allow_forking

        allow_forking()
    with progress_bar("checking", quiet=quiet or json or not check) as progress:
        report = wncli.inspect(
            checkpoint, layers=layers, exclude=exclude, only=only, tensors=tensors, check=check,
            progress=progress,
        )  # fmt: skip
    return print_report(report, json=json, quiet=quiet)


@app.command()
def apply(  # noqa: PLR0913
    checkpoint: Checkpoint,
    output: Output = None,
    *,
    output_dir: OutputDir = None,
    layers: LayersWithDim = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    dim: Dim = "0",
    naming: ApplyNaming = "auto",
    only: Only = None,
    drop: Drop = [],  # noqa: B006
    format: Format = None,  # noqa: A002 - as the option is called
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Split weights into magnitude g and direction v."""
    from wncli.cli.many import Paths, write_all
    from wncli.plan.rules import parse_dim

    whole = parse_dim(dim, "--dim")
    return write_all(
        "apply",
        lambda one, target, progress: wncli.apply(
            one, target, layers=layers, exclude=exclude, dim=whole, naming=naming, only=only,
            drop=drop, format=format, max_shard_size=max_shard_size, force=force, dry_run=dry_run,
            verify=verify, make_folder=output_dir is not None, progress=progress,
        ),
        Paths(checkpoint, output or [], output_dir, format, max_shard_size is not None),
        json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def remove(  # noqa: PLR0913
    checkpoint: Checkpoint,
    output: Output = None,
    *,
    output_dir: OutputDir = None,
    layers: RemoveLayers = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    dim: VectorDim = None,
    only: Only = None,
    drop: Drop = [],  # noqa: B006
    format: Format = None,  # noqa: A002
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Fold g and v back into plain weights."""
    from wncli.cli.many import Paths, write_all

    return write_all(
        "remove",
        lambda one, target, progress: wncli.remove(
            one, target, layers=layers, exclude=exclude, dim=dim, only=only, drop=drop,
            format=format, max_shard_size=max_shard_size, force=force, dry_run=dry_run,
            verify=verify, make_folder=output_dir is not None, progress=progress,
        ),
        Paths(checkpoint, output or [], output_dir, format, max_shard_size is not None),
        json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def convert(  # noqa: PLR0913
    checkpoint: Checkpoint,
    output: Output = None,
    *,
    output_dir: OutputDir = None,
    naming: ConvertNaming = None,
    like: Like = None,
    partial: Partial = False,
    fill: Fill = False,
    rename: Rename = [],  # noqa: B006
    flatten: Flatten = False,
    layers: ConvertLayers = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    dim: VectorDim = None,
    only: Only = None,
    drop: Drop = [],  # noqa: B006
    format: Format = None,  # noqa: A002
    max_shard_size: MaxShardSize = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write the same weights in another format, spelling or structure."""
    from wncli.cli.many import Paths, write_all
    from wncli.cli.rule_files import expand_files

    rules = expand_files("--rename", rename)
    return write_all(
        "convert",
        lambda one, target, progress: wncli.convert(
            one, target, naming=naming, like=like, partial=partial, fill=fill, flatten=flatten,
            rename=rules, dim=dim, layers=layers, exclude=exclude, only=only, drop=drop,
            format=format,
            max_shard_size=max_shard_size, force=force, dry_run=dry_run,
            verify=verify, make_folder=output_dir is not None, progress=progress,
        ),
        Paths(checkpoint, output or [], output_dir, format, max_shard_size is not None),
        json=json, quiet=quiet,
    )  # fmt: skip


@app.command()
def compare(  # noqa: PLR0913
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    *,
    rtol: Rtol = None,
    atol: Atol = None,
    layers: CompareLayers = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    only: Only = None,
    json: Json = False,
    quiet: QuietCompare = False,
) -> int:
    """Hold the effective weights of two checkpoints against each other."""
    from wncli.parallel.workers import allow_forking

    allow_forking()
    with progress_bar("comparing", quiet=quiet or json) as progress:
        found = wncli.compare(
            a, b, rtol=rtol, atol=atol, layers=layers, exclude=exclude, only=only,
            progress=progress,
        )  # fmt: skip
    return print_comparison(found, json=json, quiet=quiet)
