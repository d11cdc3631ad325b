"""Models that `transformers` builds, held against their own removal and their own state dicts.

Seven families, small, with random weights: nothing is fetched. Each is built in both spellings; the
models write hooks where PyTorch has no `parametrizations.weight_norm`, which they look for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor

import wncli
from tests.support.families import (
    APPLIED,
    BUILT_IN,
    Family,
    Outputs,
    build,
    remove_its_own_way,
)
from tests.support.layers import Spelling
from tests.support.oracles import bits, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning"),
    pytest.mark.thinned(11),
]

State = dict[str, Tensor]
#: Differences of outputs as shares of their largest number: below the first they are rounding,
#: measured at 8e-6; above the second the weights are others, measured at 0.2.
ROUNDING, OTHER_WEIGHTS = 1e-4, 0.1
#: Bytes of a shard, so that there are several.
SHARD = "6KB"


def families(chosen: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", chosen, ids=lambda each: each.config.model_type)


every_storage = pytest.mark.parametrize(
    "storage", ["safetensors", "torch", "safetensors shards", "torch shards"]
)
both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])
whole_and_sharded = pytest.mark.parametrize("size", ["1GB", SHARD], ids=["whole", "sharded"])


@pytest.fixture(autouse=True)
def _offline_and_without_gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with torch.no_grad():
        yield


def save(model: hf.PreTrainedModel, folder: Path, storage: str) -> Path:
    if storage == "torch":
        torch.save(model.state_dict(), folder.with_suffix(".pt"))
        return folder.with_suffix(".pt")
    if storage == "torch shards":
        folder.mkdir()
        state = model.state_dict()
        save_torch_state_dict(state, folder, max_shard_size=SHARD, safe_serialization=False)
        return folder
    model.save_pretrained(folder, max_shard_size=SHARD if "shards" in storage else "1GB")
    return folder if "shards" in storage else folder / "model.safetensors"


def read(path: Path) -> State:
    """A file's or a folder's tensors, each from the shard that the index names."""
    if path.is_file():
        found: State = load_file(path) if path.suffix == ".safetensors" else load(path)
        return found
    (index,) = path.glob("*.index.json")
    places: dict[str, str] = json.loads(index.read_text())["weight_map"]
    shards = {place: read(path / place) for place in sorted(set(places.values()))}
    assert len(shards) > 1
    assert sum(map(len, shards.values())) == len(places)
    return {name: shards[place][name] for name, place in places.items()}


def pairs_of(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """The magnitudes and directions of a state dict by the names of their weights."""
    found = {}
    for name, g in state.items():
        weight = re.sub(r"(\.parametrizations)?\.weight(_g|\.original0)$", ".weight", name)
        if weight != name:
            found[weight] = (g, state[name[:-1] + {"g": "v", "0": "1"}[name[-1]]])
    return found


def norm64(g: Tensor, v: Tensor) -> Tensor:
    """The norm in double precision, over every axis along which g has size 1."""
    axes = [axis for axis, size in enumerate(g.shape) if size == 1]
    return v.double().square().sum(axes, keepdim=True).sqrt()


def ulps(found: Tensor, exact: Tensor) -> float:
    """How far off the worst element is, in units of float32's last place."""
    assert (found.dtype, found.shape) == (torch.float32, exact.shape)
    unit = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    return float(((found.double() - exact).abs() / unit).max())


def output_bits(family: Family, model: hf.PreTrainedModel) -> list[object]:
    return [bits(output) for output in family.compute(model)]


def differences(family: Family, model: hf.PreTrainedModel, expected: Outputs) -> list[float]:
    """How far each output is off, as a share of its largest number."""
    return [
        float((found - wanted).abs().max() / wanted.abs().max())
        for found, wanted in zip(family.compute(model), expected, strict=True)
    ]


@every_storage
@both_spellings
@families(BUILT_IN + APPLIED)
def test_remove_gives_what_the_models_own_removal_gives(
    family: Family, spelling: Spelling, storage: str, tmp_path: Path
) -> None:
    model = build(family, spelling, seed=0)
    pairs = pairs_of(model.state_dict())
    before = family.compute(model)
    saved = save(model, tmp_path / "model", storage)
    output = tmp_path / f"folded{saved.suffix}"
    report = wncli.remove(saved, output)
    assert len(report.layers) == len(pairs) == family.layers

    remove_its_own_way(family, model)
    own, folded = model.state_dict(), read(output)
    assert set(folded) == set(own)
    assert all(bits(folded[name]) == bits(own[name]) for name in own.keys() - pairs.keys())
    for name, (g, v) in pairs.items():
        exact = g.double() * v.double() / norm64(g, v)
        assert ulps(folded[name], exact) <= 1
        assert ulps(own[name], exact) < 8
        assert not torch.allclose(folded[name], v, rtol=0.01)  # there was something to fold
    model.load_state_dict(folded | {name: v for name, (_, v) in pairs.items()}, strict=True)
    assert min(differences(family, model, before)) > OTHER_WEIGHTS
    model.load_state_dict(folded, strict=True)
    assert max(differences(family, model, before)) < ROUNDING


@every_storage
@both_spellings
@families(BUILT_IN + APPLIED)
def test_like_gives_a_plain_checkpoint_the_state_dict_of_the_model(
    family: Family, spelling: Spelling, storage: str, tmp_path: Path
) -> None:
    plain = build(family, spelling, seed=0)
    remove_its_own_way(family, plain)
    model = build(family, spelling, seed=1)
    saved = save(plain, tmp_path / "plain", storage)
    reference = save(model, tmp_path / "reference", storage)
    output = tmp_path / f"normalized{saved.suffix}"
    assert len(wncli.convert(saved, output, like=reference).layers) == family.layers

    own, weights, normalized = model.state_dict(), plain.state_dict(), read(output)
    pairs = pairs_of(normalized)
    assert set(normalized) == set(own)
    kept = own.keys() & weights.keys()
    assert all(bits(normalized[name]) == bits(weights[name]) for name in kept)
    for name, (g, v) in pairs.items():
        assert bits(v) == bits(weights[name])
        assert ulps(g, norm64(g, v)) < 1
    model.load_state_dict(normalized, strict=True)
    assert max(differences(family, model, family.compute(plain))) < ROUNDING


@every_storage
@families(BUILT_IN + APPLIED)
def test_either_spelling_loads_into_the_model_and_computes_the_same_bits(
    family: Family, storage: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    saved = save(model, tmp_path / "model", storage)
    hooked, back = (tmp_path / f"{name}{saved.suffix}" for name in ("hooked", "back"))
    assert len(wncli.convert(saved, hooked, naming="hook").layers) == family.layers
    wncli.convert(hooked, back, naming="parametrized")

    expected = output_bits(family, model)
    for fresh in (build(family, "hook", seed=1), build(family, "parametrized", seed=1)):
        assert output_bits(family, fresh) != expected
        fresh.load_state_dict(read(hooked), strict=True)
        assert output_bits(family, fresh) == expected
    again = {name: bits(value) for name, value in read(back).items()}
    assert again == {name: bits(value) for name, value in model.state_dict().items()}


def open_pretrained(family: Family, folder: Path) -> hf.PreTrainedModel:
    """What `from_pretrained` makes of a folder, where no tensor may be missing or left over."""
    model, info = family.kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@whole_and_sharded
@families(BUILT_IN)
def test_from_pretrained_opens_the_folder_that_convert_wrote(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.convert(tmp_path / "model", tmp_path / "kept")
    wncli.convert(tmp_path / "model", tmp_path / "smaller", max_shard_size=SHARD)
    wncli.convert(tmp_path / "model", tmp_path / "hooked", naming="hook")  # transformers renames it
    wncli.convert(tmp_path / "model", tmp_path / "torch", format="torch")
    assert len(list((tmp_path / "smaller").glob("*.safetensors"))) > 1
    for folder in ("kept", "smaller", "hooked", "torch"):
        opened = open_pretrained(family, tmp_path / folder)
        assert output_bits(family, opened) == output_bits(family, model)


@whole_and_sharded
@families(APPLIED)
def test_from_pretrained_opens_the_folder_that_remove_wrote(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.remove(tmp_path / "model", tmp_path / "folded")
    opened = open_pretrained(family, tmp_path / "folded")
    assert max(differences(family, opened, family.compute(model))) < ROUNDING


@whole_and_sharded
@families(BUILT_IN)
def test_like_mends_a_folded_folder_that_from_pretrained_would_fill_with_random_weights(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.remove(tmp_path / "model", tmp_path / "folded")
    _, info = family.kind.from_pretrained(tmp_path / "folded", output_loading_info=True)
    assert len(info["missing_keys"]) == 2 * family.layers
    wncli.convert(tmp_path / "folded", tmp_path / "mended", like=tmp_path / "model")
    mended = open_pretrained(family, tmp_path / "mended")
    assert max(differences(family, mended, family.compute(model))) < ROUNDING
