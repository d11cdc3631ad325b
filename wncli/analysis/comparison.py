"""What comparing two checkpoints found, for people and, as JSON, for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wncli.arithmetic.ulps import numbers_for_json
from wncli.notes import Note
from wncli.report import SCHEMA, Parameters, fields_of


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far a weight of A is from its counterpart in B.

    Attributes:
        root: where its state dict stands in A.
        name: its full name there; of a normalized layer the weight's.
        shape: its shape.
        dtype_a: its dtype in A.
        dtype_b: its dtype in B.
        max_absolute: the largest difference of two elements.
        max_relative: the largest as a share of B's element.
        max_ulps: the largest in units of the last place of the coarser dtype; infinite where a
            finite number meets NaN or Inf.
        within: whether all are as close as allowed.
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        checkpoint: A's path.
        other: B's.
        rtol: the difference that was allowed as a share of B's number, if one was given.
        atol: the absolute one, if one was given; with neither, two units of the last place of the
            coarser dtype are allowed.
        parameters: how many A stores, and B.
        tensors: the weights that have a counterpart, from the worst to the best.
        only_in_a: the full names of those that A alone has.
        only_in_b: those of B's.
        misshapen: those whose counterpart has another shape, with both shapes.
        notes: what should be known beside that.
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
        found = {"schema": SCHEMA, "command": "compare", **fields_of(self)}
        found |= {"output": None, "layers": [], "equal": self.equal}
        found["parameters"] = self.parameters.to_json()
        for tensor in found["tensors"]:
            for key in ("max_absolute", "max_relative", "max_ulps"):
                tensor[key] = numbers_for_json(tensor[key])
        return found
