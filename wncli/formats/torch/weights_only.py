"""Which names `torch.load(weights_only=True)` accepts (PyTorch, `_weights_only_unpickler.py`)."""

from __future__ import annotations

from wncli.checkpoint.tensors import DType

_REBUILDERS = (
    "device_tensor_from_cpu_tensor",
    "device_tensor_from_numpy",
    "meta_tensor_no_storage",
    "nested_tensor",
    "parameter",
    "parameter_with_state",
    "qtensor",
    "sparse_tensor",
    "tensor",
    "tensor_v2",
    "tensor_v3",
    "wrapper_subclass",
)
_SCHEMES = (
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
)
_TENSORS = ("BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")

#: The full names.
ACCEPTED = frozenset(
    {
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
    }
    | {f"torch._utils._rebuild_{name}" for name in _REBUILDERS}
    | {f"torch.{name}" for name in _SCHEMES}
    | {f"torch.{dtype.torch}" for dtype in DType if dtype.torch}
    | {f"torch.{dtype.torch_storage}" for dtype in DType if dtype.torch_storage}
    | {
        f"torch.cuda.{dtype.torch_storage}"
        for dtype in DType
        if dtype.torch_storage and not dtype.name.startswith("Q")
    }
    | {f"torch.{place}{name}Tensor" for place in ("", "cuda.") for name in (*_TENSORS, "Bool")}
    | {f"torch.{place}{name}Tensor" for place in ("sparse.", "cuda.sparse.") for name in _TENSORS}
    | {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}
)


def accepts(name: str) -> bool:
    """Whether a pickle that names this class or function is read by `weights_only`.

    Protocol 2 spells `builtins` as Python 2 did.
    """
    return name.replace("__builtin__.", "builtins.") in ACCEPTED
