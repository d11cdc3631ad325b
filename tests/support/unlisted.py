"""Finds random files of which torch.load runs something that `wn inspect` does not list."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support import random_calls
from tests.support.run import environment
from wncli.errors import WnError
from wncli.formats.open import open_checkpoint


@dataclass(frozen=True)
class Count:
    """How many files there were, were listed, and ran something; and those that were not listed."""

    files: int = 0
    listed: int = 0
    ran: int = 0
    unlisted: tuple[str, ...] = ()

    def __add__(self, more: Count) -> Count:
        return Count(
            self.files + more.files,
            self.listed + more.listed,
            self.ran + more.ran,
            self.unlisted + more.unlisted,
        )


def look_at(seeds: Iterable[int], folder: Path) -> Count:
    """Make a file of each seed in a folder, load it, and keep it where it ran unlisted."""
    made = {folder / f"{seed}.pt": random_calls.Maker(seed).file() for seed in seeds}
    listed: dict[Path, bool] = {}
    for path, (content, _) in made.items():
        path.write_bytes(content)
        listed[path] = is_listed(path)
    ran = loaded([(str(path), file.modules) for path, file in made.items()])
    unlisted: list[str] = []
    for path, events in zip(made, ran, strict=True):
        if events and not listed[path]:
            unlisted.append(f"{path}: {events[0]}")
        else:
            path.unlink()
    return Count(len(made), sum(listed.values()), sum(map(bool, ran)), tuple(unlisted))


def is_listed(path: Path) -> bool:
    """Whether `wn inspect` lists something that would run; a refusal keeps a file out as well."""
    try:
        with open_checkpoint(path) as (checkpoint, _):
            return bool(checkpoint.would_run)
    except WnError:
        return True


def loaded(files: list[tuple[str, tuple[str, ...]]]) -> list[list[str]]:
    """What each of these files, with the modules that it names, runs as it is loaded."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.torch_load"],
        input=json.dumps(files),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    found: list[list[str]] = json.loads(ran.stdout)
    return found
