"""The files that documents work on: each function writes into the folder of a page.

A page names those it wants: `<!-- files: NAME -->`. The files have the names that people know, and
small random models in them.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.how_to_files import (  # noqa: F401 - pages name them
    dac,
    dino,
    encodec,
    hifi_gan,
    kokoro,
    many,
    released,
    voice_conversion,
    wav2vec2,
)


def plain_conv(folder: Path) -> None:
    """`plain.pt`: the plain weight and bias of one convolution."""
    torch.save(torch.nn.Conv1d(8, 16, 3).state_dict(), folder / "plain.pt")
