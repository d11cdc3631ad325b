"""The command line of the benchmarks: what to measure, and how often."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TypeVar, get_args

from benchmarks.checkpoints import Checkpoint, DTypeName, Format
from benchmarks.contenders import Command

T = TypeVar("T")

_UNITS = {"MB": 10**6, "GB": 10**9}
_USUAL_SIZES = (51 * 10**6,)
_ALL_SIZES = (51 * 10**6, 10**9, 4 * 10**9)


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure, and how often."""

    given_sizes: tuple[int, ...] | None
    slow: bool
    formats: tuple[Format, ...]
    commands: tuple[Command, ...]
    dtypes: tuple[DTypeName, ...]
    dims: tuple[int | None, ...]
    every: tuple[int, ...]
    vary: bool
    channels: int
    runs: int
    only_cp: bool
    hold: bool
    targets: bool
    work: Path | None
    markdown: Path | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """In bytes."""
        return self.given_sizes or (_ALL_SIZES if self.slow else _USUAL_SIZES)

    @property
    def checkpoints(self) -> Iterator[Checkpoint]:
        """Every combination, the small ones first; with `vary`, those one step from the first."""
        usual = (self.dtypes[0], self.dims[0], self.every[0])
        for size, file_format in product(self.sizes, self.formats):
            for each in product(self.dtypes, self.dims, self.every):
                steps = sum(its != first for its, first in zip(each, usual, strict=True))
                if steps <= 1 or not self.vary:
                    yield Checkpoint(size, file_format, *each, self.channels)


def parse(arguments: Sequence[str] | None, description: str) -> Options:
    """Read the command line; lists are separated by commas."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add(
        "--sizes",
        type=several(size),
        dest="given_sizes",
        metavar="SIZES",
        help="e.g. 51MB,1GB,4GB (51MB, with --slow all three)",
    )
    add("--slow", action="store_true", help="measure 51 MB, 1 GB and 4 GB")
    lists: tuple[tuple[str, object, str], ...] = (
        ("--formats", Format, "torch,safetensors"),
        ("--commands", Command, ",".join(get_args(Command))),
        ("--dtypes", DTypeName, "float32"),
    )
    for option, names, default in lists:
        known = ", ".join(get_args(names))
        usual = "all" if default == known.replace(" ", "") else default
        add(option, type=several(one_of(names)), default=default, help=f"{known} ({usual})")
    add("--dims", type=several(dim), default="0", help="0, 1, 2, none (%(default)s)")
    add(
        "--share",
        type=several(share),
        default="1",
        dest="every",
        metavar="SHARE",
        help="the part of the layers that is normalized, e.g. 1,1/100 (%(default)s)",
    )
    add(
        "--vary",
        action="store_true",
        help="vary dtype, dim and share one at a time from the first of each list, instead of"
        " measuring every combination",
    )
    add(
        "--channels",
        type=at_least_one,
        default=512,
        help="the generators' width, upsample_initial_channel; wider ones have fewer, larger"
        " layers (%(default)s)",
    )
    add("--runs", type=at_least_one, default=5, help="rounds that are counted (%(default)s)")
    add(
        "--only-cp",
        action="store_true",
        help="hold wn against cp alone, with nothing between the two that frees gigabytes",
    )
    add(
        "--hold",
        action="store_true",
        help="keep a page of every MB of free memory meanwhile, for a virtual machine that hands"
        " freed memory back to its host",
    )
    add("--targets", action="store_true", help="list the project's targets beside the figures")
    add("--work", type=Path, help="keep the generated checkpoints here for the next run")
    add("--markdown", type=Path, help="write the tables to this file, too")
    return Options(**vars(parser.parse_args(arguments)))


def several(parse_one: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Return a parser of lists that are separated by commas."""

    def parse_all(text: str) -> tuple[T, ...]:
        return tuple(parse_one(part.strip()) for part in text.split(","))

    return parse_all


def one_of(names: object) -> Callable[[str], str]:
    """Return a parser of the names that a `Literal` has."""

    def parse_name(text: str) -> str:
        if text not in get_args(names):
            message = f"{text!r}: expected one of {', '.join(get_args(names))}"
            raise argparse.ArgumentTypeError(message)
        return text

    return parse_name


def at_least_one(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdigit() or text == "0":
        message = f"{text!r}: expected a number from 1 on"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def size(text: str) -> int:
    """`51MB` or `1GB`, in bytes; the units are decimal."""
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS or not number.replace(".", "", 1).isdigit():
        message = f"{text!r}: expected a size such as 51MB or 1GB"
        raise argparse.ArgumentTypeError(message)
    return round(float(number) * _UNITS[unit])


def dim(text: str) -> int | None:
    """`0`, `1`, `2`, or `none` for the norm of the whole tensor."""
    if text not in {"0", "1", "2", "none"}:
        message = f"{text!r}: expected 0, 1, 2 or none"
        raise argparse.ArgumentTypeError(message)
    return None if text == "none" else int(text)


def share(text: str) -> int:
    """`1` or `1/100` (or `0.01`): one layer in how many."""
    part = Fraction(text)
    if part.numerator != 1:
        message = f"{text!r}: expected 1 or one in so many, such as 1/100"
        raise argparse.ArgumentTypeError(message)
    return part.denominator
