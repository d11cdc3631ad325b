"""Finds a state dict's weight-norm pairs, and what only looks like one, by names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from string import ascii_letters
from typing import TYPE_CHECKING, NamedTuple

from wncli.checkpoint.dims import fitting_axes, fitting_dims
from wncli.checkpoint.naming import (
    SPELLINGS,
    Half,
    Naming,
    join,
    pair_names,
    parametrized_weight,
    read_half,
    split,
)
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import NORMALIZABLE, TensorSpec
from wncli.errors import few

if TYPE_CHECKING:
    from wncli.checkpoint.checkpoint import StateDict

#: Behind an underscore, what parameters of one kind are told apart by: query, key and value, the
#: gates of a cell. Weight norm adds g and v, spectral norm u and v.
_OTHER_LETTERS = frozenset(ascii_letters) - set("guv")


#: The code of a pair whose g, a vector, fits several axes of v.
OPEN_DIM = "several-dims"


class LookAlike(NamedTuple):
    """Names that resemble weight norm and are not, or not soundly.

    `code` is `"half-pair"`, `"misfit"`, `"both-spellings"`, `"dtype"` (these cannot be folded),
    `"several-dims"` (which can once somebody says the dim),
    `"spectral-norm"`, `"other-parametrization"` or `"other-letters"` (these are something else, and
    left alone).
    """

    code: str
    weight: str
    names: tuple[str, ...]
    message: str

    @property
    def is_broken(self) -> bool:
        """Whether it is meant as weight norm, so that passing over it would hide a defect."""
        return self.code not in {"spectral-norm", "other-parametrization", "other-letters"}


@dataclass(frozen=True)
class Survey:
    """What a state dict holds, as far as weight norm goes."""

    state_dict: StateDict
    pairs: tuple[Pair, ...]
    look_alikes: tuple[LookAlike, ...]

    @cached_property
    def plain(self) -> Mapping[str, Pair | TensorSpec]:
        """What is held by plain names, in its order; stale weights are passed over.

        The plain name of a tensor is that of the weight where it is normalized, so that both
        spellings and the folded weight meet.
        """
        pairs = {spec.name: pair for pair in self.pairs for spec in pair.tensors}
        held: dict[str, Pair | TensorSpec] = {}
        for spec in self.state_dict.tensors:
            pair = pairs.get(spec.name)
            held[pair.weight if pair else spec.name] = pair or spec
        return held

    def halves(self) -> frozenset[str]:
        """Return the names of everything that belongs to a pair or looks like it."""
        paired = {spec.name for pair in self.pairs for spec in (pair.g, pair.v)}
        alike = (alike.names for alike in self.look_alikes if alike.code != "other-letters")
        return frozenset(paired.union(*alike))


def survey(state_dict: StateDict) -> Survey:
    """Look through one state dict."""
    tensors = {spec.name: spec for spec in state_dict.tensors}
    weights: dict[str, dict[str, Half]] = {}
    parametrized: dict[str, list[str]] = {}
    lettered: dict[str, list[str]] = {}
    for name in tensors:
        half = read_half(name)
        if half:
            weights.setdefault(half.weight, {})[name] = half
        elif name[-2:-1] == "_" and name[-1] in _OTHER_LETTERS:
            lettered.setdefault(name[:-2], []).append(name)
        owner = parametrized_weight(name)
        if owner:
            parametrized.setdefault(owner, []).append(name)
    pairs: list[Pair] = []
    look_alikes: list[LookAlike] = []
    for weight, halves in weights.items():
        found: Pair | LookAlike | None
        if weight in lettered and not any(map(_is_distinct, halves.values())):
            found = _lettered(weight, tuple(halves), lettered[weight])
        else:
            found = _judge(weight, halves, tensors, parametrized.get(weight, []))
        if isinstance(found, Pair):
            pairs.append(found)
        elif found:
            look_alikes.append(found)
    doubtful = _beside_misfits(pairs, look_alikes)
    look_alikes += doubtful.values()
    look_alikes += _parametrized_spectral_norms(tensors)
    sound = tuple(pair for pair in pairs if pair.weight not in doubtful)
    return Survey(state_dict, sound, tuple(look_alikes))


def _judge(
    weight: str, halves: dict[str, Half], tensors: dict[str, TensorSpec], parametrized: list[str]
) -> Pair | LookAlike | None:
    names = tuple(halves)
    spellings = {half.naming for half in halves.values()}
    if len(spellings) > 1:
        return LookAlike("both-spellings", weight, names, "is normalized in both spellings at once")
    (naming,) = spellings
    spelling = SPELLINGS[naming]
    others = [name for ending in spelling.rivals if (name := weight + ending) in tensors]
    if spelling.is_distinct:
        others += [name for name in parametrized if name not in names]
    if others:
        code, message = spelling.rival
        return LookAlike(code, weight, (*names, *others), message)
    if len(halves) == 1:
        (half,) = halves.values()
        return _half(weight, half, names)
    by_role = {half.role: tensors[name] for name, half in halves.items()}
    return _pair(weight, naming, by_role["g"], by_role["v"], tensors.get(weight))


def _is_distinct(half: Half) -> bool:
    return SPELLINGS[half.naming].is_distinct


def _beside_misfits(pairs: list[Pair], look_alikes: list[LookAlike]) -> dict[str, LookAlike]:
    """Return the vectors that fit elementwise, in modules whose wider g and v are no weight norm.

    A value's and a gate's `weight_v` and `weight_g` have a `bias_v` and a `bias_g` with them.
    """
    modules = {split(alike.weight)[0] for alike in look_alikes if alike.code == "misfit"}
    return {
        pair.weight: LookAlike(
            "misfit",
            pair.weight,
            (pair.g.name, pair.v.name),
            "is no weight norm, as what stands beside it in its module is none",
        )
        for pair in pairs
        if not SPELLINGS[pair.naming].is_distinct
        and pair.g.shape == pair.v.shape
        and pair.v.numel > 1
        and split(pair.weight)[0] in modules
    }


def _lettered(weight: str, names: tuple[str, ...], others: list[str]) -> LookAlike | None:
    """X_g and X_v beside X_k or X_i are an attention's or a cell's parameters, one a letter.

    Of one alone nothing is said: a key's `bias_v` is as common as a value's `bias_k`
    (`torch/nn/modules/activation.py`, `MultiheadAttention`).
    """
    if len(names) == 1:
        return None
    message = f"is no weight norm: beside {' and '.join(names)} stands {few(others)}"
    return LookAlike("other-letters", weight, names, message)


def _half(weight: str, half: Half, names: tuple[str, ...]) -> LookAlike | None:
    if not _is_distinct(half) and not _is_weight_like(half.parameter):
        return None  # any parameter may happen to end in _g or _v
    g, v = pair_names(weight, half.naming)
    missing = v if half.role == "g" else g
    return LookAlike("half-pair", weight, names, f"is incomplete: {missing} is missing")


def _pair(
    weight: str, naming: Naming, g: TensorSpec, v: TensorSpec, stale: TensorSpec | None
) -> Pair | LookAlike | None:
    dims = fitting_dims(g.shape, v.shape)
    elementwise = g.shape == v.shape and v.numel > 1
    unsure = not SPELLINGS[naming].is_distinct and (not dims or elementwise)
    if unsure and not _is_weight_like(split(weight)[1]):
        return None  # two parameters of one module that happen to end in _g and _v
    is_open = not dims and len(fitting_axes(g.shape, v.shape)) > 1
    if not dims and not is_open:
        return LookAlike(
            "misfit",
            weight,
            (g.name, v.name),
            f"is no weight norm: {g.name} {list(g.shape)} fits no dim of {v.name} {list(v.shape)}",
        )
    if not (g.dtype in NORMALIZABLE and v.dtype in NORMALIZABLE):
        return LookAlike(
            "dtype",
            weight,
            (g.name, v.name),
            f"cannot be folded: {g.name} is {g.dtype.label} and {v.name} is {v.dtype.label}"
            " (float64, float32, float16 and bfloat16 can)",
        )
    if is_open:
        shapes = f"the vector {g.name} {list(g.shape)} fits several dims of {v.name}"
        message = f"is along a dim that nothing says: {shapes} {list(v.shape)}"
        return LookAlike(OPEN_DIM, weight, (g.name, v.name), message)
    return Pair(weight, naming, g, v, dims[0], stale)


def _parametrized_spectral_norms(tensors: dict[str, TensorSpec]) -> list[LookAlike]:
    found = []
    for name in tensors:
        owner = name.removesuffix(".original")
        vector = f"{owner}.0._u"
        if owner == name or vector not in tensors:
            continue
        module, weight = split(owner)
        module, marker = split(module)
        if marker == "parametrizations":
            names = (name, vector, f"{owner}.0._v")
            full = join(module, weight)
            found.append(
                LookAlike("spectral-norm", full, names, "is spectral norm, not weight norm")
            )
    return found


def _is_weight_like(parameter: str) -> bool:
    return parameter.startswith(("weight", "bias"))
