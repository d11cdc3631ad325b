"""Refusals as a caller of these functions can act on them: hints that name their parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from wncli.checkpoint.naming import SPELLINGS
from wncli.errors import UsageError, WnError
from wncli.hints import Text

#: What is in a hint that lists what is in no file.
_LISTINGS = ("wncli.inspect('the ", "wncli.inspect('model'")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_python(
    *known: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Have the refusals of a function hint at nothing but the `known` ones of its parameters.

    The planner's hints name what commands have, and list what is in a file.
    """
    allowed = {*known, "tensors", "check"}

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except WnError as error:
                named = set(re.findall(r"(?:^|[ (])([a-z_]+)=(?=['\[TFN\d])", error.hint))
                is_listing = any(listing in error.hint for listing in _LISTINGS)
                # What is no such text is advice, which names nobody's parameters.
                if isinstance(error.hint, Text) and (is_listing or not named <= allowed):
                    error.hint = ""
                raise

        return wrapped

    return decorate


def check_naming(naming: object, *more: str) -> None:
    """Refuse what is no spelling."""
    choices = (*more, *SPELLINGS)
    if naming not in choices:
        expected = ", ".join(map(repr, choices))
        raise UsageError("naming", "no such choice", expected=expected, found=repr(naming))


def check_dim(dim: object) -> None:
    """Refuse what is no dim."""
    if dim is not None and (not isinstance(dim, int) or isinstance(dim, bool)):
        raise UsageError("dim", "no dim", expected="an int or None", found=repr(dim))
