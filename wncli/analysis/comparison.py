"""What comparing two checkpoints found, for people and, as JSON, for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import wncli
from wncli.arithmetic.ulps import numbers_for_json
from wncli.notes import Note
from wncli.report import SCHEMA, Parameters, fields_of
from wncli.storage.addresses import Traffic


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """How far a weight of A is from its counterpart in B.

    Attributes:
        root: where its state dict stands in A.
        name: its full name there; of a normalized layer the weight's.
        shape: its shape.
        dtype_a: its dtype in A.
        dtype_b: its dtype in B.
        max_absolute: the largest difference of two elements; as all that follow NaN where a number
            meets NaN, and infinite where it meets an infinity.
        max_relative: the largest as a share of B's element, as `rtol` has it: infinite where that
            is 0.
        max_ulps: the largest in units of the last place of the coarser dtype.
        within: whether all are as close as allowed.
        change: the norm of the difference as a share of that of A's tensor; infinite where A has
            all zeros, NaN also where different elements are no numbers. NaN and infinities that
            are the same on both sides are left out.
        g_moved: of all slices along the dim of weight norm, that of A if it has one, the largest
            change of a norm as a share of A's, with its sign; infinite where A's slice is zero.
            None where neither side is normalized.
        v_turned: the largest angle between a slice of A and B's, in degrees; slices that are zero
            on a side have none. None where neither side is normalized.
        needed_rtol: the smallest `rtol`, beside the `atol` that was given, with which all would be
            within; None where none does it: B has a 0, or there is NaN or an infinity.
        needed_atol: the smallest `atol`, beside the `rtol` that was given; None where none does it.
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
    change: float
    g_moved: float | None
    v_turned: float | None
    needed_rtol: float | None
    needed_atol: float | None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; None for NaN and infinities as well."""
        found = fields_of(self)
        return {
            key: numbers_for_json(value) if isinstance(value, float) else value
            for key, value in found.items()
        }


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """The result of `compare`.

    Attributes:
        checkpoint: A's path.
        other: B's.
        rtol: the difference that was allowed as a share of B's number, if one was given.
        atol: the absolute one, if one was given; with neither, two units of the last place of the
            coarser dtype are allowed.
        parameters: how many A stores, and B.
        tensors: the weights that have a counterpart, sorted by what has changed most.
        only_in_a: the full names of those that A alone has.
        only_in_b: those of B's.
        misshapen: those whose counterpart has another shape, with both shapes.
        notes: what should be known beside that.
        change: the norm of all differences as a share of that of A, over all floating tensors that
            have a counterpart, tied ones once; NaN and infinite as that of a tensor.
        checkpoint_bytes: the size of A, or of all its shards.
        other_bytes: that of B.
        seconds: how long it took.
        remote: the requests and bytes that reading at a distance took; None where all was here.
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
    change: float
    checkpoint_bytes: int
    other_bytes: int
    seconds: float = 0.0
    remote: Traffic | None = None

    def __repr__(self) -> str:
        """Say it in one line."""
        verdict, count = "equal" if self.equal else "different", len(self.tensors)
        within = sum(tensor.within for tensor in self.tensors)
        return (
            f"<Comparison {self.checkpoint!r}, {self.other!r}: {verdict}, {within:,} of {count:,} "
            f"tensor{'s' * (count != 1)} equal, change {self.change:.3g}>"
        )

    @property
    def equal(self) -> bool:
        """Whether everything has a counterpart, and none is further off than allowed."""
        return all(tensor.within for tensor in self.tensors) and not (
            self.only_in_a or self.only_in_b or self.misshapen
        )

    @property
    def needed_rtol(self) -> float | None:
        """The smallest `rtol` with which all `tensors` would be within; None where none does it."""
        return _largest(tensor.needed_rtol for tensor in self.tensors)

    @property
    def needed_atol(self) -> float | None:
        """The smallest `atol` with which all `tensors` would be within; None where none does it."""
        return _largest(tensor.needed_atol for tensor in self.tensors)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a dict for each of the `tensors`, for `pandas.DataFrame` or a CSV file."""
        return [fields_of(tensor) for tensor in self.tensors]

    def _repr_html_(self) -> str:
        """Give a short table for a notebook."""
        from wncli.figures.tables import short_table

        verdict = "equal" if self.equal else "different"
        facts = f"{verdict}, {len(self.tensors):,} tensors compared"
        return short_table(f"{self.checkpoint} and {self.other}", facts, self.to_rows())

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values for `json.dumps`, with the keys of every report."""
        return {
            "schema": SCHEMA,
            "wn": wncli.__version__,
            "command": "compare",
            **fields_of(self),
            "output": None,
            "layers": [],
            "equal": self.equal,
            "change": numbers_for_json(self.change),
            "needed_rtol": self.needed_rtol,
            "needed_atol": self.needed_atol,
        }


def _largest(needed: Iterable[float | None]) -> float | None:
    found = list(needed)
    known = [value for value in found if value is not None]
    return max(known, default=0.0) if len(known) == len(found) else None
