"""Turns each action of a plan into the tensors of the output that it leaves."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import assert_never

from wncli.checkpoint.layout import Elements, Magnitude, Product
from wncli.checkpoint.output import Output, OutputStateDict, OutputTensor, Result
from wncli.checkpoint.pairs import Halves, Pair
from wncli.checkpoint.tensors import TensorSpec, row_major
from wncli.plan.actions import Action, Compose, Copy, Decompose, Plan, Renormalize, Respell


def lower_plan(plan: Plan) -> Output:
    """Give the tensors of the output, whatever its format."""
    return Output(
        plan.checkpoint,
        tuple(
            OutputStateDict(
                part.state_dict,
                tuple(map(lower, part.actions)),
                part.keys,
                part.keeps_others,
                part.is_filled,
            )
            for part in plan.parts
        ),
        plan.alone,
        plan.drop,
    )


def lower(action: Action) -> Result:
    """Give what an action leaves."""
    match action:
        case Copy(tensor, name):
            tensors: tuple[OutputTensor, ...] = (_kept(tensor, name, tensor.shape),)
            return Result(action.sources, tensors, name, is_kept=True)
        case Respell(pair, halves):
            tensors = (
                _kept(pair.g, halves.g, halves.g_shape),
                _kept(pair.v, halves.v, pair.v.shape),
            )
            return Result(action.sources, tensors, halves.weight, halves.naming, is_kept=True)
        case Compose(pair, name):
            return Result(action.sources, (_product(pair, name),), name)
        case Decompose(weight, dim, halves):
            tie = ("v", weight.view, dim)
            v = OutputTensor(halves.v, weight.dtype, weight.shape, Elements(weight), tie, weight)
            g = _g(halves, _magnitude(weight, dim, halves), v.tie, weight)
            return Result(action.sources, (g, v), halves.weight, halves.naming)
        case Renormalize(pair, dim, halves):
            v = _product(pair, halves.v)
            product = pair.v._replace(name=pair.weight, dtype=pair.dtype)
            magnitude = _magnitude(product, dim, halves)._replace(of_output=True)
            g = _g(halves, magnitude, v.tie, pair.g)
            return Result(action.sources, (g, v), halves.weight, halves.naming)
        case _:
            assert_never(action)


def _kept(tensor: TensorSpec, name: str, shape: tuple[int, ...]) -> OutputTensor:
    tie = (tensor.view, shape) if tensor.numel else (tensor.view, shape, name)
    return OutputTensor(name, tensor.dtype, shape, Elements(tensor), tie, tensor)


def _product(pair: Pair, name: str) -> OutputTensor:
    tie = (pair.g.view, pair.v.view)
    return OutputTensor(name, pair.dtype, pair.v.shape, Product(pair), tie, pair.v)


def _magnitude(weight: TensorSpec, dim: int | None, halves: Halves) -> Magnitude:
    return Magnitude(weight, dim, math.prod(halves.g_shape), -1, row_major(weight.shape))


def _g(halves: Halves, content: Magnitude, v: Hashable, source: TensorSpec) -> OutputTensor:
    tie = ("g", v, content.dim)
    return OutputTensor(halves.g, content.weight.dtype, halves.g_shape, content, tie, source)
