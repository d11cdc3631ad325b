"""Pickles that run something as they are loaded, by every opcode that can; and broken ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable

from tests.corpus.hostile_chains import CHAINS, Dangerous, attribute_of, imported, object_with
from tests.corpus.hostile_names import LIVE, MENTIONED, argv, shell
from tests.support.opcodes import RECALLED, Op, build, call, memoized, name, new, path_in, put, text

#: The same few calls by every opcode that makes one.
OPCODES: dict[str, Dangerous] = {
    "INST": Dangerous(
        lambda m: pickle.MARK + text(shell(m)) + pickle.INST + b"os\nsystem\n", "os.system('touch "
    ),
    "INST without arguments": Dangerous(
        lambda _: pickle.MARK + pickle.INST + b"wn_stranger\nrun\n", "wn_stranger.run("
    ),
    "OBJ": Dangerous(
        lambda m: pickle.MARK + name("os.system") + text(shell(m)) + pickle.OBJ, "os.system('touch "
    ),
    "OBJ without arguments": Dangerous(
        lambda _: pickle.MARK + name("wn_stranger.run") + pickle.OBJ, "wn_stranger.run("
    ),
    "NEWOBJ": Dangerous(
        lambda m: call("builtins.list", new("builtins.map", name("os.mkdir"), [m])),
        "builtins.map",
    ),
    "NEWOBJ_EX": Dangerous(
        lambda m: call(
            "builtins.list",
            Op(name("builtins.map") + put((name("os.mkdir"), [m])) + put({}) + pickle.NEWOBJ_EX),
        ),
        "builtins.map",
    ),
    "BUILD with a state to set": Dangerous(
        lambda m: build(object_with("__setstate__", "os.system"), shell(m)), "os.system"
    ),
    "BUILD with a state to set, of an object of no known class": Dangerous(
        lambda m: build(new("wn_stranger.Config"), {"__setstate__": name("os.mkdir")}, m),
        "os.mkdir",
    ),
    "BUILD of what a class makes of a text": Dangerous(
        lambda m: build(object_with("__setstate__", "logging.FileHandler"), m),
        "logging.FileHandler",
    ),
    "BUILD with a function of no known package": Dangerous(
        lambda m: build(object_with("__setstate__", "wn_stranger.start"), m), "wn_stranger.start"
    ),
    "APPEND": Dangerous(
        lambda m: object_with("append", "os.mkdir") + text(m) + pickle.APPEND, "os.mkdir"
    ),
    "APPENDS": Dangerous(
        lambda m: object_with("append", "os.mkdir") + pickle.MARK + text(m) + pickle.APPENDS,
        "os.mkdir",
    ),
    "APPENDS with extend": Dangerous(
        lambda m: (
            build(
                new("argparse.Namespace"),
                {
                    "append": name("builtins.int"),
                    "extend": call("functools.partial", name("builtins.map"), name("os.mkdir")),
                },
            )
            + pickle.MARK
            + text(m)
            + pickle.APPENDS
        ),
        "os.mkdir",
        is_live=False,
    ),
    "ADDITEMS": Dangerous(
        lambda m: object_with("add", "os.mkdir") + pickle.MARK + text(m) + pickle.ADDITEMS,
        "os.mkdir",
    ),
    "STACK_GLOBAL": Dangerous(
        lambda m: call(path_in("os", "system"), shell(m)), "os.system('touch ", protocol=4
    ),
    "STACK_GLOBAL from the memo": Dangerous(
        lambda m: call(
            Op(memoized(text("system")) + pickle.POP + text("os") + RECALLED + pickle.STACK_GLOBAL),
            shell(m),
        ),
        "os.system('touch ",
        protocol=4,
    ),
    "callable from the memo": Dangerous(
        lambda m: memoized(name("os.system")) + pickle.POP + call(RECALLED, shell(m)),
        "os.system('touch ",
    ),
    "DUP": Dangerous(
        lambda m: call("os.system", shell(m)) + pickle.DUP + pickle.TUPLE2, "os.system('touch "
    ),
    "module of a module": Dangerous(
        lambda m: call(path_in("uuid", "os.system"), shell(m)), "uuid.os.system('touch ", protocol=4
    ),
    "module of a module that makes values": Dangerous(
        lambda m: call(path_in("argparse", "_os.system"), shell(m)),
        "argparse._os.system('touch ",
        protocol=4,
    ),
    "module of a module of torch": Dangerous(
        lambda m: call(path_in("torch.serialization", "os.system"), shell(m)),
        "torch.serialization.os.system('touch ",
        protocol=4,
        needs_torch=True,
    ),
    "class by way of a module of torch": Dangerous(
        lambda m: call(path_in("torch.nn.modules.module", "torch.hub.zipfile.ZipFile"), m, "w"),
        "torch.nn.modules.module.torch.hub.zipfile.ZipFile('",
        protocol=4,
        needs_torch=True,
    ),
    "class by way of a module of no known package": Dangerous(
        lambda m: call(path_in("wn_stranger", "logging.FileHandler"), m),
        "wn_stranger.logging.FileHandler('",
        protocol=4,
    ),
    "class that starts a process, by way of another module": Dangerous(
        lambda m: call(path_in("wn_stranger", "subprocess.Popen"), argv(m)),
        "wn_stranger.subprocess.Popen(",
        protocol=4,
    ),
    "method of a harmless class": Dangerous(
        lambda m: call(path_in("pathlib", "Path.touch"), call("pathlib.Path", m)),
        "pathlib.Path.touch(",
        protocol=4,
    ),
    "method of a class of no known package": Dangerous(
        lambda m: call(path_in("wn_stranger", "Config.load"), m),
        "wn_stranger.Config.load('",
        protocol=4,
    ),
}

#: Names that no module has, and that must neither count as harmless nor disturb what is printed.
ODD: dict[str, Dangerous] = {
    "space behind the module": Dangerous(
        lambda m: call("os .system", shell(m)), "os .system('touch ", is_live=False
    ),
    "carriage return": Dangerous(
        lambda m: call("os\r.system", shell(m)), ".system('touch ", is_live=False
    ),
    "escape": Dangerous(
        lambda m: call("os.\x1b[2Ksystem", shell(m)), "[2Ksystem('touch ", is_live=False
    ),
    "wide letters": Dangerous(
        lambda m: call(path_in("\uff4f\uff53", "system"), shell(m)),
        ".system('touch ",
        is_live=False,
        protocol=4,
    ),
    "no module": Dangerous(lambda m: call(".system", shell(m)), "system('touch ", is_live=False),
    "no name": Dangerous(lambda m: call("os.", shell(m)), "os.('touch ", is_live=False),
    "escape in an argument": Dangerous(
        lambda _: call("os.system", "\x1b[2K\u202e\n"), "os.system('", is_live=False
    ),
    "endless argument": Dangerous(
        lambda _: call("os.system", "x" * 100_000), "os.system('xxxx", is_live=False
    ),
    "many arguments": Dangerous(
        lambda _: call("os.execlp", *["x"] * 10_000), "os.execlp('x", is_live=False
    ),
}


def _named(full: str) -> Dangerous:
    return Dangerous(lambda marker: call(full, *LIVE[full](marker)), f"{full}(")


def _mentioned(full: str) -> Dangerous:
    return Dangerous(lambda _: name(full), full, is_live=False)


NAMED = {full: _named(full) for full in LIVE}
REFERENCES = {f"{full}, not called": _mentioned(full) for full in MENTIONED}
CALLS: dict[str, Dangerous] = {**NAMED, **CHAINS, **OPCODES, **ODD, **REFERENCES}

#: Calls as Python would write them.
EXACT: dict[str, bytes] = {
    "os.system('id')": call("os.system", "id"),
    "posix.system('id')": call("posix.system", "id"),
    "builtins.eval('1+1')": call("builtins.eval", "1+1"),
    "__builtin__.eval('1+1')": call("__builtin__.eval", "1+1"),
    "builtins.getattr(builtins.__import__('os'), 'system')('id')": call(
        attribute_of(imported("os"), "system"), "id"
    ),
    "os.fork()": call("os.fork"),
    "os.kill(1, None)": call("os.kill", 1, None),
    "marshal.loads(b'x')": call("marshal.loads", b"x"),
    "os.system": name("os.system"),
}


def storage(*changed: object, of: int = 5) -> Op:
    """The persistent id of a storage with other members at its end, cut to a length."""
    plain = ("storage", name("torch.FloatStorage"), "0", "cpu", 2, None)
    members = (*plain[: of - len(changed)], *changed)
    return Op(put(members) + pickle.BINPERSID)


def _touch(marker: str) -> Op:
    return call("os.system", shell(marker))


#: What no file is read with, whoever asks.
MALFORMED: dict[str, Callable[[str], bytes]] = {
    "EXT1": lambda _: pickle.EXT1 + b"\1",
    "EXT2": lambda _: pickle.EXT2 + b"\1\0",
    "EXT4": lambda _: pickle.EXT4 + b"\1\0\0\0",
    "name from a call": lambda m: text("os") + _touch(m) + pickle.STACK_GLOBAL,
    "module from a call": lambda m: _touch(m) + text("system") + pickle.STACK_GLOBAL,
    "name of bytes": lambda _: text("os") + put(b"system") + pickle.STACK_GLOBAL,
    "name of two lines": lambda _: path_in("os", "system\nx"),
    "state for a function": lambda _: build(name("os.system"), {"__setstate__": 1}),
    "items for a function": lambda _: name("os.system") + put(1) + pickle.APPEND,
    "arguments in a list": lambda m: name("os.system") + put([shell(m)]) + pickle.REDUCE,
    "reference that is a number": lambda _: put(1) + pickle.BINPERSID,
    "reference that is a text": lambda _: put("0") + pickle.BINPERSID,
    "reference that is a line": lambda _: pickle.PERSID + b"0\n",
    "reference that is None": lambda _: put(None) + pickle.BINPERSID,
    "reference that is a call": lambda m: _touch(m) + pickle.BINPERSID,
    "reference that is a function": lambda _: name("os.system") + pickle.BINPERSID,
    "reference of no members": lambda _: storage(of=0),
    "reference of one member": lambda _: storage(of=1),
    "reference of four members": lambda _: storage(of=4),
    "reference of seven members": lambda _: storage(None, None, of=7),
    "reference to another kind": lambda _: put(("file", "/etc/passwd")) + pickle.BINPERSID,
    "storage of no class": lambda m: storage(_touch(m), "0", "cpu", 2),
    "storage of a function": lambda _: storage(name("os.system"), "0", "cpu", 2),
    "storage whose key is a call": lambda m: storage(_touch(m), "cpu", 2),
    "storage whose place is a call": lambda m: storage(_touch(m), 2),
    "storage whose size is a call": lambda m: storage(_touch(m)),
    "tensor whose shape is a call": lambda m: call(
        "torch._utils._rebuild_tensor_v2", storage(), 0, _touch(m), (1,), 0, None
    ),
    "tensor whose offset is a call": lambda m: call(
        "torch._utils._rebuild_tensor_v2", storage(), _touch(m), (1,), (1,), 0, None
    ),
}  # fmt: skip

#: The call that stands in every place.
REPEATED = CALLS["os.system"]
