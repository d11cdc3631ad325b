"""The script that a user would write with PyTorch: load all, loop over the layers, save all.

python benchmarks/peer.py inspect INPUT
python benchmarks/peer.py remove INPUT OUTPUT
python benchmarks/peer.py apply INPUT OUTPUT DIM [WEIGHT ...]
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]


def load(path: str) -> State:
    """Read a whole state dict."""
    if path.endswith(".safetensors"):
        return load_file(path)
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save(state: State, path: str) -> None:
    """Write a whole state dict."""
    if path.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path)


def inspect(state: State) -> None:
    """Print every normalized weight and the shape of its direction."""
    for name in state:
        if name.endswith("weight_g"):
            print(name.removesuffix("_g"), tuple(state[name.removesuffix("g") + "v"].shape))


def remove(state: State) -> None:
    """Replace every `weight_g` and `weight_v` by their `weight`."""
    for name in [name for name in state if name.endswith("weight_g")]:
        g = state.pop(name)
        v = state.pop(name.removesuffix("g") + "v")
        dim = max(range(g.dim()), key=lambda axis: g.shape[axis], default=-1)
        state[name.removesuffix("_g")] = torch._weight_norm(v, g, dim)  # noqa: SLF001 - the hook's own


def apply(state: State, dim: int, names: list[str]) -> None:
    """Replace the named weights, or all of two or more dimensions, by `weight_g` and `weight_v`."""
    found = [name for name in state if name.endswith("weight") and state[name].dim() > 1]
    for name in names or found:
        v = state.pop(name)
        state[name + "_g"] = torch.norm_except_dim(v, 2, dim)
        state[name + "_v"] = v


def main(command: str, source: str, target: str = "", dim: str = "0", *names: str) -> None:
    """Run one command; `dim` is -1 for the norm of the whole tensor."""
    state = load(source)
    if command == "inspect":
        inspect(state)
        return
    if command == "remove":
        remove(state)
    else:
        apply(state, int(dim), list(names))
    save(state, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
