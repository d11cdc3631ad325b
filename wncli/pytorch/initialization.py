"""Sets g and biases from a batch, so that each layer's pre-activations have mean 0, variance 1.

Data-dependent initialization: Salimans & Kingma 2016 (arXiv:1602.07868), section 3. With
`t = v.x / ||v||`, of mean `mu` and standard deviation `sigma` over the batch, `g = 1 / sigma` and
`b = -mu / sigma`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wncli.checkpoint.pairs import Pair
from wncli.errors import UsageError, WeightNormError, few
from wncli.hints import Text, phrase, setting
from wncli.hints import given as as_given
from wncli.notes import Note
from wncli.plan.actions import Compose
from wncli.plan.remove import plan_remove
from wncli.plan.request import Request
from wncli.plan.rules import glob_of
from wncli.pytorch.arithmetic import Numbers, compose, decompose
from wncli.pytorch.attributes import Attributes
from wncli.pytorch.modules import (
    Layer,
    layers_of,
    parameters_of,
    refresh,
    refuse_inference,
    refuse_other,
    refuse_sharded,
    unwrapped,
)
from wncli.pytorch.refusals import in_python
from wncli.pytorch.results import Layers

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
#: A deviation of so many roundings of the largest number is none: a channel without variance.
_ROUNDINGS = 8
#: As many channels are named in a message.
_NAMED = 5


class _Chosen(NamedTuple):
    """A layer, and the pair that it is to the planner."""

    layer: Layer
    pair: Pair


@in_python("layers", "exclude")
def initialize(
    model: nn.Module,
    batch: object,
    *,
    layers: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Layers:
    """Set g and biases so that pre-activations over a batch have mean 0 and variance 1.

    The model is run once; each layer of it is set when the forward comes to it, which goes on with
    what it gives then. Where g does not run along the channels of the output (transposed
    convolutions, `dim=None`), the weight is scaled for each channel and split again. Buffers stay
    as they are.
    Layers without a bias get variance 1 alone.

    Args:
        model: any module, not yet sharded or on several ranks.
        batch: what the model takes: a tensor; a tuple or list of arguments; or a mapping of
            keyword arguments.
        layers: globs over full names and module paths; all normalized linear layers and
            convolutions where there is none.
        exclude: globs of layers to leave alone.

    Returns:
        The full names of the weights that have been initialized, in the order of the forward.

    Raises:
        UsageError: a rule matches nothing, or a layer of another kind.
        WeightNormError: a channel has no variance over the batch, a layer has no direction, or the
            model is sharded; nothing has changed.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
        >>> batch = torch.randn(64, 3)
        >>> wn.initialize(model, batch)
        <1 layer: weight>
        >>> bool(model(batch).std(0, correction=0).allclose(torch.ones(2)))
        True
    """
    refuse_other(model)
    refuse_sharded(model, "initialize")
    _refuse_ranks(model)
    request = Request.parse(layers, exclude, None, with_dims=True)
    notes: list[Note] = []
    chosen = _choose(model, request, notes)
    done: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.no_grad())
        every = _untied([_Setting(one, done, notes) for one in chosen], notes)
        refuse_inference((one.layer.name, held) for one in every for held in one.changed)
        kept = stack.enter_context(_kept(model, every))
        for one in every:
            one.attach(stack)
        if "torch._dynamo" in sys.modules:  # what is compiled already would not see these hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        _run(unwrapped(model), batch)
        kept.succeed()
    refresh(model)
    for name in [one.layer.name for one in every if one.layer.name not in done]:
        message = f"{name} is left alone: the forward does not call its module"
        notes.append(Note("not-reached", message, name, is_warning=True))
    return Layers(done, notes)


def _choose(model: nn.Module, request: Request, notes: list[Note]) -> list[_Chosen]:
    live = layers_of(model)
    chosen = []
    for _, action in plan_remove(parameters_of(model).checkpoint, request).changes:
        assert isinstance(action, Compose)  # noqa: S101 - that is what removal plans
        layer = live.get(action.name)
        obstacle = _obstacle(layer)
        if layer and not obstacle:
            chosen.append(_Chosen(layer, action.pair._replace(dim=layer.dim)))
        elif request.layers:
            raise UsageError(
                as_given(
                    layers=[rule.text for rule in request.layers if rule.matches(action.name)]
                ),
                f"{action.name} cannot be initialized from data: {obstacle}",
                expected="the weight of a linear layer or a convolution, and a bias of its own",
            )
        else:
            message = f"{action.name} is left alone: {obstacle}"
            notes.append(Note("left-alone", message, action.name, is_warning=True))
    return chosen


def _obstacle(layer: Layer | None) -> str:
    """Say why a layer cannot be set; nothing where it can."""
    if layer is None:
        return "its weight is not PyTorch's weight norm alone"
    if _output_axis(layer) is None:
        return "it is no weight of a linear layer or convolution"
    bias = layer.module.bias
    is_own = bias is None or any(bias is held for held in layer.module.parameters(recurse=False))
    return "" if is_own else "its bias is computed from something else"


def _untied(every: list[_Setting], notes: list[Note]) -> list[_Setting]:
    """Leave out layers that have a tensor of another: what one gets the other would overwrite."""
    owners: dict[int, str] = {}
    found = []
    for one in every:
        others = {owners[id(held)] for held in one.changed if id(held) in owners}
        if others:
            message = f"{one.layer.name} is left alone: it is tied to {few(sorted(others))}"
            notes.append(Note("tied", message, one.layer.name, is_warning=True))
            continue
        owners.update((id(held), one.layer.name) for held in one.changed)
        found.append(one)
    return found


def _output_axis(layer: Layer) -> int | None:
    """Return the axis of a weight that runs along the channels of the output; None for others."""
    if layer.parameter != "weight":
        return None
    if isinstance(layer.module, (nn.Linear, *_CONVOLUTIONS)):
        return 0
    return 1 if isinstance(layer.module, _TRANSPOSED) else None


def _run(model: nn.Module, batch: object) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)


class _Setting:
    """A layer that is set when the forward comes to it for the first time."""

    def __init__(self, chosen: _Chosen, done: list[str], notes: list[Note]) -> None:
        self.layer, self.pair = chosen
        self.module = chosen.layer.module
        self.done = done
        self.notes = notes
        groups = getattr(self.module, "groups", 1)
        self.axis = _output_axis(chosen.layer)
        #: Whether g has one number for each channel of the output.
        self.is_direct = self.layer.dim == self.axis and (self.axis == 0 or groups == 1)
        self.groups = groups if self.axis == 1 else 1

    def attach(self, stack: ExitStack) -> None:
        """Have it set within what `stack` ends."""
        # Before the hook of weight norm, which makes the weight from g.
        before = self.module.register_forward_pre_hook(self.before, prepend=True)
        after = self.module.register_forward_hook(self.after, prepend=True)
        stack.callback(before.remove)
        stack.callback(after.remove)

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias."""
        found = self.module.bias
        return found if isinstance(found, Tensor) else None

    @property
    def changed(self) -> list[Tensor]:
        """The tensors of the layer that are set."""
        found = [self.layer.g] if self.is_direct else [self.layer.g, self.layer.v]
        return found if self.bias is None else [*found, self.bias]

    def before(self, _module: nn.Module, _inputs: object) -> None:
        """Have the layer compute t, or what its weight gives, without a bias."""
        if self.layer.name in self.done:
            return
        if self.is_direct:
            self.layer.g.fill_(1)
        if self.bias is not None:
            self.bias.zero_()

    def after(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor | None:
        """Set the layer from what it computed, and give what it computes from now on."""
        if self.layer.name in self.done:
            return None
        self._refuse_other_outputs(output)
        self.done.append(self.layer.name)
        axis = -1 if isinstance(self.module, nn.Linear) else output.dim() - self.layer.v.dim() + 1
        wide = torch.float32 if output.device.type == "mps" else torch.float64
        rows = output.movedim(axis, 0).reshape(output.shape[axis], -1).to(wide)
        deviation, mean = torch.std_mean(rows, dim=1, correction=0)
        self._refuse_constant(rows, deviation, output.dtype)
        if self.is_direct:
            self.layer.g.copy_((1 / deviation).reshape(self.layer.g.shape))
        else:
            self._scale(1 / deviation)
        shift = torch.zeros_like(mean)
        if self.bias is not None:
            shift = -mean / deviation
            self.bias.copy_(shift)
        shape = [-1 if n == axis % output.dim() else 1 for n in range(output.dim())]
        found = output.to(wide) * (1 / deviation).reshape(shape) + shift.reshape(shape)
        return found.to(output.dtype)

    def _scale(self, factors: Tensor) -> None:
        """Scale the weight for each channel of the output, and split it again."""
        layer = self.layer
        weight, notes = compose("the model", self.pair, Numbers(layer.g, layer.v))
        self.notes += notes
        inner = weight.shape[1] if self.axis == 1 else weight.shape[0]
        grouped = factors.reshape(self.groups, inner)
        shape = [1] * weight.dim()
        if self.axis == 1:  # (in, out / groups, ...): each group of inputs has outputs of its own
            rows = grouped.repeat_interleave(weight.shape[0] // self.groups, dim=0)
            shape[:2] = rows.shape
            factors = rows.reshape(shape)
        else:
            shape[0] = inner
            factors = grouped.reshape(shape)
        scaled = (weight.to(factors.dtype) * factors).to(weight.dtype)
        found = decompose("the model", layer.name, scaled, layer.dim)
        self.notes += found.notes
        layer.g.copy_(found.g)
        layer.v.copy_(found.v)

    def _refuse_other_outputs(self, output: object) -> None:
        if not isinstance(output, Tensor):
            raise WeightNormError(
                f"the model: {self.layer.name}",
                "its module gives no tensor",
                expected="the output of a linear layer or a convolution",
                found=f"a {type(output).__name__}",
                hint=self._left_alone(),
            )

    def _left_alone(self) -> Text:
        return phrase("{} leaves this layer alone", setting(exclude=[glob_of(self.layer.name)]))

    def _refuse_constant(self, rows: Tensor, deviation: Tensor, dtype: torch.dtype) -> None:
        largest = rows.abs().amax(1) if rows.shape[1] else deviation
        least = _ROUNDINGS * torch.finfo(dtype).eps * largest
        bad = (~(deviation > least) | ~deviation.isfinite()).nonzero().flatten().tolist()
        if not bad:
            return
        name = self.layer.name
        channels = ", ".join(map(str, bad[:_NAMED])) + (", …" if len(bad) > _NAMED else "")
        raise WeightNormError(
            f"the model: {name}",
            f"its output has no variance over the batch in channel{'s' if len(bad) > 1 else ''}"
            f" {channels} (of {len(deviation)})",
            expected="numbers that differ, and are finite",
            hint=self._left_alone(),
        )


class _Kept:
    """What a model was before the forward: all that this can change."""

    def __init__(self, model: nn.Module, every: Iterable[_Setting]) -> None:
        changed = [tensor for one in every for tensor in one.changed]
        self.changed = [(tensor, tensor.detach().clone()) for tensor in changed]
        self.buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self.attributes = Attributes(model)
        self.is_done = False

    def succeed(self) -> None:
        """Leave what has been set as it is."""
        self.is_done = True

    def restore(self) -> None:
        """Put all back, or but the buffers."""
        for tensor, before in [*([] if self.is_done else self.changed), *self.buffers]:
            # Those that cannot be written to, as expanded ones, have not changed.
            if not tensor.is_meta and not torch.equal(tensor, before):
                tensor.detach().copy_(before)
        if self.is_done:
            self.attributes.restore_buffers()
        else:
            self.attributes.restore()


@contextmanager
def _kept(model: nn.Module, every: Iterable[_Setting]) -> Iterator[_Kept]:
    kept = _Kept(model, every)
    try:
        yield kept
    finally:
        kept.restore()


def _refuse_ranks(model: nn.Module) -> None:
    if not hasattr(model, "process_group") or not torch.distributed.is_available():
        return
    if torch.distributed.get_world_size(model.process_group) > 1:  # type: ignore[arg-type]
        raise WeightNormError(
            "the model",
            "each rank would initialize its copy from a batch of its own",
            expected="the model alone",
            hint="call initialize before DistributedDataParallel, which copies it to all ranks",
        )
