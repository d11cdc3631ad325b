"""The two spellings of weight norm: tensor names <-> (module, parameter, role).

hook:          `conv.weight_g`, `conv.weight_v`             torch.nn.utils.weight_norm
parametrized:  `conv.parametrizations.weight.original0/1`
               torch.nn.utils.parametrizations.weight_norm
"""

from __future__ import annotations

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
        """The full name of the weight that the pair stands for."""
        return join(self.module, self.parameter)


def split(name: str) -> tuple[str, str]:
    """A tensor's full name as `(module, parameter)`; the module of a bare name is empty."""
    module, _, parameter = name.rpartition(".")
    return (module, parameter) if module else ("", name)


def join(module: str, parameter: str) -> str:
    """The inverse of `split`."""
    return f"{module}.{parameter}" if module else parameter


def read_half(name: str) -> Half | None:
    """The half of a pair that `name` spells, or None where it spells neither g nor v."""
    module, parameter = split(name)
    if parameter[-2:] in _SUFFIXES and len(parameter) > len("_g"):
        return Half(module, parameter[:-2], _SUFFIXES[parameter[-2:]], "hook")
    if parameter not in _ORIGINALS:
        return None
    owner, weight = split(module)
    owner, marker = split(owner)
    if marker != _PARAMETRIZATIONS or not weight:
        return None
    return Half(owner, weight, _ORIGINALS[parameter], "parametrized")


def pair_names(weight: str, naming: Naming) -> tuple[str, str]:
    """The names of g and v for the weight with this full name."""
    module, parameter = split(weight)
    if naming == "hook":
        return join(module, f"{parameter}_g"), join(module, f"{parameter}_v")
    owner = join(module, f"{_PARAMETRIZATIONS}.{parameter}")
    return f"{owner}.original0", f"{owner}.original1"


def parametrized_weight(name: str) -> str | None:
    """The weight that a tensor of this name helps to parametrize, or None.

    `conv.parametrizations.weight.0._u` belongs to `conv.weight`.
    """
    if _PARAMETRIZATIONS not in name:
        return None
    parts = name.split(".")
    if _PARAMETRIZATIONS not in parts[:-2]:
        return None
    place = parts.index(_PARAMETRIZATIONS)
    return ".".join((*parts[:place], parts[place + 1]))
