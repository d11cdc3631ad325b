"""The attributes of a model's modules, to be put back as they were."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

_MUTABLE = {dict, list, set, OrderedDict}


class Attributes:
    """What the modules of a model have as attributes, the very objects, and what is in these."""

    def __init__(self, model: nn.Module) -> None:
        self.before = [(module, *_state(module)) for module in model.modules()]

    def restore(self) -> None:
        """Put all back."""
        for module, own, inner in self.before:
            vars(module).clear()
            vars(module).update(own)
            for name, content in inner.items():
                _restore(vars(module)[name], content)

    def restore_buffers(self) -> None:
        """Put the buffers back, and leave all else."""
        for module, _, inner in self.before:
            _restore(module._buffers, inner["_buffers"])  # noqa: SLF001


def _state(module: nn.Module) -> tuple[dict[str, object], dict[str, object]]:
    """Return a module's attributes, and what is in those that are mappings or lists."""
    own = dict(vars(module))
    inner = {
        name: value.copy() if value else None
        for name, value in own.items()
        if type(value) in _MUTABLE
    }
    return own, inner


def _restore(value: object, content: object) -> None:
    """Put back what was in a mapping, a list or a set; most are empty, and stay so."""
    if content is None and not value:
        return
    if isinstance(value, list):
        value[:] = content or ()  # type: ignore[call-overload]
    else:
        value.clear()  # type: ignore[attr-defined]
        value.update(content or ())  # type: ignore[attr-defined]
