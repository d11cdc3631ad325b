"""Every refusal before anything is written, in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from wncli.checkpoint.checkpoint import Checkpoint, DangerousCall
from wncli.checkpoint.keys import Keys
from wncli.checkpoint.naming import join
from wncli.checkpoint.output import Output, OutputStateDict, Result
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FileError, FormatError, UsageError, WeightNormError, WnError, few
from wncli.formats.open import open_checkpoint
from wncli.formats.registry import FOLDERS, holds_a_tree
from wncli.hints import (
    Text,
    either,
    free_path,
    option,
    parameter,
    path_text,
    phrase,
    setting,
)
from wncli.notes import Note
from wncli.plan.actions import Action, Copy, Decompose, Part, Plan, Respell
from wncli.plan.destination import Target
from wncli.plan.rules import glob_of
from wncli.plan.survey import Survey

if TYPE_CHECKING:
    from wncli.formats.pickles.nodes import Node
    from wncli.formats.torch.tree import TorchTree

Owner = TypeVar("Owner")

#: As many state dicts are looked through for one without calls.
_MOST_TRIED = 16
#: How far an expanded tensor (stride 0) may grow beyond the file that it comes from, in bytes.
_EXPANSION = 64 << 20
#: As many tensors are named that can be left out.
_MOST_HINTS = 8


#: As many state dicts are offered one by one.
_MOST_ROOTS = 3


def refuse_destination(  # noqa: PLR0913 - what it depends on
    target: Target,
    checkpoint: Path | None,
    output: Path,
    *,
    force: bool,
    make_folder: bool,
    from_folder: bool,
) -> None:
    """Refuse a target that cannot be written, before any work is done.

    Args:
        target: what is to be written.
        checkpoint: what is to be read; None where it is on another machine.
        output: what the user has named, which may be the folder that the target is to be in.
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
        _refuse_checkpoint(
            target.path,
            checkpoint,
            is_one_of_several=make_folder,
            is_named=output == target.path,
        )
    if target.is_folder:
        check_folder(target.path, force=force)
    else:
        takes_files = not (make_folder or from_folder)
        check_output(target.path, force=force, takes_files=takes_files)


def refuse_among_parts(target: Target, checkpoint: Checkpoint) -> None:
    """Refuse to write another format into a distributed checkpoint, beside whose parts it stood.

    Raises:
        FileError: that is so.
    """
    if checkpoint.parts is None or target.format in FOLDERS:
        return
    if not target.is_folder or not target.path.is_dir():
        return
    if target.path.samefile(checkpoint.name):
        raise FileError(
            str(target.path),
            phrase("{} is the distributed checkpoint itself", parameter("output")),
            expected="another directory, or a file",
            hint=phrase("choose another name: {}", path_text(free_path(target.path))),
        )


def existing_notes(target: Target) -> tuple[Note, ...]:
    """Note in a dry run that the output is there already, which a real one would refuse."""
    if not target.path.exists():
        return ()
    message = phrase(
        "{} exists already: without {} it is refused", path_text(target.path), setting(force=True)
    )
    return (Note("exists", message, str(target.path)),)


def _refuse_checkpoint(
    output: Path, checkpoint: Path | None, *, is_one_of_several: bool, is_named: bool
) -> None:
    """Name an OUTPUT that is a checkpoint, as a shell's `*.pt` makes one of an input.

    Raises:
        FileError: it is one.
    """
    where = str(output)
    try:
        output.stat()
        is_itself = checkpoint is not None and output.samefile(checkpoint)
    except OSError:  # it is not there, or what it is called is refused as a name for OUTPUT
        return
    if is_itself:
        if is_one_of_several:
            folder = free_path(output.parent / "out")
            free = Text(repr(str(folder / output.name)), option("--output-dir", str(folder)))
        else:
            free = path_text(free_path(output))
        raise FileError(
            where,
            phrase(
                "{} exists already: it is {} itself", parameter("output"), parameter("checkpoint")
            ),
            expected="a name for what is to be written",
            hint=phrase("{} keeps both", free),
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
        phrase("{} exists already, and is a checkpoint", parameter("output")),
        expected="a name for what is to be written",
        hint=phrase(
            "{}{} replaces it, and what it holds is lost",
            # It comes first: `wn remove *.pt` of two files was not meant to replace one.
            Text(
                "",
                "--output-dir DIR writes both, if two CHECKPOINTs are meant; " if is_named else "",
            ),
            setting(force=True),
        ),
    )


def refuse(plan: Plan, target: Target, *, verify: bool) -> None:
    """Refuse a plan that cannot be written as it is meant.

    Raises:
        UsageError: an object that is no state dict would have to be written back as itself.
        FormatError: what is to be written is not what it seems, runs something when it is loaded,
            or is out of all proportion to the file.
    """
    checkpoint = plan.checkpoint
    keeps_tree = holds_a_tree(target.format)
    if keeps_tree:
        _refuse_objects(plan)
    refuse_ambiguity(checkpoint)
    refuse_damage(checkpoint)
    used = [
        (spec, (part, action))
        for part in plan.parts
        for action in part.actions
        for spec in action.sources
        if not part.is_filled  # which has been held against its own file
    ]
    refuse_growth(
        checkpoint,
        [
            (spec, (part, action))
            for spec, (part, action) in used
            if not (keeps_tree and isinstance(action, Copy))  # which keeps storages
        ],
        _without,
    )
    if verify:  # what is expanded is read back in full
        hint = phrase("leave {} out", parameter("verify"))
        for spec, _ in used:
            refuse_expansion(checkpoint, spec, hint)
        refuse_growth(checkpoint, used, lambda _: hint)
    _refuse_calls(plan)
    _refuse_several(plan, target)
    if not keeps_tree:
        for spec, (part, _) in used:
            path = join(part.state_dict.root, spec.name)
            refuse_expansion(checkpoint, spec, drop=[path])


def refuse_without_state_dict(plan: Plan, target: Target) -> None:
    """Refuse a file with something in it, but no state dict, unless all of it is only packed anew.

    Raises:
        FormatError: that is so.
    """
    checkpoint = plan.checkpoint
    repacks = plan.command == "convert" and checkpoint.tree and holds_a_tree(target.format)
    if not plan.parts and checkpoint.entries and not repacks:
        found = ", ".join(f"{entry.path}: {entry.summary}" for entry in checkpoint.entries[:3])
        raise FormatError(
            checkpoint.name,
            "no state dict was found",
            expected="a mapping of names to tensors",
            found=found,
            hint="save the module's state_dict() with torch.save",
        )


def has_nothing_to_do(plan: Plan, target: Target) -> bool:
    """Whether no layer changes, and the file would only be copied."""
    if plan.changes or plan.command != "convert":
        return not plan.changes
    codes = {note.code for note in plan.notes}
    unnormalized = "no-weight-norm" in codes and "renamed" not in codes
    same = plan.checkpoint.format == target.format and not target.is_folder
    return unnormalized and same and not plan.alone and not plan.drop


def _refuse_several(plan: Plan, target: Target) -> None:
    """Refuse to write several state dicts, or none, where there is a place for one."""
    is_sharded = (
        target.is_folder
        and target.format not in FOLDERS
        and (target.max_shard or plan.checkpoint.shards)
    )
    is_joined = len(plan.parts) > 1 and all(part.keys == plan.parts[0].keys for part in plan.parts)
    is_one = len(plan.parts) == 1 or is_joined
    if is_one or (holds_a_tree(target.format) and not is_sharded):
        return
    roots = [part.state_dict.root for part in plan.parts]
    holder = "a sharded checkpoint" if is_sharded else target.format
    is_like = any(note.code == "matched" for note in plan.notes)
    ways = [setting(only=root) for root in roots[:_MOST_ROOTS]]
    if not is_like and len(roots) > 1:
        ways.insert(0, setting(flatten=True))
    raise UsageError(
        plan.checkpoint.name,
        f"{holder} holds one state dict" if roots else "there is no state dict to write",
        expected="one state dict",
        found=f"{len(roots)}: {few([root or 'the top' for root in roots], 12)}" if roots else "",
        hint=either(ways),
    )


def refuse_same_names(output: Output) -> None:
    """Refuse to write two tensors under one name.

    Raises:
        UsageError: that is so.
    """
    known: dict[tuple[Keys, str], tuple[OutputStateDict, Result]] = {}
    for part in output.state_dicts:
        for result in part.results:
            for tensor in result.tensors:
                other, first = known.setdefault((part.keys, tensor.name), (part, result))
                if first is not result:
                    root = part.state_dict.root
                    before = join(other.state_dict.root, first.home.name)
                    source = join(root, result.home.name)
                    raise UsageError(
                        f"{output.checkpoint.name}: {tensor.name}",
                        "two tensors would have this name",
                        found=f"{before} and {source}",
                        hint=setting(drop=[root if source == before else source]),
                    )


def _without(taken: Iterable[tuple[Part, Action]]) -> str:
    """Say what leaves out the tensors that actions take."""
    return setting(
        drop=[
            join(part.state_dict.root, spec.name)
            for part, action in taken
            for spec in action.sources
        ]
    )


def refuse_ambiguity(checkpoint: Checkpoint) -> None:
    """Refuse a file that may mean other tensors to PyTorch.

    Raises:
        FormatError: what is in it cannot be told without running it.
    """
    _refuse_noted(
        checkpoint,
        "ambiguous",
        expected="tensors and keys as torch.save writes them",
        hint="load it with PyTorch and save it again",
    )


def refuse_damage(checkpoint: Checkpoint) -> None:
    """Refuse a file whose reader found other bytes in it than were written.

    Raises:
        FormatError: that is so.
    """
    _refuse_noted(
        checkpoint,
        "checksum",
        expected="the bytes that were written",
        hint="copy or download the file again",
    )


def _refuse_noted(checkpoint: Checkpoint, code: str, *, expected: str, hint: str) -> None:
    for note in checkpoint.notes:
        if note.code == code:
            raise FormatError(checkpoint.name, note.message, expected=expected, hint=hint)


def refuse_expansion(
    checkpoint: Checkpoint, spec: TensorSpec, hint: str = "", **leaving_out: object
) -> None:
    """Hold what a tensor would take when it is written out against the size of its file.

    The hint, or else these parameters, leave it out.

    Raises:
        FormatError: an expanded tensor would grow out of all proportion.
    """
    if spec.nbytes > checkpoint.nbytes + _EXPANSION:
        raise FormatError(
            f"{checkpoint.name}: {spec.name}",
            f"the expanded tensor would take {spec.nbytes:,} bytes",
            expected=f"no more than the file and {_EXPANSION:,} bytes",
            hint=hint or setting(**leaving_out),
        )


def refuse_growth(
    checkpoint: Checkpoint,
    owned: Iterable[tuple[TensorSpec, Owner]],
    hint: Callable[[Iterable[Owner]], str],
    *,
    stores_ties: bool = False,
) -> None:
    """Hold what tensors over shared storages would take together against the size of their file.

    Args:
        checkpoint: the file.
        owned: the tensors, each with what it is part of.
        hint: leaves those out.
        stores_ties: what is tied takes its bytes under each of its names.

    Raises:
        FormatError: a few bytes would be written, or read, over and over.
    """
    left = list(owned)
    allowed = checkpoint.nbytes + _EXPANSION
    if sum(spec.nbytes for spec, _ in left) <= allowed:  # whatever they share
        return

    def growth() -> int:
        specs = [spec for spec, _ in left]
        return _growth(specs if stores_ties else {spec.view: spec for spec in specs}.values())

    grown = growth()
    if grown <= allowed:
        return
    left.sort(key=lambda item: item[0].nbytes)
    without: dict[str, Owner] = {}
    while len(without) < _MOST_HINTS and growth() > allowed:
        owner = left.pop()[1]
        without.setdefault(hint([owner]), owner)
    raise FormatError(
        checkpoint.name,
        f"the expanded tensors would take {grown:,} bytes more than they are stored in",
        expected=f"no more than the file and {_EXPANSION:,} bytes",
        hint="" if growth() > allowed else hint(without.values()),
    )


def _growth(specs: Iterable[TensorSpec]) -> int:
    """Return the bytes that these tensors would take beyond those that they are stored in."""
    taken: dict[tuple[int, str], int] = {}
    held: dict[tuple[int, str], int] = {}
    for spec in specs:
        identity = spec.storage.identity
        taken[identity] = taken.get(identity, 0) + spec.nbytes
        held[identity] = spec.storage.nbytes
    return sum(max(0, taken[identity] - held[identity]) for identity in taken)


def _refuse_objects(plan: Plan) -> None:
    """Refuse to write a whole module, whose tensors can be read but not put back.

    Args:
        plan: what is to be written to a torch file.

    Raises:
        UsageError: an object that is no state dict would have to be written back as itself.
    """
    own = [part for part in plan.parts if not part.is_filled]
    held = [part for part in own if part.state_dict.holder]
    has_others = len(held) < len(own) or any(
        entry.kind == "tensor" for entry in plan.checkpoint.entries
    )
    for part in held:
        changes = any(not isinstance(action, Copy) for action in part.actions)
        if plan.alone or (has_others and not changes):
            continue
        root = part.state_dict.root
        raise UsageError(
            f"{plan.checkpoint.name}: {root}" if root else plan.checkpoint.name,
            f"this is {part.state_dict.holder}, which cannot be written back as itself",
            expected="a state dict, which can be read off it",
            hint=phrase("{} writes that", setting(only=root)),
        )


def _refuse_calls(plan: Plan) -> None:
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
        checkpoint.name,
        "loading this file with torch.load runs more than it takes to make tensors",
        expected="tensors and values",
        found=f"would run: {few(list(dict.fromkeys(call.call for call in shown)))}",
        hint=_without_calls(plan, left),
    )


def _without_calls(plan: Plan, left: Sequence[DangerousCall]) -> str:
    """Return what to type to leave these calls out."""
    from wncli.formats.torch.calls import calls_left, entries_to_drop

    checkpoint = plan.checkpoint
    if checkpoint.shards:
        return ""
    tree = checkpoint.tree
    if tree and all(call.where for call in left):
        roots = _roots_of_parts(plan, tree) if plan.alone else [tree.root]
        listed = {entry.keys for entry in checkpoint.entries}
        entries = entries_to_drop(tree, left, roots, plan.drop, listed)
        return setting(drop=list(entries))
    clean = [
        setting(only=found.root)
        for found in checkpoint.state_dicts[:_MOST_TRIED]
        if not (
            tree
            and not found.holder
            and calls_left(tree, left, (tree.mappings[found.keys],), frozenset())
        )
    ]
    return phrase("{} takes a state dict alone", either(clean)) if clean else ""


def _roots_of_parts(plan: Plan, tree: TorchTree) -> list[Node]:
    """Where the state dicts stand which are written by themselves."""
    return [
        tree.mappings[part.state_dict.keys]
        for part in plan.parts
        if part.state_dict.keys in tree.mappings and not (part.state_dict.holder or part.is_filled)
    ]


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
                    f"{checkpoint.name}: {weight}",
                    f"the name {name} is taken already",
                    hint=phrase("{} leaves this layer alone", setting(exclude=[glob_of(weight)])),
                )
