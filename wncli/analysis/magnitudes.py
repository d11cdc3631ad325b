"""Reads what the layers' magnitudes are; with v, how far they are from its norms."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wncli.checkpoint.pairs import storages_of
from wncli.checkpoint.tensors import DType
from wncli.parallel import Advance
from wncli.plan.actions import Compose
from wncli.statistics import Distribution, LayerStatistics
from wncli.storage.source import BLOCK, expect
from wncli.streaming.blocks import TensorBlocks
from wncli.team import ALONE, Team, run_shared

if TYPE_CHECKING:
    from wncli.checkpoint.pairs import Pair
    from wncli.checkpoint.tensors import TensorSpec
    from wncli.parallel import Progress
    from wncli.plan.actions import Plan
    from wncli.storage.source import Sources

#: More slices than any layer has; what has more is left out, as each becomes an object.
_MOST_SLICES = 1 << 20
#: How `struct` reads a little-endian element. Most files need no NumPy, which takes longer to
#: import than all magnitudes take to read.
_ELEMENTS = {DType.F64: "d", DType.F32: "f", DType.F16: "e"}


def layer_statistics(  # noqa: PLR0913 - what, from where, and how
    plan: Plan,
    sources: Sources,
    *,
    with_directions: bool = False,
    progress: Progress | None = None,
    jobs: int | None = None,
    team: Team = ALONE,
) -> tuple[LayerStatistics, ...]:
    """Describe the magnitudes of the layers of a plan, in their order.

    Args:
        plan: of `inspect`.
        sources: the checkpoint's files.
        with_directions: read v as well, which takes as long as to fold.
        progress: called with the bytes of v that have been read and those that there are.
        jobs: threads at most.
        team: the ranks that read v together; each reads all g.

    Raises:
        FileError: the system does not let it be read.
        FormatError: it is damaged.
    """
    layers = [
        (root, action.pair)
        for root, action in plan.changes
        if isinstance(action, Compose) and action.pair.g.numel <= _MOST_SLICES
    ]
    total = sum(pair.v.nbytes for _, pair in layers)

    def read_ratios(layer: tuple[str, Pair], advance: Advance) -> list[float]:
        return _ratios(sources, layer[1], advance)

    expect(sources, storages_of(pair if with_directions else pair.g for _, pair in layers))

    def report(count: int) -> None:
        if progress:
            progress(count, total)

    ratios: Sequence[list[float] | None] = [None] * len(layers)
    if with_directions:
        sizes = [pair.v.nbytes for _, pair in layers]
        ratios = run_shared(team, read_ratios, layers, sizes=sizes, jobs=jobs, progress=report)
    return tuple(
        _described(root, pair, _elements(sources, pair.g), found)
        for (root, pair), found in zip(layers, ratios, strict=True)
    )


def _described(
    root: str, pair: Pair, g: Sequence[float], ratios: Sequence[float] | None
) -> LayerStatistics:
    bad = [not math.isfinite(value) for value in g]
    if ratios is not None:
        bad = [one or not math.isfinite(ratio) for one, ratio in zip(bad, ratios, strict=True)]
    return LayerStatistics(
        root,
        pair.weight,
        Distribution.of(g),
        Distribution.of(ratios) if ratios is not None else None,
        dead=sum(value == 0 for value in g),
        non_finite=sum(bad),
    )


def _elements(sources: Sources, spec: TensorSpec) -> Sequence[float]:
    """Return the elements of a small tensor, in row-major order."""
    if spec.dtype in {*_ELEMENTS, DType.BF16} and spec.is_contiguous and spec.nbytes <= BLOCK:
        place = spec.storage.offset + spec.offset * spec.dtype.itemsize
        raw = sources[spec.storage.file].read_at(place, spec.nbytes, f"tensor {spec.name!r}")
        if spec.dtype is DType.BF16:  # the upper half of a float32
            wide = bytearray(2 * len(raw))
            wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
            return struct.unpack(f"<{spec.numel}f", wide)
        return struct.unpack(f"<{spec.numel}{_ELEMENTS[spec.dtype]}", raw)
    import numpy as np

    from wncli.streaming.effective import runs_of

    return [
        value for run in runs_of(sources, spec, []) for value in run.astype(np.float64).tolist()
    ]


def _ratios(sources: Sources, pair: Pair, advance: Advance) -> list[float]:
    """Return g / ||v|| of each slice: exactly 1 where g is the norm of v in g's dtype."""
    import numpy as np

    from wncli.arithmetic.dtypes import numpy_dtype
    from wncli.arithmetic.norms import factors
    from wncli.streaming.fold import sums_of_squares
    from wncli.streaming.reference import norms_of

    blocks = TensorBlocks(sources[pair.v.storage.file], pair.v, pair.dim)
    is_wide = DType.F64 in {pair.g.dtype, pair.v.dtype}
    norms = norms_of(blocks, None if is_wide else sums_of_squares(blocks), wide=is_wide)
    g = np.array(_elements(sources, pair.g)).astype(numpy_dtype(pair.g.dtype))
    with np.errstate(all="ignore"):
        found = factors(g, norms, may_match=pair.g.dtype is pair.v.dtype, empty=not pair.v.numel)
        high = found.high if found.exponent is None else np.ldexp(found.high, found.exponent)
    high[found.undefined] = np.inf
    advance(pair.v.nbytes)
    return list(map(float, high))
