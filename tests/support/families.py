"""Small models of transformers that are normalized, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.support.layers import Spelling

Outputs = list[Tensor]


@dataclass(frozen=True)
class Family:
    """A kind of model: its configuration, what it computes, how many weights are normalized."""

    kind: type[hf.PreTrainedModel]
    config: hf.PreTrainedConfig
    compute: Callable[[hf.PreTrainedModel], Outputs]
    layers: int


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def encode_speech(model: hf.PreTrainedModel) -> Outputs:
    return [model(noise(2, 400)).last_hidden_state]


def vocode(model: hf.PreTrainedModel) -> Outputs:
    return [model(noise(2, 9, 8))]


def vocode_noise(model: hf.PreTrainedModel) -> Outputs:
    return [model(noise(1, 12, 8), noise_sequence=noise(1, 12, 4)).waveforms]


def code(model: hf.PreTrainedModel) -> Outputs:
    """Both sides of a codec, and DAC's projections; no choice of codes, which hides differences."""
    latent = noise(1, model.config.hidden_size, 16)
    quantizers = getattr(model.quantizer, "quantizers", ())
    projected = [each.out_proj(each.in_proj(latent)) for each in quantizers]
    return [model.encoder(noise(1, 1, 64)), model.decoder(latent), *projected]


def speak_and_hear(model: hf.PreTrainedModel) -> Outputs:
    """The posterior encoder, which is normalized too, only trains."""
    torch.manual_seed(2)  # the model draws noise of its own
    spoken = model(torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]]), speaker_id=1).waveform
    return [spoken, *model.posterior_encoder(noise(1, 9, 20), torch.ones(1, 1, 20), noise(1, 4, 1))]


SPEECH_ENCODER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 6, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
ENCODEC = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [2, 2], "codebook_size": 16}
UPSAMPLER = {
    "upsample_initial_channel": 16, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]],
}  # fmt: skip
VITS = UPSAMPLER | {
    "hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "flow_size": 8,
    "spectrogram_bins": 9, "num_speakers": 3, "speaker_embedding_size": 4,
    "prior_encoder_num_flows": 2, "prior_encoder_num_wavenet_layers": 2,
    "posterior_encoder_num_wavenet_layers": 2,
}  # fmt: skip
DAC = {
    "encoder_hidden_size": 8, "decoder_hidden_size": 16, "downsampling_ratios": [2, 2],
    "n_codebooks": 2, "codebook_size": 16, "codebook_dim": 4,
}  # fmt: skip
UNIVNET = {
    "model_in_channels": 4, "model_hidden_channels": 4, "num_mel_bins": 8,
    "resblock_kernel_sizes": [3, 3], "resblock_stride_sizes": [2, 2],
    "resblock_dilation_sizes": [[1, 3], [1, 3]], "kernel_predictor_hidden_channels": 4,
}  # fmt: skip
#: Normalized as soon as they are built. The first two are so along dim 2.
BUILT_IN = [
    Family(hf.Wav2Vec2Model, hf.Wav2Vec2Config(**SPEECH_ENCODER), encode_speech, 1),
    Family(hf.WavLMModel, hf.WavLMConfig(**SPEECH_ENCODER), encode_speech, 1),
    Family(hf.EncodecModel, hf.EncodecConfig(**ENCODEC), code, 20),
    Family(hf.VitsModel, hf.VitsConfig(**VITS), speak_and_hear, 15),
]
#: With an `apply_weight_norm` and a `remove_weight_norm` of their own.
APPLIED = [
    Family(hf.SpeechT5HifiGan, hf.SpeechT5HifiGanConfig(**UPSAMPLER, model_in_dim=8), vocode, 20),
    Family(hf.DacModel, hf.DacConfig(**DAC), code, 36),
    Family(hf.UnivNetModel, hf.UnivNetConfig(**UNIVNET), vocode_noise, 26),
]


def build(family: Family, spelling: Spelling, seed: int) -> hf.PreTrainedModel:
    """A normalized model whose magnitudes are far from the norms of its directions."""
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        if spelling == "hook":
            patch.delattr(torch.nn.utils.parametrizations, "weight_norm")
        model = family.kind(family.config)
        if family in APPLIED:
            model.apply_weight_norm()
    model.eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("_g", "original0")):
            parameter.uniform_(0.3, 1.2)
    return model


def remove_its_own_way(family: Family, model: hf.PreTrainedModel) -> None:
    """Fold with the model's own method, which knows the hook alone, otherwise with PyTorch's."""
    parametrized = [each for each in model.modules() if parametrize.is_parametrized(each)]
    hooked = [each for each in model.modules() if hasattr(each, "weight_g")]
    for module in parametrized:
        parametrize.remove_parametrizations(module, "weight")
    if family in APPLIED and hooked:
        model.remove_weight_norm()
        return
    for module in hooked:
        nn.utils.remove_weight_norm(module)
