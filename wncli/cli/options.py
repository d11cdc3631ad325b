"""The options of the commands, each once, and how those words are read that are not free text.

Every value is a word as it was typed, or a list of words: a command reads it by itself, and so says
the same of a wrong one whatever version typer has.
"""

# Without `from __future__ import annotations`, or typer would compile every annotation once more.

import sys
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from wncli.checkpoint.naming import SPELLINGS
from wncli.cli.ranks import team
from wncli.errors import UsageError
from wncli.formats import registry

FORMATS = registry.OFFERED
NAMINGS = tuple(SPELLINGS)
SORTS = ("name", "min", "median", "max", "spread", "dead", "size")
NAMINGS_TO_WRITE = ("auto", *NAMINGS)


def _one_of(words: Sequence[str]) -> str:
    return f"<{'|'.join(words)}>"


# The groups of the help.
_select = partial(typer.Option, rich_help_panel="Select")
_change = partial(typer.Option, rich_help_panel="Change")
_tolerance = partial(typer.Option, rich_help_panel="Tolerance")
_output = partial(typer.Option, rich_help_panel="Output")
_safety = partial(typer.Option, rich_help_panel="Safety")
_report = partial(typer.Option, rich_help_panel="Report")


def _layers(takes: str, otherwise: str, metavar: str = "GLOB") -> Any:  # noqa: ANN401 - as typer.Option
    names = "a full name or module path, `*` crosses dots. Repeatable"
    help_text = f"{takes}: {names}. Without: {otherwise}."
    return _select("-l", "--layers", metavar=metavar, help=help_text)


_quiet = partial(_report, "-q", "--quiet")

Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A safetensors, torch or npz file, whose content says which; a folder of shards, "
        "or of a distributed checkpoint; an address (hf://OWNER/NAME, https://, s3://, gs://, "
        "az://); or - for stdin.",
    ),
]
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT",
        help="Safetensors, torch or npz files, whose content says which; folders of shards, of a "
        "distributed checkpoint, or of checkpoints; addresses (hf://OWNER/NAME, https://, s3://, "
        "gs://, az://); - for stdin. Several have a row each.",
    ),
]
A = Annotated[str, typer.Argument(metavar="A", help="The checkpoint to compare.")]
B = Annotated[
    str,
    typer.Argument(
        metavar="B", help="What to compare it with; differences are shares of B's numbers."
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="OUTPUT",
        help="The file to write: .safetensors, .pt, .pth, .npz or the like; an existing folder "
        "gets a file of the same name; shards and dcp are a folder; - is stdout. With "
        "--output-dir: more checkpoints.",
        show_default=False,
    ),
]
OutputOption = Annotated[
    str | None,
    _output("-o", "--output", metavar="OUTPUT", help="Another way to give OUTPUT."),
]
OutputDir = Annotated[
    str | None,
    _output(
        "--output-dir",
        metavar="DIR",
        help="Write each of several checkpoints under its own name in DIR.",
    ),
]
Layers = Annotated[list[str], _layers("Take these layers", "all normalized layers")]
LayersToFold = Annotated[
    list[str],
    _layers(
        "Take these layers, DIM where g is a vector that fits several axes",
        "all normalized layers",
        "GLOB[=DIM]",
    ),
]
LayersToRespell = Annotated[
    list[str],
    _layers("With --naming, spell these layers so", "all normalized layers", "GLOB[=DIM]"),
]
LayersToCompare = Annotated[list[str], _layers("Compare these weights", "all")]
LayersWithDim = Annotated[
    list[str],
    _layers(
        "Take these layers, along DIM, the first match wins",
        "every floating `weight` of two or more dimensions that is not normalized already",
        "GLOB[=DIM]",
    ),
]
Exclude = Annotated[
    list[str],
    _select("-x", "--exclude", metavar="GLOB", help="Leave these layers out. Repeatable."),
]
Only = Annotated[
    list[str],
    _select(
        "--only",
        metavar="ROOT",
        help="Take one state dict alone, as `generator`, or names below a dotted prefix, as "
        "`model.teacher`.",
    ),
]
OnlyOfTwo = Annotated[
    list[str],
    _select(
        "--only",
        metavar="ROOT[=OTHER]",
        help="Take one state dict alone, as `generator`, or names below a dotted prefix; OTHER is "
        "its place in B, where that is another.",
    ),
]
Drop = Annotated[
    list[str],
    _select(
        "--drop",
        metavar="ENTRY",
        help="Leave an entry, or what is below a prefix of names, out; globs too. Repeatable.",
    ),
]
Rename = Annotated[
    list[str],
    _change(
        "--rename",
        metavar="OLD=NEW",
        help="Rename tensors: globs, each `*` of NEW is what that of OLD took. Repeatable, the "
        "first match wins; `@FILE` has one rule a line.",
    ),
]
Dim = Annotated[
    str,
    _change("--dim", metavar="N|none", help="The dim that keeps its size in g; none: whole."),
]
VectorDim = Annotated[
    str | None,
    _change(
        "--dim",
        metavar="N",
        help="The dim of layers whose g is a vector that fits several axes of v.",
    ),
]
NamingToWrite = Annotated[
    str,
    _change(
        "--naming",
        metavar=_one_of(NAMINGS_TO_WRITE),
        help="hook is weight_g, weight_v; parametrized is the new API's "
        "parametrizations.weight.original0, original1; auto is what the file has, else hook.",
    ),
]
Naming = Annotated[
    str | None,
    _change(
        "--naming",
        metavar=_one_of(NAMINGS),
        help="Spell the layers weight_g, weight_v (hook), or as the new API does: "
        "parametrizations.weight.original0, original1.",
    ),
]
Like = Annotated[
    str | None,
    _change(
        "--like",
        metavar="REFERENCE",
        help="Take the structure of REFERENCE, a checkpoint that the target code loads: what is "
        "normalized, along which dim, in which spelling, under which names and roots. "
        "`--only ROOT=OTHER` takes the state dict at ROOT for the one at OTHER there.",
    ),
]
Partial = Annotated[bool, _change("--partial", help="With --like, leave out what does not fit.")]
Fill = Annotated[
    bool,
    _change(
        "--fill", help="With --like, take what CHECKPOINT lacks from REFERENCE; --partial besides."
    ),
]
Flatten = Annotated[
    bool,
    _change(
        "--flatten",
        help="Write all state dicts as one, the root before each name, without `module.` and the "
        "other wrappers.",
    ),
]
MaxShardSize = Annotated[
    str | None,
    _output(
        "--max-shard-size",
        metavar="SIZE",
        help="Write a folder of files of at most SIZE, as 5GB, and their index.",
    ),
]
Rtol = Annotated[
    str | None,
    _tolerance(
        "--rtol",
        metavar="X",
        help="Allowed difference as a share of B's number. Without --rtol and --atol: 2 units of "
        "the last place of the coarser dtype.",
    ),
]
Atol = Annotated[str | None, _tolerance("--atol", metavar="X", help="Allowed absolute difference.")]
Format = Annotated[
    str | None,
    _output(
        "--format",
        metavar=_one_of(FORMATS),
        help="The format to write; otherwise OUTPUT's suffix says. dcp is a directory, as "
        "torch.distributed.checkpoint writes it.",
    ),
]
Force = Annotated[bool, _safety("-f", "--force", help="Replace an existing OUTPUT.")]
Verify = Annotated[
    bool, _safety("--verify", help="Read OUTPUT back and compare before it takes its place.")
]
Tensors = Annotated[
    bool,
    _report(
        "--tensors", help="List every tensor, plain ones too: its shape, size, what it is tied to."
    ),
]
Check = Annotated[
    bool,
    _report("--check", help="Read everything; report what is damaged or does not compute."),
]
DryRun = Annotated[bool, _safety("-n", "--dry-run", help="Say what would be done, write nothing.")]
Jobs = Annotated[
    str | None,
    _report(
        "--jobs",
        metavar="N",
        help="Work on N threads. Without: as many as there are processors.",
    ),
]
Json = Annotated[bool, _report("--json", help="Print the report as one JSON object.")]
Quiet = Annotated[bool, _quiet(help="Print errors only.")]
QuietCompare = Annotated[bool, _quiet(help="Print errors only: the exit code tells.")]
QuietInspect = Annotated[
    bool, _quiet(help="Print errors only: exit code 0 where there is weight norm, else 1.")
]
All = Annotated[bool, _report("--all", help="A row for each, also where many are alike.")]
Stats = Annotated[
    bool,
    _report(
        "--stats", help="Show g / ||v|| of each layer: 1 where it was only just applied. Reads v."
    ),
]
Sort = Annotated[
    str | None,
    _report(
        "--sort", metavar="KEY", help=f"Sort the rows by {', '.join(SORTS[:-1])} or {SORTS[-1]}."
    ),
]
Plot = Annotated[
    str | None,
    _report(
        "--plot",
        metavar="FILE",
        help="Draw g of each layer, with --stats also g / ||v||, into a .png, .svg or .html.",
    ),
]
PlotOfTwo = Annotated[
    str | None,
    _report(
        "--plot",
        metavar="FILE",
        help="Draw g and g / ||v|| of both, layer by layer, into a .png, .svg or .html.",
    ),
]
Csv = Annotated[
    str | None,
    _report("--csv", metavar="FILE", help="Write the table as CSV, a row for each; `-` prints it."),
]
Norms = Annotated[
    bool,
    _report("--norms", help="Show the norms of every floating tensor; -l and -x take them."),
]
Order = Annotated[
    str | None,
    _report("--p", metavar="P", help="With --norms, their order: 2, 1, 0.5, inf."),
]
NormDim = Annotated[
    str | None,
    _report(
        "--dim",
        metavar="N|none",
        help="With --norms, the dim of the slices: 0 without it; none: whole.",
    ),
]
VerboseTable = Annotated[
    bool,
    _report(
        "-v",
        "--verbose",
        help="Show the table of layers as well, and the requests that an address took.",
    ),
]
Ranks = Annotated[
    bool,
    typer.Option(
        "--ranks",
        help="Share the work among the processes that torchrun starts: "
        "torchrun --nproc-per-node 2 -m wncli --ranks remove CHECKPOINT OUTPUT",
    ),
]
Version = Annotated[bool, typer.Option("-V", "--version", help="Show the version.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", help="With --version: Python, NumPy, and which loops and checksums run."
    ),
]
_completion = partial(typer.Option, rich_help_panel="Completion", metavar="[SHELL]")
InstallCompletion = Annotated[
    str | None,
    _completion("--install-completion", help="Have Tab complete: in bash, zsh or fish."),
]
ShowCompletion = Annotated[
    str | None, _completion("--show-completion", help="Print what a shell has to run for that.")
]


class Writing(NamedTuple):
    """What was typed for a command that writes: the arguments and options that they all have."""

    checkpoint: Checkpoint
    output: Output = None
    output_option: OutputOption = None
    output_dir: OutputDir = None
    only: Only = []  # noqa: RUF012 - nothing changes it
    drop: Drop = []  # noqa: RUF012 - nothing changes it
    format: Format = None
    max_shard_size: MaxShardSize = None
    force: Force = False
    dry_run: DryRun = False
    verify: Verify = False
    verbose: VerboseTable = False
    jobs: Jobs = None
    json: Json = False
    quiet: Quiet = False

    def keywords(self) -> dict[str, Any]:
        """Those that the functions of the library take as well."""
        return {
            "only": single("--only", self.only),
            "drop": self.drop,
            "format": one_of("--format", self.format, FORMATS),
            "max_shard_size": self.max_shard_size,
            "force": self.force,
            "dry_run": self.dry_run,
            "verify": self.verify,
            "jobs": count("--jobs", self.jobs),
            "make_folder": self.output_dir is not None,
            "team": team(),
        }


def single(option: str, words: Sequence[str]) -> str | None:
    """Take the word of an option that means one thing, or None where there is none.

    Raises:
        UsageError: there are several, of which typer would take the last.
    """
    if len(words) > 1:
        raise UsageError(
            option, "is given once", expected="one root", found=", ".join(map(repr, words))
        )
    return words[0] if words else None


def one_of(option: str, word: str | None, words: Sequence[str]) -> Any:  # noqa: ANN401 - a Literal
    """Take a word that is one of several, or None where there is none.

    Raises:
        UsageError: it is another.
    """
    if word is not None and word not in words:
        raise UsageError(
            option,
            "no such choice",
            expected=" or ".join(words),
            found=word,
            hint=f"wn {sys.argv[1]} --help",
        )
    return word


def count(option: str, word: str | None, least: int = 1) -> int | None:
    """Return a whole number of at least so much, or None where there is none.

    Raises:
        UsageError: it is another word.
    """
    if word is None:
        return None
    if not word.isdecimal() or int(word) < least:
        raise UsageError(option, "no such number", expected=f"{least} or more", found=word)
    return int(word)


def number(option: str, word: str | None) -> float | None:
    """Read a number, or None where there is none.

    Raises:
        UsageError: it is no number.
    """
    try:
        return None if word is None else float(word)
    except ValueError:
        raise UsageError(option, "not a number", found=str(word)) from None


def refuse_without(needed: str, option: str) -> NoReturn:
    """Refuse an option that says something about another.

    Raises:
        UsageError: always.
    """
    raise UsageError(option, f"it goes with {needed} alone", hint=f"add {needed}, or leave it out")


def refuse_sort(sort: str | None, *, tensors: bool, norms: bool) -> None:
    """Refuse to sort by what the rows do not have.

    Raises:
        UsageError: they do not.
    """
    if sort == "size" and not tensors:
        refuse_without("--tensors", "--sort size")
    if norms and sort == "dead":
        raise UsageError("--sort dead", "--norms counts no dead slices", expected="another key")
    if tensors and not norms and sort not in {None, "name", "size"}:
        raise UsageError(
            f"--sort {sort}", "--tensors lists no numbers", expected="--sort name or --sort size"
        )
