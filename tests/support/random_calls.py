"""Random pickles of calls: of what makes values, of what runs something, and of both together."""

from __future__ import annotations

import collections
import copyreg
import pickle
import sys
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import torch
from torch import nn

from tests.corpus import harmless_pickles
from tests.corpus.hostile_places import HERE, zipped
from tests.support.opcodes import RECALLED, Op, build, call, memoized, name, new, put
from wncli.formats.torch.safe_globals import USES

#: Code that tells when it runs: as source, as a pickle, as a function, and as a class's methods.
SOURCE = "__import__('wn_stranger').run()"
PICKLED = pickle.GLOBAL + b"wn_stranger\nrun\n" + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.STOP
STRANGERS = ("wn_stranger.run", "wn_stranger.Config", "wn_stranger.Pipe")

LISTED = sorted(full for full in USES if not full.startswith("pandas."))
#: Of the standard library, what cannot harm the process that loads it by itself.
_STANDARD = (
    "abc argparse array builtins codecs collections contextlib copy copyreg dataclasses datetime"
    " decimal enum fractions functools heapq io ipaddress itertools json logging operator optparse"
    " pathlib pickle pprint random re runpy statistics string textwrap timeit types typing uuid"
    " weakref zipfile"
)
_ENDING = ("builtins.breakpoint", "builtins.exit", "builtins.input", "builtins.quit")


def _others() -> list[str]:
    """The classes and functions that are there once torch is imported."""
    torch.utils.data.DataLoader  # noqa: B018 - imports the package
    modules = [
        module
        for module in sorted(sys.modules)
        if module in _STANDARD.split() or module.partition(".")[0] in ("torch", "numpy")
    ]
    found = {
        f"{module}.{attribute}"
        for module in modules
        for attribute, value in list(vars(sys.modules[module]).items())
        if callable(value) and attribute.isidentifier()
    }
    return sorted(found - {*_ENDING})


OTHERS = _others()
#: What is looked up by somebody: the unpickler, whoever iterates or converts, and `__setstate__`.
_ATTRIBUTES = (
    "append extend add keys items values get setdefault update pop index detach data fn func"
    " datapipe activation dim hook defaults param_groups state step dtype shape _parameters"
    " _modules _buffers _forward_pre_hooks _flat_weights_names _all_weights register_parameter"
    " register_buffer default_factory _hash_impl utcoffset __dict__ __setstate__ __class__ __iter__"
    " __len__ __array__ __index__ __float__ __call__"
)
ATTRIBUTES = _ATTRIBUTES.split()
CONTAINERS = (
    "builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "builtins.dict",
    "builtins.bytes", "builtins.bytearray", "builtins.str", "builtins.int", "builtins.float",
    "collections.deque", "collections.Counter", "collections.OrderedDict", "torch.Size",
    "collections.defaultdict", "numpy.dtype", "array.array", "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter", "torch.optim.swa_utils.AveragedModel",
)  # fmt: skip


def _scaler() -> object:
    return torch.amp.GradScaler("cpu")


#: Objects that files have whole, into whose attributes something else is put.
WHOLE: tuple[Callable[[], object], ...] = (
    lambda: nn.LSTM(2, 2),
    lambda: nn.Conv1d(2, 2, 1),
    lambda: nn.Softmax(0),
    lambda: nn.MultiheadAttention(2, 1),
    lambda: nn.TransformerEncoderLayer(2, 1, 2),
    lambda: nn.Sequential(nn.Linear(1, 1)),
    lambda: torch.optim.Adam([nn.Parameter(torch.ones(1))]),
    lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))]),
    lambda: torch.distributions.Normal(0.0, 1.0),
    lambda: collections.UserDict(a=1),
    lambda: harmless_pickles.OBJECTS["namespace"],
    lambda: harmless_pickles.OBJECTS["simple namespace"],
    _scaler,
)


class Made(NamedTuple):
    """A file, and the modules that it names."""

    content: bytes
    modules: tuple[str, ...]


class Maker:
    """Makes one file after another from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - nothing is kept secret
        self.modules: set[str] = set()
        self.is_remembered = False

    def file(self) -> Made:
        """A torch file with some of it in an entry, or in an object's attribute."""
        self.modules = set()
        self.is_remembered = False
        opcodes = self.object(3)
        protocol = self.random.choice((2, 4))
        content: object = {"w": torch.ones(1), "extra": HERE}
        if self.random.random() < 0.3:
            whole = self.random.choice(WHOLE)()
            own = whole.__reduce_ex__(2)[2]
            assert isinstance(own, dict)
            key = self.random.choice((*ATTRIBUTES, *own) if self.random.random() < 0.5 else [*own])
            protocol = 2  # in which it is pickled
            content = {"w": torch.ones(1), "extra": _As(type(whole), own | {key: HERE})}
        return Made(zipped(content, opcodes, protocol), tuple(sorted(self.modules)))

    def name(self) -> str:
        pool = self.random.choices((LISTED, OTHERS, STRANGERS), (6, 1, 3))[0]
        full = self.random.choice(pool)
        self.modules.add(full.rpartition(".")[0])
        return full

    def value(self, depth: int) -> Op:
        kind = self.random.random()
        if depth and kind < 0.5:
            return self.object(depth - 1)
        if self.is_remembered and kind < 0.55:
            return RECALLED
        if kind < 0.65:
            return name(self.name())
        if depth and kind < 0.8:
            count = self.random.randrange(3)
            parts = [self.value(depth - 1) for _ in range(count)]
            return put(self.random.choice((parts, tuple(parts))))
        plain = (0, 1, -1, "x", "cpu", "latin1", b"", SOURCE, PICKLED, None, True)
        return put(self.random.choice((*plain, *ATTRIBUTES)))

    def arguments(self, depth: int) -> list[Op]:
        return [self.value(depth) for _ in range(self.random.choice((0, 1, 1, 2, 2, 3, 4)))]

    def state(self, depth: int) -> Op:
        attributes = {
            self.random.choice(ATTRIBUTES): self.value(depth)
            for _ in range(self.random.randrange(1, 4))
        }
        return self.random.choices(
            (put(attributes), put((None, attributes)), put(tuple(self.arguments(depth))),
             self.value(depth)), (6, 1, 2, 1),
        )[0]  # fmt: skip

    def object(self, depth: int) -> Op:
        """Something that is made, and what is done with it then."""
        inner = max(depth - 1, 0)
        kind = self.random.randrange(8)
        if kind < 3:
            made = call(self.name(), *self.arguments(inner))
        elif kind < 5:
            made = new(self.name(), *self.arguments(0 if self.random.random() < 0.6 else inner)[:1])
        elif kind < 7:
            made = call(self.random.choice(CONTAINERS), self.value(depth), *self.arguments(0)[:1])
        else:
            made = self.rebuilt(inner)
        while self.random.random() < 0.4:
            made = self.changed(made, inner)
        if self.random.random() < 0.1:
            self.is_remembered = True
            return memoized(made)
        return made

    def rebuilt(self, depth: int) -> Op:
        """By a function that makes what its arguments say."""
        full = name(self.name())
        return self.random.choice((
            lambda: call("copyreg._reconstructor", full, name("builtins.object"), None),
            lambda: call("copyreg._reconstructor", full, name("builtins.dict"), self.value(depth)),
            lambda: call("copyreg.__newobj__", full, *self.arguments(depth)),
            lambda: call("copyreg.__newobj_ex__", full, tuple(self.arguments(depth)), {}),
            lambda: call("functools.partial", full, *self.arguments(depth)),
            lambda: call("collections.defaultdict", full),
            lambda: call("operator.getitem", full, self.value(depth)),
            lambda: call("torch._tensor._rebuild_from_type_v2", full, name("torch.Tensor"),
                         tuple(self.arguments(depth)), self.state(depth)),
        ))()  # fmt: skip

    def changed(self, made: Op, depth: int) -> Op:
        return self.random.choice((
            lambda: build(made, self.state(depth)),
            lambda: build(made, self.state(depth)),
            lambda: Op(made + self.value(depth) + pickle.APPEND),
            lambda: Op(made + pickle.MARK + self.value(depth) + pickle.APPENDS),
            lambda: Op(made + pickle.MARK + self.value(depth) + pickle.ADDITEMS),
            lambda: Op(made + self.value(0) + self.value(depth) + pickle.SETITEM),
        ))()  # fmt: skip


class _As:
    """Is pickled as an object of another class, with these attributes."""

    def __init__(self, kind: type, attributes: dict[str, object]) -> None:
        self.kind = kind
        self.attributes = attributes

    def __reduce_ex__(self, _protocol: object) -> tuple[object, ...]:
        return copyreg._reconstructor, (self.kind, object, None), self.attributes  # type: ignore[attr-defined]
