"""Lays out the files that a plan comes to and writes them: one, or a folder of shards."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from wncli.checkpoint import aliases
from wncli.errors import FileError, UsageError, WnError
from wncli.formats import open_checkpoint
from wncli.formats.files import unreadable
from wncli.formats.shard_files import resolve
from wncli.formats.shard_index import index_kind
from wncli.hints import free_path, option, path_word
from wncli.interruption import unfinished
from wncli.layout import Layout, Slot, Whole
from wncli.notes import Note
from wncli.output import unwritable
from wncli.plan import left_out
from wncli.sharding import (
    HUGGING_FACE_NAMES,
    OutputFormat,
    ShardOutput,
    index_name,
    keep_shards,
    renamed,
    split_by_size,
    stored_nbytes,
)
from wncli.target import beside
from wncli.tensors import Storage

if TYPE_CHECKING:
    from wncli.checkpoint import Checkpoint
    from wncli.formats.files import Sources
    from wncli.output_folder import NewFiles
    from wncli.plan import Plan
    from wncli.target import Target

#: Called with the bytes that have just been written and the bytes that there will be.
Progress = Callable[[int, int], None]

#: The suffixes of what goes with a checkpoint, and the beginnings of names without one.
_COMPANIONS = frozenset(
    {".json", ".txt", ".md", ".model", ".py", ".yaml", ".yml", ".toml", ".jinja", ".tiktoken"}
)
_PAPERS = ("LICENSE", "LICENCE", "NOTICE", "README")
#: Bytes; larger files are no config and no tokenizer.
_SMALL = 64 << 20


@dataclass(frozen=True, slots=True)
class Outputs:
    """Every file of the output before anything is written.

    `files` are laid out, `index` is the name and content of what lists them, `companions` are
    copied as they are.
    """

    target: Target
    files: tuple[tuple[str, Layout], ...]
    index: tuple[str, bytes] | None = None
    companions: tuple[Path, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all files that are laid out."""
        return sum(layout.nbytes for _, layout in self.files)


def lay_out(plan: Plan, target: Target, folder: Path | None) -> Outputs:
    """Lay out what `plan` comes to; `folder` is where the input's companions stand, if it is one.

    Raises:
        WnError: the format, or a folder of shards, cannot hold it.
    """
    if not target.is_folder:
        # As torch.save has it: the file's name, unless it is no ASCII.
        stem = target.path.stem if target.path.stem.isascii() else ""
        layout, found = _lay_out_file(plan, target.format, stem or "archive")
        return Outputs(target, ((target.path.name, layout),), notes=found)
    companions = _companions(folder) if folder else ()
    along = _companion_notes(companions)
    if target.max_shard is None and not plan.checkpoint.shards:  # one file, in a folder of its own
        name = plan.checkpoint.path.name
        if not plan.checkpoint.format.startswith(target.format):
            known = name in HUGGING_FACE_NAMES
            name = (
                renamed(name, target.format)
                if known
                else beside(Path(), plan.checkpoint.path, target.format).name
            )
        layout, found = _lay_out_file(plan, target.format, Path(name).stem)
        return Outputs(target, ((name, layout),), companions=companions, notes=found + along)
    _refuse_several(plan)
    shards = (
        keep_shards(plan, target.format)
        if target.max_shard is None
        else split_by_size(plan, target.format, target.max_shard)
    )
    files: list[tuple[str, Layout]] = []
    notes = _lost_with_files(plan, shards)
    for shard in shards:
        if shard.copy_of is not None:
            files.append((shard.name, _whole_file(plan.checkpoint, shard)))
            continue
        layout, found = _lay_out_file(shard.plan, target.format, Path(shard.name).stem)
        files.append((shard.name, layout))
        notes += found
    index = _index(plan, target.format, files) if len(files) > 1 else None
    return Outputs(target, tuple(files), index, companions, (*dict.fromkeys(notes), *along))


def _lost_with_files(plan: Plan, shards: Sequence[ShardOutput]) -> tuple[Note, ...]:
    """What is no tensor in files of the input of which no tensor is left, so that none is made."""
    held = {entry.path for shard in shards for entry in shard.plan.checkpoint.entries}
    for shard in shards:
        held.update(*(part.state_dict.others for part in shard.plan.parts))
    lost = [path for path in left_out(plan) if path not in held]
    return (Note("left-out", f"left out: {', '.join(lost)}"),) if lost else ()


def check(
    target: Target, checkpoint: Path, *, force: bool, make_folder: bool, from_folder: bool
) -> None:
    """Refuse a target that cannot be written, before any work is done.

    Args:
        target: what is to be written.
        checkpoint: what is to be read.
        force: it may be there.
        make_folder: it stands in the directory for several, which may still have to be made.
        from_folder: the checkpoint is one of several files.

    Raises:
        FileError: it is there and `force` is not given, or cannot be there.
    """
    from wncli.output import check_output
    from wncli.output_folder import check_folder

    if make_folder and not target.path.parent.exists():
        return
    if not force:
        _refuse_checkpoint(target.path, checkpoint, is_one_of_several=make_folder)
    if target.is_folder:
        check_folder(target.path, force=force)
    else:
        takes_files = not (make_folder or from_folder)
        check_output(target.path, force=force, takes_files=takes_files)


def _refuse_checkpoint(output: Path, checkpoint: Path, *, is_one_of_several: bool) -> None:
    """Name an OUTPUT that is a checkpoint, as a shell's `*.pt` makes one of an input.

    Raises:
        FileError: it is one.
    """
    where = str(output)
    try:
        is_itself = output.samefile(checkpoint)
    except OSError:  # it is not there, or what it is called is refused as a name for OUTPUT
        return
    if is_itself:
        free = free_path(output.parent / "out" if is_one_of_several else output)
        raise FileError(
            where,
            "OUTPUT exists already: it is CHECKPOINT itself",
            expected="a name for what is to be written",
            hint=f"{option('--output-dir', str(free)) if is_one_of_several else path_word(free)}"
            " keeps both",
        )
    if is_one_of_several:
        return
    try:
        with open_checkpoint(output):
            pass
    except WnError:
        return
    raise FileError(
        where,
        "OUTPUT exists already, and is a checkpoint",
        expected="a name for what is to be written",
        hint="--output-dir DIR takes this file as a checkpoint too, --force replaces it",
    )


def make_parent(target: Target) -> None:
    """Make the directory that the output is to stand in.

    Raises:
        FileError: the system does not let it be made.
    """
    try:
        target.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(target.path.parent, error) from None


def write(
    outputs: Outputs,
    sources: Sources,
    progress: Progress | None,
    *,
    force: bool,
    verified: Plan | None = None,
) -> tuple[Note, ...]:
    """Write everything, then put it in its place; what is there already only with `force`.

    With `verified`, the plan that the outputs come from, all is read back before it is put there.

    Returns:
        What the data showed.

    Raises:
        WnError: refused; nothing has been written.
    """
    from wncli.fill import fill
    from wncli.output import allocate, replacing
    from wncli.output_folder import replacing_folder

    total = outputs.nbytes * (2 if verified else 1)

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    target = outputs.target

    def read_back(written: Path, notes: tuple[Note, ...]) -> None:
        if verified:
            from wncli.verifying import verify

            verify(verified, sources, written, str(target.path), notes, report)

    if not target.is_folder:
        ((_, layout),) = outputs.files
        with unfinished, replacing(target.path, layout.nbytes, force=force) as temporary:
            written, descriptor = temporary
            notes = fill(layout, sources, descriptor, report)
            read_back(written, notes)
            return notes
    notes = ()
    index = (outputs.index,) if outputs.index else ()
    companions = [path for path in outputs.companions if not _is_in(path, target.path)]
    names = [path.name for path in companions]
    names += [name for name, _ in (*outputs.files, *index)]
    with (
        unfinished,
        replacing_folder(
            target.path, names, partial(_checkpoint_in, target), force=force
        ) as new_files,
    ):
        for name, layout in outputs.files:
            with new_files.create(name) as new:
                allocate(new.fileno(), layout.nbytes)
        for name, layout in outputs.files:
            with new_files.open(name) as laid_out:
                notes += fill(layout, sources, laid_out.fileno(), report)
        for path in companions:
            _copy_companion(path, new_files)
        for name, content in index:
            new_files.write(name, content)
        read_back(new_files.path, notes)
    return notes


def _companion_notes(companions: Sequence[Path]) -> tuple[Note, ...]:
    names = ", ".join(path.name for path in companions)
    return (Note("companions", f"copied beside it: {names}"),) if names else ()


def _is_in(path: Path, folder: Path) -> bool:
    return folder.is_dir() and path.parent.samefile(folder)


def _copy_companion(path: Path, new_files: NewFiles) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(str(path), error) from None
    new_files.write(path.name, content, path)


def _lay_out_file(
    plan: Plan, output_format: OutputFormat, stem: str
) -> tuple[Layout, tuple[Note, ...]]:
    if output_format == "safetensors":
        from wncli.formats.safetensors_write import lay_out_safetensors

        return lay_out_safetensors(plan)
    from wncli.formats.torch_write import torch_content
    from wncli.formats.torch_zip_write import lay_out_torch_zip

    content = torch_content(plan)
    return lay_out_torch_zip(content, stem), content.notes


def _whole_file(checkpoint: Checkpoint, shard: ShardOutput) -> Layout:
    """A shard that no action changes, as the file it is."""
    number = shard.copy_of or 0
    own = checkpoint.shards[number].checkpoint
    (state_dict,) = own.state_dicts
    recorded = aliases(own, state_dict)
    names = tuple(spec.name for spec in state_dict.tensors if spec.name not in recorded)
    storage = Storage(shard.name, 0, own.nbytes, file=number)
    return Layout(own.nbytes, names, (Slot(0, own.nbytes, Whole(storage)),), ())


def _refuse_several(plan: Plan) -> None:
    if len(plan.parts) != 1:
        roots = [part.state_dict.root or "the top" for part in plan.parts]
        raise UsageError(
            str(plan.checkpoint.path),
            "a sharded checkpoint holds one state dict",
            expected="one state dict",
            found=f"{len(roots)}: {', '.join(roots)}" if roots else "none",
            hint=" or ".join(option("--only", part.state_dict.root) for part in plan.parts),
        )


def _index(
    plan: Plan, output_format: OutputFormat, files: Sequence[tuple[str, Layout]]
) -> tuple[str, bytes]:
    """The index of the shards, as `save_pretrained` writes it."""
    weight_map = {name: file for file, layout in files for name in layout.names}
    content = {
        "metadata": {"total_size": stored_nbytes(a for part in plan.parts for a in part.actions)},
        "weight_map": weight_map,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    name = index_name([file for file, _ in files], output_format, plan.checkpoint)
    return name, text.encode()


def _checkpoint_in(target: Target) -> tuple[str, ...]:
    """The files of the checkpoint in a folder that is to be replaced, the indexes last.

    That is the one which the folder stands for, and whatever would be read before the new one:
    safetensors files come before torch files.
    """
    from wncli.formats.files import Source
    from wncli.formats.folder import find_in_folder
    from wncli.formats.shard_index import read_index

    if not target.path.is_dir():
        return ()
    present = sorted(entry.name for entry in target.path.iterdir())
    formats = {"safetensors", target.format}
    found = [name for name in present if HUGGING_FACE_NAMES.get(name) in formats]
    found += [name for name in present if index_kind(name) in formats]
    with contextlib.suppress(WnError):
        found.append(find_in_folder(target.path)[0].name)
    for name in [name for name in found if index_kind(name)]:
        with contextlib.suppress(WnError, OSError), (target.path / name).open("rb") as file:
            found += read_index(Source(target.path / name, file)).file_names
    return tuple(dict.fromkeys(found))


def _companions(folder: Path) -> tuple[Path, ...]:
    """The small files beside a checkpoint that go with it: its config, its tokenizer."""
    return tuple(
        entry
        for entry in sorted(folder.iterdir())
        if not entry.name.startswith(".")
        and (entry.suffix.lower() in _COMPANIONS or entry.name.startswith(_PAPERS))
        and not index_kind(entry.name)
        and _is_small_file(entry)
    )


def _is_small_file(path: Path) -> bool:
    """Whether it is a file of this folder, no link out of it, and no larger than such files are."""
    try:
        place = resolve(path)
    except WnError:
        return False
    return place is not None and place.is_file() and place.stat().st_size <= _SMALL
