"""Writes samples, each in its format: the same bytes each time on one machine."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path

import safetensors.torch
import torch

from sample_models.samples import Sample
from sample_models.training import SEED


def write(sample: Sample, folder: Path) -> None:
    """Write one file, from its own seed, in the format that its name asks for."""
    torch.manual_seed(SEED)
    content, path = sample.content(sample), folder / sample.file
    match path.suffix:
        case ".safetensors":  # save_file would also narrow the file's mode
            path.write_bytes(safetensors.torch.save(content, metadata={"format": "pt"}))
        case ".pt":
            torch.save(content, path)
        case _:
            path.write_bytes(legacy_bytes(content))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def legacy_bytes(obj: object) -> bytes:
    """Return `obj` as `torch.save` writes the old, non-zip format, for float32 storages.

    PyTorch names each storage by its address in memory, another in every run; here they are
    numbered in the order of their use. The format: `_legacy_save` in torch/serialization.py.
    """
    file = io.BytesIO()
    torch.save(obj, file, _use_new_zipfile_serialization=False)
    file.seek(0)
    for _ in ("magic number", "protocol version", "system", "object"):
        list(pickletools.genops(file))  # reads on to where the next one begins
    head = file.getvalue()[: file.tell()]
    storages: dict[bytes, bytes] = {}
    for key in pickle.load(file):  # noqa: S301  written above
        numel = file.read(8)
        storages[pickled_string(key)] = numel + file.read(4 * int.from_bytes(numel, "little"))
    names = {str(i): key for i, key in enumerate(sorted(storages, key=head.index))}
    for name, key in names.items():
        head = head.replace(key, pickled_string(name))
    order = sorted(names)
    return (
        head + pickle.dumps(order, protocol=2) + b"".join(storages[names[name]] for name in order)
    )


def pickled_string(text: str) -> bytes:
    """Return the pickle opcode BINUNICODE with its argument."""
    return b"X" + len(text).to_bytes(4, "little") + text.encode()
