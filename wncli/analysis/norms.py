"""Computes the norms of tensors' slices, of any order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wncli.arithmetic.dtypes import numpy_dtype
from wncli.arithmetic.norms import unwarned
from wncli.checkpoint.pairs import storages_of
from wncli.parallel import Advance
from wncli.statistics import Distribution, TensorNorms
from wncli.storage.source import expect
from wncli.streaming.blocks import TensorBlocks
from wncli.team import ALONE, Team, run_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wncli.checkpoint.tensors import TensorSpec
    from wncli.parallel import Progress
    from wncli.plan.norms import NormsPlan
    from wncli.storage.source import Sources


def tensor_norms(  # noqa: PLR0913, PLR0917 - what, from where, and how
    plan: NormsPlan,
    sources: Sources,
    p: float,
    progress: Progress | None,
    jobs: int | None,
    team: Team = ALONE,
) -> tuple[TensorNorms, ...]:
    """Return the norms of the slices of each tensor, in their order.

    Args:
        plan: which tensors, and along which dim.
        sources: the checkpoint's files.
        p: the order; infinite for the largest element.
        progress: called with the bytes that have been read and those that there are.
        jobs: threads at most.
        team: the ranks that do it together.

    Raises:
        FileError: the system does not let it be read.
        FormatError: it is damaged.
    """
    total = sum(spec.nbytes for _, spec, _ in plan.tensors)

    def compute(item: tuple[str, TensorSpec, int | None], advance: Advance) -> list[float]:
        _, spec, dim = item
        norms = _norms(TensorBlocks(sources[spec.storage.file], spec, dim), p)
        advance(spec.nbytes)
        return norms

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    expect(sources, storages_of(spec for _, spec, _ in plan.tensors))
    sizes = [spec.nbytes for _, spec, _ in plan.tensors]
    found = run_shared(team, compute, plan.tensors, sizes=sizes, jobs=jobs, progress=report)
    return tuple(
        TensorNorms(root, spec.name, spec.shape, p, dim, Distribution.of(norms))
        for (root, spec, dim), norms in zip(plan.tensors, found, strict=True)
    )


@unwarned
def _norms(blocks: TensorBlocks, p: float) -> list[float]:
    """Return the norm of each slice; what is read is first divided by the largest of its slice.

    So no power overflows or vanishes.
    """
    dtype = numpy_dtype(blocks.spec.dtype)

    def sizes() -> Iterator[tuple[slice, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]:
        for block in blocks:
            part = slice(block.channel, block.channel + block.shape[1])
            yield part, np.abs(blocks.read(block, dtype)).astype(np.float64)

    peak = np.zeros(blocks.slices[1])
    for part, size in sizes():
        peak[part] = np.maximum(peak[part], size.max(axis=(0, 2), initial=0.0))
    if math.isinf(p):
        return list(map(float, peak))
    scale = np.where((peak > 0) & np.isfinite(peak), peak, 1.0)
    powers = np.zeros_like(peak)
    for part, size in sizes():
        powers[part] += ((size / scale[part, None]) ** p).sum(axis=(0, 2))
    return list(map(float, scale * powers ** (1 / p)))
