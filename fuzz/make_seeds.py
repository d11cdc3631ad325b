"""Writes the seeds, small sound checkpoints of every kind: `python -m fuzz.make_seeds`.

Needs PyTorch. Storage keys of legacy files are addresses, so that their bytes differ every time.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
import tempfile
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._utils import _rebuild_tensor_v2

from tests.support.parted import along, put_parts

SEEDS = Path(__file__).with_name("seeds")

State = dict[str, Tensor]

_LEGACY_SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


class Layers(nn.Module):
    """Two layers, one of them normalized."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.first = torch.nn.utils.weight_norm(nn.Linear(3, 2))
        self.last = nn.Linear(2, 1)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, value: Tensor) -> Tensor:
        """Both layers, one after the other."""
        found: Tensor = self.last(self.first(value))
        return found


class Plain(nn.Module):
    """A module that can be scripted."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 1)
        self.register_buffer("mean", torch.ones(2))

    def forward(self, value: Tensor) -> Tensor:
        """Return what the layer makes of it."""
        found: Tensor = self.last(value)
        return found


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers from 1 on, the same every time."""
    return (torch.arange(torch.Size(shape).numel()).reshape(shape) + 1).to(dtype)


def hook(prefix: str = "a") -> State:
    """Return a layer with its magnitude and direction in the old spelling."""
    return {
        f"{prefix}.bias": numbers(2),
        f"{prefix}.weight_g": numbers(2, 1),
        f"{prefix}.weight_v": numbers(2, 3),
    }


def parametrized(prefix: str = "b") -> State:
    """Return a layer with its magnitude and direction in the new spelling."""
    half = f"{prefix}.parametrizations.weight.original"
    return {f"{half}0": numbers(2, 1), f"{half}1": numbers(2, 3), f"{prefix}.bias": numbers(2)}


#: Those that have typed storages, as every torch file had them at first, and later ones.
OLD_DTYPES = (
    torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool,
    torch.complex64,
)  # fmt: skip
NEW_DTYPES = (torch.uint16, torch.float8_e4m3fn)


def dtypes(kinds: Iterable[torch.dtype]) -> State:
    """Return a tensor of each of these dtypes, one without dims and one without elements."""
    made = {str(dtype).rpartition(".")[2]: numbers(2, 2, dtype=dtype) for dtype in kinds}
    return made | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3)}


def _safetensors(state: State, metadata: dict[str, str] | None = None) -> bytes:
    return safetensors.torch.save(state, metadata)


def safetensors_files() -> dict[str, bytes]:
    """Safetensors files: pairs of both spellings, dtypes, ties in the metadata, no tensors."""
    ties = {"format": "pt", "tied.weight": "a.weight_v", "note": "0 \N{SNOWMAN}"}
    return {
        "pairs": _safetensors(hook() | parametrized(), {"format": "pt"}),
        "ties": _safetensors(hook(), ties),
        "dtypes": _safetensors(dtypes(OLD_DTYPES + NEW_DTYPES)),
        "whole": _safetensors({"c.weight_g": torch.tensor(2.0), "c.weight_v": numbers(2, 2)}),
        "nothing": _safetensors({}),
    }


def training() -> dict[str, Any]:
    """Return what a training script leaves: two models, an optimizer, a config, ties and views."""
    weight = nn.Parameter(numbers(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    tied = numbers(4, 3)
    return {
        "generator": OrderedDict(hook() | {"w.weight": weight, "w.bias": numbers(2)}),
        "ema": {"x.weight": tied, "x.again": tied, "x.rows": tied[1:3], "x.columns": tied.t()},
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=1e-4, name="run", sizes=[3, (1, 2)]),
        "steps": 100_000,
        "scores": defaultdict(list, {"a": [np.float64(0.5)]}),
    }


def _saved(value: Any, protocol: int = 2, *, legacy: bool = False) -> bytes:  # noqa: ANN401
    buffer = io.BytesIO()
    source = ["class Plain(nn.Module):\n", "    pass\n"], 0, "model.py"  # legacy files have it
    with (
        warnings.catch_warnings(),
        mock.patch("torch.serialization.get_source_lines_and_file", return_value=source),
    ):
        warnings.simplefilter("ignore")
        torch.save(
            value,
            buffer,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=not legacy,
        )
    return buffer.getvalue()


def _scripted() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 calls TorchScript deprecated
        torch.jit.save(torch.jit.script(Plain()), buffer)
    kept = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(kept, "w") as without_paths:
        for info in archive.infolist():
            if not info.filename.endswith(".debug_pkl"):
                member = zipfile.ZipInfo(info.filename)
                member.compress_type = info.compress_type
                without_paths.writestr(member, archive.read(info))
    return kept.getvalue()


def torch_zips() -> dict[str, bytes]:
    """Give what `torch.save` writes: state dicts, a whole training, a module; and a TorchScript."""
    torch.manual_seed(0)
    return {
        "pairs": _saved(hook() | parametrized()),
        "state_dict": _saved(Layers().state_dict()),
        "dtypes": _saved(dtypes(OLD_DTYPES + NEW_DTYPES)),
        "training": _saved(training()),
        "protocol4": _saved({"model": hook(), "names": {"a", "b"}, "raw": bytearray(b"ab")}, 4),
        "module": _saved(Layers()),
        "script": _scripted(),
    }


def torch_legacies() -> dict[str, bytes]:
    """Return what `torch.save` wrote before version 1.6."""
    torch.manual_seed(0)
    return {
        "pairs": _saved(hook() | parametrized(), legacy=True),
        "dtypes": _saved(dtypes(OLD_DTYPES), legacy=True),
        "training": _saved(training(), legacy=True),
        "module": _saved(Plain(), legacy=True),
        "view": _with_a_view(),
    }


def _with_a_view() -> bytes:
    """Two tensors over one storage, the way old versions wrote it: as a view of it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: object) -> object:
            return found.pid if isinstance(found, _Stored) else None

    whole, part = _Stored(None), _Stored(("1", 2, 4))
    content = {"a.weight": _Tensor(whole, (3, 2)), "a.view": _Tensor(part, (2, 2))}
    buffer = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, _LEGACY_SYSTEM, content, ["0"]):
        Pickler(buffer, protocol=2).dump(value)
    buffer.write(struct.pack("<q6f", 6, *range(6)))
    return buffer.getvalue()


class _Stored:
    """Stands for a storage of six numbers, or for a view of it."""

    def __init__(self, view: tuple[str, int, int] | None) -> None:
        self.pid = ("storage", torch.FloatStorage, "0", "cpu", 6, view)


class _Tensor:
    """Pickled as a contiguous tensor over a storage."""

    def __init__(self, storage: _Stored, shape: tuple[int, int]) -> None:
        strides = (shape[1], 1)
        hooks: OrderedDict[str, object] = OrderedDict()
        self.arguments = (storage, 0, shape, strides, False, hooks)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild_tensor_v2, self.arguments


#: The names of the indexes in `shards`.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def shards() -> dict[str, bytes]:
    """Make two sharded checkpoints in one folder, g and v of a layer in different files."""
    whole = hook() | parametrized()
    halves: list[State] = [{}, {}]
    for place, (name, tensor) in enumerate(whole.items()):
        halves[place % 2][name] = tensor
    files: dict[str, bytes] = {}
    for index in INDEXES:
        stem, _, suffix = index.removesuffix(".index.json").rpartition(".")
        weight_map: dict[str, str] = {}
        for number, half in enumerate(halves, start=1):
            name = f"{stem}-{number:05}-of-00002.{suffix}"
            files[name] = _safetensors(half) if suffix == "safetensors" else _saved(half)
            weight_map |= dict.fromkeys(half, name)
        size = sum(tensor.nbytes for tensor in whole.values())
        files[index] = _json({"metadata": {"total_size": size}, "weight_map": weight_map})
    return files


def distributed() -> dict[str, bytes]:
    """Make a distributed checkpoint: its metadata, and two files of items."""
    state = {f"model.{name}": tensor for name, tensor in (hook() | parametrized()).items()}
    cuts = {"model.a.weight_v": along(state["model.a.weight_v"], 1, (1, 2)),
            "model.b.bias": along(state["model.b.bias"], 0, (1, 1))}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        put_parts(Path(folder), state | {"epoch": 3, "optim.lr": 0.5}, cuts, checkpoint_id="seed")
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def main() -> None:
    """Write all seeds, over those that are there."""
    for folder, suffix, files in (
        ("safetensors", ".safetensors", safetensors_files()),
        ("torch-zip", ".pt", torch_zips()),
        ("torch-legacy", ".pt", torch_legacies()),
        ("index", "", shards()),
        ("distributed", "", distributed()),
    ):
        place = SEEDS / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (place / f"{name}{suffix}").write_bytes(content)


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


if __name__ == "__main__":
    main()
