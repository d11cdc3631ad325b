"""Checkpoints with a call in them: the places where one can stand in a file."""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.opcodes import name, new, put, text

#: Stands in an object for what is put in its place once it is pickled.
HERE = "put the call here"

Wrap = Callable[[bytes], bytes]


def state_dict(**more: object) -> dict[str, object]:
    return {
        "c.weight_g": torch.tensor([[2.0], [3.0]]),
        "c.weight_v": torch.arange(6.0).reshape(2, 3),
        "c.bias": torch.ones(2),
        "d.weight": torch.ones(3, 2),
        **more,
    }


class Rebuilt:
    """Is pickled as a tensor whose rebuilding takes other arguments, from one place on."""

    def __init__(self, tensor: Tensor, place: int, *arguments: object) -> None:
        self.tensor = tensor
        self.place = place
        self.arguments = arguments

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401
        function, arguments, *_ = self.tensor.__reduce_ex__(protocol)
        return function, (*arguments[: self.place], *self.arguments)


def with_metadata() -> dict[str, object]:
    """A state dict as `Module.state_dict()` makes it, whose metadata is in its pickled state."""
    found = collections.OrderedDict(state_dict())
    found._metadata = {"": {"version": 1, "extra": HERE}}  # type: ignore[attr-defined]
    return found


def module(**more: object) -> nn.Module:
    found = nn.Linear(3, 2)
    for attribute, value in more.items():
        setattr(found, attribute, value)
    return found


def nested(depth: int) -> object:
    found: object = HERE
    for _ in range(depth):
        found = [found]
    return found


def spliced(content: bytes, opcodes: bytes) -> bytes:
    """A pickle with these opcodes where it had the text."""
    here = text(HERE)
    assert content.count(here) == 1
    return content.replace(here, opcodes)


def zipped(content: object, opcodes: bytes, protocol: int = 2, wrap: Wrap | None = None) -> bytes:
    """What `torch.save` writes, with these opcodes in the place of the text."""
    file = io.BytesIO()
    torch.save(content, file)
    members = members_of(file.getvalue())
    pickled = members["archive/data.pkl"]
    pickled = wrap(pickled) if wrap else spliced(pickled, opcodes)
    members["archive/data.pkl"] = pickle.PROTO + bytes([protocol]) + pickled[2:]
    return put_together(members)


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def put_together(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return file.getvalue()


def legacy(content: object) -> tuple[list[bytes], bytes]:
    """The five pickles of a file of before PyTorch 1.6, and the storages behind them."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    parts = []
    for _ in range(5):
        start = file.tell()
        collections.deque(pickletools.genops(file), 0)
        parts.append(file.getvalue()[start : file.tell()])
    return parts, file.read()


def in_legacy(opcodes: bytes) -> bytes:
    parts, storages = legacy({"model": state_dict(), "extra": HERE})
    parts[3] = spliced(parts[3], opcodes)
    return b"".join(parts) + storages


def popped_in_legacy(number: int, opcodes: bytes) -> bytes:
    parts, storages = legacy({"model": state_dict(), "epoch": 3})
    parts[number] = parts[number][:-1] + opcodes + pickle.POP + pickle.STOP
    return b"".join(parts) + storages


def scripted(member: str, opcodes: bytes) -> bytes:
    """A TorchScript archive with something popped off the stack in one of its pickles."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(3, 2).eval()), file)
    members = members_of(file.getvalue())
    (full,) = (found for found in members if found.endswith(f"/{member}"))
    members[full] = members[full][:-1] + opcodes + pickle.POP + pickle.STOP
    return put_together(members)


#: How files of before PyTorch 1.6 refer to the class of a module, which may be any function.
AS_A_REFERENCE = put(("module", name("os.system"), None, None)) + pickle.BINPERSID


@dataclass(frozen=True)
class Place:
    """Where a call stands.

    `write` gives the file for the call's opcodes and their protocol. `where` is the entry that it
    belongs to, empty where it is part of none; `only` a state dict that is free of it.
    """

    write: Callable[[bytes, int], bytes]
    where: str
    only: str | None
    is_droppable: bool = True


def saved(content: Callable[[], object], where: str, only: str | None = "model") -> Place:
    return Place(lambda op, protocol: zipped(content(), op, protocol), where, only, where != "")


def changed(wrap: Callable[[bytes, bytes], bytes]) -> Place:
    """A call that the pickle makes without a use for what it gives."""

    def write(opcodes: bytes, protocol: int) -> bytes:
        content = {"model": state_dict(), "epoch": 3}
        return zipped(content, opcodes, protocol, lambda pickled: wrap(pickled, opcodes))

    return Place(write, "", "model", is_droppable=False)


def popped_at(content: object, only: str) -> Place:
    """A call whose result is popped off the stack, and another value put in its place."""
    return Place(
        lambda op, protocol: zipped(content, op + pickle.POP + put(1), protocol),
        "", only, is_droppable=False,
    )  # fmt: skip


PLACES: dict[str, Place] = {
    "entry": saved(lambda: {"model": state_dict(), "extra": HERE, "epoch": 3}, "extra"),
    "nested entry": saved(
        lambda: {"model": state_dict(), "config": {"deep": [1, {"hook": HERE}]}}, "config"
    ),
    "deep in lists": saved(lambda: {"model": state_dict(), "extra": nested(40)}, "extra"),
    "state of an optimizer": saved(
        lambda: {
            "model": state_dict(),
            "optimizer": {"state": {0: {"step": 1, "hook": HERE}}, "param_groups": []},
        },
        "optimizer",
    ),
    "group of an optimizer": saved(
        lambda: {
            "model": state_dict(),
            "optimizer": {"state": {}, "param_groups": [{"lr": HERE, "params": [0]}]},
        },
        "optimizer",
    ),
    "beside tensors": saved(
        lambda: {"model": state_dict(extra=HERE), "ema": state_dict()}, "model.extra", "ema"
    ),
    "in a list beside tensors": saved(
        lambda: {"model": state_dict(extra=[1, HERE]), "ema": state_dict()}, "model.extra", "ema"
    ),
    "in a tuple beside tensors": saved(
        lambda: {"model": state_dict(extra=(1, (HERE,))), "ema": state_dict()}, "model.extra", "ema"
    ),
    "in a set": saved(lambda: {"model": state_dict(), "extra": {HERE}}, "extra"),
    "at the top beside tensors": saved(lambda: state_dict(extra=HERE), "extra", None),
    "key in an entry": saved(lambda: {"model": state_dict(), "extra": {HERE: 1}}, "extra"),
    "part of a key in an entry": saved(
        lambda: {"model": state_dict(), "extra": {(1, (HERE,)): 1}}, "extra"
    ),
    "key at the top": saved(lambda: {"model": state_dict(), HERE: 1}, "os.system"),
    "key beside tensors": saved(
        lambda: {"model": state_dict() | {HERE: 1}, "ema": state_dict()}, "model", "ema"
    ),
    "below a number": saved(lambda: {"model": state_dict(), 7: HERE}, "7"),
    "below a name with dots": saved(lambda: {"model": state_dict(), "a.b": {"c": HERE}}, "a.b"),
    "below an odd name": saved(lambda: {"model": state_dict(), "é '\t": HERE}, "é '\t"),
    "below an empty name": saved(lambda: {"model": state_dict(), "": HERE}, "''"),
    "given twice under one name": Place(
        lambda op, protocol: zipped(
            {"model": state_dict(), "extra": HERE}, op + text("extra") + put(1), protocol
        ),
        "extra", "model",
    ),
    "metadata of a state dict": saved(
        lambda: {"model": with_metadata(), "ema": state_dict()}, "model", "ema"
    ),
    "hooks of a tensor": saved(
        lambda: {"model": state_dict(**{"c.bias": Rebuilt(torch.ones(2), 5, HERE)})},
        "model.c.bias", None,
    ),
    "metadata of a tensor": saved(
        lambda: {
            "model": state_dict(**{"c.bias": Rebuilt(torch.ones(2), 6, HERE)}), "ema": state_dict()
        },
        "model.c.bias", "ema",
    ),
    "hooks of a parameter": saved(
        lambda: {
            "model": state_dict(**{"c.bias": Rebuilt(nn.Parameter(torch.ones(2)), 2, HERE)}),
            "ema": state_dict(),
        },
        "model.c.bias", "ema",
    ),
    "hooks of a tensor by itself": saved(
        lambda: {"model": state_dict(), "mean": Rebuilt(torch.ones(2), 5, HERE)}, "mean"
    ),
    "attribute of a module": saved(
        lambda: {"model": module(extra=HERE), "ema": state_dict()}, "model", "ema"
    ),
    "hooks of a module": saved(
        lambda: {"model": module(_forward_hooks=collections.OrderedDict({0: HERE})),
                 "ema": state_dict()},
        "model", "ema",
    ),
    "in a list at the top": saved(lambda: [state_dict(), HERE], "1", "0"),
    "root": saved(lambda: HERE, "", None),
    "state of the root": Place(
        lambda op, protocol: zipped(
            {"model": state_dict(), "epoch": 3}, op, protocol,
            lambda p: p[:2] + new("argparse.Namespace") + op + pickle.BUILD + pickle.POP + p[2:],
        ),
        "", "model", is_droppable=False,
    ),
    "popped, in an entry": popped_at({"model": state_dict(), "extra": HERE}, "model"),
    "popped, in a state dict": popped_at({"model": state_dict(extra=HERE)}, "model"),
    "popped, in a state dict at the top": popped_at(state_dict(extra=HERE), ""),
    "popped at the start": changed(lambda p, op: p[:2] + op + pickle.POP + p[2:]),
    "popped at the end": changed(lambda p, op: p[:-1] + op + pickle.POP + pickle.STOP),
    "popped with a mark": changed(
        lambda p, op: p[:2] + pickle.MARK + op + op + pickle.POP_MARK + p[2:]
    ),
    "left on the stack": changed(lambda p, op: p[:2] + op + p[2:]),
    "legacy: entry": Place(lambda op, _: in_legacy(op), "extra", "model"),
    "legacy: called by a reference": Place(
        lambda op, _: in_legacy(op.replace(name("os.system"), AS_A_REFERENCE)), "extra", "model"
    ),
    **{
        f"legacy: popped in pickle {number + 1} of 5": Place(
            lambda op, _, number=number: popped_in_legacy(number, op),  # type: ignore[misc]
            "", "model", is_droppable=False,
        )
        for number in range(5)
    },
}  # fmt: skip

#: What PyTorch reads itself, without Python's pickle, and without calls.
TORCHSCRIPT: dict[str, Callable[[bytes], bytes]] = {
    member: lambda op, member=member: scripted(member, op)  # type: ignore[misc]
    for member in ("data.pkl", "constants.pkl")
}
