"""Every refusal before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from wncli.checkpoint.checkpoint import Checkpoint, DangerousCall
from wncli.checkpoint.keys import Keys
from wncli.errors import FormatError, UsageError, WeightNormError, WnError, few
from wncli.hints import glob_of, option
from wncli.plan.actions import Action, Copy, Decompose, Plan, Respell
from wncli.plan.survey import Survey

if TYPE_CHECKING:
    from wncli.formats.pickles.nodes import Node
    from wncli.formats.torch.tree import TorchTree

from pathlib import Path

from wncli.errors import FileError
from wncli.formats.open import open_checkpoint
from wncli.hints import free_path, path_word
from wncli.plan.destination import Target

#: As many state dicts are looked through for one without calls.
_MOST_TRIED = 16


def refuse_ambiguity(checkpoint: Checkpoint) -> None:
    """Nothing is made of, or said of, a file that may mean other tensors to PyTorch.

    Raises:
        FormatError: what is in it cannot be told without running it.
    """
    for note in checkpoint.notes:
        if note.code == "ambiguous":
            raise FormatError(
                str(checkpoint.path),
                note.message,
                expected="tensors and keys as torch.save writes them",
                hint="load it with PyTorch and save it again",
            )


def refuse_damage(checkpoint: Checkpoint) -> None:
    """Nothing is made of what is known to have changed since it was written.

    Raises:
        FormatError: a part of the file that says what is in it is damaged.
    """
    for note in checkpoint.notes:
        if note.code == "checksum":
            raise FormatError(
                str(checkpoint.path),
                note.message,
                expected="the bytes that were written",
                hint="copy or download the file again",
            )


def refuse_calls(plan: Plan) -> None:
    """Nothing is made of a file that runs something when it is loaded, unless that is left out.

    Raises:
        FormatError: what is to be written holds such calls, or the file makes them on the way.
    """
    checkpoint = plan.checkpoint
    left = list(checkpoint.would_run)
    if not left:
        return
    from wncli.formats.torch.calls import calls_left

    if plan.alone and not checkpoint.shards:
        tree = checkpoint.tree
        left = calls_left(tree, left, _roots_of_parts(plan, tree), plan.drop) if tree else []
    elif checkpoint.tree and plan.drop:
        tree = checkpoint.tree
        kept, reachable = (
            {id(call) for call in calls_left(tree, left, (tree.root,), drop)}
            for drop in (plan.drop, frozenset[Keys]())
        )
        left = [call for call in left if id(call) in kept or id(call) not in reachable]
    if not left:
        return
    shown = [call for call in left if call.is_shown] or left
    raise FormatError(
        str(checkpoint.path),
        "loading this file with torch.load runs more than it takes to make tensors",
        expected="tensors and values",
        found=f"would run: {few(list(dict.fromkeys(call.call for call in shown)))}",
        hint=_without_calls(plan, left),
    )


def _without_calls(plan: Plan, left: Sequence[DangerousCall]) -> str:
    """What to type to leave these calls out."""
    from wncli.formats.torch.calls import calls_left, entries_to_drop

    checkpoint = plan.checkpoint
    if checkpoint.shards:
        return ""
    tree = checkpoint.tree
    if tree and all(call.where for call in left):
        roots = _roots_of_parts(plan, tree) if plan.alone else [tree.root]
        listed = {entry.keys for entry in checkpoint.entries}
        entries = entries_to_drop(tree, left, roots, plan.drop, listed)
        return " ".join(option("--drop", entry) for entry in entries)
    clean = [
        option("--only", found.root)
        for found in checkpoint.state_dicts[:_MOST_TRIED]
        if not (
            tree
            and not found.holder
            and calls_left(tree, left, (tree.mappings[found.keys],), frozenset())
        )
    ]
    return f"{' or '.join(clean)} takes a state dict alone" if clean else ""


def _roots_of_parts(plan: Plan, tree: TorchTree) -> list[Node]:
    """Where the state dicts stand which are written by themselves."""
    return [
        tree.mappings[part.state_dict.keys]
        for part in plan.parts
        if part.state_dict.keys in tree.mappings and not part.state_dict.holder
    ]


def refuse_objects(plan: Plan) -> None:
    """A module's tensors can be read without its class, but no module be made of others.

    Args:
        plan: what is to be written to a torch file.

    Raises:
        UsageError: an object that is no state dict would have to be written back as itself.
    """
    held = [part for part in plan.parts if part.state_dict.holder]
    has_others = len(held) < len(plan.parts) or any(
        entry.kind == "tensor" for entry in plan.checkpoint.entries
    )
    for part in held:
        changes = any(not isinstance(action, Copy) for action in part.actions)
        if plan.alone or (has_others and not changes):
            continue
        root = part.state_dict.root
        raise UsageError(
            f"{plan.checkpoint.path}: {root}" if root else str(plan.checkpoint.path),
            f"this is {part.state_dict.holder}, which cannot be written back as itself",
            expected="a state dict, which can be read off it",
            hint=f"{option('--only', root)} writes that",
        )


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
    from wncli.storage.replace_file import check_output
    from wncli.storage.replace_folder import check_folder

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


def refuse_taken_names(
    checkpoint: Checkpoint, surveys: Sequence[Survey], actions: dict[tuple[str, str], Action]
) -> None:
    """Refuse a name for g or v that another entry of the state dict has."""
    names = {(found.state_dict.root, s.name) for found in surveys for s in found.state_dict.tensors}
    names |= {(found.state_dict.root, o) for found in surveys for o in found.state_dict.others}
    for (root, weight), action in actions.items():
        if not isinstance(action, (Decompose, Respell)):
            continue
        own = {spec.name for spec in action.sources}
        for name in (action.halves.g, action.halves.v):
            if (root, name) in names and name not in own:
                raise WeightNormError(
                    f"{checkpoint.path}: {weight}",
                    f"the name {name} is taken already",
                    hint=f"{option('-x', glob_of(weight))} leaves this layer alone",
                )
