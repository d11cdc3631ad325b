"""Which calls in a pickle only make values, and which would run something once it is loaded.

What is not known to be harmless counts as running: every function and class of the standard
library, torch and numpy but those here, and the functions of any other package. Objects of other
packages' classes are taken for what they are nearly always, configuration; nobody can tell.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

from wncli.formats.pickles.nodes import Built, Call, Global, Node, entries_of
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
# Patterns, which `re` compiles as they are needed: most checkpoints need one or two of them.

#: What numpy rebuilds arrays, scalars and random generators with; its `core` has two names.
_NUMPY = (
    r"numpy\.(dtype|ndarray|bool_?|u?int\d+|float\d+|complex\d+|str_|bytes_|matrix"
    r"|_?core\.(multiarray\.(_reconstruct|scalar)|numeric\._frombuffer)"
    r"|ma\.core\.(_mareconstruct|MaskedArray)"
    r"|random\._pickle\.__(randomstate|generator|bit_generator)_ctor)"
)
#: What torch rebuilds tensors with; and the packages whose classes hold models and optimizers.
_TORCH = (
    r"torch\.(_utils\._rebuild_\w+"
    r"|jit\._pickle\.(restore_type_tag|build_(int|tensor|double|bool)list)"
    r"|Generator|torch_version\.TorchVersion)"
)
_TORCH_CLASS = (
    r"torch\.(nn|optim|ao|quantization|distributions|amp|cuda\.amp|utils\.data|distributed\._?tensor)"
    r"\.([\w.]+\.)?_*[A-Z]\w*"
)
#: How packages call what they rebuild their own objects with.
_REBUILDER = r"_+(pyx_)?(unpickle|rebuild|reconstruct)\w*"
_CLASS = r"_*[A-Z]\w*"
#: Classes, wherever they are from, that start something as they are made.
_STARTING = frozenset({"Popen", "Process", "PackageImporter"})

#: Modules that Python 2 had, or Python has no more.
_FORMER = frozenset(
    {
        "asynchat", "asyncore", "commands", "compiler", "distutils", "dl", "imp", "pipes",
        "popen2", "posixfile", "rexec", "smtpd",
    }
)  # fmt: skip
#: Modules whose names can be handed to anybody: what they do with what they get stays in memory.
_TAME = frozenset(
    {
        "_operator", "abc", "cmath", "collections", "collections.abc", "datetime", "decimal",
        "enum", "fractions", "itertools", "math", "numbers", "operator", "random", "statistics",
        "string", "typing",
    }
)  # fmt: skip
#: What is dangerous to hand to anybody, even where it is not called on the spot.
_DANGEROUS = (
    r"(pip|setuptools|pkg_resources|dill|cloudpickle|joblib)\..*"
    r"|builtins\.(eval|exec|execfile|compile|__import__|getattr|setattr|delattr|open|input"
    r"|breakpoint|globals|vars)"
    r"|torch\.(load|hub\..*|jit\.load|package\..*|serialization\.load|storage\._load_from_bytes"
    r"|utils\.cpp_extension\..*)"
    r"|numpy\.load"
)
#: Attributes that unpickling, or what is called by it, looks up on an object and calls.
_CALLED_ATTRIBUTE = r"__\w+__|append|extend|add|keys|detach"

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


#: What gives an object that others have as well, so that to change it changes theirs.
_SHARED = frozenset({"builtins.type", "logging.getLogger"})


def is_harmless(call: Call) -> bool:
    """Whether a plain `torch.load` would make a value of this call, and no more."""
    if call.effects and _full(call.function) in _SHARED:
        return False
    return _makes_value(call.function, call.args, is_new=call.opcode.startswith("NEWOBJ"))


def handed_to_call(call: Call) -> list[Node]:
    """The functions that are set as attributes which unpickling goes on to call."""
    states = [effect.state for effect in call.effects if isinstance(effect, Built)]
    parts = [part for state in states for part in (state if isinstance(state, tuple) else [state])]
    return [
        value
        for part in parts
        for key, value in entries_of(part) or []
        if isinstance(key, str)
        and re.fullmatch(_CALLED_ATTRIBUTE, key)
        and (class_of(value) or isinstance(value, Call))
    ]


def is_judged_by_arguments(function: Node) -> bool:
    """Whether one call of a function can be harmless and another not."""
    name = _full(function)
    return not name or name in _JUDGED_BY_ARGUMENTS


def is_dangerous(node: Global) -> bool:
    """Whether it is a function that can be made to run anything, so that no file should name it."""
    module, name = _today(node)
    if re.fullmatch(_DANGEROUS, f"{module}.{name}"):
        return True
    if f"{module}.{name}" in _JUDGED_BY_ARGUMENTS or not _is_standard(module):
        return False
    return module not in _TAME | {"builtins"} and name not in _VALUES.get(module, ())


def _is_standard(module: str) -> bool:
    package = module.partition(".")[0]
    return package in sys.stdlib_module_names or package in _FORMER


def _makes_value(function: Node, args: Node, *, is_new: bool) -> bool:
    callee = class_of(function)
    if callee is None:  # what another call gives
        return False
    if is_judged_by_arguments(function):
        return _hands_on_a_value(_full(callee), args if isinstance(args, tuple) else ())
    return _names_a_value(callee, is_new=is_new)


def _hands_on_a_value(name: str, args: tuple[Node, ...]) -> bool:
    """Whether what calls, or gives, its arguments makes no more than a value of these."""
    first = args[0] if args else None
    if name.startswith("copyreg."):
        base = class_of(args[1]) if name == "copyreg._reconstructor" and len(args) > 1 else None
        known = base is None or _names_a_value(base, is_new=True)
        return known and _makes_value(first, args[1:], is_new=True)
    if name == "torch._tensor._rebuild_from_type_v2":
        return _makes_value(first, args[2] if len(args) > 2 else (), is_new=False)  # noqa: PLR2004
    if name == "functools.partial":
        function = class_of(first)
        return function is not None and not is_dangerous(function)
    if name == "builtins.type":
        return args == (None,)
    return isinstance(first, Global) and first.module == "typing"  # getitem: Dict[str, int]


def _names_a_value(callee: Global, *, is_new: bool) -> bool:
    """Whether to call what has this name makes a value, whatever it is called with."""
    module, name = _today(callee)
    full = f"{module}.{name}"
    package = module.partition(".")[0]
    if _is_standard(module):
        return name in _VALUES.get(module, ())
    *outer, last = name.split(".")
    is_in_classes = all(re.fullmatch(_CLASS, part) for part in outer)
    if not is_in_classes or last in _STARTING or is_dangerous(callee):
        return False
    if package == "torch":
        known = re.fullmatch(_TORCH, full) or (is_new and re.fullmatch(_TORCH_CLASS, full))
        return accepts(full) or bool(known)
    if package == "numpy":
        return re.fullmatch(_NUMPY, full) is not None
    return is_new or bool(re.fullmatch(_CLASS, last) or re.fullmatch(_REBUILDER, last))


def _full(function: Node) -> str:
    callee = class_of(function)
    return ".".join(_today(callee)) if callee else ""


def _today(node: Global) -> tuple[str, str]:
    """Module and name as Python 3 has them: protocols 0 to 2 spell them as Python 2 did."""
    renamed = NAME_MAPPING.get((node.module, node.name))
    if renamed:
        return renamed
    return IMPORT_MAPPING.get(node.module, node.module), node.name
