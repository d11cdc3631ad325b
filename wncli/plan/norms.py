"""Chooses the tensors whose norms are wanted."""

from __future__ import annotations

from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.dims import resolve_dim
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError
from wncli.hints import parameter
from wncli.notes import Note
from wncli.plan.request import Request, listing, surveys_of
from wncli.plan.rules import Candidate, choose_pairs


class NormsPlan(NamedTuple):
    """The tensors, each with its root and the dim of its slices, and what is to be known."""

    tensors: tuple[tuple[str, TensorSpec, int | None], ...]
    notes: tuple[Note, ...]


def plan_norms(checkpoint: Checkpoint, request: Request, p: float, dim: int | None) -> NormsPlan:
    """Choose the floating tensors that the rules take; without rules all that have the dim.

    Raises:
        UsageError: a rule matches nothing, or there is no such order.
        WeightNormError: a tensor that a rule takes has no such dim.
    """
    if not p > 0:
        raise UsageError(
            parameter("p"), f"{p:g} is not the order of a norm", expected="a number above 0, or inf"
        )
    specs = {
        Candidate(found.state_dict.root, spec.name, len(spec.shape), by_default=True): spec
        for found in surveys_of(checkpoint, request)
        for spec in found.state_dict.tensors
        if spec.dtype.precision and spec.dtype.numpy
    }
    chosen = choose_pairs(list(specs), request.layers, request.exclude, {}, listing(checkpoint))
    tensors = []
    lacking = 0
    for item, rule in chosen.items():
        spec = specs[item]
        if rule is None and dim is not None and dim >= item.rank:
            lacking += 1
            continue
        where = f"{checkpoint.name}: {spec.name}"
        tensors.append((item.root, spec, resolve_dim(dim, item.rank, where)))
    message = f"{lacking:,} tensors of fewer dimensions than dim {dim} asks for are not listed"
    notes = (Note("no-such-dim", message),) if lacking else ()
    return NormsPlan(tuple(tensors), notes)
