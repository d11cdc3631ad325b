"""Where something is in a checkpoint: a path is a tuple of keys until it is shown."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Position:
    """The place of an item in a list or tuple, and what that is, which makes no other place."""

    number: int
    of: int = field(default=0, compare=False)
    in_tuple: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class OtherKey:
    """A key that is neither text nor a number: the how manieth of its mapping, and its looks."""

    number: int
    text: str


#: A mapping's key, or a place in a list.
Key = str | int | Position | OtherKey
#: The keys that lead from the top of a checkpoint to something in it; none lead to the top.
Keys = tuple[Key, ...]


def as_text(keys: Keys) -> Keys:
    """Return a path in a file in which the keys of all mappings are text."""
    return tuple(key if isinstance(key, (str, Position)) else shown_key(key) for key in keys)


def shown(keys: Keys) -> str:
    """Return a path for people: `generator`, `model.ema`; empty for the top."""
    return ".".join(map(shown_key, keys))


def shown_key(key: Key) -> str:
    """Return a key as it is shown in a path, and typed."""
    match key:
        case str():
            return key or "''"
        case int():
            return str(key)
        case Position(number):
            return str(number)
        case OtherKey(_, text):
            return text


def is_within(keys: Keys, places: Collection[Keys]) -> bool:
    """Whether a path is one of `places`, or leads into one."""
    return any(keys[:length] in places for length in range(len(keys) + 1))
