"""`load_weights` composes in a model's own memory, wherever that is and whoever else has it."""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import wncli
import wncli.pytorch as wn
from tests.support.live import everything, mel, norms_of_their_own, vocoder
from tests.support.oracles import bits, save


def files(folder: Path, source: nn.Module) -> tuple[Path, Path]:
    """A model's file, and the one that the command makes of it."""
    torch.save(source.state_dict(), folder / "in.pt")
    wncli.remove(folder / "in.pt", folder / "folded.pt")
    return folder / "in.pt", folder / "folded.pt"


def bits_of(model: nn.Module) -> dict[str, object]:
    return {name: bits(value) for name, value in model.state_dict().items()}


# -- memory that others have as well --------------------------------------------------------------


def numpys_views(model: Any) -> None:  # noqa: ANN401
    """Views of one array, which are storages of their own to PyTorch; they overlap."""
    array = np.zeros(400, np.float32)
    model[0].weight.data = torch.from_numpy(array[:72]).view(6, 4, 3)
    model[2].weight.data = torch.from_numpy(array[40:130]).view(6, 5, 3)
    model[2].bias.data = torch.from_numpy(array[128:133])


def overlapping(model: Any) -> None:  # noqa: ANN401
    flat = torch.zeros(400)
    model[0].weight.data = flat[:72].view(6, 4, 3)
    model[2].weight.data = flat[40:130].view(6, 5, 3)


def windows(model: Any) -> None:  # noqa: ANN401
    """Rows that begin inside those before them."""
    model[0].weight.data = torch.zeros(400).as_strided((6, 4, 3), (2, 3, 1))


def sliced(model: Any) -> None:  # noqa: ANN401
    model[0].weight.data = torch.zeros(4, 6, 3).transpose(0, 1)
    model[2].weight.data = torch.zeros(12, 10, 6)[::2, ::2, 1:4]


def a_buffers(model: Any) -> None:  # noqa: ANN401
    model.register_buffer("same", model[0].weight.data.view(-1), persistent=False)


def copied_on_writing(model: Any) -> None:  # noqa: ANN401
    model[0].weight.data = torch._lazy_clone(model[0].weight.data)


class Named(Tensor):
    """A subclass that changes nothing."""


def of_a_subclass(model: Any) -> None:  # noqa: ANN401
    model[2].weight = nn.Parameter(model[2].weight.data.as_subclass(Named))


CHANGES: list[Callable[[Any], object]] = [
    numpys_views, overlapping, windows, sliced, a_buffers, copied_on_writing, of_a_subclass,
    nn.Module.share_memory, lambda model: model.requires_grad_(requires_grad=False),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_shares_the_memory_the_bits_are_those_of_pytorchs_loading(
    change: Callable[[Any], object], tmp_path: Path
) -> None:
    path, folded = files(tmp_path, vocoder("hook"))
    model, by_pytorch = vocoder(None, seed=1), vocoder(None, seed=1)
    change(model)
    change(by_pytorch)
    wn.load_weights(model, path)
    by_pytorch.load_state_dict(torch.load(folded))
    assert bits_of(model) == bits_of(by_pytorch)


def linears(count: int, size: int) -> Any:  # noqa: ANN401
    torch.manual_seed(count)
    return nn.Sequential(*(nn.Linear(size, size, bias=False) for _ in range(count)))


@pytest.mark.slow
def test_of_layers_in_one_array_the_last_one_wins_on_however_many_threads(tmp_path: Path) -> None:
    count, size = 8, 1024
    source = linears(count, size)
    wn.apply_weight_norm(source)
    norms_of_their_own(source)
    path, folded = files(tmp_path, source)
    found = []
    for _ in range(2):
        model, array = linears(count, size), np.zeros((count + 1) * size * size // 2, np.float32)
        for place, layer in enumerate(model):
            begin = place * size * size // 2
            part = torch.from_numpy(array[begin : begin + size * size])
            layer.weight.data = part.view(size, size)
        found.append(model)
    wn.load_weights(found[0], path)
    found[1].load_state_dict(torch.load(folded))
    assert bits_of(found[0]) == bits_of(found[1])


def by_numpy(path: Path, layers: Any, places: list[int]) -> None:  # noqa: ANN401
    data = np.memmap(path, np.uint8, "r+")
    for layer, begin in zip(layers, places, strict=True):
        part = data[begin : begin + layer.weight.nbytes].view(np.float32)
        layer.weight.data = torch.from_numpy(part).view(layer.weight.shape)


def by_pytorch(path: Path, layers: Any, places: list[int]) -> None:  # noqa: ANN401
    nbytes = path.stat().st_size
    whole: Any = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=nbytes)
    data = torch.empty(0, dtype=torch.uint8).set_(whole)
    for layer, begin in zip(layers, places, strict=True):
        part = data[begin : begin + layer.weight.nbytes].view(torch.float32)
        layer.weight.data = part.view(layer.weight.shape)


def by_loading(path: Path, layers: Any, _: list[int]) -> None:  # noqa: ANN401
    before: Any = torch.serialization.get_default_mmap_options()
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    state = torch.load(path, mmap=True)
    torch.serialization.set_default_mmap_options(before)
    for number, layer in enumerate(layers):
        other = (number + 1) % len(layers)
        layer.weight.data = state[f"{other}.weight_v"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone says which memory is a file")
@pytest.mark.parametrize("mapped", [by_numpy, by_pytorch, by_loading])
def test_a_model_in_the_very_file_is_refused_and_the_file_stays(
    mapped: Callable[[Path, Any, list[int]], None], tmp_path: Path
) -> None:
    """What is written would be read again for the layers that come after."""
    source = linears(3, 8)
    wn.apply_weight_norm(source, naming="hook")
    norms_of_their_own(source)
    path, folded = files(tmp_path, source)
    data = path.read_bytes()
    places = [data.index(layer.weight_v.detach().numpy().tobytes()) for layer in source]
    model = linears(3, 8)
    mapped(path, model, places[1:] + places[:1])
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match=r"the model: 0\.weight: .* the very file"):
        wn.load_weights(model, path)
    assert everything(model) == before
    assert path.read_bytes() == data
    (tmp_path / "copy.pt").write_bytes(data)
    wn.load_weights(model, tmp_path / "copy.pt")  # as the hint says
    assert bits_of(model) == {name: bits(value) for name, value in torch.load(folded).items()}


@pytest.mark.parametrize("is_swapping", [False, True])
def test_a_graph_made_before_knows_that_its_weights_have_changed(
    tmp_path: Path, *, is_swapping: bool
) -> None:
    """Composing goes past autograd's counters; the loading that follows counts."""
    path, _ = files(tmp_path, vocoder("hook"))
    model = vocoder(None, seed=1)
    output = model(mel()).sum()
    with swapping() if is_swapping else nullcontext():
        wn.load_weights(model, path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


# -- what PyTorch is set to -----------------------------------------------------------------------


@contextmanager
def swapping() -> Iterator[None]:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@contextmanager
def other_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS: list[Callable[[], AbstractContextManager[object]]] = [
    swapping, other_dtype, torch.inference_mode,
    lambda: torch.device("meta"), lambda: torch.autocast("cpu", dtype=torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_pytorch_is_set_to_the_bits_are_the_same(
    setting: Callable[[], AbstractContextManager[object]], tmp_path: Path
) -> None:
    path, folded = files(tmp_path, vocoder("hook"))
    model, split = vocoder(None, seed=1), vocoder("parametrized", seed=1)
    with setting():
        wn.load_weights(model, path)
        wn.load_weights(split, folded)
        state = wn.fold(torch.load(path, map_location="cpu"))
        wn.save(split, tmp_path / "out.pt", remove=True)
    expected = {name: bits(value) for name, value in torch.load(folded).items()}
    assert bits_of(model) == expected
    assert {name: bits(value) for name, value in state.items()} == expected
    again = vocoder("parametrized", seed=1)
    wn.load_weights(again, folded)
    assert bits_of(split) == bits_of(again)
    assert {n: bits(v) for n, v in torch.load(tmp_path / "out.pt").items()} == expected


def test_what_cannot_be_swapped_is_copied_into(tmp_path: Path) -> None:
    """PyTorch's own loading ends in the middle."""
    path, folded = files(tmp_path, vocoder("hook"))
    model = vocoder(None, seed=1)
    held = weakref.ref(model[4].weight), model[4].weight.view(-1), model(mel())
    with swapping():
        with pytest.raises(RuntimeError, match="swapping"):
            model.load_state_dict(torch.load(folded))
        wn.load_weights(model, path)
        assert torch.__future__.get_swap_module_params_on_conversion()
    assert held[0]() is model[4].weight
    assert bits(held[1]) == bits(torch.load(folded)["4.weight"].view(-1))


# -- who has a say --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["_load_from_state_dict", "load_state_dict"])
def test_a_method_put_into_a_module_judges_before_anything_changes(
    method: str, tmp_path: Path
) -> None:
    def judge(*_: object, **__: object) -> None:
        raise ValueError("these are no weights of mine")

    path, _ = files(tmp_path, vocoder("hook"))
    model = vocoder(None, seed=1)
    vars(model[4] if method.startswith("_") else model)[method] = judge
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match="these are no weights of mine"):
        wn.load_weights(model, path)
    assert everything(model) == before


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch was built without distributed"
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [nn.DataParallel, DistributedDataParallel, torch.compile])
def test_wrapped_models_are_composed_into(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    path, folded = files(tmp_path, vocoder("hook"))
    model = vocoder(None, seed=1)
    from torch._C._distributed_c10d import HashStore

    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        wn.load_weights(wrap(model), path)
    finally:
        torch.distributed.destroy_process_group()
    assert bits_of(model) == {name: bits(value) for name, value in torch.load(folded).items()}


# -- what is refused at the very end --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("into", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_has_the_bits_of_the_command(
    dtype: torch.dtype, into: torch.dtype, tmp_path: Path
) -> None:
    source = vocoder("hook").to(dtype)
    with torch.no_grad():
        source[2].weight_g[1] = 0
        source[2].weight_v[1] = 0
        source[4].weight_v.fill_(torch.finfo(dtype).smallest_normal / 2)
    path, folded = files(tmp_path, source)
    model, by_pytorch = vocoder(None, seed=1).to(into), vocoder(None, seed=1).to(into)
    wn.load_weights(model, path)
    by_pytorch.load_state_dict(torch.load(folded))
    assert bits_of(model) == bits_of(by_pytorch)


@pytest.mark.parametrize("g", [1.0, float("inf"), float("nan"), -1.0])
def test_the_last_layer_is_judged_before_the_first_is_composed(g: float, tmp_path: Path) -> None:
    state = vocoder("hook").state_dict()
    state["4.weight_v"].zero_()
    state["4.weight_g"].fill_(g)
    torch.save(state, tmp_path / "in.pt")
    model = vocoder(None, seed=1)
    before = everything(model)
    with pytest.raises(wncli.WeightNormError, match=r"4\.weight: slice 0"):
        wn.load_weights(model, tmp_path / "in.pt")
    assert everything(model) == before


@pytest.mark.parametrize("stored", ["torch", "safetensors"])
def test_a_file_that_is_cut_short_once_it_is_open_is_refused_and_nothing_changes(
    stored: str, tmp_path: Path
) -> None:
    path = save(vocoder("hook").state_dict(), tmp_path / "in.pt", stored)
    model = vocoder(None, seed=1)
    model.register_load_state_dict_pre_hook(lambda *_: os.truncate(path, 1000))
    before = everything(model)
    with pytest.raises(wncli.FormatError, match=r"in\.\w+: the file ends inside"):
        wn.load_weights(model, path)
    assert everything(model) == before


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_a_quantized_weight_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer(
                "weight", torch.quantize_per_tensor(torch.ones(2, 2), 1, 0, torch.qint8)
            )

    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    wn.apply_weight_norm(source)
    torch.save(source.state_dict(), tmp_path / "in.pt")
    model = nn.Sequential(nn.Linear(2, 2), Quantized())
    before = everything(model[0])
    with pytest.raises(wncli.WeightNormError):
        wn.load_weights(model, tmp_path / "in.pt")
    assert everything(model[0]) == before


def test_weights_without_elements_are_composed(tmp_path: Path) -> None:
    state = {"weight_g": torch.ones(0, 1), "weight_v": torch.ones(0, 3), "bias": torch.ones(0)}
    torch.save(state, tmp_path / "in.pt")
    model = nn.Linear(3, 1)
    model.weight, model.bias = (nn.Parameter(torch.ones(0, *more)) for more in ((3,), ()))
    done = wn.load_weights(model, tmp_path / "in.pt")
    assert [layer.action for layer in done.layers] == ["remove"]
    assert model.weight.shape == (0, 3)


def test_storages_can_be_resized_as_before(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Conv1d(4, 6, 3), nn.Linear(5, 4))
    wn.apply_weight_norm(model)
    wn.save(model, tmp_path / "in.pt")
    wn.load_weights(model, tmp_path / "in.pt")
    wn.fold(model.state_dict())
    wncli.decompose(model[0].parametrizations.weight.original1)
    wn.remove_weight_norm(model)
    wn.load_weights(model, tmp_path / "in.pt")
    assert all(tensor.untyped_storage().resizable() for tensor in model.parameters())
