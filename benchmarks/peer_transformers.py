"""The way through the model's code: load with transformers, remove weight norm there, save.

python -m benchmarks.peer_transformers write FOLDER BYTES
python -m benchmarks.peer_transformers remove FOLDER OUTPUT

The hook spelling is used: that is what the model's own `remove_weight_norm` takes away (it calls
`torch.nn.utils.remove_weight_norm`, which refuses parametrizations).
"""

from __future__ import annotations

import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
warnings.simplefilter("ignore", FutureWarning)  # torch.nn.utils.weight_norm is deprecated

import torch  # noqa: E402 - the settings come first
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig  # noqa: E402

_CHANNELS = 512
_STEP = 16  # four upsampling layers halve the channels


class NormalizedHifiGan(SpeechT5HifiGan):  # type: ignore[misc] # transformers is not followed
    """The generator as it stands in training, so that `from_pretrained` finds g and v a place."""

    def __init__(self, config: SpeechT5HifiGanConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                torch.nn.utils.weight_norm(module)


def write(folder: str, nbytes: int) -> None:
    """Save a normalized generator of random numbers whose width makes it near `nbytes` large."""
    with torch.device("meta"):
        usual = SpeechT5HifiGan(SpeechT5HifiGanConfig(upsample_initial_channel=_CHANNELS))
    size = sum(parameter.numel() * 4 for parameter in usual.parameters())
    channels = max(1, round(_CHANNELS / _STEP * (nbytes / size) ** 0.5)) * _STEP
    model = NormalizedHifiGan(SpeechT5HifiGanConfig(upsample_initial_channel=channels))
    torch.manual_seed(2020)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_g"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=1 / 16)
    model.save_pretrained(folder)


def remove(folder: str, output: str) -> None:
    """`from_pretrained`, the model's own `remove_weight_norm`, `save_pretrained`."""
    model = NormalizedHifiGan.from_pretrained(folder)
    model.remove_weight_norm()
    model.save_pretrained(output)


def main(command: str, folder: str, last: str) -> None:
    """Run one command."""
    if command == "write":
        write(folder, int(last))
    else:
        remove(folder, last)


if __name__ == "__main__":
    main(*sys.argv[1:])
