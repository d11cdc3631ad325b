"""Reads the elements of a tensor of a checkpoint that was looked at before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wncli.errors import FileError
from wncli.formats.open import open_checkpoint
from wncli.storage.addresses import Place
from wncli.storage.source import expect

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wncli.checkpoint.tensors import TensorSpec


def read_values(place: Place, wanted: TensorSpec) -> npt.NDArray[np.generic]:
    """Return all elements of a tensor, in an array of its shape.

    Raises:
        FileError: the checkpoint cannot be read any more, or is another one now.
    """
    import numpy as np

    from wncli.arithmetic.dtypes import numpy_dtype
    from wncli.streaming.effective import runs_of

    with open_checkpoint(place) as (opened, sources):
        views = {spec.view for found in opened.state_dicts for spec in found.tensors}
        if wanted.view not in views:
            raise FileError(
                str(place),
                f"{wanted.name} is not where it was when the report was made",
                hint="inspect it again",
            )
        expect(sources, [wanted.storage])
        runs = [run.copy() for run in runs_of(sources, wanted, [])]
    if not runs:
        return np.empty(wanted.shape, numpy_dtype(wanted.dtype))
    return np.concatenate(runs).reshape(wanted.shape)
