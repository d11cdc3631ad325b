"""Writes a model or a state dict in memory to a checkpoint, as a command writes one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from wncli.arithmetic.torch_tensors import elements_of
from wncli.checkpoint.checkpoint import Checkpoint
from wncli.checkpoint.naming import Naming
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import UsageError, WeightNormError
from wncli.formats.registry import FormatName
from wncli.plan.actions import Plan
from wncli.plan.convert import plan_convert
from wncli.plan.lower import lower
from wncli.plan.remove import plan_remove
from wncli.plan.request import Request
from wncli.pytorch.givens import InMemory, of_mapping
from wncli.pytorch.modules import refuse_other, refuse_stacked, unwrapped
from wncli.pytorch.refusals import check_naming, in_python
from wncli.pytorch.tensors import in_memory, is_distributed, is_run_of_memory
from wncli.report import Report
from wncli.storage.source import Source, truncated
from wncli.writing import WriteOptions, write_checkpoint


@in_python("naming", "format", "max_shard_size", "force")
def save(  # noqa: PLR0913 - the options of the commands that write
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    output: str | os.PathLike[str],
    *,
    remove: bool = False,
    naming: Naming | None = None,
    format: FormatName | None = None,  # noqa: A002 - as the commands call it
    max_shard_size: int | str | None = None,
    force: bool = False,
) -> Report:
    """Write a model's weights, or a state dict, to a file or a folder of shards.

    The model stays as it is. Tied tensors are stored once. The output appears complete or not at
    all; tensors of other devices are read from there piece by piece.

    Args:
        model_or_state_dict: what to write.
        output: the file, or, with `max_shard_size` or a slash at its end, the folder.
        remove: write folded weights.
        naming: write this spelling, `"hook"` or `"parametrized"`.
        format: `"safetensors"`, `"torch"`, `"npz"` or `"dcp"`; otherwise the suffix of `output`
            says.
        max_shard_size: bytes, or `"5GB"`: write a folder of shards and their index.
        force: replace an existing output.

    Returns:
        A report as of the command: `layers`, `parameters`, `notes`.

    Raises:
        FileError: the output is there, or cannot be written.
        FormatError: a tensor is in parts on several ranks, or the format has no place for it.
        UsageError: there is nothing to write, or arguments contradict each other.
        WeightNormError: a layer has no direction, or a tensor no numbers.

    Example:
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> wn.save(model, "folded.safetensors", remove=True).parameters.change
        -2
    """
    if naming is not None:
        check_naming(naming)
    if remove and naming:
        raise UsageError(
            "naming", "what is folded has no g and v to be named", hint="leave one out"
        )
    model = None
    if isinstance(model_or_state_dict, Mapping):
        given = of_mapping(model_or_state_dict)
    else:
        model = unwrapped(refuse_other(model_or_state_dict))
        given = InMemory("the model", {(): model.state_dict()})
    checkpoint, sources = _as_files(_resolved(given))

    def make_plan(opened: Checkpoint) -> Plan:
        request = Request()
        plan = plan_remove(opened, request) if remove else None
        if plan:
            refuse_stacked(model, [lower(action).weight for _, action in plan.changes])
        return plan if plan and plan.changes else plan_convert(opened, request, naming)

    options = WriteOptions(format=format, max_shard_size=max_shard_size, force=force)
    path = Path(checkpoint.name)
    return write_checkpoint(make_plan, nullcontext((checkpoint, sources)), path, output, options)


def _resolved(given: InMemory) -> InMemory:
    """Copy tensors whose numbers are not those in memory: lazily negated or conjugated ones."""
    named: dict[str, object] = dict(given.state_dicts[()])
    for name, value in named.items():
        if isinstance(value, Tensor) and not is_distributed(value):
            named[name] = value.resolve_conj().resolve_neg()
    return InMemory(given.checkpoint.name, {(): named})


def _as_files(given: InMemory) -> tuple[Checkpoint, tuple[Source, ...]]:
    """Give each storage as a file of its own, which tensors that share it are in.

    Raises:
        UsageError: a tensor is none that files hold.
        WeightNormError: one has no numbers.
    """
    state_dict = given.top
    numbers: dict[str, int] = {}
    sources: list[Source] = []
    tensors: list[TensorSpec] = []
    parts: list[str] = []
    for spec in state_dict.tensors:
        tensor = given.tensor((), spec)
        if is_distributed(tensor):
            parts.append(spec.name)
        else:
            _refuse_unwritable(given, spec, tensor)
        key = spec.storage.key
        if key not in numbers:
            numbers[key] = len(sources)
            sources.append(_StorageSource(given.checkpoint.name, tensor, len(sources)))
        own = spec.storage._replace(key=str(numbers[key]), file=numbers[key], location="cpu")
        tensors.append(spec._replace(storage=own))
    found = state_dict._replace(tensors=tuple(tensors), parts=tuple(parts))
    return in_memory("model", found), tuple(sources)  # as its file in a folder is called


def _refuse_unwritable(given: InMemory, spec: TensorSpec, tensor: Tensor) -> None:
    where = f"{given.checkpoint.name}: {spec.name}"
    if tensor.device.type == "meta":
        raise WeightNormError(
            where, "this tensor is on the meta device, and has no numbers to write"
        )
    if tensor.is_quantized or not is_run_of_memory(tensor):
        raise UsageError(
            where,
            "this tensor is no run of numbers",
            expected="a dense tensor, not quantized",
            found="a quantized tensor"
            if tensor.is_quantized
            else f"a {type(tensor).__name__}, {tensor.layout}",
        )


class _StorageSource:
    """The storage of a tensor on any device, read piece by piece."""

    def __init__(self, name: str, tensor: Tensor, number: int) -> None:
        self.name = name
        self.number = number
        self.flat = torch.empty(0, dtype=torch.uint8, device="cpu")
        if not is_distributed(tensor):
            empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            self.flat = empty.set_(tensor.untyped_storage())
        self.nbytes = self.flat.numel()

    def read_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Read exactly `nbytes` at `offset`."""
        if offset + nbytes > self.nbytes:
            raise truncated(self, what, offset + nbytes)
        return bytes(elements_of(self.flat[offset : offset + nbytes].cpu()))

    def read_into(self, offset: int, buffer: memoryview, what: str) -> None:
        """Fill `buffer` from `offset` on."""
        if offset + len(buffer) > self.nbytes:
            raise truncated(self, what, offset + len(buffer))
        buffer[:] = elements_of(self.flat[offset : offset + len(buffer)].cpu())

    def close(self) -> None:
        """Leave the tensor to whom it belongs."""
