"""This rank's part of a tensor, as a DTensor like the model's; nothing is said to other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wncli.checkpoint.dims import magnitude_shape
from wncli.checkpoint.pairs import Pair
from wncli.checkpoint.tensors import TensorSpec
from wncli.errors import WeightNormError
from wncli.plan.actions import Action, Compose, Decompose
from wncli.pytorch.actions import Executor
from wncli.pytorch.tensors import is_distributed


class Box(NamedTuple):
    """Where a part begins on each axis, and its sizes.

    On the axes that are in `pieces` it is not one run: all places are listed there.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    pieces: Mapping[int, Tensor]

    def narrows_only(self, axis: int | None, whole: tuple[int, ...]) -> bool:
        """Whether it is all of every axis but one, and one run of that."""
        return axis is not None and not self.pieces and all(
            size == mine for n, (size, mine) in enumerate(zip(whole, self.shape, strict=True))
            if n != axis
        )  # fmt: skip

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part, a view where it is one run."""
        for axis, (start, size) in enumerate(zip(self.start, self.shape, strict=True)):
            if axis in self.pieces:
                tensor = tensor.index_select(axis, self.pieces[axis].to(tensor.device))
            else:
                tensor = tensor.narrow(axis, start, size)
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


def box_of(name: str, target: Any) -> Box:  # noqa: ANN401 - its module is not always there
    """Return which part of it this rank has; a rank that is not in the mesh has none.

    Each placement divides what those before it have left, as `distribute_tensor` does.

    Args:
        name: the tensor's, for messages.
        target: a DTensor.

    Raises:
        WeightNormError: the ranks have summands, or another part than the placements say.
    """
    coordinate = target.device_mesh.get_coordinate()
    if coordinate is None:
        return Box((0,) * target.dim(), (0,) * target.dim(), {})
    places = [torch.arange(size, device="cpu") for size in target.shape]
    for number, placement in enumerate(target.placements):
        if placement.is_replicate():
            continue
        axis = getattr(placement, "dim", None)
        if axis is None:
            raise _refusal(name, target, "each rank has a summand of it, and no rows")
        along = places[axis].view([-1 if n == axis else 1 for n in range(target.dim())])
        parts, _ = placement._split_tensor(  # noqa: SLF001 - what `distribute_tensor` divides by
            along, target.device_mesh.size(number), with_padding=False
        )
        places[axis] = parts[coordinate[number]].flatten()
    shape = tuple(map(len, places))
    # FSDP2 may keep what it pads on a rank that has no rows.
    if all(shape) and shape != tuple(target.to_local().shape):
        raise _refusal(name, target, "its part is not the one that its placements say")
    start = tuple(int(found[0]) if len(found) else 0 for found in places)
    pieces = {
        axis: found
        for axis, found in enumerate(places)
        if len(found) and int(found[-1]) - int(found[0]) >= len(found)
    }
    return Box(start, shape, pieces)


def _refusal(name: str, target: Any, reason: str) -> WeightNormError:  # noqa: ANN401 - as above
    return WeightNormError(
        f"the model: {name}",
        reason,
        expected="a DTensor of which each rank has rows, or all",
        found=f"{tuple(target.to_local().shape)} of {tuple(target.shape)} on this rank,"
        f" as {', '.join(map(str, target.placements))}",
    )


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
    boxes = {name: box_of(name, target) for name, target in held.items() if is_distributed(target)}
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
            of_g = boxes[halves.g]
            is_same = of_g.shape == g_shape and of_g.narrows_only(dim, of_g.shape)
            if box.narrows_only(dim, weight.shape) and is_same and of_g.start == box.start:
                own = halves._replace(g_shape=g_shape)
                return action._replace(weight=box.of_spec(weight, dim or 0), halves=own)
    return None
