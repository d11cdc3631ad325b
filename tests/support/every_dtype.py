"""Every dtype that torch stores, and tensors of each with known bits."""

from __future__ import annotations

import torch

DTYPES = (
    "bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float4_e2m1fn_x2", "int16", "uint16", "float16", "bfloat16", "int32",
    "uint32", "float32", "complex32", "complex64", "float64", "int64", "uint64", "complex128",
)  # fmt: skip
#: What `safetensors.torch` can write, and torch can make from bytes.
SAFETENSORS_DTYPES = (
    "bool", "uint8", "int8", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "int16", "uint16", "float16", "bfloat16", "int32", "uint32", "float32",
    "complex64", "float64", "int64", "uint64",
)  # fmt: skip
#: What the legacy format has no names for.
BITS = ("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2")


def tensor_of(dtype: str, *shape: int) -> torch.Tensor:
    """A tensor whose bytes are all different, as far as they can be."""
    kind: torch.dtype = getattr(torch, dtype)
    count = torch.Size(shape).numel() * kind.itemsize
    raw = torch.arange(count, dtype=torch.int64).remainder(251).to(torch.uint8)
    if dtype == "bool":
        raw %= 2
    return raw.view(kind).reshape(shape)


def raw_of(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order."""
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
