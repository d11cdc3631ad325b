"""The same script as `peer.py`, written with care: with `mmap=True`, and with `safe_open`.

Tensors are views of the mapped file; pages are read when a tensor is used. The arguments are those
of `peer.py`. `torch.load` maps zip files only, no legacy ones.
"""

from __future__ import annotations

import sys

import torch
from safetensors import safe_open

from benchmarks.peer import State, run


def load(path: str) -> State:
    """Map a whole state dict."""
    if path.endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def inspect_header(path: str) -> None:
    """Print every normalized weight and the shape of its direction, from the header alone."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            if name.endswith("weight_g"):
                v = file.get_slice(name.removesuffix("g") + "v")
                print(name.removesuffix("_g"), tuple(v.get_shape()))


if __name__ == "__main__":
    if sys.argv[1] == "inspect" and sys.argv[2].endswith(".safetensors"):
        inspect_header(sys.argv[2])
    else:
        run(load, *sys.argv[1:])
