"""The script that a user would write with PyTorch: load all, loop over the layers, save all.

python -m benchmarks.peer inspect INPUT
python -m benchmarks.peer remove INPUT OUTPUT
python -m benchmarks.peer apply INPUT OUTPUT DIM [WEIGHT ...]
python -m benchmarks.peer convert INPUT OUTPUT
python -m benchmarks.peer respell INPUT OUTPUT
python -m benchmarks.peer compare NORMALIZED FOLDED RTOL
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

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


def weights(state: State) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the plain model, one at a time; the state dict is used up."""
    for name in list(state):
        if name.endswith("weight_g"):
            g = state.pop(name)
            v = state.pop(name.removesuffix("g") + "v")
            dim = max(range(g.dim()), key=lambda axis: g.shape[axis], default=-1)
            yield name.removesuffix("_g"), torch._weight_norm(v, g, dim)  # noqa: SLF001 - the hook's own
        elif name in state and not name.endswith("weight_v"):
            yield name, state.pop(name)


def apply(state: State, dim: int, names: list[str]) -> None:
    """Replace the named weights, or all of two or more dimensions, by `weight_g` and `weight_v`."""
    found = [name for name in state if name.endswith("weight") and state[name].dim() > 1]
    for name in names or found:
        v = state.pop(name)
        state[name + "_g"] = torch.norm_except_dim(v, 2, dim)
        state[name + "_v"] = v


def respell(state: State) -> State:
    """Return the same tensors under the names of `torch.nn.utils.parametrizations.weight_norm`."""
    originals = {"weight_g": "original0", "weight_v": "original1"}
    renamed = {}
    for name, tensor in state.items():
        module, _, last = name.rpartition(".")
        original = originals.get(last)
        renamed[f"{module}.parametrizations.weight.{original}" if original else name] = tensor
    return renamed


def compare(normalized: State, folded: State, rtol: float) -> None:
    """Print the weights that differ and by how much; end with 1 where one differs by too much."""
    apart = False
    for name, weight in weights(normalized):
        other = folded.pop(name)
        if not torch.equal(weight, other):
            print(name, (weight - other).abs().max().item())
            apart |= not torch.allclose(weight, other, rtol=rtol)
    if apart or folded:
        sys.exit(1)


def run(read: Callable[[str], State], command: str, source: str, *rest: str) -> None:
    """Run one command on what `read` gives; a DIM of -1 is the norm of the whole tensor."""
    state = read(source)
    match command:
        case "inspect":
            inspect(state)
            return
        case "compare":
            compare(state, read(rest[0]), float(rest[1]))
            return
        case "remove":
            state = dict(weights(state))
        case "apply":
            apply(state, int(rest[1]), list(rest[2:]))
        case "respell":
            state = respell(state)
    save(state, rest[0])


if __name__ == "__main__":
    run(load, *sys.argv[1:])
