"""Puts what is alike into one row: `resblocks.0.convs*.*  x6`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

_NUMBERS = re.compile(r"(\d+)")


class Group(NamedTuple):
    """Items alike: a name in which `*` stands for the numbers that differ, and which they are."""

    name: str
    numbers: tuple[int, ...]


def grouped(
    items: Sequence[Item], name_of: Callable[[Item], str], alike: Callable[[Item], Hashable]
) -> list[Group]:
    """Put items into one group whose names are the same but for numbers, and that are alike."""
    found: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        skeleton = tuple(_NUMBERS.split(name_of(item))[::2])  # a `*` in a name is no number
        found.setdefault((skeleton, alike(item)), []).append(number)
    return [
        Group(_common([name_of(items[number]) for number in numbers]), tuple(numbers))
        for numbers in found.values()
    ]


def _common(names: Iterable[str]) -> str:
    """Write `*` for the numbers in which the names differ."""
    columns = zip(*(_NUMBERS.split(name) for name in names), strict=True)
    return "".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
