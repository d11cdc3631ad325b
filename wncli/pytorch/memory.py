"""Where a live model's tensors are in memory: which share it, with each other or with a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from wncli.errors import WeightNormError
from wncli.pytorch.tensors import is_run_of_memory
from wncli.storage.source import LocalSource, Source

#: What Linux says of this process's memory; other systems have no such file.
_MAPS = Path("/proc/self/maps")


class _Span(NamedTuple):
    """The memory from a tensor's first element to its last."""

    device: str
    begin: int
    end: int
    name: str


def alone(tensors: Mapping[str, object]) -> set[str]:
    """Return the names of tensors in whose memory no other tensor has an element.

    Addresses tell it: NumPy's views of one array are storages of their own.
    """
    spans = sorted(_spans(tensors))
    found = {span.name for span in spans}
    last: _Span | None = None
    for span in spans:
        if last and span.device == last.device and span.begin < last.end:
            found -= {span.name, last.name}
        if not last or (span.device, span.end) > (last.device, last.end):
            last = span
    return found


def _spans(tensors: Mapping[str, object]) -> Iterator[_Span]:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor) or not is_run_of_memory(tensor):
            continue
        begin = tensor.data_ptr() if tensor.numel() else 0
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        reach = 1 + sum((size - 1) * step for size, step in steps) if tensor.numel() else 0
        yield _Span(str(tensor.device), begin, begin + reach * tensor.element_size(), name)


def refuse_mapped(tensors: Mapping[str, object], sources: Iterable[Source]) -> None:
    """Refuse tensors whose memory is that of a file which is loaded from: it would be overwritten.

    Raises:
        WeightNormError: a tensor is such.
    """
    # Memory of PyTorch's own can grow; of few models any other is asked for.
    foreign = {
        name: tensor
        for name, tensor in tensors.items()
        if type(tensor) in {Tensor, nn.Parameter} and not tensor.untyped_storage().resizable()  # type: ignore[attr-defined]
    }
    mapped = list(_mapped(sources)) if foreign and _MAPS.exists() else []
    for span in _spans(foreign) if mapped else ():
        if any(span.begin < end and begin < span.end for begin, end in mapped):
            raise WeightNormError(
                f"the model: {span.name}",
                "its memory is the very file that is loaded, which would be overwritten",
                expected="a model in memory of its own",
                hint="load a copy of the file",
            )


def _mapped(sources: Iterable[Source]) -> Iterator[tuple[int, int]]:
    """Give the addresses at which these files are memory that is written back to them."""
    stats = [os.fstat(source.file.fileno()) for source in sources if type(source) is LocalSource]
    files = {(stat.st_dev, stat.st_ino) for stat in stats}
    for line in _MAPS.read_text(errors="surrogateescape").splitlines():
        addresses, rights, _, _, _, *path = line.split(maxsplit=5)
        if path and rights.endswith("s") and path[0].startswith("/"):
            try:
                stat = os.stat(path[0])  # noqa: PTH116 - a name that Path may not take
            except (OSError, ValueError):  # it is gone
                continue
            if (stat.st_dev, stat.st_ino) in files:
                begin, _, end = addresses.partition("-")
                yield int(begin, 16), int(end, 16)
