"""How NumPy calls the dtypes that tensors have."""

from __future__ import annotations

from wncli.checkpoint.tensors import DType

#: Kind and bytes of an element, as in `numpy.dtype.str` behind the byte order.
CODES = {
    "b1": DType.BOOL, "i1": DType.I8, "u1": DType.U8, "i2": DType.I16, "u2": DType.U16,
    "i4": DType.I32, "u4": DType.U32, "i8": DType.I64, "u8": DType.U64, "f2": DType.F16,
    "f4": DType.F32, "f8": DType.F64, "c8": DType.C64, "c16": DType.C128,
}  # fmt: skip
#: By the names of their classes in ml_dtypes, which have no codes of their own.
ML_DTYPES = {
    dtype.torch: dtype
    for dtype in DType
    if dtype.torch and (dtype is DType.BF16 or dtype.name.startswith("F8_"))
}
