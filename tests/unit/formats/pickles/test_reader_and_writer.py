"""The inert pickle reader and writer, held against CPython's own pickler and unpickler."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Node, PersistentId, Unread, entries_of
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.pickles.writer import write_pickle
from wncli.storage.source import LocalSource

pytestmark = pytest.mark.thinned(11)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DEEP = 100_000


def read(data: bytes) -> Node:
    return read_pickle(data, "a test").root


def rewritten(data: bytes) -> bytes:
    """The pickle after one trip through the reader and the writer."""
    found = read_pickle(data, "a test")
    root, protocol = found.root, found.protocol
    return write_pickle(root, protocol, {}, lambda node: node.pid)


def load(data: bytes) -> Any:  # noqa: ANN401 - whatever was pickled
    return pickle.loads(data)  # noqa: S301 - made by these tests


def there_and_back(value: Any, protocol: int) -> Any:  # noqa: ANN401
    return load(rewritten(pickle.dumps(value, protocol)))


# -- plain values -----------------------------------------------------------------------------

HASHABLE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 3000), 1 << 3000)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
VALUES = st.recursive(
    HASHABLE | st.binary().map(bytearray) | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(HASHABLE, inner, max_size=5)
        | st.dictionaries(HASHABLE, inner, max_size=5).map(collections.OrderedDict)
        | st.sets(HASHABLE, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from(PROTOCOLS))
def test_plain_values_of_every_protocol_load_as_before(value: Any, protocol: int) -> None:  # noqa: ANN401
    assert repr(there_and_back(value, protocol)) == repr(load(pickle.dumps(value, protocol)))


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_a_protocol_2_pickle_comes_out_byte_for_byte(value: Any) -> None:  # noqa: ANN401
    data = pickle.dumps(value, 2)
    assert rewritten(data) == data


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 255, 256, 257, 999, 1000, 1001, 2000, 2001, 2500])
@pytest.mark.parametrize(
    "make",
    [
        lambda size: list(range(size)),
        lambda size: tuple(range(size)),
        lambda size: dict.fromkeys(range(size)),
        lambda size: collections.OrderedDict.fromkeys(range(size)),
        lambda size: collections.deque(range(size)),
        lambda size: [str(number) for number in range(size)],
        lambda size: set(range(size)),
    ],
    ids=["list", "tuple", "dict", "OrderedDict", "deque", "memo", "set"],
)
def test_containers_of_every_batch_size_come_out_byte_for_byte(
    make: Callable[[int], Any], size: int
) -> None:
    data = pickle.dumps(make(size), 2)
    assert rewritten(data) == data


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [999, 1000, 1001, 2001])
def test_large_containers_of_every_protocol_survive(protocol: int, size: int) -> None:
    value = [
        list(range(size)),
        dict.fromkeys(range(size), 0.5),
        collections.OrderedDict.fromkeys(range(size)),
        set(range(size)),
        frozenset(range(size)),
        collections.deque(range(size)),
        "x" * size,
        b"y" * size,
    ]
    assert there_and_back(value, protocol) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_integers_at_the_edge_of_every_opcode_survive(protocol: int) -> None:
    value = [sign * (1 << bits) + step for bits in (7, 8, 15, 16, 31, 32, 63, 64, 2032, 2040, 2048)
             for sign in (-1, 1) for step in (-1, 0, 1)]  # fmt: skip
    assert there_and_back(value, protocol) == value
    data = pickle.dumps(value, 2)
    assert rewritten(data) == data


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_floats_survive_bit_for_bit(protocol: int) -> None:
    value = [0.0, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan")]
    found = there_and_back(value, protocol)
    assert [struct.pack(">d", x) for x in found] == [struct.pack(">d", x) for x in value]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_text_with_line_breaks_nul_and_lone_surrogates_survives(protocol: int) -> None:
    value = ["", "\n", "\r\n\0", "\\u0041", "'\"\\", "\ud800", "é\U0001f600", "\x1a", "x" * 70_000]
    assert there_and_back(value, protocol) == value


# -- objects ----------------------------------------------------------------------------------

OBJECTS: list[Any] = [
    argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(a=None)),
    collections.defaultdict(list, {"a": [1]}),
    collections.defaultdict(None, {"a": [1]}),
    collections.Counter("abca"),
    collections.deque([1, 2], maxlen=3),
    collections.OrderedDict([("b", 1), ("a", 2)]),
    complex(1, -2),
    decimal.Decimal("1.10"),
    fractions.Fraction(1, 3),
    dt.datetime(2020, 2, 29, 1, 2, 3, 4, tzinfo=dt.UTC),
    pathlib.PurePosixPath("a/b"),
    range(3, 9, 2),
    slice(1, 2, 3),
    {1, 2},
    frozenset({1, "a"}),
    bytearray(b"\x00\xff"),
    b"\x00\xff" * 300,
    int,
    len,
    ValueError("x", 1),
    np.float32(1.5),
    np.int64(-3),
    np.bool_(True),  # noqa: FBT003
    np.dtype("<f4"),
    torch.Size([1, 2]),
    torch.device("cuda:0"),
    torch.float16,
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_objects_of_known_classes_survive(value: Any, protocol: int) -> None:  # noqa: ANN401
    found = there_and_back(value, protocol)
    assert type(found) is type(value)
    assert repr(found) == repr(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bc"]),
        np.array([None, [1], "x"], dtype=object),
        np.zeros((0, 3)),
        np.array(7),
        np.arange(3, dtype=">i2"),
    ],
    ids=["plain", "fortran", "text", "objects", "empty", "0-d", "big-endian"],
)
def test_numpy_arrays_survive(array: np.ndarray[Any, Any], protocol: int) -> None:
    found = there_and_back(array, protocol)
    assert found.dtype == load(pickle.dumps(array, protocol)).dtype
    assert found.tolist() == array.tolist()


class WithSlots:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class WithNewArguments(int):
    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, Any]]:
        return (int(self),), {"unit": "s"}

    def __new__(cls, value: int, *, unit: str) -> WithNewArguments:  # noqa: PYI034
        made = super().__new__(cls, value)
        made.unit = unit
        return made

    unit: str


class WithState(dict[str, int]):
    def __init__(self) -> None:
        super().__init__(a=1)
        self.extra = "x"


class ListWithState(list[int]):
    extra = 0


class Inner:
    class Nested:
        pass


@pytest.mark.parametrize("protocol", range(2, 6))
def test_slots_keywords_and_subclass_state_survive(protocol: int) -> None:
    slots = there_and_back(WithSlots(), protocol)
    assert (slots.a, slots.b) == (1, [2])
    assert there_and_back(WithNewArguments(3, unit="s"), protocol).unit == "s"
    state = there_and_back(WithState(), protocol)
    assert (dict(state), state.extra) == ({"a": 1}, "x")
    items = ListWithState([1, 2])
    items.extra = 5
    found = there_and_back(items, protocol)
    assert (list(found), found.extra) == ([1, 2], 5)


@pytest.mark.parametrize("protocol", [4, 5])
def test_nested_classes_keep_their_dotted_names(protocol: int) -> None:
    assert type(there_and_back(Inner.Nested(), protocol)) is Inner.Nested
    assert there_and_back([1].append, protocol).__self__ == [1]


@contextmanager
def module_that_goes(name: str) -> Iterator[types.ModuleType]:
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        yield module
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_of_a_class_that_nobody_can_import_survive(protocol: int) -> None:
    with module_that_goes("vanished_project") as module:
        module.Thing = type("Thing", (), {"__module__": "vanished_project"})  # type: ignore[attr-defined]
        thing = module.Thing()
        thing.items = {"a": [thing, 1]}
        data = pickle.dumps(thing, protocol)
        del sys.modules["vanished_project"]
        with pytest.raises(ModuleNotFoundError):
            load(data)
        written = rewritten(data)
        sys.modules["vanished_project"] = module
        found = load(written)
        assert type(found) is module.Thing
        assert found.items["a"][0] is found


# -- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "shared",
    [
        [1],
        {"a": 1},
        {1},
        frozenset({1, 2}),
        (1, [2]),
        bytearray(b"x"),
        "some text",
        argparse.Namespace(a=1),
        collections.OrderedDict(a=1),
        np.arange(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_object_met_twice_stays_one_object(shared: Any, protocol: int) -> None:  # noqa: ANN401
    first, second, (third,) = there_and_back([shared, shared, (shared,)], protocol)
    assert first is second is third


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_equal_objects_that_were_not_shared_stay_apart(protocol: int) -> None:
    first, second = there_and_back([[1], [1]], protocol)
    assert first is not second


class Recursive:
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __reduce__(self) -> tuple[type, tuple[list[Any]]]:
        return Recursive, (self.items,)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_cycles_of_every_kind_survive(protocol: int) -> None:
    items: list[Any] = []
    items.append(items)
    found = there_and_back(items, protocol)
    assert found[0] is found

    mapping: dict[str, Any] = {}
    mapping["self"] = mapping
    found = there_and_back(mapping, protocol)
    assert found["self"] is found

    ordered: collections.OrderedDict[str, Any] = collections.OrderedDict(a=1)
    ordered["self"] = ordered
    found = there_and_back(ordered, protocol)
    assert found["self"] is found

    pair: tuple[list[Any], int] = ([], 1)
    pair[0].append(pair)
    found = there_and_back(pair, protocol)
    assert found[0][0] is found

    long: tuple[Any, ...] = ([], 1, 2, 3, 4)
    long[0].append(long)
    found = there_and_back(long, protocol)
    assert found[0][0] is found

    space = argparse.Namespace()
    space.me = space
    found = there_and_back(space, protocol)
    assert found.me is found

    member = Recursive([])
    member.items.append(member)
    found = there_and_back(member, protocol)
    assert found.items[0].items is found.items


class Hashable:
    def __init__(self) -> None:
        self.owner: Any = None


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_frozenset_inside_its_own_member_survives(protocol: int) -> None:
    member = Hashable()
    member.owner = frozenset({member})
    found = there_and_back(member, protocol)
    assert next(iter(found.owner)) is found
    (again,) = there_and_back(member.owner, protocol)
    assert again.owner == frozenset({again})


# -- torch's own pickles ----------------------------------------------------------------------


def data_pkl(value: object, **options: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    torch.save(value, file, **options)
    with zipfile.ZipFile(file) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        return archive.read(name)


def a_training_checkpoint() -> dict[str, Any]:
    layers = {"conv": torch.nn.Conv1d(2, 3, 3), "norm": torch.nn.BatchNorm1d(3)}
    model = torch.nn.Sequential(collections.OrderedDict(layers))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 2, 5)).sum().backward()
    optimizer.step()
    weight = torch.arange(12.0).reshape(3, 4)
    return {
        "model": model.state_dict(),
        "parameters": dict(model.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.98), path=pathlib.PurePosixPath("a")),
        "tied": [weight, weight, weight.t(), weight[1:], weight.expand(2, 3, 4)],
        "new dtypes": [torch.zeros(3).to(torch.float8_e4m3fn), torch.zeros(3, dtype=torch.uint16)],
        "bytes": b"\x00\xffab",
        "numpy": [np.float64(0.5), np.arange(3)],
        "epoch": 10**12,
    }


@pytest.mark.parametrize(
    "value",
    [
        a_training_checkpoint(),
        {f"layer{n}.weight": torch.zeros(2, 2) for n in range(300)},
        torch.zeros(3),
        torch.nn.Parameter(torch.zeros(3)),
        torch.zeros(3).untyped_storage(),
        [],
    ],
    ids=["training", "many", "tensor", "parameter", "storage", "nothing"],
)
def test_torch_pickles_come_out_byte_for_byte(value: object) -> None:
    data = data_pkl(value)
    assert rewritten(data) == data


@pytest.mark.parametrize("size", [1, 2, 999, 1000, 1001, 2001])
def test_state_dicts_of_every_batch_size_come_out_byte_for_byte(size: int) -> None:
    tensor = torch.zeros(1)
    names = [f"layer{number}.weight" for number in range(size)]
    ordered = data_pkl(collections.OrderedDict.fromkeys(names, tensor))
    assert rewritten(ordered) == ordered
    plain = data_pkl(dict.fromkeys(names, tensor))
    assert rewritten(plain) == plain


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torch_pickles_of_every_protocol_load_as_before(protocol: int) -> None:
    data = data_pkl({"a": 1, "b": [b"x", {1}], "c": torch.Size([2])}, pickle_protocol=protocol)
    assert load(rewritten(data)) == load(data)


def test_persistent_ids_are_kept_as_data_and_can_be_exchanged() -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", 7) if isinstance(value, bytearray) else None

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

    for protocol in range(1, 6):
        file = io.BytesIO()
        Pickler(file, protocol).dump([bytearray(b"x"), 1])
        found = read_pickle(file.getvalue(), "a test")
        root, declared = found.root, found.protocol
        assert isinstance(root[0], PersistentId)
        data = write_pickle(root, declared, {}, lambda node: [*node.pid, "new"])
        assert Unpickler(io.BytesIO(data)).load() == [["storage", 7, "new"], 1]


def test_several_pickles_of_one_file_are_read_one_after_another(tmp_path: pathlib.Path) -> None:
    values = [1, ["a"], {"b": None}]
    data = b"".join(pickle.dumps(value, 2) for value in values)
    (tmp_path / "file").write_bytes(data + b"raw")
    place, found = 0, []
    with (tmp_path / "file").open("rb", buffering=0) as file:
        for _ in values:
            read = read_pickle(LocalSource("file", file), "a test", place)
            found.append(read.root)
            place += read.nbytes
    assert found[:2] == values[:2]
    assert place == len(data)


# -- what is long -----------------------------------------------------------------------------

_LONG = 100_000
LONG_VALUES = [
    bytes(range(256)) * 400,
    bytearray(b"x") * _LONG,
    "é" * _LONG,
    "\ud800" * _LONG,
    [b"a" * _LONG, "between", b"b" * _LONG, 7],
    {b"k" * _LONG: 1, "t" * _LONG: 2, ("t" * _LONG, 3): 4},
]


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("value", LONG_VALUES, ids=range(len(LONG_VALUES)))
def test_what_is_long_stays_in_the_file_and_is_written_as_it_was(
    value: object, protocol: int, tmp_path: pathlib.Path
) -> None:
    data = pickle.dumps([value, value], protocol)
    (tmp_path / "file").write_bytes(b"before" + data + b"behind")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        found = read_pickle(LocalSource("file", file), "a test", 6)
        assert found.nbytes == len(data)
        (node, _) = found.root
        if protocol > 2 and isinstance(value, (bytes, str, list)):
            assert type(node[0] if isinstance(node, list) else node) is Unread
        again = write_pickle(found.root, found.protocol, {}, lambda node: node.pid)
    loaded = pickle.loads(again)  # noqa: S301 - it was made here
    assert loaded == [value, value]
    assert loaded[0] is loaded[1]


@pytest.mark.parametrize("cut", [1, 50_000, 99_990, 100_002])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_long_item_that_the_file_ends_inside_is_refused(
    protocol: int, cut: int, tmp_path: pathlib.Path
) -> None:
    data = pickle.dumps(b"x" * _LONG, protocol)
    (tmp_path / "file").write_bytes(data[:-cut])
    with (
        (tmp_path / "file").open("rb", buffering=0) as file,
        pytest.raises(FormatError, match=r"ends early|more than there are"),
    ):
        read_pickle(LocalSource("file", file), "a test")


def test_a_long_key_is_read_once_however_often_it_stands_there(tmp_path: pathlib.Path) -> None:
    key = b"X" + (1 << 20).to_bytes(4, "little") + b"k" * (1 << 20) + b"q\0"
    again = b"".join(b"(h\0K\1u" for _ in range(3000))
    (tmp_path / "file").write_bytes(b"\x80\2" + key + b"0}" + again + b".")
    with (tmp_path / "file").open("rb", buffering=0) as file:
        begun = time.process_time()
        found = read_pickle(LocalSource("file", file), "a test")
    assert time.process_time() - begun < 1
    assert entries_of(found.root) == [("k" * (1 << 20), 1)]


# -- Python 2 ---------------------------------------------------------------------------------


def load_in_one_way(data: bytes) -> str:
    """What both of CPython's unpicklers make of it; neither sees a buffer that can be peeked at."""
    found = []
    # the one in C and the one in Python
    for unpickler in (pickle.Unpickler, pickle._Unpickler):
        try:
            found.append(repr(unpickler(io.BytesIO(data)).load()))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no value
            found.append(repr(type(error)))
    return found[0] if found[0] == found[1] else "neither"


@pytest.mark.parametrize("second", [None, 0, 5, 11])
def test_a_frame_ends_where_every_unpickler_ends_it_or_is_refused(second: int | None) -> None:
    """C's reader drops what is left of a frame and takes the argument from behind it."""
    opcodes = pickle.dumps({"key": 0.25, "other": [1, 300, "text"]}, 4)[11:]
    read_the_same = 0
    for length in range(len(opcodes) + 2):
        framed = opcodes
        if second is not None:
            framed = opcodes[:second] + b"\x95" + struct.pack("<Q", 3) + opcodes[second:]
        data = b"\x80\x04\x95" + struct.pack("<Q", length) + framed
        with suppress(FormatError):
            assert repr(load(rewritten(data))) == load_in_one_way(data), length
            read_the_same += 1
    assert read_the_same >= (second is None) * 10


def test_python_2_text_and_bytes_survive() -> None:
    data = b"\x80\x02]q\x00(U\x03abcq\x01U\x02\xff\xfeq\x02T\x04\x00\x00\x00\x80abce."
    for encoding in ("latin1", "bytes"):
        expected = pickle.loads(data, encoding=encoding)  # noqa: S301
        found = pickle.loads(rewritten(data), encoding=encoding)  # noqa: S301
        text = [x if isinstance(x, str) else x.decode("latin1") for x in found]
        assert text == [x if isinstance(x, str) else x.decode("latin1") for x in expected]


@pytest.mark.parametrize(
    "data",
    [
        b"(lp0\nI1\naL2L\naF0.5\naS'a\\'b'\np1\naVc\\u00e9\np2\naI01\naI00\na(dp3\ng1\nNs.",
        b"(I1\nI2\nt.",
        b"(S'a'\nI1\nd.",
        b"c__builtin__\nset\n((lI1\natR.",
        b"(c__builtin__\nlist\no.",
        b"(i__builtin__\nlist\n.",
        b"(I1\nI2\n0I3\n1(I4\nl.",
        b"]2a.",
    ],
    ids=["values", "tuple", "dict", "set", "OBJ", "INST", "POP", "DUP"],
)
def test_pickles_of_protocol_0_load_as_before(data: bytes) -> None:
    assert repr(load(rewritten(data))) == repr(load(data))


# -- depth ------------------------------------------------------------------------------------

NESTED = {
    "list": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "tuple": b"\x80\x02)" + b"\x85" * DEEP + b".",
    "dict": b"\x80\x02" + b"}K\x00" * DEEP + b"N" + b"s" * DEEP + b".",
    "frozenset": b"\x80\x04" + b"(" * DEEP + b"\x91" * DEEP + b".",
    "call": b"\x80\x02" + b"cbuiltins\nlist\n" * (DEEP // 4) + b")R" + b"\x85R" * (DEEP // 4 - 1)
    + b".",
    "state": b"\x80\x02" + b"cargparse\nNamespace\n)R}X\x01\x00\x00\x00a" * (DEEP // 4) + b"N"
    + b"sb" * (DEEP // 4) + b".",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["dict", "frozenset", "call", "state"])
def test_deep_nesting_is_read_and_written(kind: str) -> None:
    assert len(rewritten(NESTED[kind])) > DEEP


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "tuple"])
def test_nesting_of_100000_loads_as_deep_as_it_was(kind: str) -> None:
    found = load(rewritten(NESTED[kind]))
    depth = 0
    while found:
        (found,) = found
        depth += 1
    assert depth == (DEEP - 1 if kind == "list" else DEEP)


@pytest.mark.parametrize(
    "start",
    [b"]" * DEEP + b"a" * (DEEP - 1), b"cm\nf\n" + b")R" * DEEP, b")" + b"\x85" * DEEP],
    ids=["list", "call", "tuple"],
)
@pytest.mark.parametrize("call", [b")R.", b")\x81."], ids=["REDUCE", "NEWOBJ"])
def test_calling_something_nested_100000_deep_is_survived(start: bytes, call: bytes) -> None:
    with suppress(FormatError):
        read(b"\x80\x04" + start + call)


def test_calling_an_exponentially_shared_structure_takes_no_exponential_time() -> None:
    doubled = b"".join(b"h%ch%c\x86q%c" % (place, place, place + 1) for place in range(60))
    data = b"\x80\x02]q\x00" + doubled + b")R."
    program = f"""
from wncli.errors import FormatError
from wncli.formats.pickles.reader import read_pickle
try:
    read_pickle({data!r}, "a test")
except FormatError:
    pass
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)


# -- nothing runs -----------------------------------------------------------------------------

_HOSTILE_EVENTS = ("import", "exec", "compile", "open", "pickle.", "os.", "subprocess.", "socket.")
_heard: list[str] | None = None


def _listen(event: str, _args: object) -> None:
    if _heard is not None and event.startswith(_HOSTILE_EVENTS):
        _heard.append(event)


sys.addaudithook(_listen)


@contextmanager
def silence() -> Iterator[None]:
    """Hold that nothing is imported, opened, compiled or run inside the block."""
    global _heard  # noqa: PLW0603 - an audit hook cannot be taken away again
    _heard = []
    try:
        yield
    finally:
        heard, _heard = _heard, None
    assert heard == []


class Runs:
    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def payloads() -> dict[str, bytes]:
    command = "touch run-by-a-pickle"
    made = {
        f"REDUCE {protocol}": pickle.dumps(Runs(os.system, command), protocol)
        for protocol in PROTOCOLS
    }
    return made | {
        "eval": pickle.dumps(Runs(eval, "__import__('this')")),
        "exec": pickle.dumps([Runs(exec, "import this")]),
        "getattr": pickle.dumps(Runs(getattr, Runs(__import__, "this"), "s")),
        "pickle inside": pickle.dumps(Runs(pickle.loads, pickle.dumps(Runs(os.system, command)))),
        "INST": b"(S'touch x'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'touch x'\no.",
        "NEWOBJ": b"\x80\x02cantigravity\nx\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x07touch x\x85}\x92.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x04this\x8c\x03a.b\x93.",
        "BUILD": b"\x80\x02cantigravity\nx\n)R}X\x01\x00\x00\x00aK\x01sb.",
        "key": b"\x80\x02}cos\nsystem\nX\x07\x00\x00\x00touch x\x85RK\x01s.",
        "persistent id": b"\x80\x02cos\nsystem\nX\x07\x00\x00\x00touch x\x85RQ.",
        "result called": b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R)R.",
    }


@pytest.mark.parametrize("kind", payloads())
def test_nothing_is_imported_or_run(
    kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = payloads()[kind]
    rewritten(pickle.dumps([1]))
    with silence():
        written = rewritten(data)
    assert rewritten(written) == written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"\x82\x01.", b"\x83\x01\x00.", b"\x84\x01\x00\x00\x00."])
def test_the_extension_registry_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="extension registry"):
        read(b"\x80\x02" + data)


def test_out_of_band_buffers_are_refused() -> None:
    data = pickle.dumps(pickle.PickleBuffer(b"abc"), 5, buffer_callback=lambda _: None)
    with pytest.raises(FormatError, match="out-of-band"):
        read(data)


# -- damaged pickles --------------------------------------------------------------------------

RICH: Any = [
    None, True, 1, -300, 1 << 70, 0.5, "text", b"bytes\x00\xff", (1,), (1, 2), (1, 2, 3), (1,) * 5,
    {"k": [1]}, {1, 2}, frozenset({3}), bytearray(b"xy"), argparse.Namespace(a=1),
    collections.OrderedDict(a=1, b=2), WithNewArguments(3, unit="s"), "x" * 260, b"y" * 260,
    range(3),
]  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_off_at_any_byte_is_refused(protocol: int) -> None:
    value = RICH if protocol >= 2 else [x for x in RICH if not isinstance(x, WithNewArguments)]
    data = pickle.dumps(value, protocol)
    read(data)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:end])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_with_any_byte_changed_is_read_or_refused(protocol: int) -> None:
    value = RICH if protocol >= 2 else [x for x in RICH if not isinstance(x, WithNewArguments)]
    data = pickle.dumps(value, protocol)
    for place in range(len(data)):
        for byte in (0x52, data[place] ^ 1):
            with suppress(FormatError):
                rewritten(data[:place] + bytes([byte]) + data[place + 1 :])


SINGLE = b"()].NOQaebstuRo012l}d\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94"
OPCODES = [SINGLE[place : place + 1] for place in range(len(SINGLE))] + [
    b"K\x01", b"q\x00", b"h\x00", b"X\x01\x00\x00\x00a", b"cm\nf\n", b"im\nf\n", b"U\x01\xff",
    b"P1\n", b"B\x01\x00\x00\x00a", b"L9L\n", b"I01\n", b"S'a'\n", b"\x96" + b"\0" * 8,
    b"ccollections\nOrderedDict\n", b"M\xff\xff", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x00\xff",
    b"X\x03\x00\x00\x00\xed\xa0\x80", b"r\x01\x00\x00\x00", b"j\x01\x00\x00\x00",
    b"r\xff\xff\xff\xff",
]  # fmt: skip
SEQUENCES = st.lists(st.sampled_from(OPCODES), max_size=40)


@settings(max_examples=300, deadline=None)
@given(SEQUENCES)
def test_any_sequence_of_opcodes_is_read_or_refused(sequence: list[bytes]) -> None:
    try:
        once = rewritten(b"\x80\x02" + b"".join(sequence) + b".")
    except FormatError:
        return
    assert rewritten(once) == once


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80", b"\x80\x02", b"\x80\x02.", b"\x80\x06N.", b"\x80\xffN.", b"N", b"(.",
        b"0.", b"1.", b"2.", b"a.", b"]a.", b"e.", b"}s.", b"}K\x01s.", b"}(K\x01u.", b"(K\x01d.",
        b"h\x00.", b"j\x00\x00\x00\x00.", b"g7\n.", b"gx\n.", b"q\x00.", b"p0\n.", b"R.", b")R.",
        b"NNR.", b"b.", b"Nb.", b"}}b.", b"\x85.", b"\x86.", b"(o.", b"\x93.", b"NN\x93.",
        b"\x8fa.", b"(\x91(K\x01\x90.", b"Ix\n.", b"I\n.", b"Lx\n.", b"Fx\n.", b"Sx\n.", b"S'\n.",
        b"S'\\x'\n.", b"V\\ud\n.", b"X\x01\x00\x00\x00\xff.", b"cm\n.", b"c\xff\nx\n.", b"P\xff\n.",
        b"?.", b"\x00.", b"I" + b"9" * 5000 + b"\n.",
    ],
)  # fmt: skip
def test_what_no_unpickler_takes_is_refused(data: bytes) -> None:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

        def find_class(self, module: str, name: str) -> object:
            return module, name

    with pytest.raises(Exception):  # noqa: B017, PT011 - the oracle raises what it likes
        Unpickler(io.BytesIO(data)).load()
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize("claim", [1 << 17, (1 << 31) - 1])
@pytest.mark.parametrize("opcode", [b"X", b"B", b"T", b"\x8b", b"\x8d", b"\x8e", b"\x96"])
def test_a_claim_of_gigabytes_in_a_short_pickle_takes_no_memory(opcode: bytes, claim: int) -> None:
    wide = opcode in b"\x8d\x8e\x96"
    data = b"\x80\x05" + opcode + struct.pack("<Q" if wide else "<I", claim) + b"abc."
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x8e", b"\x96"])
@pytest.mark.parametrize("claim", [1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_claim_beyond_any_memory_is_refused(opcode: bytes, claim: int) -> None:
    with pytest.raises(FormatError):
        read(b"\x80\x05" + opcode + struct.pack("<Q", claim) + b"abc.")


def test_memo_places_beyond_any_memory_take_none() -> None:
    data = b"\x80\x02]r\xff\xff\xff\xffj\xff\xff\xff\xff\x86."
    first, second = load(rewritten(data))
    assert first is second


#: What a pickle does with its memo, and the place it names; the last one names none.
MEMO_STEPS = (pickle.BINPUT, pickle.BINGET, pickle.MEMOIZE)


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(MEMO_STEPS), st.integers(0, 9)), max_size=25))
@settings(max_examples=500, deadline=None)
def test_memo_places_in_any_order_are_what_an_unpickler_takes_them_for(
    steps: list[tuple[bytes, int]],
) -> None:
    """Most pickles count their places from 0 on; nothing says that they must."""
    data = pickle.MARK
    for value, (step, place) in enumerate(steps):
        if step != pickle.BINGET:
            data += pickle.BININT1 + bytes([value])
        data += step + (b"" if step == pickle.MEMOIZE else bytes([place]))
    data += pickle.LIST + pickle.STOP
    try:
        expected = pickle.loads(data)  # noqa: S301
    except pickle.UnpicklingError:
        with pytest.raises(FormatError, match="is read before it is written"):
            read(data)
    else:
        assert read(data) == expected
