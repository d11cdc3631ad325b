"""The spellings of weight norm: tensor names <-> (module, parameter, role).

hook:          `conv.weight_g`, `conv.weight_v`             torch.nn.utils.weight_norm
parametrized:  `conv.parametrizations.weight.original0/1`
               torch.nn.utils.parametrizations.weight_norm

A further spelling is a name in `Naming` and a record in `SPELLINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Naming = Literal["hook", "parametrized"]
Role = Literal["g", "v"]

_PARAMETRIZATIONS = "parametrizations"
_ORIGINALS: dict[str, Role] = {"original0": "g", "original1": "v"}
_SUFFIXES: dict[str, Role] = {"_g": "g", "_v": "v"}


class Half(NamedTuple):
    """What the name of a g or a v says: whose half it is, in which spelling."""

    module: str
    parameter: str
    role: Role
    naming: Naming

    @property
    def weight(self) -> str:
        """The full name of the weight that the pair is."""
        return join(self.module, self.parameter)


def split(name: str) -> tuple[str, str]:
    """Return a tensor's full name as `(module, parameter)`; the module of a bare name is empty."""
    module, _, parameter = name.rpartition(".")
    return (module, parameter) if module else ("", name)


def join(module: str, parameter: str) -> str:
    """Return the inverse of `split`."""
    return f"{module}.{parameter}" if module else parameter


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts names by their numbers, as people do: `ups.2` before `ups.10`."""
    return [
        (part.isdecimal(), int(part) if part.isdecimal() and len(part) < 20 else 0, part)  # noqa: PLR2004
        for part in re.split(r"(\d+)", name)
    ]


class Spelling(NamedTuple):
    """One way to name g and v.

    Attributes:
        read: gives what a name spells; None where it spells neither g nor v.
        names: gives the names of g and v for the weight of a full name.
        is_distinct: whether no other parameters are named so by chance.
        rivals: endings behind the weight's name of what makes the two another norm.
        rival: what they are then: the code of a look-alike, and what to say of it.
    """

    read: Callable[[str], Half | None]
    names: Callable[[str], tuple[str, str]]
    is_distinct: bool
    rivals: tuple[str, ...]
    rival: tuple[str, str]


def _read_hook(name: str) -> Half | None:
    module, parameter = split(name)
    if parameter[-2:] not in _SUFFIXES or len(parameter) <= len("_g"):
        return None
    return Half(module, parameter[:-2], _SUFFIXES[parameter[-2:]], "hook")


def _read_parametrized(name: str) -> Half | None:
    module, parameter = split(name)
    if parameter not in _ORIGINALS:
        return None
    owner, weight = split(module)
    owner, marker = split(owner)
    if marker != _PARAMETRIZATIONS or not weight:
        return None
    return Half(owner, weight, _ORIGINALS[parameter], "parametrized")


def _parametrized_names(weight: str) -> tuple[str, str]:
    module, parameter = split(weight)
    owner = join(module, f"{_PARAMETRIZATIONS}.{parameter}")
    return f"{owner}.original0", f"{owner}.original1"


SPELLINGS: dict[Naming, Spelling] = {
    "hook": Spelling(
        read=_read_hook,
        names=lambda weight: (f"{weight}_g", f"{weight}_v"),
        is_distinct=False,
        rivals=("_orig", "_u"),
        rival=("spectral-norm", "is spectral norm, not weight norm"),
    ),
    "parametrized": Spelling(
        read=_read_parametrized,
        names=_parametrized_names,
        is_distinct=True,
        rivals=(),  # whatever else parametrizes the weight
        rival=(
            "other-parametrization",
            "has another parametrization, alone or on top of weight norm",
        ),
    ),
}


def read_half(name: str) -> Half | None:
    """Read the half of a pair that `name` spells; None where it spells neither g nor v."""
    for spelling in SPELLINGS.values():
        half = spelling.read(name)
        if half:
            return half
    return None


def pair_names(weight: str, naming: Naming) -> tuple[str, str]:
    """Name g and v for the weight with this full name."""
    return SPELLINGS[naming].names(weight)


def parametrized_weight(name: str) -> str | None:
    """Return the weight that a tensor of this name helps to parametrize, or None.

    `conv.parametrizations.weight.0._u` belongs to `conv.weight`.
    """
    if _PARAMETRIZATIONS not in name:
        return None
    parts = name.split(".")
    if _PARAMETRIZATIONS not in parts[:-2]:
        return None
    place = parts.index(_PARAMETRIZATIONS)
    return ".".join((*parts[:place], parts[place + 1]))
