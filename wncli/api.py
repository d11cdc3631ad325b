"""The commands as functions: open, plan, lay out, fill, report. They never print and never exit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wncli.checkpoint import Checkpoint
from wncli.decide import Request, plan_apply, plan_inspect, plan_remove
from wncli.errors import FormatError, UsageError
from wncli.formats import open_checkpoint
from wncli.naming import Naming
from wncli.plan import Plan
from wncli.report import NothingToDo, Report, make_report

if TYPE_CHECKING:
    from wncli.formats.files import Sources
    from wncli.layout import Layout
    from wncli.notes import Note

OutputFormat = Literal["torch", "safetensors"]
AnyPath = str | os.PathLike[str]
#: Called with the bytes that have just been written and the bytes that there will be.
Progress = Callable[[int, int], None]

_SUFFIXES: dict[str, OutputFormat] = {
    ".safetensors": "safetensors",
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".tar"), "torch"),
}


def inspect(
    checkpoint: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: str | None = None,
) -> Report:
    """List the weight-normalized layers of a checkpoint, and what else is in it.

    Args:
        checkpoint: a safetensors, torch or legacy torch file; its content says which.
        layers: globs over full names and module paths; all layers where there is none.
        exclude: globs of layers to leave out.
        only: the root of the one state dict to look at.

    Raises:
        WnError: the file cannot be read, or a rule or root matches nothing.
    """
    with open_checkpoint(Path(checkpoint)) as (opened, _):
        plan = plan_inspect(opened, Request.parse(layers, exclude, only))
        return make_report(plan, ())


def apply(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    dim: int | None = 0,
    naming: Literal["auto"] | Naming = "auto",
    only: str | None = None,
    drop: Iterable[str] = (),
    format: OutputFormat | None = None,  # noqa: A002 - as the option is called
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Split weights into magnitude g and direction v.

    Args:
        checkpoint: the input.
        output: the file to write; may be the input, with `force`.
        layers: `GLOB` or `GLOB=DIM` rules, the first match wins; without any, every floating
            `weight` of two or more dimensions that is not normalized already.
        exclude: globs of layers to leave alone.
        dim: the dim of layers whose rule has none; None for the norm of the whole tensor.
        naming: the spelling to write; `auto` takes the one in the checkpoint, else hook.
        only: write the state dict at this root alone.
        drop: entries of the checkpoint to leave out.
        format: of the output; otherwise its suffix says.
        force: replace an existing output.
        dry_run: write nothing.
        progress: called while writing.

    Raises:
        WnError: refused; nothing has been written.
        NothingToDo: no weight can be normalized; nothing has been written.
    """
    request = Request.parse(layers, exclude, only, drop, with_dims=True)
    _check_choice("naming", naming, ("auto", "hook", "parametrized"))
    if dim is not None and not (isinstance(dim, int) and not isinstance(dim, bool)):
        raise UsageError("dim", "no dim", expected="an int or None", found=repr(dim))
    return _write(
        lambda opened: plan_apply(opened, request, dim, naming),
        Path(checkpoint), Path(output), format, progress, force=force, dry_run=dry_run,
    )  # fmt: skip


def remove(  # noqa: PLR0913 - the command's options
    checkpoint: AnyPath,
    output: AnyPath,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
    only: str | None = None,
    drop: Iterable[str] = (),
    format: OutputFormat | None = None,  # noqa: A002 - as the option is called
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Fold magnitudes and directions back into plain weights.

    Args:
        checkpoint: the input.
        output: the file to write; may be the input, with `force`.
        layers: globs over full names and module paths; all normalized layers where there is none.
        exclude: globs of layers to leave alone.
        only: write the state dict at this root alone.
        drop: entries of the checkpoint to leave out.
        format: of the output; otherwise its suffix says.
        force: replace an existing output.
        dry_run: write nothing.
        progress: called while writing.

    Raises:
        WnError: refused; nothing has been written.
        NothingToDo: there is no weight norm; nothing has been written.
    """
    request = Request.parse(layers, exclude, only, drop)
    return _write(
        lambda opened: plan_remove(opened, request),
        Path(checkpoint), Path(output), format, progress, force=force, dry_run=dry_run,
    )  # fmt: skip


def _write(  # noqa: PLR0913 - what the commands have in common
    make_plan: Callable[[Checkpoint], Plan],
    checkpoint: Path,
    output: Path,
    chosen: OutputFormat | None,
    progress: Progress | None,
    *,
    force: bool,
    dry_run: bool,
) -> Report:
    from wncli.output import check_output, replacing

    _check_choice("format", chosen, (None, "torch", "safetensors"))
    with open_checkpoint(checkpoint) as (opened, sources):
        output_format = chosen or _format_of(output, opened)
        check_output(output, force=force)
        plan = make_plan(opened)
        if not plan.parts and opened.entries:
            found = ", ".join(f"{entry.path}: {entry.summary}" for entry in opened.entries[:3])
            raise FormatError(
                str(opened.path),
                "no state dict was found",
                expected="a mapping of names to tensors",
                found=found,
                hint="save the module's state_dict() with torch.save",
            )
        if not plan.changes:
            raise _nothing(plan)
        layout, notes = _lay_out(plan, output_format, output)
        if not dry_run:
            with replacing(output, layout.nbytes) as descriptor:
                notes += _fill(layout, sources, descriptor, progress)
        return make_report(plan, notes, str(output), output_format, dry_run=dry_run)


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise UsageError(name, "no such choice", expected=expected, found=repr(value))


def _nothing(plan: Plan) -> NothingToDo:
    apply = plan.command == "apply"
    return NothingToDo(
        str(plan.checkpoint.path),
        "no weight to normalize was found (floating, of two or more dimensions, not yet normalized)"
        if apply
        else "no weight norm to remove was found",
        hint="wn inspect shows what is in the file" + ("; -l names other parameters" * apply),
        report=make_report(plan, ()),
    )


def _format_of(output: Path, checkpoint: Checkpoint) -> OutputFormat:
    """What OUTPUT's suffix says; without a suffix, as HiFi-GAN's files, the input's kind."""
    suffix = output.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if not suffix:
        return "safetensors" if checkpoint.format == "safetensors" else "torch"
    raise UsageError(
        str(output),
        f"the suffix {output.suffix} does not say which format to write",
        expected=", ".join(_SUFFIXES),
        hint="--format torch or --format safetensors",
    )


def _lay_out(
    plan: Plan, output_format: OutputFormat, output: Path
) -> tuple[Layout, tuple[Note, ...]]:
    if output_format == "safetensors":
        from wncli.formats.safetensors_write import lay_out_safetensors

        return lay_out_safetensors(plan)
    from wncli.formats.torch_write import torch_content
    from wncli.formats.torch_zip_write import lay_out_torch_zip

    content = torch_content(plan)
    return lay_out_torch_zip(content, output.stem or "archive"), content.notes


def _fill(
    layout: Layout, sources: Sources, descriptor: int, progress: Progress | None
) -> tuple[Note, ...]:
    from wncli.fill import fill

    def report(count: int) -> None:
        if progress:
            progress(count, layout.nbytes)

    return fill(layout, sources, descriptor, report)
