"""Reads TorchScript archives, programs with their weights, as the state dict of the module.

Which tensors of an object are its parameters and buffers stands in the archive's code, in the
declaration of its class; the code is read as text. Sources: PyTorch
`torch/csrc/jit/serialization/python_print.cpp` (`printClass`), `import_source.cpp`
(`importClass`), `torch/csrc/jit/api/module.h` (`ParameterPolicy`, `BufferPolicy`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.tensors import Storage
from wncli.errors import FormatError
from wncli.formats.pickles.nodes import Built, Call, Node, PersistentId, entries_of
from wncli.formats.pickles.reader import read_pickle
from wncli.formats.torch.archive import TorchArchive
from wncli.formats.torch.calls import find_calls
from wncli.formats.torch.modules import ITEM, Module, ModuleReader, NameBudget, budget_for
from wncli.formats.torch.tensors import StorageId, called_name, read_storage_id

#: More than the code of any model takes, in bytes.
_MOST_CODE = 4 << 20

_CLASS = re.compile(r"class (\w+)(?:\((\w*)\))?:")
_LIST = re.compile(r"  __(parameters|buffers)__ = \[")
_ATTRIBUTE = re.compile(r'  (?:__annotations__\["([^"]*)"\]|(\w+)) ?[:=] (.+)')
#: What PyTorch puts into the names of classes that would otherwise be called alike.
_MANGLE = re.compile(r"___torch_mangle_\d+\.")
_QUOTED = re.compile(r'"([^"]*)"')


class Declaration(NamedTuple):
    """A class as the code declares it: its attributes in order, with their types.

    `parameters` and `buffers` are those of its tensors that are in the state dict.
    """

    is_module: bool
    attributes: Mapping[str, str]
    parameters: frozenset[str]
    buffers: frozenset[str]


def read_torchscript(archive: TorchArchive) -> Checkpoint:
    """Open a TorchScript archive; nothing of its program is compiled or run.

    Raises:
        FormatError: it is damaged, or a frozen module: one without parameters.
    """
    source = archive.source
    if not archive.has("data.pkl"):
        raise FormatError(
            source.name, "this TorchScript archive has no module", expected="a member data.pkl"
        )
    archive.refuse_big_endian()
    pickle = archive.read("data.pkl")
    pickled = read_pickle(pickle, f"{source.name}: data.pkl")
    root = pickled.root
    references: dict[PersistentId, tuple[StorageId, Storage]] = {}
    for node in pickled.persistent_ids:
        identity = read_storage_id(node, source.name)
        references[node] = (identity, archive.locate(identity))
    budget = budget_for(source.name, len(pickle))
    reader = ModuleReader(_Code(archive, budget).read_module, references, budget)
    if reader.module(root) is None:
        raise FormatError(
            source.name,
            "the content of this TorchScript archive is no module",
            expected="an object of a class that its code declares as a Module",
        )
    state_dict = reader.state_dict(
        root, f"{_MANGLE.sub('', called_name(root))}, a TorchScript module"
    )
    if not state_dict.tensors:
        raise _without_parameters(archive)
    pickles = [pickled]
    if archive.has("constants.pkl"):
        constants = archive.read("constants.pkl")
        pickles.append(read_pickle(constants, f"{source.name}: constants.pkl"))
    calls = find_calls(pickles, None)
    return Checkpoint(
        source.name,
        "TorchScript",
        source.nbytes,
        (state_dict,),
        would_run=calls,
        notes=archive.notes(),
    )


def _without_parameters(archive: TorchArchive) -> FormatError:
    where = archive.source.name
    if any(name.startswith("constants/") for name in archive.members):
        return FormatError(
            where,
            "this TorchScript module is frozen: its weights are constants of its program",
            expected="a module with parameters",
            hint="save the module itself, not what torch.jit.freeze or optimize_for_inference made",
        )
    return FormatError(where, "this TorchScript module has no parameters and no buffers")


class _Code:
    """The code of an archive: what the classes in it declare."""

    def __init__(self, archive: TorchArchive, budget: NameBudget) -> None:
        self.archive = archive
        self.budget = budget
        self.files: dict[str, dict[str, Declaration]] = {}
        self.left = _MOST_CODE

    def read_module(self, node: Node) -> Module | None:
        """Give what an object keeps that is in its state dict, or None where that cannot be known.

        Where the code does not tell parameters and buffers from attributes, every tensor is taken.
        """
        if not isinstance(node, Call) or not self.is_module(node):
            return None
        entries = next((entries_of(e.state) for e in node.effects if isinstance(e, Built)), None)
        if entries is None:  # what a __getstate__ of its own gave
            return None
        self.budget.spend(ITEM * len(entries))
        state = {key: value for key, value in entries if isinstance(key, str)}
        declared = self.declaration(node) or _undeclared(state)
        self.budget.spend(ITEM * len(declared.attributes))
        present = [(name, state[name]) for name in declared.attributes if _is_call(state.get(name))]
        parameters = [part for part in present if part[0] in declared.parameters]
        buffers = [part for part in present if part[0] in declared.buffers]
        modules = [part for part in present if self.is_module(part[1])]
        return Module((*parameters, *buffers), tuple(modules))

    def is_module(self, node: Call) -> bool:
        """Whether a call makes an object of one of the program's modules."""
        name = called_name(node)
        if not name.startswith("__torch__.") or name.startswith("__torch__.torch.classes."):
            return False
        declaration = self.declaration(node)
        return declaration is None or declaration.is_module

    def declaration(self, node: Call) -> Declaration | None:
        """Return what the code says about the class of an object."""
        module, _, name = called_name(node).rpartition(".")
        if module not in self.files:
            self.files[module] = _declarations(self.text(module))
        return self.files[module].get(name)

    def text(self, module: str) -> str:
        """Return the code of a module of the program; empty where there is none."""
        path = f"code/{module.replace('.', '/')}.py"
        if not self.archive.has(path):
            return ""
        self.left -= self.archive.members[path].nbytes
        if self.left < 0:
            raise FormatError(
                self.archive.source.name,
                "the code of this TorchScript archive is too long",
                expected=f"no more than {_MOST_CODE:,} bytes",
            )
        return self.archive.unpack(path).decode("utf-8", "replace")


def _declarations(text: str) -> dict[str, Declaration]:
    """Return the classes that a file of code declares, by their names."""
    found: dict[str, Declaration] = {}
    name = base = ""
    lines: list[str] = []
    for line in (*text.split("\n"), "class :"):  # which ends the last one
        if line.startswith("  ") and line[2:3] != " ":
            lines.append(line)
        elif line[:1].strip():
            if name:
                found.setdefault(name, _declaration(lines, is_module=base == "Module"))
            start = _CLASS.match(line)
            name, base = start.groups("") if start else ("", "")
            lines = []
    return found


def _declaration(lines: list[str], *, is_module: bool) -> Declaration:
    attributes: dict[str, str] = {}
    listed: dict[str, frozenset[str]] = {}
    for line in lines:
        if start := _LIST.match(line):
            listed[start[1]] = frozenset(_QUOTED.findall(line))
        elif attribute := _ATTRIBUTE.match(line):
            quoted, plain, kind = attribute.groups()
            attributes[quoted or plain] = kind
    tensors = frozenset(name for name, kind in attributes.items() if kind == "Tensor")
    # Before PyTorch 1.6 the code listed no buffers: they were the tensors that are no parameters.
    parameters = listed.get("parameters", frozenset() if "buffers" in listed else tensors)
    buffers = (listed.get("buffers", tensors) & tensors) - parameters
    return Declaration(is_module, attributes, parameters, buffers)


def _undeclared(state: Mapping[str, Node]) -> Declaration:
    """Return what takes the place of a declaration where the code has none: every tensor counts."""
    tensors = frozenset(name for name, value in state.items() if _is_rebuilt(value))
    attributes = dict.fromkeys(state, "")
    return Declaration(
        is_module=True, attributes=attributes, parameters=tensors, buffers=frozenset()
    )


def _is_call(node: Node) -> bool:
    return isinstance(node, Call)


def _is_rebuilt(node: Node) -> bool:
    return isinstance(node, Call) and called_name(node).startswith("torch._utils._rebuild_")
