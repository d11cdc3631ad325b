"""Pickles that run something in a roundabout way: by what calls give, or what looks harmless."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass

from tests.corpus.hostile_names import code, shell
from tests.support.opcodes import RECALLED, Op, build, call, memoized, name, new, put


@dataclass(frozen=True)
class Dangerous:
    """A call. `opcodes` makes it for a marker's path and leaves what it gives on the stack.

    `says` stands in what is listed for it. `is_live`: torch.load makes the marker; `needs_torch`:
    Python's pickle by itself does not get as far.
    """

    opcodes: Callable[[str], bytes]
    says: str
    is_live: bool = True
    protocol: int = 2
    needs_torch: bool = False


def imported(module: str) -> Op:
    return call("builtins.__import__", module)


def attribute_of(of: Op, attribute: str) -> Op:
    return call("builtins.getattr", of, attribute)


def object_with(attribute: str, function: str) -> Op:
    return build(new("argparse.Namespace"), {attribute: name(function)})


#: Calls of what calls give, and of what only looks harmless.
CHAINS: dict[str, Dangerous] = {
    "getattr of an import": Dangerous(
        lambda m: call(attribute_of(imported("os"), "system"), shell(m)),
        "builtins.getattr(builtins.__import__('os'), 'system')('touch ",
    ),
    "attrgetter of an import": Dangerous(
        lambda m: call(call(call("operator.attrgetter", "system"), imported("os")), shell(m)),
        "operator.attrgetter('system')(builtins.__import__('os'))('touch ",
    ),
    "methodcaller on an import": Dangerous(
        lambda m: call(call("operator.methodcaller", "system", shell(m)), imported("os")),
        "operator.methodcaller('system', 'touch ",
    ),
    "partial, called": Dangerous(
        lambda m: call(call("functools.partial", name("os.system"), shell(m))),
        "functools.partial(os.system, 'touch ",
    ),
    "partial of a partial": Dangerous(
        lambda m: call(
            call("functools.partial", call("functools.partial", name("io.open"), m)), "w"
        ),
        "io.open",
    ),
    "partial, not called": Dangerous(
        lambda m: call("functools.partial", name("os.system"), shell(m)), "os.system", is_live=False
    ),
    "partial with another state": Dangerous(
        lambda m: call(
            build(
                call("functools.partial", name("builtins.int")),
                (name("os.system"), (shell(m),), {}, None),
            )
        ),
        "os.system",
    ),
    "list of a map": Dangerous(
        lambda m: call("builtins.list", call("builtins.map", name("os.system"), [shell(m)])),
        "builtins.map(os.system, ",
    ),
    "deque of a filter": Dangerous(
        lambda m: call("collections.deque", call("builtins.filter", name("os.system"), [shell(m)])),
        "builtins.filter(os.system, ",
    ),
    "bytes of a starmap": Dangerous(
        lambda m: call("builtins.bytes", call("itertools.starmap", name("io.open"), [(m, "w")])),
        "itertools.starmap(io.open, ",
    ),
    "function of code": Dangerous(
        lambda m: call(
            call("types.FunctionType", call("builtins.compile", code(m), "x", "exec"), {})
        ),
        "types.FunctionType(builtins.compile(",
    ),
    "interpreter": Dangerous(
        lambda m: call(attribute_of(call("code.InteractiveInterpreter"), "runsource"), code(m)),
        "builtins.getattr(code.InteractiveInterpreter(), 'runsource')(",
    ),
    "item of a module's names": Dangerous(
        lambda m: call(
            call("operator.getitem", attribute_of(imported("os"), "__dict__"), "system"), shell(m)
        ),
        "operator.getitem(builtins.getattr(builtins.__import__('os'), '__dict__'), 'system')(",
    ),
    "class made on the spot": Dangerous(
        lambda m: call(call("builtins.type", "X", (), {"__call__": name("os.system")}), shell(m)),
        "os.system",
        is_live=False,
    ),
    "class rebuilt": Dangerous(
        lambda _: call(
            "copyreg._reconstructor", name("subprocess.Popen"), name("builtins.object"), None
        ),
        "subprocess.Popen",
        is_live=False,
    ),
    "class rebuilt as Python 2 did": Dangerous(
        lambda _: call(
            "copy_reg._reconstructor",
            name("code.InteractiveConsole"),
            name("__builtin__.object"),
            None,
        ),
        "code.InteractiveConsole",
        is_live=False,
    ),
    "class made anew": Dangerous(
        lambda m: call(
            "builtins.list", call("copyreg.__newobj__", name("builtins.map"), name("os.mkdir"), [m])
        ),
        "builtins.map",
    ),
    "function in a defaultdict": Dangerous(
        lambda _: call("collections.defaultdict", name("os.getpid")), "os.getpid", is_live=False
    ),
    "tensor rebuilt by a call": Dangerous(
        lambda m: call(
            "torch._tensor._rebuild_from_type_v2",
            name("os.system"),
            name("builtins.int"),
            (shell(m),),
            {},
        ),
        "os.system",
        needs_torch=True,
    ),
    "tensor rebuilt by a call, as older versions did": Dangerous(
        lambda m: call(
            "torch._tensor._rebuild_from_type",
            name("os.system"),
            name("builtins.int"),
            (shell(m),),
            {},
        ),
        "torch._tensor._rebuild_from_type(",
        needs_torch=True,
    ),
    "name imported by torch": Dangerous(
        lambda m: call(call("torch._utils._import_dotted_name", "os.system"), shell(m)),
        "torch._utils._import_dotted_name('os.system')('touch ",
        needs_torch=True,
    ),
    "random state made by a call": Dangerous(
        lambda m: call("numpy.random._pickle.__randomstate_ctor", m, name("logging.FileHandler")),
        "logging.FileHandler",
    ),
    "partial of what opens a file": Dangerous(
        lambda m: call("functools.partial", name("logging.FileHandler"), m),
        "functools.partial(logging.FileHandler, '",
        is_live=False,
    ),
    "keys of what becomes a dict": Dangerous(
        lambda _: call("builtins.dict", object_with("keys", "wn_stranger.run")),
        "wn_stranger.run",
    ),
    "parameter of what is no tensor": Dangerous(
        lambda _: call(
            "torch._utils._rebuild_parameter",
            object_with("detach", "wn_stranger.run"),
            1,
            None,
        ),
        "wn_stranger.run",
        needs_torch=True,
    ),
    "attribute for a class": Dangerous(
        lambda m: put(
            [
                memoized(new("wn_stranger.Config")),
                build(
                    call("builtins.type", RECALLED),
                    (None, {"__iter__": call("functools.partial", name("logging.FileHandler"), m)}),
                ),
                call("builtins.list", RECALLED),
            ]
        ),
        "logging.FileHandler",
    ),
    "class rebuilt on another": Dangerous(
        lambda m: call(
            "copyreg._reconstructor", name("wn_stranger.Handler"), name("logging.FileHandler"), m
        ),
        "logging.FileHandler",
    ),
    "pipe that maps": Dangerous(
        lambda m: call(
            "builtins.list",
            call(
                "torch.utils.data.datapipes.iter.callable.MapperIterDataPipe",
                [m],
                name("logging.FileHandler"),
            ),
        ),
        "logging.FileHandler",
        needs_torch=True,
    ),
    "state that is a pickle": Dangerous(
        lambda m: build(
            new("torch.utils.data.datapipes.datapipe._IterDataPipeSerializationWrapper"),
            (call("os.system", shell(m)) + pickle.STOP, False),
        ),
        "torch.utils.data.datapipes.datapipe._IterDataPipeSerializationWrapper",
        needs_torch=True,
    ),
    "random generator made by a function": Dangerous(
        lambda m: call("numpy.random._pickle.__generator_ctor", m, name("wn_stranger.start")),
        "numpy.random._pickle.__generator_ctor('",
    ),
    "iteration over an object of another package": Dangerous(
        lambda _: call("builtins.list", new("wn_stranger.Pipe")),
        "builtins.list(wn_stranger.Pipe())",
    ),
    "index of the names of an LSTM's weights": Dangerous(
        lambda _: build(
            new("torch.nn.modules.rnn.LSTM"),
            {
                "_flat_weights_names": build(
                    new("argparse.Namespace"),
                    {"proj_size": 0, "index": name("wn_stranger.run")},
                ),
                "_all_weights": [["w"]],
                "_parameters": {},
                "_buffers": {},
                "_modules": {},
            },
        ),
        "torch.nn.modules.rnn.LSTM",
        needs_torch=True,
    ),
    "method of a module that its class calls": Dangerous(
        lambda _: build(
            new("torch.nn.modules.linear.Linear"),
            {
                "register_parameter": name("wn_stranger.run"),
                "_parameters": {"_is_full_backward_hook": None},
            },
        ),
        "torch.nn.modules.linear.Linear",
        needs_torch=True,
    ),
    "method of an optimizer's group": Dangerous(
        lambda _: build(
            new("torch.optim.sgd.SGD"),
            {
                "defaults": {},
                "param_groups": [
                    build(new("argparse.Namespace"), {"setdefault": name("wn_stranger.run")})
                ],
            },
        ),
        "torch.optim.sgd.SGD",
        needs_torch=True,
    ),
    "factory of an optimizer's group": Dangerous(
        lambda _: build(
            new("torch.optim.adam.Adam"),
            {
                "defaults": {},
                "param_groups": [call("collections.defaultdict", name("wn_stranger.run"))],
            },
        ),
        "collections.defaultdict(wn_stranger.run)",
        needs_torch=True,
    ),
    "time zone of a key": Dangerous(
        lambda _: put(
            {
                call(
                    "datetime.datetime",
                    b"\x07\xe8\x01\x02\x03\x04\x05\x00\x00\x06",
                    build(new("wn_stranger.Zone"), {"utcoffset": name("wn_stranger.run")}),
                ): 1,
            }
        ),
        "datetime.datetime(",
    ),
    "item of an attribute that is to be a key": Dangerous(
        lambda _: put(
            {
                build(
                    new("torch.distributed.tensor._dtensor_spec.DTensorSpec"),
                    (None, {"_hash": None, "_hash_impl": name("wn_stranger.run")}),
                ): 1,
            }
        ),
        "torch.distributed.tensor._dtensor_spec.DTensorSpec",
        needs_torch=True,
    ),
}
