"""Makes the sample checkpoints beside this file: `python sample_models/make.py`.

`BUILDERS[file]()` is the module of that file with weight norm, `PLAIN[file]()` the same module
without it. Importing this file writes nothing, seeds nothing and warns of nothing; running it twice
on one machine writes the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

if not __package__:  # run as a file: Python looks in its folder, and not in the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from sample_models.files import write
from sample_models.networks.hifigan import HiFiGanGenerator
from sample_models.networks.wavenet import CONFIG as WAVENET_CONFIG
from sample_models.networks.wavenet import WaveNet
from sample_models.samples import SAMPLES
from sample_models.training import descend, synthetic_waveform, wavenet_loss

__all__ = [
    "BUILDERS",
    "PLAIN",
    "WAVENET_CONFIG",
    "HiFiGanGenerator",
    "WaveNet",
    "descend",
    "synthetic_waveform",
    "wavenet_loss",
]

PLAIN = {sample.file: sample.build for sample in SAMPLES}
BUILDERS = {sample.file: sample.normalized for sample in SAMPLES}


def main() -> None:
    """Write every file beside this one."""
    torch.set_num_threads(1)
    for sample in SAMPLES:
        write(sample, Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
