"""Torch zips that break no rule, and in which a reader could walk for ever, or fill its memory."""

from __future__ import annotations

import argparse
import collections
import struct
from collections.abc import Callable

from tests.corpus.hostile import Hostile, holding
from tests.support.lying_zips import (
    DATA,
    MEMBERS,
    Member,
    Rebuild,
    beside,
    deflated,
    pickled,
    state_dict,
    storage,
    tensor,
    zip_of,
    zip_of_pickle,
)

_DEEP = 100_000
_MANY = 1_000_000
_WEIGHT = pickled(tensor())[2:-1]


def _within_itself() -> dict[str, object]:
    """Checkpoints with something that stands inside itself."""
    mapping: dict[str, object] = {}
    mapping["again"] = mapping
    items: list[object] = []
    items.append(items)
    pair: tuple[list[object], int] = ([], 1)
    pair[0].append(pair)
    ordered: collections.OrderedDict[str, object] = collections.OrderedDict()
    ordered["again"] = ordered
    space = argparse.Namespace()
    space.again = [space]
    left: dict[str, object] = {}
    left["right"] = {"left": left}
    found: dict[str, object] = {
        "a dict": mapping, "a list": items, "a tuple": pair, "an ordered dict": ordered,
        "an object": space, "one of two dicts": left,
    }  # fmt: skip
    found = {name: {**state_dict(tensor()), "x": value} for name, value in found.items()}
    inside: dict[str, object] = {**state_dict(tensor())}
    inside["x"] = [inside]
    whole: dict[str, object] = {"model": {**state_dict(tensor())}, "epoch": 3}
    whole["x"] = whole
    return found | {"a state dict": inside, "a checkpoint": whole}


def _doubled(levels: int) -> object:
    """A list of so many levels, each of which holds the next one twice."""
    found: list[object] = []
    for _ in range(levels):
        found = [found, found]
    return found


#: Values in which a reader could walk for ever; CPython and PyTorch load them.
ENDLESS: dict[str, bytes] = {
    f"{name} within itself": zip_of_pickle(pickled(value))
    for name, value in _within_itself().items()
} | {
    "a list that doubles 60 times": zip_of_pickle(
        pickled({**state_dict(tensor()), "x": _doubled(60)})
    )
}

_CALLED = b"ccollections\nOrderedDict\n"

#: Values of 100,000 levels.
DEEP: dict[str, bytes] = {
    "lists": zip_of_pickle(beside(b"]" * _DEEP + b"a" * (_DEEP - 1))),
    "tuples": zip_of_pickle(beside(b")" + b"\x85" * _DEEP)),
    "calls": zip_of_pickle(beside((_CALLED + b")RK\0") * _DEEP + b"N" + b"s" * _DEEP)),
    "dicts with a state dict at the bottom": zip_of_pickle(
        b"\x80\x02" + b"}X\1\0\0\0a" * _DEEP + b"}X\1\0\0\0w" + _WEIGHT + b"s" * _DEEP + b"s."
    ),
}  # fmt: skip


def _names(count: int, value: bytes) -> bytes:
    """The opcodes of a dict with so many names, all with the same value."""
    names = b"".join(b"X\x07\0\0\0%07d%s" % (number, value) for number in range(count))
    return b"}(" + names + b"u"


def _script(code: bytes) -> bytes:
    """A TorchScript archive with one weight, whose code is compressed as PyTorch does."""
    module = b"\x80\x02c__torch__\nM\n)\x81}(X\1\0\0\0w" + _WEIGHT + b"ub."
    return zip_of(
        [
            Member(b"m/data.pkl", module),
            Member(b"m/constants.pkl", b"\x80\x02)."),
            Member(b"m/code/__torch__.py", code, stored=deflated(code)),
            Member(b"m/data/0", DATA),
            Member(b"m/version", b"3\n"),
        ]
    )


_CODE = b'class M(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n  w : Tensor\n'

#: What takes far more memory, time or space in a message than it takes in a file, made when it is
#: asked for; those under 100 kilobytes that a TorchScript archive unfolds may be refused.
LARGE: dict[str, Callable[[], bytes]] = {
    "a million names": lambda: zip_of_pickle(beside(_names(_MANY, b"N"))),
    "100000 entries": lambda: zip_of_pickle(b"\x80\x02" + _names(100_000, b"N") + b"."),
    "30000 names of one tensor": lambda: zip_of_pickle(
        b"\x80\x02" + _WEIGHT + b"r\0\1\0\x000" + _names(30_000, b"j\0\1\0\0") + b"."
    ),
    "a million marks": lambda: zip_of_pickle(beside(b"(" * _MANY + b"1" * _MANY + b"N")),
    "a million memo places": lambda: zip_of_pickle(
        beside(b"]" + b"".join(b"r" + struct.pack("<I", 999 + n) for n in range(_MANY)))
    ),
    "the last memo place": lambda: zip_of_pickle(beside(b"]r\xff\xff\xff\xff0j\xff\xff\xff\xff")),
    "an integer of a million bytes": lambda: zip_of_pickle(
        beside(b"\x8b" + struct.pack("<I", _MANY) + b"\x7f" * _MANY)
    ),
    "a key of a million bytes": lambda: zip_of_pickle(
        beside(b"}\x8b" + struct.pack("<I", _MANY) + b"\x7f" * _MANY + b"Ns")
    ),
    "a name of a million line breaks": lambda: zip_of_pickle(
        beside(b"}X" + struct.pack("<I", _MANY) + b"\n" * _MANY + b"Ns")
    ),
    "100000 members": lambda: zip_of(
        [*MEMBERS, *(Member(b"m/extra/%d" % number, b"") for number in range(100_000))]
    ),
    "code": lambda: _script(_CODE),
    "code of 60 million lines": lambda: _script(_CODE + b"\n" * 60_000_000),
    "code of 6 million classes": lambda: _script(_CODE + b"class M:\n" * 6_000_000),
}

_ELEMENTS = bytes(4000)
_INSIDE = storage("0", 1000)


def _expanded(**tensors: Rebuild) -> Hostile:
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return holding(zip_of_pickle(pickled(named), _ELEMENTS), "expanded tensor")


def _square(number: int, size: int = 4000) -> Rebuild:
    """One element, expanded to a square; each has another one."""
    return tensor(_INSIDE, number, (size, size), (0, 0))


#: What 4,000 bytes are said to be more than: read, copied as it is, and refused where it would
#: have to be written out.
EXPANDED: dict[str, Hostile] = {
    "stride_0_of_a_trillion_elements.pt": _expanded(w=_square(0, 10**6)),
    "stride_0_in_one_dim_of_a_trillion_elements.pt": _expanded(
        w=tensor(_INSIDE, 0, (10**12,), (0,))
    ),
    "stride_0_of_2_to_the_62_elements.pt": _expanded(w=_square(0, 1 << 31)),
    "strides_that_overlap_to_62_billion_elements.pt": _expanded(
        w=tensor(_INSIDE, 0, (500,) * 4, (1, 0, 0, 1))
    ),
    "stride_0_of_a_hundred_tensors_that_are_small_one_by_one.pt": _expanded(
        **{f"l{number}": _square(number) for number in range(100)}
    ),
}

#: The same for pairs of g and v, which are refused where they are to be composed as well.
EXPANDED_PAIRS: dict[str, Hostile] = {
    "stride_0_of_a_direction.pt": _expanded(
        l__weight_g=tensor(_INSIDE, 0, (10**6, 1), (0, 1)), l__weight_v=_square(0, 10**6)
    ),
    "stride_0_of_both_halves.pt": _expanded(
        l__weight_g=tensor(_INSIDE, 0, (10**12, 1), (0, 1)),
        l__weight_v=tensor(_INSIDE, 0, (10**12, 1), (0, 1)),
    ),
    "stride_0_of_a_hundred_pairs_that_are_small_one_by_one.pt": _expanded(
        **{f"l{number}__weight_v": _square(number) for number in range(100)},
        **{f"l{n}__weight_g": tensor(_INSIDE, n, (4000, 1), (0, 0)) for n in range(100)},
    ),
}
