"""Examples of each command, which the help and the manual show; those of "" are of `wn` itself.

Each is a line of a shell beside `sample_models`, and says what it is for. No quoted word has a
blank in it, so that a narrow terminal may break the line at each.
"""

from __future__ import annotations

_RUN = "sample_models/training.pt"

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("wn inspect sample_models/training.pt", "What is in this file?"),
        (
            "wn remove sample_models/hifigan_generator generator.safetensors",
            "Fold a HiFi-GAN generator for inference.",
        ),
        ("wn help remove", "Say all about one command."),
    ),
    "inspect": (
        (
            "wn inspect sample_models/training.pt",
            "Show the layers with weight norm, and what else is in the file.",
        ),
        (
            "wn inspect sample_models/linear.pt --tensors",
            "List every tensor, for example to choose some for `wn apply -l`.",
        ),
        (
            "wn inspect sample_models/wavenet.pt --check",
            "Read all of it, and look for damage, NaN and dead channels.",
        ),
    ),
    "apply": (
        ("wn apply sample_models/linear.pt linear_wn.pt", "Split each weight along dim 0."),
        (
            "wn apply sample_models/linear.pt columns.pt -l weight=1",
            "Split this one layer, along dim 1.",
        ),
        (
            "wn apply sample_models/linear.pt whole.pt --dim none --naming parametrized",
            "One magnitude for a whole weight, under the names of the new API.",
        ),
    ),
    "remove": (
        (
            "wn remove sample_models/hifigan_generator generator.safetensors",
            "Fold a HiFi-GAN generator for inference.",
        ),
        (
            "wn remove sample_models/training.pt ema.pt --only ema --verify",
            "Fold the averaged weights alone, and read back what was written.",
        ),
        (
            "wn remove sample_models/wavenet.pt sample_models/lstm.pt --output-dir folded",
            "Fold several checkpoints, each under its own name.",
        ),
    ),
    "convert": (
        (
            "wn convert sample_models/training.pt hook.pt --naming hook",
            "Spell g and v weight_g and weight_v; the optimizer's state stays valid.",
        ),
        (
            "wn convert sample_models/hifigan_generator generator_wn.safetensors",
            "Change the format alone.",
        ),
        (
            f"wn convert {_RUN} averaged.pt --only ema=model --like {_RUN}",
            "Put the averaged weights where the code loads the model from.",
        ),
    ),
    "compare": (
        (
            f"wn compare {_RUN} {_RUN} --only model=ema",
            "How far is the model from its average?",
        ),
        (
            f"wn compare {_RUN} {_RUN} --only model=ema -l 'mlp.*' --rtol 1e-2",
            "Compare some layers, and let them differ by 1 %.",
        ),
        (
            "wn compare sample_models/lstm.pt sample_models/lstm.pt -q && echo equal",
            "Answer with the exit code alone, for scripts.",
        ),
    ),
}
