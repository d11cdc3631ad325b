"""Models that `transformers` builds, held against their own removal and their own state dicts.

Seven families, small, with random weights: nothing is fetched. Each is built in both spellings; the
models write hooks where PyTorch has no `parametrizations.weight_norm`, which they look for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import Spelling, bits
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

import wncli

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm:FutureWarning")

State = dict[str, Tensor]
Outputs = tuple[Tensor, ...]

#: Outputs that are the same but for rounding, and outputs of other weights: shares of the largest
#: number in them, measured at 3e-6 and 0.2.
SAME, DIFFERENT = 1e-5, 1e-3

#: Where a model has more than one file: several tensors to a shard, several shards to a model.
SHARD = "6KB"


@dataclass(frozen=True)
class Family:
    """A model: how one is built, what it computes, how many of its weights are normalized.

    `built_in` are those that are normalized when built; the others have `apply_weight_norm`.
    """

    model: str
    config: dict[str, object]
    compute: Callable[[PreTrainedModel], Outputs]
    layers: int
    built_in: bool = True

    @property
    def kind(self) -> type[PreTrainedModel]:
        kind: type[PreTrainedModel] = getattr(transformers, self.model)
        return kind


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def encode_speech(model: PreTrainedModel) -> Outputs:
    return (model(noise(2, 400)).last_hidden_state,)


def vocode(model: PreTrainedModel) -> Outputs:
    return (model(noise(2, 9, 8)),)


def vocode_noise(model: PreTrainedModel) -> Outputs:
    return (model(noise(1, 12, 8), noise_sequence=noise(1, 12, 4)).waveforms,)


def code(model: PreTrainedModel) -> Outputs:
    """Both sides of a codec, without the quantizer, whose choices hide what differs."""
    return model.encoder(noise(1, 1, 64)), model.decoder(noise(1, model.config.hidden_size, 16))


def code_and_project(model: PreTrainedModel) -> Outputs:
    """The projections of DAC's quantizers are normalized too."""
    latent = noise(1, model.config.hidden_size, 16)
    quantizers = model.quantizer.quantizers
    return (*code(model), *(each.out_proj(each.in_proj(latent)) for each in quantizers))


def speak_and_hear(model: PreTrainedModel) -> Outputs:
    """The posterior encoder, which is normalized too, only trains."""
    torch.manual_seed(2)  # the model draws noise of its own
    spoken = model(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]), speaker_id=1).waveform
    return spoken, *model.posterior_encoder(noise(1, 9, 20), torch.ones(1, 1, 20), noise(1, 4, 1))


SPEECH_ENCODER: dict[str, object] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 6,
    "num_conv_pos_embedding_groups": 2,
}
UPSAMPLER: dict[str, object] = {
    "upsample_initial_channel": 16,
    "upsample_rates": [2, 2],
    "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}

FAMILIES = {
    "wav2vec2": Family("Wav2Vec2Model", SPEECH_ENCODER, encode_speech, 1),  # along dim 2
    "wavlm": Family("WavLMModel", SPEECH_ENCODER, encode_speech, 1),  # along dim 2
    "encodec": Family(
        "EncodecModel",
        {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [2, 2], "codebook_size": 16},
        code,
        20,
    ),
    "vits": Family(
        "VitsModel",
        UPSAMPLER
        | {"hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "flow_size": 8}
        | {"spectrogram_bins": 9, "num_speakers": 3, "speaker_embedding_size": 4}
        | {"prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2}
        | {"posterior_encoder_num_wavenet_layers": 2},
        speak_and_hear,
        15,
    ),
    "hifigan": Family(
        "SpeechT5HifiGan", UPSAMPLER | {"model_in_dim": 8}, vocode, 20, built_in=False
    ),
    "dac": Family(
        "DacModel",
        {"encoder_hidden_size": 8, "decoder_hidden_size": 16, "downsampling_ratios": [2, 2]}
        | {"n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4},
        code_and_project,
        36,
        built_in=False,
    ),
    "univnet": Family(
        "UnivNetModel",
        {"model_in_channels": 4, "model_hidden_channels": 4, "num_mel_bins": 8}
        | {"resblock_kernel_sizes": [3, 3], "resblock_stride_sizes": [2, 2]}
        | {"resblock_dilation_sizes": [[1, 3], [1, 3]], "kernel_predictor_hidden_channels": 4},
        vocode_noise,
        26,
        built_in=False,
    ),
}

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_built_in = pytest.mark.parametrize(
    "family",
    [pytest.param(family, id=name) for name, family in FAMILIES.items() if family.built_in],
)
every_applied = pytest.mark.parametrize(
    "family",
    [pytest.param(family, id=name) for name, family in FAMILIES.items() if not family.built_in],
)
both_spellings = pytest.mark.parametrize("spelling", ["hook", "parametrized"])
whole_and_sharded = pytest.mark.parametrize("size", ["1GB", SHARD], ids=["whole", "sharded"])


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def build(family: Family, spelling: Spelling, seed: int) -> PreTrainedModel:
    """A normalized model whose magnitudes are far from the norms of its directions."""
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        if spelling == "hook":
            patch.delattr(torch.nn.utils.parametrizations, "weight_norm")
        model = family.kind(family.kind.config_class(**family.config))
        if not family.built_in:
            model.apply_weight_norm()
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.uniform_(0.5, 2)
            elif name.endswith(("_v", "original1")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def remove_its_own_way(family: Family, model: PreTrainedModel) -> None:
    """Fold with the model's own method where it works, with PyTorch's otherwise.

    The models' own methods know the hook alone: called on what they have parametrized, they raise.
    """
    if not family.built_in and not any(map(parametrize.is_parametrized, model.modules())):
        model.remove_weight_norm()
        return
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)


def compute(family: Family, model: PreTrainedModel) -> Outputs:
    with torch.no_grad():
        return family.compute(model)


def save_whole(model: PreTrainedModel, place: Path) -> Path:
    model.save_pretrained(place)
    return place / "model.safetensors"


def save_torch(model: PreTrainedModel, place: Path) -> Path:
    torch.save(model.state_dict(), place.with_suffix(".pt"))
    return place.with_suffix(".pt")


def save_shards(model: PreTrainedModel, place: Path) -> Path:
    model.save_pretrained(place, max_shard_size=SHARD)
    return place


def save_torch_shards(model: PreTrainedModel, place: Path) -> Path:
    place.mkdir()
    save_torch_state_dict(model.state_dict(), place, max_shard_size=SHARD, safe_serialization=False)
    return place


every_storage = pytest.mark.parametrize(
    "save",
    [save_whole, save_torch, save_shards, save_torch_shards],
    ids=["safetensors", "torch", "sharded safetensors", "sharded torch"],
)
Save = Callable[[PreTrainedModel, Path], Path]


def read(path: Path) -> State:
    """A file's or a folder's tensors, each from the shard that the index names."""
    if path.is_file():
        found: State = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True)
        )
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
        if name.endswith(".weight_g"):
            found[name.removesuffix("_g")] = (g, state[f"{name.removesuffix('_g')}_v"])
        elif name.endswith(".parametrizations.weight.original0"):
            module = name.removesuffix(".parametrizations.weight.original0")
            found[f"{module}.weight"] = (g, state[f"{name.removesuffix('0')}1"])
    return found


def norm64(g: Tensor, v: Tensor) -> Tensor:
    """The norm in double precision, over every axis along which g has size 1."""
    axes = [axis for axis, size in enumerate(g.shape) if size == 1]
    return v.double().square().sum(axes, keepdim=True).sqrt()


def ulps(found: Tensor, exact: Tensor) -> float:
    """How far off the worst element is, in units of float32's last place."""
    assert found.dtype == torch.float32
    assert found.shape == exact.shape
    unit = torch.from_numpy(np.spacing(exact.abs().float().numpy())).double()
    return float(((found.double() - exact).abs() / unit).max())


def output_bits(family: Family, model: PreTrainedModel) -> list[object]:
    return [bits(output) for output in compute(family, model)]


def differences(family: Family, model: PreTrainedModel, expected: Outputs) -> list[float]:
    """How far each output is off, as a share of its largest number."""
    return [
        float((found - wanted).abs().max() / wanted.abs().max())
        for found, wanted in zip(compute(family, model), expected, strict=True)
    ]


@every_storage
@both_spellings
@every_family
def test_remove_gives_what_the_models_own_removal_gives(
    family: Family, spelling: Spelling, save: Save, tmp_path: Path
) -> None:
    model = build(family, spelling, seed=0)
    pairs = pairs_of(model.state_dict())
    before = compute(family, model)
    saved = save(model, tmp_path / "model")
    output = tmp_path / f"folded{saved.suffix}"
    report = wncli.remove(saved, output)
    assert len(report.layers) == len(pairs) == family.layers

    remove_its_own_way(family, model)
    own, folded = model.state_dict(), read(output)
    assert set(folded) == set(own)
    assert all(bits(folded[name]) == bits(own[name]) for name in own.keys() - pairs.keys())
    for name, (g, v) in pairs.items():
        exact = g.double() * v.double() / norm64(g, v)
        assert ulps(folded[name], exact) < 1.0001
        assert ulps(own[name], exact) < 16
        assert not torch.allclose(folded[name], v, rtol=0.01)  # there was something to fold
    model.load_state_dict(folded | {name: v for name, (_, v) in pairs.items()}, strict=True)
    print("DIFF", family.model, differences(family, model, before))
    assert min(differences(family, model, before)) > DIFFERENT
    model.load_state_dict(folded, strict=True)
    print("OUT", family.model, differences(family, model, before))
    assert max(differences(family, model, before)) < SAME


@every_storage
@both_spellings
@every_family
def test_like_gives_a_plain_checkpoint_the_state_dict_of_the_model(
    family: Family, spelling: Spelling, save: Save, tmp_path: Path
) -> None:
    plain = build(family, spelling, seed=0)
    remove_its_own_way(family, plain)
    model = build(family, spelling, seed=1)
    saved, reference = save(plain, tmp_path / "plain"), save(model, tmp_path / "reference")
    output = tmp_path / f"normalized{saved.suffix}"
    report = wncli.convert(saved, output, like=reference)
    assert len(report.layers) == family.layers

    own, weights, normalized = model.state_dict(), plain.state_dict(), read(output)
    pairs = pairs_of(normalized)
    assert set(normalized) == set(own)
    assert all(normalized[name].shape == own[name].shape for name in own)
    assert all(
        bits(normalized[name]) == bits(weights[name]) for name in own.keys() & weights.keys()
    )
    for name, (g, v) in pairs.items():
        assert bits(v) == bits(weights[name])
        assert ulps(g, norm64(g, v)) < 1
    model.load_state_dict(normalized, strict=True)
    assert max(differences(family, model, compute(family, plain))) < SAME


@every_storage
@every_family
def test_either_spelling_loads_into_the_model_and_computes_the_same_bits(
    family: Family, save: Save, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    saved = save(model, tmp_path / "model")
    hooked, back = (tmp_path / f"{name}{saved.suffix}" for name in ("hooked", "back"))
    assert len(wncli.convert(saved, hooked, naming="hook").layers) == family.layers
    wncli.convert(hooked, back, naming="parametrized")

    expected = output_bits(family, model)
    names = set(build(family, "hook", seed=1).state_dict())
    assert set(read(hooked)) == names
    spellings: list[Spelling] = ["hook", "parametrized"]
    for spelling in spellings:  # PyTorch's parametrized modules read the hook's names too
        fresh = build(family, spelling, seed=1)
        assert output_bits(family, fresh) != expected
        fresh.load_state_dict(read(hooked), strict=True)
        assert output_bits(family, fresh) == expected
    own, again = model.state_dict(), read(back)
    assert {name: bits(value) for name, value in again.items()} == {
        name: bits(value) for name, value in own.items()
    }


def open_pretrained(family: Family, folder: Path) -> PreTrainedModel:
    """What `from_pretrained` makes of a folder, where no tensor may be missing or left over."""
    model, info = family.kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


@whole_and_sharded
@every_built_in
def test_from_pretrained_opens_the_folder_that_convert_wrote(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.convert(tmp_path / "model", tmp_path / "kept")
    wncli.convert(tmp_path / "model", tmp_path / "smaller", max_shard_size=SHARD)
    wncli.convert(tmp_path / "model", tmp_path / "hooked", naming="hook")  # transformers renames it
    assert len(list((tmp_path / "smaller").glob("*.safetensors"))) > 1
    for folder in ("kept", "smaller", "hooked"):
        opened = open_pretrained(family, tmp_path / folder)
        assert output_bits(family, opened) == output_bits(family, model)


@whole_and_sharded
@every_applied
def test_from_pretrained_opens_the_folder_that_remove_wrote(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.remove(tmp_path / "model", tmp_path / "folded")
    opened = open_pretrained(family, tmp_path / "folded")
    assert max(differences(family, opened, compute(family, model))) < SAME


@whole_and_sharded
@every_built_in
def test_like_mends_a_folded_folder_that_from_pretrained_would_fill_with_random_weights(
    family: Family, size: str, tmp_path: Path
) -> None:
    model = build(family, "parametrized", seed=0)
    model.save_pretrained(tmp_path / "model", max_shard_size=size)
    wncli.remove(tmp_path / "model", tmp_path / "folded")
    _, info = family.kind.from_pretrained(tmp_path / "folded", output_loading_info=True)
    assert info["missing_keys"] == {
        f"{name.removesuffix('weight')}parametrizations.weight.original{half}"
        for name in pairs_of(model.state_dict())
        for half in (0, 1)
    }
    wncli.convert(tmp_path / "folded", tmp_path / "mended", like=tmp_path / "model")
    mended = open_pretrained(family, tmp_path / "mended")
    assert max(differences(family, mended, compute(family, model))) < SAME
