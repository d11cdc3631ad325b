"""Pairs whose g is a vector that fits several axes of v: a user or the other side says which."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from wncli.checkpoint.dims import fitting_axes, resolve_dim
from wncli.checkpoint.naming import read_half
from wncli.checkpoint.pairs import Pair
from wncli.errors import UsageError
from wncli.hints import either, given, setting
from wncli.plan.rules import Rule, glob_of
from wncli.plan.survey import OPEN_DIM, LookAlike, Survey


def settle(found: Survey, layers: tuple[Rule, ...], dim: int | None) -> Survey:
    """Make pairs of those for which a rule, or else `dim`, says along which dim they are.

    Raises:
        UsageError: it is none of those that g fits.
    """
    settled = []
    left = []
    for alike in found.look_alikes:
        rule = next((rule for rule in layers if rule.matches(alike.weight)), None)
        wanted = rule.dim if rule and rule.has_dim else dim
        is_said = (rule is not None and rule.has_dim) or dim is not None
        if alike.code != OPEN_DIM or not is_said or (layers and not rule):
            left.append(alike)
            continue
        pair = open_pair(found, alike)
        if wanted not in pair.axes:
            raise UsageError(
                given(layers=[rule.text]) if rule and rule.has_dim else given(dim=dim),
                f"{pair.g.name} {list(pair.g.shape)} is not along this dim of {pair.v.name}"
                f" {list(pair.v.shape)}",
                expected=f"one of {', '.join(map(str, pair.axes))}",
                hint=either(
                    setting(layers=[f"{glob_of(pair.weight)}={axis}"]) for axis in pair.axes
                ),
            )
        settled.append(pair._replace(dim=wanted, axes=()))
    return replace(found, pairs=(*found.pairs, *settled), look_alikes=tuple(left))


def assume(found: Survey) -> Survey:
    """Make pairs of all others, with the dims that they can be along as `axes`."""
    opened = [open_pair(found, alike) for alike in found.look_alikes if alike.code == OPEN_DIM]
    left = tuple(alike for alike in found.look_alikes if alike.code != OPEN_DIM)
    return replace(found, pairs=(*found.pairs, *opened), look_alikes=left) if opened else found


def open_pair(found: Survey, alike: LookAlike) -> Pair:
    """Return the pair that this is along one of its `axes`."""
    tensors = {spec.name: spec for spec in found.state_dict.tensors}
    g, v = (tensors[name] for name in alike.names)
    half = read_half(g.name)
    assert half is not None  # noqa: S101 - its name is why it is here
    axes = fitting_axes(g.shape, v.shape)
    stale = tensors.get(alike.weight)
    return Pair(alike.weight, half.naming, g, v, axes[0], stale, axes)


def common_axes(surveys: Iterable[Survey]) -> tuple[int, ...]:
    """List the dims along which every g can be whose own is open."""
    every = [
        set(open_pair(found, alike).axes)
        for found in surveys
        for alike in found.look_alikes
        if alike.code == OPEN_DIM
    ]
    every += [set(pair.axes) for found in surveys for pair in found.pairs if pair.axes]
    return tuple(sorted(set.intersection(*every))) if every else ()


def refuse_other_dim(pair: Pair, rule: Rule | None) -> None:
    """Refuse a rule's dim that is not the one that g's shape tells.

    Raises:
        UsageError: that is so.
    """
    if rule is None or not rule.has_dim:
        return
    dim = resolve_dim(rule.dim, len(pair.v.shape), given(layers=[rule.text]))
    if dim != pair.dim and not (dim is not None and pair.v.shape[dim] == 1 == pair.g.numel):
        raise UsageError(
            given(layers=[rule.text]),
            f"{pair.g.name} {list(pair.g.shape)} is along another dim of {pair.v.name}"
            f" {list(pair.v.shape)}",
            expected=f"dim {'none' if pair.dim is None else pair.dim}, or none given",
            hint=setting(layers=[rule.glob]),
        )


def settled_by(pair: Pair, dim: int | None) -> Pair | None:
    """Return an open pair along a dim; None where its g is not."""
    if not pair.axes:
        return pair
    return pair._replace(dim=dim, axes=()) if dim in pair.axes else None
