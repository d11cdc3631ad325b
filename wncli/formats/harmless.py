"""Which calls in a pickle only make values, and which would run something once it is loaded.

What is not known to be harmless counts as running: every function and class of the standard
library, torch and numpy but those here, and the functions of any other package. Objects of other
packages' classes are taken for what they are nearly always, configuration; nobody can tell.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

from wncli.formats.pickles.nodes import Call, Global, Node
from wncli.formats.torch_tensor import class_of
from wncli.formats.weights_only import accepts

#: The modules and names of the standard library that make values of their arguments.
_VALUES: dict[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "_codecs": "encode",
        "argparse": "Namespace",
        "array": "array _array_reconstructor",
        "builtins": "bool bytearray bytes complex dict float frozenset int list object range set"
        " slice str tuple",
        "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict"
        " deque",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Context Decimal",
        "fractions": "Fraction",
        "io": "BytesIO StringIO",
        "_io": "BytesIO StringIO",
        "ipaddress": "IPv4Address IPv4Network IPv6Address IPv6Network",
        "logging": "getLogger",
        "optparse": "Values",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "random": "Random",
        "re": "_compile RegexFlag",
        "string": "Template",
        "time": "struct_time",
        "types": "GenericAlias MappingProxyType SimpleNamespace",
        "uuid": "SafeUUID UUID",
        "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    }.items()
}
#: What numpy rebuilds arrays, scalars and random generators with; its `core` has two names.
_NUMPY = re.compile(
    r"numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|complex\d+|str_|bytes_|matrix"
    r"|_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|ma\.core\.(_mareconstruct|MaskedArray)"
    r"|random\._pickle\.__(randomstate|generator|bit_generator)_ctor)"
)
#: What torch rebuilds tensors with, and the packages whose classes hold models and optimizers.
_TORCH = re.compile(
    r"torch\.(_utils\._rebuild_\w+"
    r"|jit\._pickle\.(restore_type_tag|build_(int|tensor|double|bool)list)"
    r"|Generator|torch_version\.TorchVersion"
    r"|(nn|optim|ao|quantization|distributions|amp|cuda\.amp|utils\.data|distributed\._?tensor)"
    r"\.([\w.]+\.)?_*[A-Z]\w*)"
)
#: How packages call what they rebuild their own objects with.
_REBUILDER = re.compile(r"_+(pyx_)?(unpickle|rebuild|reconstruct)\w*")
_CLASS = re.compile(r"_*[A-Z]\w*")
#: Classes, wherever they are from, that start something as they are made.
_STARTING = frozenset({"Popen", "Process", "PackageImporter"})

#: What is dangerous to hand to anybody, even where it is not called on the spot.
_DANGEROUS = re.compile(
    r"(os|posix|nt|subprocess|_posixsubprocess|runpy|importlib|imp|pty|socket|_socket|shutil|ctypes"
    r"|_ctypes|code|codeop|pickle|_pickle|marshal|multiprocessing|webbrowser|pdb|bdb|timeit|profile"
    r"|cProfile|trace|sys|dill|cloudpickle|joblib)\..*"
    r"|builtins\.(eval|exec|execfile|compile|__import__|getattr|setattr|delattr|open|input"
    r"|breakpoint|globals|vars)"
    r"|torch\.(load|hub\..*|jit\.load|package\..*|serialization\.load|storage\._load_from_bytes"
    r"|utils\.cpp_extension\..*)"
    r"|numpy\.load"
)

#: What calls, or gives, what it is handed.
_JUDGED_BY_ARGUMENTS = frozenset(
    {
        "copyreg._reconstructor",
        "copyreg.__newobj__",
        "copyreg.__newobj_ex__",
        "torch._tensor._rebuild_from_type_v2",
        "functools.partial",
        "operator.getitem",
        "_operator.getitem",
        "builtins.type",
    }
)


def is_harmless(call: Call) -> bool:
    """Whether a plain `torch.load` would make a value of this call, and no more."""
    return _makes_value(call.function, call.args, is_new=call.opcode.startswith("NEWOBJ"))


def is_judged_by_arguments(function: Node) -> bool:
    """Whether one call of a function can be harmless and another not."""
    callee = class_of(function)
    return callee is None or ".".join(_today(callee)) in _JUDGED_BY_ARGUMENTS


def is_dangerous(node: Global) -> bool:
    """Whether it is a function that can be made to run anything, so that no file should name it."""
    return _DANGEROUS.fullmatch(".".join(_today(node))) is not None


def _makes_value(function: Node, args: Node, *, is_new: bool) -> bool:
    callee = class_of(function)
    if callee is None:  # what another call gives
        return False
    if is_judged_by_arguments(function):
        return _hands_on_a_value(".".join(_today(callee)), args if isinstance(args, tuple) else ())
    return _names_a_value(callee, is_new=is_new)


def _hands_on_a_value(name: str, args: tuple[Node, ...]) -> bool:
    """Whether what calls, or gives, its arguments makes no more than a value of these."""
    first = args[0] if args else None
    if name.startswith("copyreg."):
        return _makes_value(first, args[1:], is_new=True)
    if name == "torch._tensor._rebuild_from_type_v2":
        return _makes_value(first, args[2] if len(args) > 2 else (), is_new=False)  # noqa: PLR2004
    if name == "functools.partial":
        return class_of(first) is not None
    if name == "builtins.type":  # type(None)
        return len(args) == 1
    return isinstance(first, Global) and first.module == "typing"  # getitem: Dict[str, int]


def _names_a_value(callee: Global, *, is_new: bool) -> bool:
    """Whether to call what has this name makes a value, whatever it is called with."""
    module, name = _today(callee)
    full = f"{module}.{name}"
    package = module.partition(".")[0]
    if package in {"torch", "numpy"}:
        known = _TORCH if package == "torch" else _NUMPY
        return accepts(full) or known.fullmatch(full) is not None
    if package in sys.stdlib_module_names:
        return name in _VALUES.get(module, ())
    last = name.rpartition(".")[2]
    starts = last in _STARTING or is_dangerous(callee)
    makes = is_new or _CLASS.fullmatch(last) or _REBUILDER.fullmatch(last)
    return bool(makes) and not starts


def _today(node: Global) -> tuple[str, str]:
    """Module and name as Python 3 has them: protocols 0 to 2 spell them as Python 2 did."""
    renamed = NAME_MAPPING.get((node.module, node.name))
    if renamed:
        return renamed
    return IMPORT_MAPPING.get(node.module, node.module), node.name
