"""Results in a session of Python: one line each."""

from __future__ import annotations

from pathlib import Path

import torch

import wncli
from tests.support.run import SAMPLES


def test_a_layer_is_one_line_that_says_which_and_how() -> None:
    first = wncli.inspect(SAMPLES / "hifigan_generator").layers["conv_pre"]
    assert repr(first) == "<Layer generator.conv_pre.weight: 32 of 32x16x7, dim 0, float32, hook>"
    (layer,) = wncli.inspect(SAMPLES / "wav2vec2_pos_conv.safetensors").layers
    assert repr(layer).endswith(".conv.weight: 128 of 32x2x128, dim 2, float32, parametrized>")


def test_a_layer_that_is_written_says_what_became_of_it(tmp_path: Path) -> None:
    report = wncli.apply(SAMPLES / "linear.pt", tmp_path / "out.pt", dim=None)
    (layer,) = report.layers
    assert repr(layer) == "<Layer weight: 1 of 3x5, whole tensor, float32, hook, apply>"


def test_no_name_breaks_the_line(tmp_path: Path) -> None:
    name = "a\nb\x1b[31m"
    torch.save(
        {f"{name}.weight_g": torch.ones(2, 1), f"{name}.weight_v": torch.ones(2, 3)},
        tmp_path / "odd.pt",
    )
    report = wncli.inspect(tmp_path / "odd.pt")
    for shown in (repr(report), repr(report.layers[0])):
        assert shown.isprintable()
