"""Draws the figures of docs/tutorial.md, from real trainings of the sample WaveNet.

Run from the repository: `python docs/tutorial/make.py` (PyTorch and Matplotlib; some minutes on a
CPU). The figures stand beside this file; what is printed is the table of the page. Each seed makes
one WaveNet, which is trained from each of the `STARTS`, on all of the samples' tone in every step.
"""

from __future__ import annotations

import io
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

if __name__ == "__main__":  # Python looks in this folder, and not in the repository's
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import wncli.pytorch as wn
from sample_models.make import PLAIN, descend, synthetic_waveform, wavenet_loss

HERE = Path(__file__).resolve().parent
SEEDS = range(5)
STEPS = 300
#: Every so many steps are drawn.
EVERY = 10
#: The layer whose slices are drawn, every other one of 32: in the middle of the network.
DRAWN = "blocks.3.dilated"
#: Okabe and Ito's, which everybody can tell apart.
COLOURS = ("#000000", "#0072B2", "#009E73", "#D55E00")
#: Text stays text, and the white ground is drawn: it reads the same on a dark page.
STYLE = {
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "wn",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Attributes:
        losses: before each step and after the last, in nats.
        layers: the layer of each slice of more than one number; none without weight norm.
        g: the magnitudes of these slices at the same times, (steps + 1, slices).
        norms: the norms of their directions, as `g`.
    """

    losses: list[float]
    layers: list[str]
    g: NDArray[np.float64]
    norms: NDArray[np.float64]


def plain(model: nn.Module, _: Tensor) -> None:
    """Leave the WaveNet as PyTorch makes it."""


def normalized(model: nn.Module, _: Tensor) -> None:
    """Put weight norm on it, which changes no output."""
    wn.apply_weight_norm(model)


def initialized(model: nn.Module, batch: Tensor) -> None:
    """Put weight norm on it, and set g and biases from the data."""
    wn.apply_weight_norm(model)
    wn.initialize(model, batch)


def initialized_plain(model: nn.Module, batch: Tensor) -> None:
    """Start from the same function as `initialized`, with plain weights."""
    initialized(model, batch)
    wn.remove_weight_norm(model)


STARTS: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "plain weights": plain,
    "weight norm": normalized,
    "weight norm, initialized from data": initialized,
    "plain weights, from that same start": initialized_plain,
}
#: Plain gradient descent has no momentum and no memory.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "gradient descent": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
}
#: By start, optimizer and seed.
Runs = dict[tuple[str, str, int], Run]


def train(start: str, optimizer: str, seed: int, steps: int = STEPS) -> Run:
    """Train one WaveNet, from the random weights of its seed."""
    torch.manual_seed(seed)
    model, wave = PLAIN["wavenet.pt"](), synthetic_waveform()
    STARTS[start](model, wave.view(-1, 1, 512)[..., :-1])
    downhill = OPTIMIZERS[optimizer](list(model.parameters()))
    pairs = pairs_of(model)
    losses, g, norms = [], [], []
    for step in range(steps + 1):
        g.append([float(each) for magnitudes, _ in pairs.values() for each in magnitudes])
        norms.append([norm for _, v in pairs.values() for norm in norms_of(v)])
        loss = wavenet_loss(model, wave)
        losses.append(descend(downhill, loss) if step < steps else loss.item())
    layers = [name for name, (magnitudes, _) in pairs.items() for _ in magnitudes]
    return Run(losses, layers, np.array(g), np.array(norms))


def pairs_of(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return g and v of each layer but of those whose slices are one number, which cannot turn."""
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    suffix = ".parametrizations.weight.original"
    return {
        name.removesuffix(f"{suffix}1"): (parameters[f"{name[:-1]}0"], v)
        for name, v in parameters.items()
        if name.endswith(f"{suffix}1") and v[0].numel() > 1
    }


def norms_of(v: Tensor) -> list[float]:
    """Return the norm of each slice along dim 0."""
    found: list[float] = v.double().flatten(1).norm(dim=1).tolist()
    return found


def draw_losses(runs: Runs) -> Figure:
    """Draw the loss from each start: the median of the seeds, and where the middle three are."""
    figure = Figure((7.2, 3.3), layout="constrained")
    for axes, optimizer in zip(figure.subplots(1, 2, sharey=True), OPTIMIZERS, strict=True):
        for start, colour in zip(STARTS, COLOURS, strict=True):
            losses = np.array([runs[start, optimizer, seed].losses for seed in SEEDS])[:, ::EVERY]
            steps = np.arange(losses.shape[1]) * EVERY
            low, middle, high = np.percentile(losses, [25, 50, 75], axis=0)
            dashes = "--" if start.startswith("plain") else "-"
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(steps, middle, dashes, color=colour, label=start)
        axes.set(title=optimizer, xlabel="step", ylim=(0, None), xlim=(0, STEPS))
    figure.axes[0].set_ylabel("loss (nats per sample)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_norms(runs: Runs) -> Figure:
    """Draw what becomes of ‖v‖ and of g ÷ ‖v‖ in one layer, where weight norm was just put on."""
    figure = Figure((7.2, 4.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for column, optimizer in zip(grid.T, OPTIMIZERS, strict=True):
        run = runs["weight norm", optimizer, SEEDS[0]]
        chosen = np.flatnonzero(np.array(run.layers) == DRAWN)[::2]
        for axes, values, colour in (
            (column[0], run.norms / run.norms[0], COLOURS[1]),
            (column[1], run.g / run.norms, COLOURS[2]),
        ):
            drawn = values[::EVERY][:, chosen]
            axes.plot(np.arange(len(drawn)) * EVERY, drawn, color=colour, lw=0.8, alpha=0.8)
            axes.axhline(1, color="#808080", lw=0.6)
        column[0].set_title(optimizer)
        column[1].set(xlabel="step", xlim=(0, STEPS))
    grid[0, 0].set_ylabel("‖v‖ ÷ ‖v‖ at the start")
    grid[1, 0].set_ylabel("g ÷ ‖v‖")
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as SVG, with tenths of a point and neither date nor version."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Creator": None, "Date": None})
    short = re.sub(r"(\d\.\d)\d+", r"\1", drawn.getvalue())
    return re.sub(r" +$", "", short, flags=re.MULTILINE)


def row(start: str, runs: Runs) -> str:
    """Return a row of the page's table: the median of the seeds, and their range."""
    cells = []
    for optimizer in OPTIMIZERS:
        last = [runs[start, optimizer, seed].losses[-1] for seed in SEEDS]
        cells.append(f"{statistics.median(last):.2f} ({min(last):.2f} to {max(last):.2f})")
    return f"| {start} | {' | '.join(cells)} |"


def main() -> None:
    """Train, draw both figures, and print the table."""
    torch.set_num_threads(1)
    runs = {
        (start, optimizer, seed): train(start, optimizer, seed)
        for optimizer in OPTIMIZERS
        for start in STARTS
        for seed in SEEDS
    }
    print(*(row(start, runs) for start in STARTS), sep="\n")
    with mpl.rc_context(STYLE):
        for name, draw in {"losses": draw_losses, "norms": draw_norms}.items():
            path = HERE / f"{name}.svg"
            path.write_text(svg(draw(runs)), encoding="utf-8")
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
