"""A program that uses the typed API, as a user with `mypy --strict` writes it.

    python typed_program.py CHECKPOINT FOLDER

It is checked and run with the package as it is installed, where PyTorch need not be.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import wncli


def main(checkpoint: Path, folder: Path) -> None:
    """Use every public function and the results' fields; their types are as documented."""
    report = wncli.inspect(checkpoint, statistics=True, exclude=["conv_post"])
    assert_type(report, wncli.Report)
    assert_type(report.parameters, wncli.Parameters)
    assert_type(report.parameters.change, int)
    assert_type(report.to_rows(), list[dict[str, Any]])
    for layer in report.layers:
        assert_type(layer, wncli.Layer)
        assert_type(layer.dim, int | None)
        assert_type(layer.shape, tuple[int, ...])
    assert_type(report.layers[0].g, npt.NDArray[np.generic])
    for note in report.notes:
        assert_type(note, wncli.Note)

    folded = wncli.remove(checkpoint, folder / "folded.safetensors", verify=True, jobs=2)
    assert_type(folded, wncli.Report)
    assert_type(folded.output, str | None)
    wncli.apply(folder / "folded.safetensors", str(folder / "split.pt"), dim=0, naming="hook")
    wncli.convert(folder / "split.pt", folder / "new.safetensors", naming="parametrized")

    comparison = wncli.compare(checkpoint, folder / "new.safetensors", rtol=1e-6)
    assert_type(comparison, wncli.Comparison)
    assert_type(comparison.equal, bool)
    for difference in comparison.tensors:
        assert_type(difference, wncli.TensorDifference)
        assert_type(difference.max_absolute, float)
    assert comparison.equal, comparison

    weight = np.ones((3, 4), np.float32)
    g, v = wncli.decompose(weight, dim=0)
    assert_type(g, npt.NDArray[Any])
    assert_type(wncli.compose(g, v), npt.NDArray[Any])
    assert_type(wncli.magnitude(weight, dim=None, p=1), npt.NDArray[Any])
    assert np.array_equal(wncli.compose(g, v), weight)

    try:
        wncli.remove(folder / "folded.safetensors", folder / "again.pt")
    except wncli.NothingToDo as nothing:
        assert_type(nothing.report, wncli.Report)
    try:
        wncli.inspect(folder / "nothing here.pt")
    except wncli.FileError as error:
        assert_type(error.hint, str)
        assert isinstance(error, (wncli.WnError, OSError))  # noqa: PT017 - no test, a program
    assert_type(wncli.__version__, str)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
