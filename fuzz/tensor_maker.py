"""Writes the tensors of a pickle by hand, and refers to their storages."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

from fuzz.value_maker import ValueMaker
from tests.support.opcodes import Op
from wncli.checkpoint.tensors import row_major

#: The typed storages, with the bytes of an element.
TYPED: Final = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16,
}  # fmt: skip
_QUANTIZED = {"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4}
#: What `_rebuild_tensor_v3` is told, with the bytes of an element.
EXPLICIT: Final = {
    "uint16": 2, "uint32": 4, "uint64": 8, "float8_e5m2": 1, "float8_e4m3fn": 1,
    "float8_e8m0fnu": 1, "complex32": 4, "float32": 4, "bfloat16": 2, "int8": 1,
}  # fmt: skip
_FLOATING = ("FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage")
_LOCATIONS = ("cuda:0", "meta", "mps", "cpu:0", "", "CPU", "hpu", "xla:1")
_V1, _V2, _V3 = (
    f"torch._utils.{made}"
    for made in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
)
_PARAMETER = "torch._utils._rebuild_parameter"
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
ORDERED = "collections.OrderedDict"
#: What to set on a tensor changes more than an attribute.
_ATTRIBUTES = (
    "grad", "requires_grad", "_backward_hooks", "__class__", "shape", "names", "real", "imag",
    "__dict__", "T",
)  # fmt: skip
_SHORT = 256
_CHANGES = pickle.BUILD, pickle.SETITEM, pickle.APPEND


class TensorMaker(ValueMaker):
    """The tensors of one pickle, and the storages that it refers to.

    Args:
        random: decides everything.
        oddness: how likely each chance of an odd move is taken.
        protocol: of the pickle.
        is_legacy: whether storages are referred to as files before PyTorch 1.6 do.
    """

    def __init__(
        self, random: Random, oddness: float, protocol: int = 2, *, is_legacy: bool = False
    ) -> None:
        super().__init__(random, oddness, protocol)
        self.is_legacy = is_legacy
        #: The storages by their keys, with the name of their class and their bytes.
        self.storages: dict[str, tuple[str, bytes]] = {}
        #: The keys of those that have been referred to by a view.
        self.views: set[str] = set()
        #: What is to be carried out behind the tensor that is being written.
        self.pending = Op()

    # -- storages and tensors -------------------------------------------------------------------

    def storage(self, kind: str, nbytes: int) -> Op:
        """Return a reference to a storage: a new one, or one of its class that is known."""
        known = [key for key, (other, raw) in self.storages.items()
                 if other == kind and len(raw) >= nbytes]  # fmt: skip
        if known and self.chance(0.3):  # some are shared
            key = self.random.choice(known)
        else:
            key = str(len(self.storages))
            raw = self.random.randbytes(nbytes)
            if kind == "BoolStorage":
                raw = bytes(byte & 1 for byte in raw)
            self.storages[key] = kind, raw
        if key not in self.views and self.is_legacy and not known and self.chance(0.1):
            # as the first versions wrote what is a part of a storage
            count = nbytes // itemsize_of(kind)
            self.views.add(key)
            self.storages[key] = kind, bytes(2 * itemsize_of(kind)) + self.storages[key][1]
            parts = [self.text(f"v{key}"), self.number(2), self.number(count)]
            return self.reference(kind, key, len(self.storages[key][1]), self.row(parts))
        return self.reference(kind, key, len(self.storages[key][1]))

    def reference(self, kind: str, key: str, nbytes: int, view: Op | None = None) -> Op:
        """Return a reference to a storage, or to a view of it."""
        if self.storages and self.odd("a storage by another's key", 0.02):
            key = self.random.choice(list(self.storages))
        count = nbytes // itemsize_of(kind)
        if self.odd("a storage of another class", 0.02):
            kind = self.random.choice((*TYPED, *_QUANTIZED, "UntypedStorage"))
            if self.chance(0.7):  # and so that it fits
                count = nbytes // itemsize_of(kind)
        if self.odd("a storage of another size", 0.02):
            count += self.random.choice((-1, 1, -count, count))
        location, module = "cpu", "torch.storage" if kind == "UntypedStorage" else "torch"
        if self.odd("a storage at another place", 0.02):
            location = self.random.choice(_LOCATIONS)
        if self.odd("a storage class of another module", 0.01):
            module = self.random.choice(("torch.cuda", "torch.storage", "torch"))
        head, named = self.text("storage"), self.name(f"{module}.{kind}")
        parts = [head, named, self.text(key), self.text(location), self.number(count)]
        if self.is_legacy:
            parts.append(view or self.view(key, count))
        if self.odd("an odd reference to a storage", 0.03):
            self.make_odd(parts, key)
        made = Op(self.row(parts) + pickle.BINPERSID)
        if self.odd("a storage that is remembered", 0.1):
            made = Op(made + self.put("storage"))
        return made

    def make_odd(self, parts: list[Op], key: str) -> None:
        """Change what a reference to a storage says."""
        match self.random.randrange(5):
            case 0:
                parts[2] = self.odd_number(len(key))
            case 1:
                del parts[self.random.randrange(len(parts))]
            case 2:
                parts.append(self.value())
            case 3:
                parts[self.random.randrange(len(parts))] = self.value()
            case _:
                raw = self.random.choice((b"storage", b"cpu", key.encode()))
                made = Op(pickle.SHORT_BINBYTES + bytes([len(raw)]) + raw)
                parts[self.random.choice((0, 2, 3))] = made

    def view(self, key: str, count: int) -> Op:
        """Return what legacy references say about views: nearly always nothing."""
        if not self.odd("a view", 0.05):
            return Op(pickle.NONE)
        keys = ("v", f"v{key}", *self.storages)
        offset = self.random.choice((0, 1, count // 2))
        size = self.random.choice((count - offset, count, 1))
        return self.row([self.text(self.random.choice(keys)), *map(self.number, (offset, size))])

    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
        """Shape, strides, offset, and how many elements the storage has."""
        shape = tuple(self.random.choice((1, 2, 3, 3, 0)) if self.chance(0.2)
                      else self.random.randint(1, 3)
                      for _ in range(self.random.choice((0, 1, 1, 2, 2, 2, 3))))  # fmt: skip
        strides = row_major(shape)
        offset = 0
        match self.random.randrange(12):
            case 0:
                order = self.random.sample(range(len(shape)), len(shape))
                shape = tuple(shape[axis] for axis in order)
                strides = tuple(strides[axis] for axis in order)
            case 1:
                strides = tuple(self.random.choice((0, step)) for step in strides)
            case 2:
                offset = self.random.randint(1, 4)
            case 3:
                strides = tuple(self.random.choice((step, step + 1, 1)) for step in strides)
        reach = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        count = offset + (reach if all(shape) else 0)
        if self.odd("elements beyond the storage", 0.02):
            count = max(0, count - 1)
        return shape, strides, offset, count + self.random.choice((0, 0, 0, 2))

    def sizes(self, values: Iterable[int]) -> Op:
        """Return a shape or strides."""
        parts = [self.number(value) for value in values]
        if not self.odd("sizes that are no tuple", 0.04):
            return self.row(parts)
        match self.random.randrange(5):
            case 0:
                return Op(self.listed(parts) + self.put("list"))
            case 1:
                return self.call("torch.Size", self.row(parts))
            case 2:
                return self.call("torch.Size", Op(self.listed(parts) + self.put("list")))
            case 3:
                return self.call("builtins.tuple", Op(self.listed(parts) + self.put("list")))
            case _:
                known = self.get("list", "tuple")
                return known or Op(self.row(parts) + self.put("tuple"))

    def hooks(self) -> Op:
        """Return the empty `OrderedDict` of hooks."""
        if self.odd("hooks that are none", 0.02):
            return self.pick(self.value, lambda: self.mapping([(self.text("x"), self.value())]))
        return self.call(ORDERED)

    def rebuild(self, *, is_floating: bool = False) -> tuple[str, list[Op]]:
        """Return the function that rebuilds a tensor, and its arguments."""
        shape, strides, offset, count = self.layout()
        function = self.random.choice((_V2, _V2, _V2, _V2, _V1, _V3))
        if function == _V3 and (self.is_legacy or is_floating):
            function = _V2
        kind, dtype = (
            self.random.choice(("FloatStorage", *(_FLOATING if is_floating else TYPED))),
            "",
        )
        itemsize = TYPED[kind]
        if function == _V3:
            kind, (dtype, itemsize) = "UntypedStorage", self.random.choice([*EXPLICIT.items()])
        storage = self.storage(kind, count * itemsize)
        known = self.get("storage")
        if known and self.odd("a storage recalled", 0.2):
            storage = known
        if self.odd("an odd offset", 0.01):
            offset = self.random.choice((1, -1, 2**40))
        args = [storage, self.number(offset), self.sizes(shape), self.sizes(strides)]
        if function != _V1:
            takes_gradient = kind in _FLOATING or self.odd("a gradient of integers", 0.01)
            requires_grad = takes_gradient and self.chance(0.3)
            args += [self.boolean(value=requires_grad), self.hooks()]
        if function == _V3:
            args.append(self.name(f"torch.{dtype}"))
        self.make_args_odd(args)
        return function, args

    def make_args_odd(self, args: list[Op]) -> None:
        """Change what a rebuilding function is called with."""
        if self.odd("a second dtype", 0.03):
            args.insert(self.random.randint(5, 7), self.name("torch.float16"))
        if self.odd("metadata", 0.03):
            said = self.random.choice(("conj", "neg", "other"))
            args.append(self.mapping([(self.text(said), self.boolean(value=self.chance(0.7)))]))
        if self.odd("an argument too many", 0.01):
            args.append(self.value())
        if self.odd("an argument too few", 0.01):
            del args[-1]
        if self.odd("an argument of another kind", 0.01):
            args[self.random.randrange(len(args))] = self.random.choice((self.value(), args[0]))

    def plain_tensor(self, *, is_floating: bool = False) -> Op:
        """Return a tensor, as it is rebuilt."""
        if self.odd("sizes that grow behind the call", 0.02):
            return self.growing()
        function, args = self.rebuild(is_floating=is_floating)
        if self.odd("another rebuilding function", 0.01):
            function = self.random.choice((_V1, _V2, _V3))
        return self.call(function, *args)

    def growing(self) -> Op:
        """Make a tensor whose shape and strides are lists that grow afterwards."""
        storage, hooks = self.storage("FloatStorage", 48), self.hooks
        lists = []
        for sizes in ((3,), (2,)):
            made = Op(self.listed(map(self.number, sizes)) + self.put("list"))
            place = self.known["list"][-1] % _SHORT
            self.pending = Op(
                self.pending + self.text(f"late{place}") + pickle.BINGET + bytes([place])
                + self.number(1) + pickle.APPEND
            )  # fmt: skip
            lists.append(self.call("torch.Size", made) if self.chance(0.3) else made)
        args = (storage, self.number(0), *lists, self.boolean(value=False), hooks())
        return self.call(_V2, *args)

    def tensor(self) -> Op:
        """Return a tensor, a Parameter, a subclass: perhaps remembered, and changed afterwards."""
        known = self.get("tensor")
        made = known if known and self.chance(0.1) else self.new_tensor()
        if self.odd("a tensor that is changed", 0.08):
            made = self.changed(made, "a tensor")
        return made

    def new_tensor(self) -> Op:
        """Return a tensor that was not there before."""
        if self.odd("a special tensor", 0.04):
            return self.special()
        match self.random.randrange(10):
            case 0 | 1:
                return self.parameter(self.plain_tensor(is_floating=True))
            case 2:
                return self.subclass()
            case 3:
                return Op(self.plain_tensor() + self.put("tensor"))
        return self.plain_tensor()

    def parameter(self, data: Op) -> Op:
        """Return a Parameter over a tensor."""
        args = [data, self.boolean(value=self.chance(0.8)), self.hooks()]
        function = _PARAMETER
        if self.chance(0.2):  # some have attributes
            function += "_with_state"
            args.append(self.state())
        elif self.odd("a Parameter by its class", 0.08):
            named = self.name("torch.nn.parameter.Parameter")
            ending = self.random.choice((pickle.REDUCE, pickle.NEWOBJ))
            return Op(named + self.row(args[: self.random.choice((1, 2))]) + ending)
        made = self.call(function, *args)
        return self.parameter(made) if self.odd("a Parameter of a Parameter", 0.03) else made

    def state(self) -> Op:
        """Return the attributes of a tensor."""
        if not self.odd("odd attributes of a tensor", 0.1):
            return self.mapping([(self.text("note"), self.value())])
        key = self.random.choice((*["data"] * 6, *_ATTRIBUTES))
        inner = self.value() if self.chance(0.2) else self.plain_tensor(is_floating=True)
        found = self.mapping([(self.text(key), inner)])
        if self.chance(0.3):  # with slots
            return self.row([Op(pickle.NONE), found])
        return found

    def subclass(self) -> Op:
        """Return a tensor with attributes, or of a subclass."""
        function, args = self.rebuild()
        kind = "torch.Tensor"
        if self.odd("an odd class of tensor", 0.08):
            kind = self.random.choice((
                "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.FloatTensor",
                "torch.Size",
            ))  # fmt: skip
        named = self.name(function)
        return self.call(_FROM_TYPE, named, self.name(kind), self.row(args), self.state())

    def special(self) -> Op:
        """Return what else PyTorch rebuilds: quantized, sparse, meta, nested and other tensors."""
        no, dtype, cpu = Op(pickle.NEWFALSE), self.name("torch.float32"), self.text("cpu")
        kinds: tuple[tuple[str, *tuple[Callable[[], Op], ...]], ...] = (
            ("_rebuild_qtensor", lambda: self.storage("QInt8Storage", 4), lambda: self.number(0),
             self.square, self.square, self.quantizer, lambda: no, self.hooks),
            ("_rebuild_sparse_tensor", self.sparse, self.sparse_parts),
            ("_rebuild_meta_tensor_no_storage",
             lambda: dtype, self.square, self.square, lambda: no),
            ("_rebuild_nested_tensor", *[self.plain_tensor] * 4),
            ("_rebuild_device_tensor_from_cpu_tensor",
             self.plain_tensor, lambda: dtype, lambda: cpu, lambda: no),
            ("_rebuild_device_tensor_from_numpy",
             self.plain_tensor, lambda: dtype, lambda: cpu, lambda: no),
            ("_rebuild_wrapper_subclass", lambda: self.name("torch.Tensor"), lambda: dtype,
             self.square, self.square, lambda: self.number(0),
             lambda: self.name("torch.strided"), lambda: cpu, lambda: no),
            ("", self.by_class),
        )  # fmt: skip
        function, *makers = self.random.choice(kinds)
        args = [made() for made in makers]
        return self.call(f"torch._utils.{function}", *args) if function else args[0]

    def square(self) -> Op:
        """Sizes of two dims."""
        return self.sizes((2, self.random.randint(1, 2)))

    def quantizer(self) -> Op:
        """Return what the numbers of a quantized tensor stand for."""
        return self.row([self.name("torch.per_tensor_affine"), self.value(), self.number(0)])

    def sparse(self) -> Op:
        """Return the layout of sparse tensors."""
        return self.call("torch.serialization._get_layout", self.text("torch.sparse_coo"))

    def sparse_parts(self) -> Op:
        """Make indices, values and size of a sparse tensor."""
        parts = [self.plain_tensor(), self.plain_tensor(), self.square(), Op(pickle.NEWTRUE)]
        return self.row(parts)

    def by_class(self) -> Op:
        """Return a tensor as PyTorch wrote it at first: made empty by its class, and then set."""
        kind = self.random.choice(("torch.Tensor", "torch.FloatTensor", "torch.nn.Parameter"))
        ending = self.random.choice((pickle.REDUCE, pickle.NEWOBJ))
        made = Op(self.name(kind) + self.row([]) + ending)
        return Op(made + self.row(self.rebuild()[1][:4]) + pickle.BUILD)

    def changed(self, made: Op, what: str) -> Op:
        """Something with an effect of the opcodes that are meant for containers and objects."""
        storage = self.get("storage") or self.storage("FloatStorage", 16)
        ending = self.random.choice((*_CHANGES, pickle.BUILD, pickle.DUP + pickle.POP))
        self.moves.append(f"{what}, then {name_of(ending)}")
        if ending == pickle.BUILD:
            fitting = [storage, self.number(0), self.sizes((2, 2)), self.sizes((2, 1))]
            return Op(made + self.pick(
                lambda: self.row(fitting), self.state,
                lambda: self.row([Op(pickle.NEWFALSE), *fitting]),
            ) + pickle.BUILD)  # fmt: skip
        if ending == pickle.SETITEM:
            return Op(made + self.number(0) + self.value() + ending)
        return Op(made + (self.value() if ending == pickle.APPEND else b"") + ending)


def itemsize_of(kind: str) -> int:
    """Return the bytes of an element of a storage class."""
    return (TYPED | _QUANTIZED).get(kind, 1)


def name_of(opcodes: bytes) -> str:
    """Return what `pickle` calls these opcodes."""
    found = {getattr(pickle, name): name for name in ("BUILD", "SETITEM", "APPEND", "DUP", "POP")}
    return " and ".join(found[bytes([opcode])] for opcode in opcodes)
