"""Training that is saved and resumed by FSDP2, on any number of ranks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.support.layers import Spelling, normalize

FORMS = ("nested", "flat")


def vocoder(spelling: Spelling | None) -> nn.Module:
    """Layers with weight norm of several dims, and plain ones; the same weights in any spelling."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.ConvTranspose1d(5, 4, 2), nn.Linear(8, 7), nn.BatchNorm1d(4)
    )
    if spelling:
        normalize(made[0], "weight", 0, spelling)
        normalize(made[1], "weight", 1, spelling)
        normalize(made[2], "weight", 0, spelling)
    return made


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Train on numbers that are the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    model(torch.randn(2, 3, 9, generator=generator)).square().mean().backward()
    optimizer.step()


def sharded(spelling: Spelling | None) -> nn.Module:
    """The same, each rank with its rows."""
    model = vocoder(spelling)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def options_of(form: str) -> StateDictOptions:
    return StateDictOptions(flatten_optimizer_state_dict=form == "flat")


def save_training(folder: Path) -> None:
    """Train two steps, and save model and optimizer, in each spelling and form."""
    for spelling in ("hook", "parametrized"):
        model = sharded(spelling)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for seed in (1, 2):
            step(model, optimizer, seed)
        for form in FORMS:
            state, of_optimizer = get_state_dict(model, optimizer, options=options_of(form))
            tree = {"model": state, "optim": of_optimizer, "epoch": 2}
            _quietly(save, tree, checkpoint_id=folder / f"{spelling}-{form}")


def resume_training(folder: Path) -> None:
    """Load what `task.json` says, train a step, and save the whole weights."""
    task = json.loads((folder / "task.json").read_text())
    model = sharded(task["spelling"])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    options = options_of(task["form"])
    state, of_optimizer = get_state_dict(model, optimizer, options=options)
    tree: dict[str, Any] = {"model": state, "optim": of_optimizer, "epoch": 0}
    _quietly(load, tree, checkpoint_id=task["checkpoint"])
    assert tree["epoch"] == 2
    set_state_dict(
        model,
        optimizer,
        model_state_dict=tree["model"],
        optim_state_dict=tree["optim"],
        options=options,
    )
    step(model, optimizer, 3)
    _keep_whole(model, folder)


def load_weights(folder: Path) -> None:
    """Load the model's weights alone from what `task.json` says, and save them whole."""
    task = json.loads((folder / "task.json").read_text())
    model = sharded(task["spelling"])
    tree = {"model": get_model_state_dict(model)}
    _quietly(load, tree, checkpoint_id=task["checkpoint"])
    set_model_state_dict(model, tree["model"], options=StateDictOptions(strict=True))
    _keep_whole(model, folder)


def _keep_whole(model: nn.Module, folder: Path) -> None:
    options = StateDictOptions(full_state_dict=True)
    whole = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        torch.save(whole, folder / "found.pt")


def _quietly(function: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(*arguments, **options)
