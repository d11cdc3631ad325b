"""What a tensor is before its data is read: dtype, shape, strides, and where its bytes are.

Offsets and strides inside a storage are counted in elements, offsets in a file in bytes.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple


class DType(Enum):
    """The element types of both formats, in the order in which safetensors ranks its own.

    Each value is `(safetensors code, torch name, torch typed storage, bits, precision)`; `None`
    where a format has no such thing. Floating types have a precision: digits of the significand in
    bits, and the exponent of the smallest normal number. Sources: safetensors `tensor.rs`
    (`Dtype`), PyTorch `torch/storage.py` (`_dtype_to_storage_type_map`), IEEE 754, `ml_dtypes`.
    """

    BOOL = ("BOOL", "bool", "BoolStorage", 8)
    F4 = ("F4", None, None, 4)
    F6_E2M3 = ("F6_E2M3", None, None, 6)
    F6_E3M2 = ("F6_E3M2", None, None, 6)
    U8 = ("U8", "uint8", "ByteStorage", 8)
    I8 = ("I8", "int8", "CharStorage", 8)
    F8_E5M2 = ("F8_E5M2", "float8_e5m2", None, 8, (3, -14))
    F8_E4M3 = ("F8_E4M3", "float8_e4m3fn", None, 8, (4, -6))
    F8_E8M0 = ("F8_E8M0", "float8_e8m0fnu", None, 8, (1, -127))
    F8_E4M3FNUZ = ("F8_E4M3FNUZ", "float8_e4m3fnuz", None, 8, (4, -7))
    F8_E5M2FNUZ = ("F8_E5M2FNUZ", "float8_e5m2fnuz", None, 8, (3, -15))
    I16 = ("I16", "int16", "ShortStorage", 16)
    U16 = ("U16", "uint16", None, 16)
    F16 = ("F16", "float16", "HalfStorage", 16, (11, -14))
    BF16 = ("BF16", "bfloat16", "BFloat16Storage", 16, (8, -126))
    I32 = ("I32", "int32", "IntStorage", 32)
    U32 = ("U32", "uint32", None, 32)
    F32 = ("F32", "float32", "FloatStorage", 32, (24, -126))
    C64 = ("C64", "complex64", "ComplexFloatStorage", 64, (24, -126))
    F64 = ("F64", "float64", "DoubleStorage", 64, (53, -1022))
    I64 = ("I64", "int64", "LongStorage", 64)
    U64 = ("U64", "uint64", None, 64)
    # torch's alone
    F4X2 = (None, "float4_e2m1fn_x2", None, 8)
    C32 = (None, "complex32", None, 32)
    C128 = (None, "complex128", "ComplexDoubleStorage", 128, (53, -1022))
    QI8 = (None, "qint8", "QInt8Storage", 8)
    QU8 = (None, "quint8", "QUInt8Storage", 8)
    QI32 = (None, "qint32", "QInt32Storage", 32)
    QU4X2 = (None, "quint4x2", "QUInt4x2Storage", 8)
    QU2X4 = (None, "quint2x4", "QUInt2x4Storage", 8)
    BITS8 = (None, "bits8", None, 8)
    BITS16 = (None, "bits16", None, 16)
    BITS1X8 = (None, "bits1x8", None, 8)
    BITS2X4 = (None, "bits2x4", None, 8)
    BITS4X2 = (None, "bits4x2", None, 8)

    __hash__ = object.__hash__  # that of Enum is written in Python, and asked for every tensor

    def __init__(
        self,
        safetensors: str | None,
        torch: str | None,
        torch_storage: str | None,
        bits: int,
        precision: tuple[int, int] | None = None,
    ) -> None:
        self.safetensors = safetensors
        self.torch = torch
        self.torch_storage = torch_storage
        self.bits = bits
        self.precision = precision
        #: Bytes per element; 0 for the types that pack several elements into a byte.
        self.itemsize = bits // 8

    @property
    def label(self) -> str:
        """The name shown to people: torch's where there is one."""
        return self.torch or self.name.lower()

    @property
    def numpy(self) -> str | None:
        """The name in NumPy and `ml_dtypes`, which is torch's; None where they have no such."""
        return self.torch if self.safetensors or self is DType.C128 else None


#: The dtypes that weight norm is computed in.
NORMALIZABLE = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})


def product_dtype(g: DType, g_rank: int, v: DType) -> DType:
    """Return the dtype of `g * v / ||v||` in PyTorch: the wider; a g without dims is no reason.

    Source: PyTorch `torch.result_type`; float16 and bfloat16 meet in float32.
    """
    if g is v or g_rank == 0:
        return v
    if g.bits == v.bits:
        return DType.F32
    return max(g, v, key=lambda dtype: dtype.bits)


class Storage(NamedTuple):
    """A run of bytes in a file that one or more tensors are views of.

    `offset` and `nbytes` are the place in the file, in bytes. `crc` is the checksum that the file
    itself records for these bytes, `key` and `location` are torch's (`"0"`, `"cuda:0"`). `file` is
    the number of the file among those that make up the checkpoint.
    """

    key: str
    offset: int
    nbytes: int
    crc: int | None = None
    location: str = "cpu"
    file: int = 0

    @property
    def identity(self) -> tuple[int, str]:
        """What tells this storage from all others of the checkpoint."""
        return self.file, self.key


class TensorSpec(NamedTuple):
    """One tensor: its name in its state dict, and where its elements are.

    `offset` (elements) and `strides` (elements) place it inside `storage`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    storage: Storage
    offset: int
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements laid out without gaps."""
        return self.numel * self.dtype.bits // 8

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements stand in row-major order without gaps."""
        return self.numel == 0 or self._dense_in(range(len(self.shape)))

    @property
    def memory_order(self) -> tuple[int, ...] | None:
        """The axes from slowest to fastest if the elements fill one run of bytes, else None."""
        if self.is_contiguous:
            return tuple(range(len(self.shape)))
        order = sorted(range(len(self.shape)), key=lambda axis: (-self.strides[axis], axis))
        return tuple(order) if self.numel == 0 or self._dense_in(order) else None

    def _dense_in(self, order: range | list[int]) -> bool:
        step = 1
        for axis in reversed(order):
            if self.shape[axis] != 1 and self.strides[axis] != step:
                return False
            step *= self.shape[axis]
        return True

    @property
    def view(self) -> tuple[object, ...]:
        """What tied tensors have in common: the same elements of the same storage."""
        storage = self.storage
        return storage.file, storage.key, self.offset, self.shape, self.strides, self.dtype


def count_elements(shape: tuple[int, ...]) -> int | None:
    """Give the product of the sizes, or None where it is more than 64 bits can count on the way."""
    count = 1
    for size in shape:
        count *= size
        if count >= 1 << 64:
            return None
    return count


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of this shape."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    return tuple(strides[::-1])
