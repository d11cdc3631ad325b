"""Writes pickles in PyTorch's vocabulary by hand: as `torch.save` does, and with odd moves."""

from __future__ import annotations

import pickle
import struct

from fuzz.tensor_maker import ORDERED, TensorMaker
from fuzz.value_maker import FRAMED
from tests.support.opcodes import Op

_NAMES = ("weight", "bias", "weight_g", "weight_v", "running_mean", "original0", "w")
#: The first protocol that Python 2 does not have.
_BYTES = 3
_MODULES = ("conv.", "a.", "b.", "layers.0.", "layers.1.", "parametrizations.weight.", "")


class PickleMaker(TensorMaker):
    """One pickle, with what stands at its top."""

    def pickle(self) -> bytes:
        """Return a whole pickle."""
        return self.framed(self.top())

    def framed(self, value: Op) -> bytes:
        """Return a pickle of the value that these opcodes leave."""
        protocol = self.protocol
        if self.odd("another protocol number", 0.3):
            protocol = self.random.choice((0, 1, 2, 3, 4, 5, 6, 255))
        frame = b""
        if self.protocol >= FRAMED:  # the first with frames
            frame = pickle.FRAME + struct.pack("<Q", len(value) + 1)
            if self.odd("a frame of another length", 0.3):
                frame = pickle.FRAME + struct.pack("<Q", self.random.choice((0, 1, 5, len(value))))
        below = b""
        if self.odd("something below the top of the stack", 0.3):
            below = self.value()
        return bytes(pickle.PROTO + bytes([protocol]) + frame + below + value + pickle.STOP)

    # -- mappings -------------------------------------------------------------------------------

    def key(self, name: str) -> Op:
        """Return a name, as it should be."""
        if not self.odd("a key that is no text", 0.02):
            return self.text(name)
        raw = name.encode()
        return self.pick(
            lambda: self.call("builtins.str", self.text(name)),
            lambda: self.call("numpy.str_", self.text(name)),
            lambda: self.call("_codecs.encode", self.text(name), self.text("latin1")),
            lambda: Op(pickle.SHORT_BINBYTES + bytes([len(raw)]) + raw),
            lambda: self.number(self.random.randrange(3)),
            lambda: Op(self.random.choice((pickle.NEWTRUE, pickle.NEWFALSE, pickle.NONE))),
            lambda: Op(pickle.BINFLOAT + struct.pack(">d", self.random.randrange(2))),
            lambda: self.row([self.text(name)]),
            lambda: self.get("tensor", "text") or self.text(name),
        )

    def begun(self) -> Op:
        """Return a mapping of some class, empty as a rule."""
        if self.odd("a mapping made oddly", 0.06):
            return self.odd_mapping()
        if self.chance(0.5):  # either
            return Op(pickle.EMPTY_DICT)
        if self.chance(0.05):  # few are
            return self.call("collections.defaultdict", self.name("builtins.list"))
        return self.call(ORDERED)

    def odd_mapping(self) -> Op:
        """Return a mapping by any class, opcode and arguments."""
        kind = self.random.choice((
            ORDERED, ORDERED, "collections.Counter", "builtins.dict", "collections.defaultdict",
            "collections.UserDict", "collections.ChainMap", "argparse.Namespace",
        ))  # fmt: skip
        if self.chance(0.1):  # one way among many
            return Op(
                pickle.MARK + self.text(self.random.choice(_NAMES)) + self.tensor() + pickle.DICT
            )
        chosen: list[Op] = []
        if self.chance(0.7):  # with arguments
            item = (self.text(self.random.choice(_NAMES)), self.tensor())
            chosen.append(
                self.pick(
                    lambda: self.mapping([item]),
                    lambda: self.mapping([item]),
                    lambda: self.listed([self.row(item)]),
                    lambda: self.row([self.row(item)]),
                    lambda: self.listed([self.listed(item)]),
                )
            )
        elif known := self.get("dict"):
            chosen.append(known)
        ending = self.random.choice((pickle.REDUCE, pickle.REDUCE, pickle.NEWOBJ, b""))
        if ending:
            return Op(self.name(kind) + self.row(chosen) + ending)
        return self.odd_call(kind, *chosen)

    def names(self) -> list[str]:
        """Return the names of a state dict, each once as a rule."""
        count = self.random.randint(1, 4)
        every = [prefix + name for prefix in _MODULES for name in _NAMES]
        found = self.random.sample(every, count)
        if self.odd("a name twice", 0.05):
            found.append(found[0])
        return found

    def state_dict(self) -> Op:
        """Return a mapping of names and tensors, in one go or in several."""
        if self.protocol < _BYTES and self.chance(0.05):  # few are so old
            return self.of_python2()
        made = bytearray(self.begun())
        takes_state = b"OrderedDict" in made[-40:] or self.odd("a state for a plain dict", 0.02)
        if self.chance(0.7):  # pickle remembers all, torch.save as well
            made += self.put("dict")
        made += self.items([(name, None) for name in self.names()])
        if takes_state and self.chance(0.3):  # those of modules do
            inner = self.mapping([(self.text("version"), self.number(1))])
            versions = self.mapping([(self.text(""), inner)])
            name = "_metadata"
            if self.odd("an odd attribute of a mapping", 0.2):
                name = self.random.choice(("items", "keys", "__class__", "default_factory", "x"))
            made += self.mapping([(self.text(name), versions)]) + pickle.BUILD
        if self.odd("a state dict that is changed", 0.03):
            return self.changed(Op(made), "a state dict")
        if self.odd("items behind the others", 0.05):
            made += self.items([(name, None) for name in self.names()])
        return Op(made)

    def of_python2(self) -> Op:
        """Return an `OrderedDict` of names and tensors, as Python 2 pickled it."""
        made = bytearray(pickle.EMPTY_LIST + pickle.MARK)
        for name in self.names():
            made += self.listed([self.key(name), self.tensor()])
        return self.call(ORDERED, Op(made + pickle.APPENDS))

    def items(self, named: list[tuple[str, Op | None]]) -> Op:
        """Items that are set on what is on the stack; tensors where there is no value."""
        made = bytearray()
        for name, value in named:
            made += self.key(name) + (self.tensor() if value is None else value)
            made += self.noise() + self.pending
            self.pending = Op()
            if self.odd("something late", 0.05):
                made += self.late()
        if self.odd("keys that are equal", 0.04):
            made += self.equal_keys()
        return Op(pickle.MARK + made + pickle.SETITEMS)

    def equal_keys(self) -> Op:
        """Two or three items whose keys Python takes for the same."""
        name = self.random.choice(_NAMES)
        keys = [Op(pickle.NEWTRUE), self.number(1), Op(pickle.BINFLOAT + struct.pack(">d", 1))]
        if self.chance(0.6):  # texts more often than numbers
            keys = [self.text(name), self.call("builtins.str", self.text(name)),
                    self.call("numpy.str_", self.text(name))]  # fmt: skip
        self.random.shuffle(keys)
        count = self.random.randint(2, 3)
        return Op(b"".join(part for key in keys[:count] for part in (key, self.tensor())))

    def late(self) -> Op:
        """Return an item whose value changes something that is there already."""
        key = self.text(self.random.choice(("late", "late.weight")))
        which = self.random.choice(("list", "dict", "tensor", "storage"))
        known = self.get(which)
        if known is None:
            return Op(key + self.value())
        if which == "list":
            return Op(key + known + self.number(1) + pickle.APPEND)
        if which == "dict":
            name = self.text(self.random.choice(_NAMES))
            return Op(key + known + name + self.tensor() + pickle.SETITEM)
        return Op(key + self.changed(known, f"a {which}"))

    def noise(self) -> Op:
        """Opcodes that leave the stack as it is."""
        if not self.odd("something that is thrown away", 0.02):
            return Op()
        return self.pick(
            lambda: Op(self.value() + pickle.POP),
            lambda: Op(pickle.DUP + pickle.POP),
            lambda: Op(pickle.MARK + self.value() + pickle.POP_MARK),
            lambda: Op(pickle.MARK + pickle.POP),
            lambda: Op((self.get("dict", "tensor") or b"N") + self.put("dict") + pickle.POP),
        )

    # -- what is at the top ---------------------------------------------------------------------

    def module(self, depth: int = 0) -> Op:
        """Return a whole module, without the attributes that only running it needs."""
        named = self.name(self.random.choice((
            "torch.nn.modules.linear.Linear", "torch.nn.modules.container.Sequential",
            "torch.nn.modules.linear.Identity",
        )))  # fmt: skip
        made = Op(named + self.row([]) + pickle.NEWOBJ)
        if self.odd("a module made oddly", 0.1):
            made = self.odd_call("torch.nn.modules.container.ModuleDict")
        state = bytearray(pickle.EMPTY_DICT)
        fields: list[tuple[str, Op]] = [("training", self.boolean(value=True))]
        fields += [
            ("_parameters", Op(self.call(ORDERED) + self.items([("weight", None)]))),
            ("_buffers", Op(self.call(ORDERED) + self.items([("mean", None)]))),
            ("_non_persistent_buffers_set", self.call("builtins.set", self.listed([]))),
            ("_modules", self.submodules(depth)),
        ]
        hooks = "_backward_pre_hooks _backward_hooks _forward_hooks _forward_pre_hooks"
        hooks += " _state_dict_hooks _state_dict_pre_hooks _load_state_dict_pre_hooks"
        fields += [(hook, self.call(ORDERED)) for hook in hooks.split()]
        if self.odd("an odd attribute of a module", 0.2):
            name = self.random.choice(
                ("_parameters", "_buffers", "state_dict", "__class__", "weight")
            )
            fields.append((name, self.state_dict()))
        state += pickle.MARK
        for name, value in fields:
            state += self.text(name) + value
        state += pickle.SETITEMS
        made = Op(made + state + pickle.BUILD)
        if self.odd("a module that is changed", 0.1):
            made = self.changed(made, "a module")
        return made

    def submodules(self, depth: int) -> Op:
        """Return a few modules by their names."""
        made = bytearray(self.call(ORDERED))
        for number in range(0 if depth > 1 else self.random.randint(1 - depth, 2 - depth)):
            made += self.key(str(number)) + self.module(depth + 1) + pickle.SETITEM
        return Op(made)

    def top(self) -> Op:
        """Make a state dict, or some in a mapping or list, with other things beside them."""
        if self.chance(0.5):  # most are
            return self.state_dict()
        if self.chance(0.15):
            return self.module()
        made = bytearray(self.begun())
        made += self.put("dict")
        beside: list[tuple[str, Op | None]] = []
        for name in self.random.sample(("model", "ema", "generator", "a.b"), 2):
            found = self.state_dict()
            if self.chance(0.2):  # lists of models
                found = self.listed([found]) if self.chance(0.5) else self.row([found])
            # the items have to be written one after the other, as they are carried out
            made += self.key(name) + found + pickle.SETITEM
        if self.chance(0.5):  # either
            beside = [("epoch", self.number(3)), ("args", self.value())]
            made += self.items(beside)
        if self.odd("a changed top", 0.05):
            return self.changed(Op(made), "the top")
        return Op(made)
