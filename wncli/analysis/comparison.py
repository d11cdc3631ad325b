"""What comparing two checkpoints found, for people and, as JSON, for programs."""

from __future__ import annotations

from typing import Any, NamedTuple

from wncli.arithmetic.ulps import numbers_for_json
from wncli.notes import Note
from wncli.report import SCHEMA, Parameters, plain


class TensorDifference(NamedTuple):
    """How far a weight of A is from its counterpart in B.

    `ulps` counts units of the last place of the coarser dtype; infinite where a finite number
    meets NaN or Inf.
    """

    root: str
    name: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    max_absolute: float
    max_relative: float
    max_ulps: float
    within: bool


class Comparison(NamedTuple):
    """The result of `compare`: the tensors from the worst to the best, and what has no counterpart.

    `rtol` and `atol` are those that were asked for; with neither, two units of the last place of
    the coarser dtype are allowed. `parameters` counts what A stores, and B.
    """

    checkpoint: str
    other: str
    rtol: float | None
    atol: float | None
    parameters: Parameters
    tensors: tuple[TensorDifference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    misshapen: tuple[str, ...]
    notes: tuple[Note, ...]

    @property
    def equal(self) -> bool:
        """Whether everything has a counterpart, and none is further off than allowed."""
        return all(tensor.within for tensor in self.tensors) and not (
            self.only_in_a or self.only_in_b or self.misshapen
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values for `json.dumps`, with the keys of every report."""
        found = {"schema": SCHEMA, "command": "compare", **plain(self)}
        found |= {"output": None, "layers": [], "equal": self.equal}
        found["parameters"] = self.parameters.to_json()
        for tensor in found["tensors"]:
            for key in ("max_absolute", "max_relative", "max_ulps"):
                tensor[key] = numbers_for_json(tensor[key])
        return found
