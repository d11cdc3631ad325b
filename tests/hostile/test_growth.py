"""What a file costs grows with its bytes: linearly, in time and in memory, and within bounds."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.corpus.growing import (
    BOTH,
    FAMILIES,
    Make,
    chain,
    commanded,
    compared,
    dots,
    empty_dicts,
    long_key,
    long_names,
    metadata,
    missing_shards,
    no_elements,
    roots,
    roots_of_pairs,
    shards,
    tensor,
    tied,
    torch_file,
    zeros,
)
from tests.corpus.growing_parts import FAMILIES as PARTED
from tests.support.bounded_runs import Apart
from tests.support.opcodes import call, put

pytestmark = pytest.mark.thinned(29)

#: For twice as much, at most so many times the cost; and costs that are too small to tell.
MOST = 2.6
LEAST_SECONDS = 0.06
LEAST_MEGABYTES = 16.0
#: As often are all sizes measured where a busy machine may have lengthened one.
TRIES = 8

#: 3 GB that are stored nowhere.
HOLE = 3 << 30


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    with Apart() as wn:
        yield wn


@pytest.mark.parametrize("family", [*FAMILIES, *PARTED])
def test_twice_as_much_costs_twice_as_much(family: str, apart: Apart, tmp_path: Path) -> None:
    make, n = (FAMILIES | PARTED)[family]
    seconds, megabytes = [[float("inf")] * 4 for _ in range(2)]
    for _ in range(TRIES):
        for place, size in enumerate((1, n, 2 * n, 4 * n)):
            ran = apart(*make(tmp_path, size))
            assert ran.code in {0, 1, 2}, ran.stderr[:1000]
            assert "defect" not in ran.stderr
            seconds[place] = min(seconds[place], ran.seconds)
            megabytes[place] = min(megabytes[place], ran.megabytes)
        if _grows_linearly(seconds, LEAST_SECONDS) and _grows_linearly(megabytes, LEAST_MEGABYTES):
            return
    assert _grows_linearly(seconds, LEAST_SECONDS), seconds
    assert _grows_linearly(megabytes, LEAST_MEGABYTES), megabytes


def _grows_linearly(costs: list[float], least: float) -> bool:
    """Whether each cost is at most so many times the one before; the first is that of a start."""
    start, *more = costs
    above = [max(cost - start, least) for cost in more]
    return above[1] <= MOST * above[0] and above[2] <= MOST * above[1]


def expanded(folder: Path, n: int) -> Path:
    """A tensor of n times n elements that are all the same one."""
    return torch_file(folder / "in.pt", put({"l.w": tensor(n, n, strides=(0, 0))}))


def called(folder: Path, n: int) -> Path:
    """n calls in one entry, and one in another."""
    content = [call("os.system", f"{i}") for i in range(n)]
    model = put({"a.weight": tensor(3, 4)})
    return torch_file(folder / "in.pt", put({"model": model, "x": put(content)}), BOTH)


def keys_below_a_long_one(folder: Path, n: int) -> Path:
    inner = put({f"{i}": None for i in range(n // 60)})
    return torch_file(folder / "in.pt", put({"w": tensor(3, 4), "x": None, "k" * n: inner}))


def sparse(folder: Path, member: str, start: bytes = b"") -> Path:
    """A zip whose member begins so and is a hole of 3 GB."""
    path = folder / "in.pt"
    data = pickle.PROTO + b"\2}."
    members = {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}
    directory, place = b"", 0
    with path.open("wb") as file:
        for name, content in ({member: start} | members | {member: start}).items():
            raw = f"archive/{name}".encode()
            size = HOLE if name == member else len(content)
            fields = (0x800, 0, 0, 0, 0, size, size, len(raw), 0)
            directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0, 0, *fields, 0, 0, 0, 0, place)
            directory += raw
            file.seek(place)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 0, *fields) + raw + content)
            place += 30 + len(raw) + size
        file.seek(place)
        count = len(directory.split(b"PK\1\2")) - 1
        end = (0, 0, count, count, len(directory), place, 0)
        file.write(directory + struct.pack("<4s4H2LH", b"PK\5\6", *end))
    return path


def _hole(member: str, start: bytes = b"") -> Callable[[Path, int], Path]:
    return lambda folder, _: sparse(folder, member, start)


_TEXT = pickle.PROTO + b"\2" + pickle.BINUNICODE + struct.pack("<I", HOLE - 8)
_CONVERT = ("convert", "out.pt", "--force")

#: Small files that took gigabytes, minutes, or for ever.
BOMBS: dict[str, tuple[Make, int]] = {
    "a long key over empty lists": (commanded(long_key, "inspect"), 200_000),
    "a long key over keys": (commanded(keys_below_a_long_one, *_CONVERT, "--drop", "x"), 500_000),
    "a long name on both sides": (
        compared(lambda f, n: long_names(f, n, "a"), lambda f, n: long_names(f, n, "b")),
        3_000_000,
    ),
    "a million empty dicts": (commanded(empty_dicts, "inspect"), 1_000_000),
    "two million entries of metadata": (commanded(metadata, "inspect"), 2_000_000),
    "an expanded tensor, checked": (commanded(expanded, "inspect", "--check"), 1 << 20),
    "an expanded tensor, verified": (commanded(expanded, *_CONVERT, "--verify"), 1 << 20),
    "200 roots on both sides": (
        compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt")), 200,
    ),
    "200 roots on both sides, like": (
        compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt"), like=True), 200,
    ),
    "a key of dots": (commanded(dots, "inspect"), 300_000),
    "12,000 roots": (commanded(roots_of_pairs, "inspect", "-q"), 12_000),
    "a million slices of zeros": (
        commanded(zeros, "apply", "out.safetensors", "--force"), 1_000_000,
    ),
    "a trillion empty slices": (
        commanded(no_elements, "apply", "out.pt", "--force"), 1 << 40,
    ),
    "100,000 missing shards": (commanded(missing_shards, "inspect"), 100_000),
    "1,000 shards": (commanded(shards, "remove", "out", "--force", "-q"), 1000),
    "20,000 names of one tensor": (commanded(tied, "inspect", "--check"), 20_000),
    "20,000 calls, dropped": (commanded(called, *_CONVERT, "--drop", "x"), 20_000),
    "8,000 pairs in a chain": (
        commanded(
            chain, "convert", "out", "--force", "--format", "safetensors", "--max-shard-size", "1GB"
        ),
        8000,
    ),
    "a hole for a pickle": (commanded(_hole("data.pkl"), "inspect"), 1),
    "a text of holes": (commanded(_hole("data.pkl", _TEXT), "inspect"), 1),
    "a hole for a byte order": (commanded(_hole("byteorder"), "inspect"), 1),
    "a hole for a version": (commanded(_hole("version"), "inspect"), 1),
    "a hole for constants": (commanded(_hole("constants.pkl"), "inspect"), 1),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_is_read_or_refused_in_bounds(bomb: str, apart: Apart, tmp_path: Path) -> None:
    make, n = BOMBS[bomb]
    ran = apart(*make(tmp_path, n))
    assert ran.code in {0, 1, 2}, ran.stderr[:1000]
    assert "defect" not in ran.stderr
    assert "Traceback" not in ran.stderr
    ran.hold_bounds()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["compare", "convert"])
def test_too_many_state_dicts_to_compare_are_refused_with_what_works(
    command: str, apart: Apart, tmp_path: Path
) -> None:
    is_like = command == "convert"
    make = compared(roots, lambda f, n: roots(f, n, "s", "m", "b.pt"), like=is_like)
    words = make(tmp_path, 40)
    ran = apart(*words)
    assert ran.code == 2
    assert "--only r0=s0" in ran.stderr
    assert apart(*words, "--only", "r0=s0").code == 0
