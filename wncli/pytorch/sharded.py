"""This rank's part of a tensor, as a DTensor like the model's; nothing is said to other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wncli.checkpoint.dims import magnitude_shape
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.plan.actions import Action, Compose, Decompose
from wncli.pytorch.actions import Executor
from wncli.pytorch.tensors import is_distributed


class Box(NamedTuple):
    """Where a part begins on each axis, and its sizes."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    def narrows_only(self, axis: int | None, whole: tuple[int, ...]) -> bool:
        """Whether it is all of every axis but one."""
        return axis is not None and all(
            size == mine for n, (size, mine) in enumerate(zip(whole, self.shape, strict=True))
            if n != axis
        )  # fmt: skip

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part, a view."""
        for axis, (start, size) in enumerate(zip(self.start, self.shape, strict=True)):
            tensor = tensor.narrow(axis, min(start, tensor.shape[axis]), size)
        return tensor

    def of_spec(self, spec: TensorSpec, axis: int) -> TensorSpec:
        """Describe the rows along an axis that are in the part; a g of other rank is a vector."""
        axis_of_spec = axis if len(spec.shape) == len(self.shape) else 0
        if spec.shape[axis_of_spec] == 1 and self.shape[axis] != 1:
            return spec
        shape = tuple(
            self.shape[axis] if n == axis_of_spec else s for n, s in enumerate(spec.shape)
        )
        offset = spec.offset + spec.strides[axis_of_spec] * self.start[axis]
        return spec._replace(shape=shape, offset=offset)

    def of_pair(self, pair: Pair, axis: int) -> Pair:
        """Describe the rows of a pair that are in the part."""
        return pair._replace(g=self.of_spec(pair.g, axis), v=self.of_spec(pair.v, axis), stale=None)


def box_of(target: Any) -> Box:  # noqa: ANN401 - a DTensor, whose module is not always there
    """Return which part of it this rank has."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    return Box(tuple(start), tuple(shape))


def distributed_like(target: Any, local: Tensor) -> Tensor:  # noqa: ANN401 - as above
    """Make the DTensor that has this part here, the other parts being elsewhere."""
    from torch.distributed.tensor import DTensor

    mesh = target.device_mesh
    made: Tensor = DTensor.from_local(
        local.to(_device(target)), mesh, target.placements,
        run_check=False, shape=target.shape, stride=target.stride(),
    )  # fmt: skip
    return made


def _device(target: Any) -> Any:  # noqa: ANN401 - as above
    """Where a part goes: on the meta device's stead, where the mesh is."""
    if target.device.type != "meta":
        return target.device
    return target.device_mesh.device_type


def carry_out_in_part(
    executor: Executor,
    action: Action,
    held: Mapping[str, object],
    split_in: torch.dtype | None,
) -> dict[str, Tensor]:
    """Carry an action out on this rank's rows, or on all of a layer whose norms run over others'.

    Args:
        executor: carries actions out.
        action: of the plan.
        held: what the model has under the names of what the action leaves.
        split_in: the dtype that a weight is cast to before it is split.
    """
    boxes = {name: box_of(target) for name, target in held.items() if is_distributed(target)}
    mine = _in_part(action, boxes)
    if mine is not None:
        made = executor.tensors(mine, split_in)
        # v is a view of a weight that may be a mapped file's.
        return {name: distributed_like(held[name], part.clone()) for name, part in made.items()}
    return {
        name: distributed_like(held[name], boxes[name].of(tensor).clone())
        if name in boxes and not is_distributed(tensor)
        else tensor
        for name, tensor in executor.tensors(action, split_in).items()
    }


def _in_part(action: Action, boxes: Mapping[str, Box]) -> Action | None:
    """Return the action on the rows of a part alone; None where it takes more than these."""
    match action:
        case Compose(pair, name) if name in boxes:
            if boxes[name].narrows_only(pair.dim, pair.shape):
                return action._replace(pair=boxes[name].of_pair(pair, pair.dim or 0))
        case Decompose(weight, dim, halves) if {halves.g, halves.v} <= boxes.keys():
            box = boxes[halves.v]
            g_shape = magnitude_shape(box.shape, dim)
            if box.narrows_only(dim, weight.shape) and boxes[halves.g].shape == g_shape:
                own = halves._replace(g_shape=g_shape)
                return action._replace(weight=box.of_spec(weight, dim or 0), halves=own)
    return None
