"""Reads a written checkpoint back, and holds it against what it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wncli.arithmetic.ulps import Difference, Tolerance
from wncli.checkpoint.keys import Keys, shown
from wncli.checkpoint.naming import join
from wncli.checkpoint.pairs import Halves, Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FileError
from wncli.formats.open import open_checkpoint
from wncli.formats.torch.archive import damaged_members
from wncli.parallel.crew import Advance
from wncli.parallel.workers import map_shared
from wncli.plan.actions import Action, Compose, Copy, Decompose, Plan, Renormalize, Respell
from wncli.streaming.effective import aligned_runs

if TYPE_CHECKING:
    from wncli.notes import Note
    from wncli.storage.source import Sources


class _Match(NamedTuple):
    """A tensor or pair of the input, what was written of it, and whether all bits have to agree."""

    name: str
    before: TensorSpec | Pair
    after: TensorSpec | Pair
    exactly: bool


def verify(  # noqa: PLR0913, PLR0917 - two checkpoints, and what to tell of them
    plan: Plan,
    sources: Sources,
    written: Path,
    output: str,
    notes: Sequence[Note],
    progress: Callable[[int], None],
) -> None:
    """Hold the effective weights in `written` against those of the plan's input, from the disk.

    Args:
        plan: what was carried out.
        sources: the input's files.
        written: where the output stands so far.
        output: what to call it.
        notes: what the data showed: a weight with NaN or Inf has no g and v that give it back.
        progress: called with the bytes that have just been compared.

    Raises:
        FileError: something is missing in what was written, or differs.
    """
    _forget_cached(written)
    excused = {note.where for note in notes if note.code == "non-finite"}
    with open_checkpoint(written) as (checkpoint, files):
        for file in files:
            for member in damaged_members(file):
                raise _failed(output, f"member {member} has not the checksum of what was written")
        tensors = {
            (state_dict.keys, spec.name): spec
            for state_dict in checkpoint.state_dicts
            for spec in state_dict.tensors
        }
        is_flat = checkpoint.format == "safetensors" or bool(checkpoint.shards)
        matches = [
            match
            for part in plan.parts
            for action in part.actions
            for match in _matches(action, () if is_flat else part.keys, tensors, output)
        ]

        different = {_view(match): match for match in matches}

        def agrees(match: _Match, advance: Advance) -> bool:
            return _agree(match, sources, files, advance)

        agreeing = map_shared(agrees, list(different.values()), plan.checkpoint.nbytes, progress)
        same = dict(zip(different, agreeing, strict=True))
        for match in matches:
            where = f"{sources[0].where}: {match.name}"
            if not same[_view(match)] and where not in excused:
                raise _failed(output, f"{match.name} is not what it was made from")


def _view(match: _Match) -> object:
    """What matches of tied tensors have in common."""
    before, after = (
        (item.g.view, item.v.view, item.dim) if isinstance(item, Pair) else item.view
        for item in (match.before, match.after)
    )
    return before, after, match.exactly


def _forget_cached(written: Path) -> None:
    """Have the system read from the disk, not from what it still holds in memory."""
    for path in written.iterdir() if written.is_dir() else (written,):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _matches(
    action: Action, keys: Keys, tensors: Mapping[tuple[Keys, str], TensorSpec], output: str
) -> Iterator[_Match]:
    def written(name: str) -> TensorSpec:
        if (keys, name) not in tensors:
            raise _failed(output, f"{join(shown(keys), name)} is missing")
        return tensors[keys, name]

    def pair(halves: Halves, dim: int | None) -> Pair:
        return Pair(halves.weight, halves.naming, written(halves.g), written(halves.v), dim)

    match action:
        case Copy(spec, name):
            yield _Match(spec.name, spec, written(name), exactly=True)
        case Respell(before, halves):
            yield _Match(before.g.name, before.g, written(halves.g), exactly=True)
            yield _Match(before.v.name, before.v, written(halves.v), exactly=True)
        case Compose(before, name):
            yield _Match(before.weight, before, written(name), exactly=False)
        case Decompose(weight, dim, halves):
            yield _Match(weight.name, weight, pair(halves, dim), exactly=False)
        case Renormalize(before, dim, halves):
            yield _Match(before.weight, before, pair(halves, dim), exactly=False)


def _agree(match: _Match, sources: Sources, files: Sources, advance: Advance) -> bool:
    before, after = match.before, match.after
    if before.numel * before.dtype.bits != after.numel * after.dtype.bits:
        return False
    found = Difference(before.dtype, after.dtype, Tolerance())
    for one, other in aligned_runs(((sources, before), (files, after)), []):
        if match.exactly and not np.array_equal(one.view(np.uint8), other.view(np.uint8)):
            return False
        found.add(one, other)
        advance(one.nbytes)
    return found.within


def _failed(output: str, what: str) -> FileError:
    return FileError(
        output,
        f"reading back what was written failed: {what}",
        hint="nothing has been put in its place; run it again, and check the disk and the memory",
    )
