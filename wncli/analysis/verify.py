"""Reads a written checkpoint back, and compares it with what it was made from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wncli.analysis.damage import damaged_members
from wncli.arithmetic.ulps import Difference, Tolerance
from wncli.checkpoint.keys import Keys, as_text, shown
from wncli.checkpoint.layout import Elements, Magnitude, Product
from wncli.checkpoint.naming import join
from wncli.checkpoint.output import Output, Result
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import FileError
from wncli.formats.open import open_checkpoint
from wncli.parallel import Advance
from wncli.streaming.effective import aligned_runs
from wncli.team import ALONE, Team, run_shared

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
    output: Output,
    sources: Sources,
    written: Path,
    called: str,
    notes: Sequence[Note],
    progress: Callable[[int], None],
    jobs: int | None,
    team: Team = ALONE,
) -> int:
    """Hold the effective weights in `written` against those of the input, from the disk.

    Args:
        output: what was to be written.
        sources: the input's files.
        written: where the output stands so far.
        called: what to call it.
        notes: what the data showed: a weight with NaN or Inf has no g and v that give it back.
        progress: called with the bytes that have just been compared.
        jobs: threads at most.
        team: the ranks that do it together.

    Returns:
        How many weights were compared.

    Raises:
        FileError: something is missing in what was written, or differs.
    """
    _forget_cached(written)
    excused = {note.where for note in notes if note.code == "non-finite"}
    with open_checkpoint(written) as (checkpoint, files):
        for member in chain.from_iterable(damaged_members(files, jobs, team)):
            raise _failed(called, f"member {member} has not the checksum of what was written")
        tensors = {
            (state_dict.keys, spec.name): spec
            for state_dict in checkpoint.state_dicts
            for spec in state_dict.tensors
        }
        is_flat = not checkpoint.tree
        has_texts = checkpoint.parts is not None
        matches = [
            match
            for part in output.state_dicts
            for result in part.results
            for match in _matches(
                result,
                () if is_flat else as_text(part.keys) if has_texts else part.keys,
                tensors,
                called,
            )
        ]

        different = {_view(match): match for match in matches}

        def agrees(match: _Match, advance: Advance) -> bool:
            return _agree(match, sources, files, advance)

        items = list(different.values())
        agreeing = run_shared(
            team,
            agrees,
            items,
            sizes=[match.before.numel * match.before.dtype.bits // 8 for match in items],
            jobs=jobs,
            progress=progress,
        )
        same = dict(zip(different, agreeing, strict=True))
        for match in matches:
            where = f"{sources[0].name}: {match.name}"
            if not same[_view(match)] and where not in excused:
                raise _failed(called, f"{match.name} is not what it was made from")
        return sum(same[_view(match)] for match in matches)


def _view(match: _Match) -> object:
    """Return what matches of tied tensors have in common."""
    before, after = (
        (item.g.view, item.v.view, item.dim) if isinstance(item, Pair) else item.view
        for item in (match.before, match.after)
    )
    return before, after, match.exactly


def _forget_cached(written: Path) -> None:
    """Have the system read from the disk, not from what it still holds in memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in written.iterdir() if written.is_dir() else (written,):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _matches(
    result: Result, keys: Keys, tensors: Mapping[tuple[Keys, str], TensorSpec], called: str
) -> Iterator[_Match]:
    def written(name: str) -> TensorSpec:
        if (keys, name) not in tensors:
            raise _failed(called, f"{join(shown(keys), name)} is missing")
        return tensors[keys, name]

    if result.is_kept:
        for kept in result.tensors:
            yield _Match(kept.source.name, kept.source, written(kept.name), exactly=True)
        return
    *magnitudes, weight = result.tensors
    after: TensorSpec | Pair = written(weight.name)
    for g in magnitudes:
        assert isinstance(g.content, Magnitude)  # noqa: S101 - for the type checker
        assert result.naming  # noqa: S101 - the same
        dim = g.content.dim
        after = Pair(result.weight, result.naming, written(g.name), written(weight.name), dim)
    match weight.content:
        case Product(pair):
            yield _Match(pair.weight, pair, after, exactly=False)
        case Elements(tensor):
            yield _Match(tensor.name, tensor, after, exactly=False)


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


def _failed(called: str, what: str) -> FileError:
    return FileError(
        called,
        f"reading back what was written failed: {what}",
        hint="nothing has been put in its place; run it again, and check the disk and the memory",
    )
