"""Plain pickles of NumPy arrays that each break one rule, beside NumPy's verdict."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from inspect import signature

import numpy._core.numeric

from tests.support.opcodes import RECALLED, Op, build, call, memoized, name, put

DATA = bytes(range(24))
_ND = name("numpy.ndarray")
_VAST = 1 << 31 - 1


def dtype(
    code: object = "f4", order: object = "<", *rest: object, extra: tuple[object, ...] = ()
) -> Op:
    """A dtype as NumPy pickles it; `rest` takes the place of what stands behind the byte order."""
    state = (3, order, *(rest or (None, None, None, -1, -1, 0)))
    return build(call("numpy.dtype", code, 0, 1), state, *extra)


def array(
    raw: object = DATA,
    shape: object = (2, 3),
    kind: Op | None = None,
    version: object = 1,
    *more: object,
) -> Op:
    """An array as protocols up to 4 have it."""
    state = (version, shape, kind or dtype(), 0, raw)
    return build(call("numpy.core.multiarray._reconstruct", _ND, (0,), b"b"), state, *more)


def buffer(*args: object) -> Op:
    """An array as protocol 5 has it."""
    given = args + (DATA, dtype(), (2, 3), "C")[len(args) :]
    return call("numpy.core.numeric._frombuffer", *given)


def file_of(*arrays: Op, behind: bytes = b"") -> bytes:
    """A pickle of these, under `a.weight`, `b.weight` and so on."""
    state = {f"{chr(97 + place)}.weight": one for place, one in enumerate(arrays)}
    return b"\x80\x02" + put(state) + pickle.STOP + behind


@dataclass(frozen=True)
class Wrong:
    """A file, what the refusal says, and whether NumPy takes it all the same."""

    content: bytes
    says: str
    numpy_loads: bool = False


SOUND = {"reconstructed": file_of(array()), "from a buffer": file_of(buffer())}
_FILL = "bytes do not fill"
_CHANGED = "changed after it was made"
_ARGUMENTS = "its arguments are others"
#: Older ones know no order of axes.
_TAKES_AXES = len(signature(vars(numpy._core.numeric)["_frombuffer"]).parameters) > 4
FILES = {
    "too few bytes": Wrong(file_of(array(DATA[:-1])), _FILL),
    "too many bytes": Wrong(file_of(array(DATA + b"x")), _FILL),
    "bytes of a larger shape": Wrong(file_of(array(DATA, (2, 4))), _FILL),
    "a vast shape": Wrong(file_of(array(DATA, (_VAST, _VAST))), _FILL),
    "a shape beyond 64 bits": Wrong(file_of(array(DATA, (_VAST,) * 3)), "shape is impossible"),
    "a negative size": Wrong(file_of(array(DATA, (-2, -3))), "shape is impossible"),
    "a size that is no number": Wrong(file_of(array(DATA, ("2", 3))), "shape is impossible"),
    "a size that is a bool": Wrong(file_of(array(DATA, (True, 6))), "shape is impossible"),
    "a list for a shape": Wrong(file_of(array(DATA, [2, 3])), "shape is impossible"),
    "65 dims": Wrong(file_of(array(DATA[:4], (1,) * 65)), "shape is impossible"),
    "big-endian": Wrong(file_of(array(kind=dtype("f4", ">"))), "big-endian", numpy_loads=True),
    "big-endian of a buffer": Wrong(
        file_of(buffer(DATA, dtype("f4", ">"))), "big-endian", numpy_loads=True
    ),
    "an unknown byte order": Wrong(
        file_of(array(kind=dtype("f4", "?"))), "byte order", numpy_loads=True
    ),
    "a dtype that is changed": Wrong(
        file_of(array(kind=dtype(extra=((3, ">", None, None, None, -1, -1, 0),)))),
        "dtype is changed",
        numpy_loads=True,
    ),
    "a dtype that is none": Wrong(file_of(array(kind=call("numpy.float32", 1))), "dtype is none"),
    "a state of another version": Wrong(file_of(array(version=2)), "its state is another"),
    "two states": Wrong(
        file_of(array(DATA, (2, 3), dtype(), 1, (1, (2, 3), dtype(), 0, DATA[::-1]))),
        _CHANGED,
        numpy_loads=True,
    ),
    "no state": Wrong(
        file_of(call("numpy.core.multiarray._reconstruct", _ND, (0,), b"b")),
        "its state is another",
        numpy_loads=True,
    ),
    "a state for a buffer": Wrong(
        file_of(build(buffer(), (1, (2, 3), dtype(), False, DATA[::-1]))),
        _CHANGED,
        numpy_loads=True,
    ),
    "an order that is none": Wrong(
        file_of(buffer(DATA, dtype(), (2, 3), "A")), _ARGUMENTS, numpy_loads=True
    ),
    "axes of no order": Wrong(
        file_of(call("numpy.core.numeric._frombuffer", DATA, dtype(), (2, 3), "C", (1, 0))),
        _ARGUMENTS,
        numpy_loads=_TAKES_AXES,
    ),
    "axes twice": Wrong(
        file_of(call("numpy.core.numeric._frombuffer", DATA, dtype(), (2, 3), "K", (1, 1))),
        "axes are in no order",
    ),
    "made by another shape": Wrong(
        file_of(
            build(
                call("numpy.core.multiarray._reconstruct", _ND, (7,), b"b"),
                (1, (2, 3), dtype(), False, DATA),
            )
        ),
        _ARGUMENTS,
        numpy_loads=True,
    ),
    "text beyond Latin-1": Wrong(file_of(array("\u0100" * 24)), "no bytes"),
    "a number for bytes": Wrong(file_of(array(24)), "no bytes"),
    "bytes that are shared": Wrong(
        file_of(
            array(memoized(put(DATA * 1000)), (6000,)),
            *(array(RECALLED, (6000,)) for _ in range(8)),
        ),
        "share their bytes",
        numpy_loads=True,
    ),
    "bytes behind the pickle": Wrong(
        file_of(array(), behind=b"x"), "bytes follow", numpy_loads=True
    ),
    "a second pickle": Wrong(
        file_of(array(), behind=file_of(array())), "bytes follow", numpy_loads=True
    ),
    "an end that is missing": Wrong(file_of(array())[:-1], "ends early"),
    "a tensor elsewhere": Wrong(
        file_of(array(), Op(put("0") + pickle.BINPERSID)), "outside it|not in it"
    ),
    "arrays of objects alone": Wrong(
        file_of(array([1, 2], (2,), dtype("O8", "|", None, None, None, -1, -1, 63))),
        "without names of NumPy arrays",
        numpy_loads=True,
    ),
    "arrays of text alone": Wrong(
        file_of(array(b"abcd", (2,), dtype("S2", "|", None, None, None, 2, 1, 0))),
        "without names of NumPy arrays",
        numpy_loads=True,
    ),
    "no arrays": Wrong(
        b"\x80\x02" + put({"a": 1}) + pickle.STOP, "a plain pickle, without", numpy_loads=True
    ),
}
